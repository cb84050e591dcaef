"""What a selection needs, what of it is at hand, and how much is to be fetched."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import numpy as np
from zarr.abc.store import Store
from zarr.storage import MemoryStore, WrapperStore

from zarr_cache.core.flow import run_async
from zarr_cache.warming.coverage import list_cached
from zarr_cache.warming.report import WarmPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from zarr_cache.cache.store import CacheStore
    from zarr_cache.cache.view import SourceView
    from zarr_cache.index.lookup import Kept
    from zarr_cache.warming.chunk_grid import StoredChunks


SIZES_ASKED = 32


"""The sizes of so many chunks of an array tell a dry run those of all others."""


MISSING, KEPT, ABSENT = range(3)


class Part:
    """Keys that are to be at hand: of the stored chunks of one array, or of metadata.

    Parameters
    ----------
    keys
        The keys, in order.
    prefixes
        How the keys begin: one query each.
    nbytes
        Bytes of each value before it is encoded; None if nothing tells.
    is_chunks
        Whether these are chunks.

    Attributes
    ----------
    states
        Of each key `MISSING`, `KEPT` or `ABSENT`.
    largest
        Most bytes of a value that has been seen; None if none has been.
    """

    def __init__(
        self,
        keys: StoredChunks | Sequence[str],
        prefixes: Sequence[str],
        *,
        nbytes: int | None,
        is_chunks: bool,
    ) -> None:
        self._keys = keys
        self._prefixes = prefixes
        self.nbytes = nbytes
        self.is_chunks = is_chunks
        self.states = np.zeros(len(keys), np.uint8)
        self.largest: int | None = None

    @property
    def expected(self) -> int | None:
        """Bytes that the next value is taken to have: as many as the largest that has been seen."""
        return self.nbytes if self.largest is None else self.largest

    async def look(self, cached: SourceView) -> dict[str, Kept]:
        """What the cache answers without a request, of these keys and of others beside them."""
        found: dict[str, Kept] = {}
        for prefix in self._prefixes:
            found |= await run_async(list_cached(cached, prefix))
        return found

    def states_of(self, kept: Mapping[str, Kept]) -> npt.NDArray[np.uint8]:
        """The state of each key."""

        def state(key: str) -> int:
            found = kept.get(key)
            if found is None:
                return MISSING
            return ABSENT if found[1] is None else KEPT

        return np.fromiter(map(state, self._keys), np.uint8, count=self.states.size)

    def keys(self, state: int) -> Iterator[str]:
        """The keys that have the state now."""
        return itertools.compress(self._keys, self.states == state)

    def missing(self) -> Iterator[tuple[int, str]]:
        """Place and key of each that is missing now."""
        places = np.flatnonzero(self.states == MISSING).tolist()
        return zip(places, self.keys(MISSING), strict=True)

    def see(self, nbytes: int) -> None:
        """Note the bytes of a value."""
        self.largest = max(nbytes, self.largest or 0)

    def count(self, state: int) -> int:
        """How many keys have the state."""
        return int(np.count_nonzero(self.states == state))


def count(parts: Sequence[Part], state: int) -> int:
    """How many chunks have the state."""
    return sum(part.count(state) for part in parts if part.is_chunks)


def count_all(parts: Sequence[Part]) -> int:
    """How many chunks there are."""
    return sum(part.states.size for part in parts if part.is_chunks)


async def plan(
    store: CacheStore, cached: SourceView, parts: Sequence[Part], max_concurrency: int
) -> WarmPlan:
    """What is to be fetched, by a look at the cache and at the sizes of a few chunks."""
    cached_bytes = asked = 0
    nbytes: int | None = 0
    may_ask = _tells_sizes(cached.source)
    for part in parts:
        kept = await part.look(cached)
        part.states = part.states_of(kept)
        if part.is_chunks:
            cached_bytes += sum(kept[key][1] or 0 for key in part.keys(KEPT))
            sizes = await _some_sizes(store, part, max_concurrency) if may_ask else []
            expected = _bytes_of(part, sizes)
            nbytes = None if nbytes is None or expected is None else nbytes + expected
            asked += len(sizes)
    return WarmPlan(
        chunks=count_all(parts),
        cached=count(parts, KEPT),
        cached_bytes=cached_bytes,
        absent=count(parts, ABSENT),
        requests=sum(part.count(MISSING) for part in parts),
        nbytes=nbytes,
        sizes_asked=asked,
        is_exact=asked == count(parts, MISSING),
        max_size=store.max_size,
    )


async def _some_sizes(store: CacheStore, part: Part, max_concurrency: int) -> list[int]:
    """Sizes of missing chunks spread evenly over the part; 0 for those that seem to be absent.

    Each of those is a request later all the same: see `reading.exists`.
    """
    missing = part.count(MISSING)
    chosen = set(np.linspace(0, missing - 1, min(missing, SIZES_ASKED)).astype(int).tolist())

    async def ask(key: str) -> int:
        async with turns:
            try:
                return await store.getsize(key)
            except FileNotFoundError:
                return 0

    turns = asyncio.Semaphore(max_concurrency)
    keys = (key for place, key in enumerate(part.keys(MISSING)) if place in chosen)
    return await asyncio.gather(*map(ask, keys))


def _bytes_of(part: Part, sizes: Sequence[int]) -> int | None:
    """Bytes of all missing chunks of the part, some of which have these sizes."""
    missing = part.count(MISSING)
    if sizes:
        return sum(sizes) * missing // len(sizes)
    return part.nbytes and part.nbytes * missing if missing else 0


def _tells_sizes(source: Store) -> bool:
    """Whether the source tells the size of a value without a read of all of it over a network."""
    while isinstance(source, WrapperStore):
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
    return type(source).getsize is not Store.getsize or isinstance(source, MemoryStore)
