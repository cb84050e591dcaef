"""What warming is going to do, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zarr_cache.core.sizes import format_size

type Stop = Literal["budget", "fault", "gone"]


_REASONS: dict[Stop, str] = {
    "budget": "more would not fit into max_size beside them",
    "fault": "the cache failed and keeps nothing; the warning says why",
    "gone": "what was at hand is not any more: it is stale, or other reads took its room",
}


@dataclass(frozen=True, slots=True)
class WarmPlan:
    """What `warm` would do; no chunk has been fetched.

    Attributes
    ----------
    chunks
        Chunks, or whole shards, that the selection touches.
    cached, cached_bytes
        Those whose values are in the cache, and fresh.
    absent
        Those that the source is known not to have.
    requests
        Requests to the source: for the other chunks, and for metadata that is not at hand.
    nbytes
        Bytes of the chunks that are to be fetched; None if nothing tells. Metadata is not counted.
    sizes_asked
        How many chunks the source was asked the sizes of. `nbytes` is exact if these were all,
        and an estimate otherwise: from those sizes or, if there are none, from the size of the
        chunks before they are compressed.
    is_exact
        Whether `nbytes` is exact.
    max_size
        Of the CacheStore.
    """

    chunks: int
    cached: int
    cached_bytes: int
    absent: int
    requests: int
    nbytes: int | None
    sizes_asked: int
    is_exact: bool
    max_size: int | None

    @property
    def fits(self) -> bool | None:
        """Whether `max_size` has room for the whole selection; None if nothing tells."""
        if self.max_size is None:
            return True
        return None if self.nbytes is None else self.cached_bytes + self.nbytes <= self.max_size

    def __str__(self) -> str:
        told = f"{_chunks(self.chunks)}: {self.cached} at hand, {self.absent} known to be absent; "
        told += f"{self.requests} requests for {self._bytes()}"
        if self.fits is False:
            told += f"; that is more than max_size, {format_size(self.max_size or 0)}"
        return told

    def _bytes(self) -> str:
        if self.nbytes is None:
            return "an unknown number of bytes"
        if self.is_exact:
            return format_size(self.nbytes)
        basis = f"by the sizes of {self.sizes_asked}" if self.sizes_asked else "before compression"
        return f"about {format_size(self.nbytes)} ({basis})"


@dataclass(frozen=True, slots=True)
class WarmReport:
    """What `warm` did. ``chunks == cached + fetched + absent + left``, unless some went again.

    Attributes
    ----------
    chunks
        Chunks, or whole shards, that the selection touches.
    cached
        Those that were in the cache already, and fresh.
    fetched
        Those that were fetched.
    absent
        Those that the source does not have: the array's fill value stands there.
    left
        Those that are not at hand at the end.
    bytes_fetched
        Bytes that came from the source, with those of the metadata.
    stopped
        Why there are some left. ``"budget"``: the next one would have evicted what the selection
        has at hand. ``"fault"``: the cache failed, and a warning said why. ``"gone"``: some were
        at hand and are not any more, since they are stale or since other reads took their room.
        None if there are none left.
    """

    chunks: int
    cached: int
    fetched: int
    absent: int
    left: int
    bytes_fetched: int
    stopped: Stop | None

    @property
    def is_complete(self) -> bool:
        """Whether the whole selection is at hand."""
        return self.left == 0

    def __str__(self) -> str:
        told = f"{_chunks(self.chunks)}: {self.cached} were at hand, {self.fetched} fetched "
        told += f"({format_size(self.bytes_fetched)}), {self.absent} absent"
        if self.stopped is not None:
            told += f"; {self.left} left: {_REASONS[self.stopped]}"
        return told


def _chunks(number: int) -> str:
    return f"{number} chunk" if number == 1 else f"{number} chunks"
