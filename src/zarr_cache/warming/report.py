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
        Chunks that the selection touches. Of a sharded array, inner chunks if the CacheStore has
        ``persist_ranges=True``, and whole shards otherwise.
    cached, cached_bytes
        Those that are cached and fresh, and the bytes of the entries that have them.
    absent
        Those that the cache remembers as absent from the source.
    requests
        Requests to the source: for the other chunks, and for metadata that is not cached. For inner
        chunks as zarr merges them; two for each shard whose index has not been read.
    nbytes
        Bytes of the chunks to fetch and of the indexes of their shards, without metadata; None if
        unknown. Bytes between inner chunks, which zarr requests to merge two reads, are not in it.
    sizes_asked
        How many chunks to fetch the size is known of. `nbytes` is exact if these are all, and
        otherwise estimated: from those sizes or, without any, from the size before compression.
    is_exact
        Whether `nbytes` is exact.
    max_size
        The budget of the CacheStore.
    whole_shards, inner_chunks
        How many of `chunks` are whole shards, and how many are inner chunks.
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
    whole_shards: int = 0
    inner_chunks: int = 0

    @property
    def fits(self) -> bool | None:
        """Whether `max_size` has room for the whole selection; None if unknown."""
        if self.max_size is None:
            return True
        return None if self.nbytes is None else self.cached_bytes + self.nbytes <= self.max_size

    def __str__(self) -> str:
        text = f"{_chunks(self)}: {self.cached} cached, {self.absent} known to be absent; "
        text += f"{_number(self.requests, 'request')} for {self._bytes()}"
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
        Chunks that the selection touches. Of a sharded array, inner chunks if the CacheStore has
        ``persist_ranges=True``, also those of shards that are fetched as wholes; otherwise whole
        shards.
    cached
        Those that were cached and fresh already.
    fetched
        Those that were fetched.
    absent
        Those that the source does not have: they hold the fill value.
    left
        Those that are not cached at the end.
    bytes_fetched
        Bytes from the source, including metadata and the indexes of shards.
    stopped
        Why some are left. ``"budget"``: the next one might not have fitted into `max_size` beside
        the rest of the selection. ``"fault"``: the cache failed, and a `CacheWarning` named the
        cause. ``"gone"``: some were cached and are no longer: they became stale, or were evicted
        for other reads. None if none are left.
    whole_shards, inner_chunks
        How many of `chunks` are whole shards, and how many are inner chunks.
    """

    chunks: int
    cached: int
    fetched: int
    absent: int
    left: int
    bytes_fetched: int
    stopped: Stop | None
    whole_shards: int = 0
    inner_chunks: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether the whole selection is cached."""
        return self.left == 0

    def __str__(self) -> str:
        text = f"{_chunks(self)}: {self.cached} were cached, {self.fetched} fetched "
        text += f"({format_size(self.bytes_fetched)}), {self.absent} absent"
        if self.stopped is not None:
            text += f"; {self.left} left: {_REASONS[self.stopped]}"
        return text


def _chunks(counts: WarmPlan | WarmReport) -> str:
    """How many chunks there are, and of which kind."""
    kinds = {"inner chunk": counts.inner_chunks, "whole shard": counts.whole_shards}
    parts = [_number(number, kind) for kind, number in kinds.items() if number]
    if counts.chunks in kinds.values() and len(parts) == 1:
        return parts[0]
    text = _number(counts.chunks, "chunk")
    return f"{text} ({', '.join(parts)})" if parts else text


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
