"""The reads of a process that wait to be sampled: a hit adds to a list, and computes nothing."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
from xxhash import xxh3_64_intdigest

from zarr_cache.sampling.sample import Batch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from zarr.abc.store import ByteRequest

    from zarr_cache.sampling.stored import Sampled

    type Read = tuple[str, str, ByteRequest | None, int, bool]

DUE = 4096
"""So many reads are a batch."""

DUE_TO_DECIDE = 1024
"""So many are, while a view asks what was decided."""

MAX_DUE = 8192
"""A batch has at most so many, of a cache whose keys are not all sampled."""

MAX_WAITING = 4 * MAX_DUE
"""While so many wait, since the file cannot be written to, others are not recorded."""

MAX_KNOWN = 8192
"""The ids of more values and ranges are computed anew."""

_LOW = (1 << 31) - 1
"""The part of an id in which the ranges of a key differ."""


LOOK_SECONDS = 1.0
"""How old the decision of another process may be."""


class Reads:
    """The reads that wait to be sampled, in their order, and what was decided from earlier ones.

    Any thread may call.

    Parameters
    ----------
    wake
        Called when a batch waits: has it written soon.
    look
        Returns the decision that the file has; None if it cannot be read.

    Attributes
    ----------
    max_size
        The budget of the last view that was made; None if it has none.
    """

    def __init__(
        self,
        wake: Callable[[], None] = lambda: None,
        look: Callable[[], bool | None] = lambda: None,
        max_size: int | None = None,
    ) -> None:
        self._wake, self._look = wake, look
        self.max_size = max_size
        self._due, self._scale, self._is_asked = DUE, 1, False
        self._keeps, self._look_at = False, 0.0
        self._ids: dict[tuple[str, str, ByteRequest | None], int] = {}
        self._start()

    def _start(self) -> None:
        # A thread that has taken hold of a list that is taken meanwhile adds to it in vain, and one
        # may count what another has read: a read in thousands makes no difference.
        self._waiting: list[Read] = []
        self._last: Read | None = None
        # How often a read was repeated at once, by the reads that waited then.
        self._repeated: defaultdict[int, int] = defaultdict(int)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def are_due(self) -> bool:
        """Whether it is time to sample them."""
        return len(self._waiting) >= self._due

    def add(
        self,
        namespace: str,
        key: str,
        request: ByteRequest | None,
        nbytes: int,
        is_hit: bool,  # noqa: FBT001 - a keyword costs time, at each hit
    ) -> None:
        """Record a read of so many bytes, which the cache has served or has not."""
        read = (namespace, key, request, nbytes, is_hit)
        waiting = self._waiting
        if read == self._last:
            self._repeated[len(waiting)] += 1
            return
        self._last = read
        waiting.append(read)
        if len(waiting) >= self._due:
            self._end_batch(len(waiting))

    def _end_batch(self, number: int) -> None:
        if number > MAX_WAITING:
            self._waiting.pop()
        elif not number % self._due:
            # Once for each batch: to wake costs more than to add.
            self._wake()

    def keeps(self) -> bool:
        """Whether a full cache with ``when_full="auto"`` evicts nothing at present."""
        if not self._is_asked:
            self._is_asked = True
            self._due = min(DUE_TO_DECIDE * self._scale, MAX_DUE)
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_SECONDS
            found = self._look()
            self._keeps = self._keeps if found is None else found
        return self._keeps

    def learn(self, sampled: Sampled | None) -> None:
        """Take over what has come of a batch of this process; None if it was lost."""
        if sampled is None:
            return
        self._keeps, self._look_at = sampled.keeps, time.monotonic() + LOOK_SECONDS
        self._scale = sampled.scale
        self._due = min((DUE_TO_DECIDE if self._is_asked else DUE) * self._scale, MAX_DUE)

    def take(self) -> Batch | None:
        """The reads since the last call; None if there are none."""
        waiting, repeated = self._waiting, self._repeated
        if not waiting:
            return None
        self._start()
        # In C where it can be: readers wait for the interpreter meanwhile.
        namespaces, keys, requests, sizes, hits = zip(*waiting, strict=True)
        places = list(zip(namespaces, keys, requests, strict=True))
        known = self._ids
        for place in set(places) - known.keys():
            known[place] = id_of(*place)
        ids = np.fromiter(map(known.__getitem__, places), np.int64, len(places))
        if len(known) > MAX_KNOWN:
            self._ids = {}
        return Batch(
            ids, np.array(sizes, np.int64), _counts(repeated, len(waiting)), np.array(hits, bool)
        )


def _counts(repeated: dict[int, int], number: int) -> npt.NDArray[np.int64]:
    counts = np.ones(number, np.int64)
    for index, times in repeated.items():
        if 0 < index <= number:
            counts[index - 1] += times
    return counts


def id_of(namespace: str, key: str, request: ByteRequest | None = None) -> int:
    """63 bits that tell one value or range from others; the upper 32 are of the key alone."""
    of_key = _hash(f"{namespace}\0{key}")
    return of_key if request is None else of_key & ~_LOW | _hash(repr(request)) & _LOW


def _hash(text: str) -> int:
    # A key may have surrogates: what came from a file name that is not UTF-8.
    return xxh3_64_intdigest(text.encode(errors="surrogatepass")) >> 1
