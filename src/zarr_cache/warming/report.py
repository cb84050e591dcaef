"""What warming would do, and what it has done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zarr_cache.core.sizes import format_size

type Stop = Literal["budget", "fault", "gone"]

_REASONS: dict[Stop, str] = {
    "budget": "max_size has no room for more of them",
    "fault": "the cache failed; a CacheWarning names the cause",
    "gone": "some are no longer cached: they became stale, or were evicted for other reads",
}


@dataclass(frozen=True, slots=True)
class WarmPlan:
    """What `warm` would do; no chunk has been fetched.

    Attributes
    ----------
    chunks
        Chunks, or whole shards, that the selection touches.
    cached, cached_bytes
        Those that are cached and fresh.
    absent
        Those that the cache remembers as absent from the source.
    requests
        Requests to the source: for the other chunks, and for metadata that is not cached.
    nbytes
        Bytes of the chunks to fetch, without metadata; None if unknown.
    sizes_asked
        How many chunks the size was requested of. `nbytes` is exact if these were all, and
        otherwise estimated: from those sizes or, without any, from the size before compression.
    is_exact
        Whether `nbytes` is exact.
    max_size
        The budget of the CacheStore.
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
        """Whether `max_size` has room for the whole selection; None if unknown."""
        if self.max_size is None:
            return True
        return None if self.nbytes is None else self.cached_bytes + self.nbytes <= self.max_size

    def __str__(self) -> str:
        text = f"{_chunks(self.chunks)}: {self.cached} cached, {self.absent} known to be absent; "
        text += f"{self.requests} requests for {self._bytes()}"
        if self.fits is False:
            text += f"; that is more than max_size, {format_size(self.max_size or 0)}"
        return text

    def _bytes(self) -> str:
        if self.nbytes is None:
            return "an unknown number of bytes"
        if self.is_exact:
            return format_size(self.nbytes)
        basis = (
            f"from the sizes of {self.sizes_asked}" if self.sizes_asked else "before compression"
        )
        return f"about {format_size(self.nbytes)} ({basis})"


@dataclass(frozen=True, slots=True)
class WarmReport:
    """What `warm` did: ``chunks == cached + fetched + absent + left``, unless some were evicted.

    Attributes
    ----------
    chunks
        Chunks, or whole shards, that the selection touches.
    cached
        Those that were cached and fresh already.
    fetched
        Those that were fetched.
    absent
        Those that the source does not have: they hold the fill value.
    left
        Those that are not cached at the end.
    bytes_fetched
        Bytes from the source, including metadata.
    stopped
        Why some are left. ``"budget"``: the next one might not have fitted into `max_size` beside
        the rest of the selection. ``"fault"``: the cache failed, and a `CacheWarning` named the
        cause. ``"gone"``: some were cached and are no longer: they became stale, or were evicted
        for other reads. None if none are left.
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
        """Whether the whole selection is cached."""
        return self.left == 0

    def __str__(self) -> str:
        text = f"{_chunks(self.chunks)}: {self.cached} were cached, {self.fetched} fetched "
        text += f"({format_size(self.bytes_fetched)}), {self.absent} absent"
        if self.stopped is not None:
            text += f"; {self.left} left: {_REASONS[self.stopped]}"
        return text


def _chunks(number: int) -> str:
    return f"{number} chunk" if number == 1 else f"{number} chunks"
