"""Traces as batches of reads, and plain models to compare the sample with."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from zarr_cache.sampling.histogram import FADING
from zarr_cache.sampling.reads import DUE, DUE_TO_DECIDE
from zarr_cache.sampling.sample import Batch, Sample

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from benchmarks.traces import Hits, Sizes, Trace

MIB = 2**20

PARTS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.75, 1.0)
"""Sizes of caches, as parts of all bytes."""


def ids_of(sizes: Sizes, seed: int) -> npt.NDArray[np.int64]:
    """Hashes of the keys."""
    return np.random.default_rng(seed + 99).integers(0, 2**63 - 1, len(sizes))


def batch_of(reads: Trace, sizes: Sizes, ids: npt.NDArray[np.int64], is_hit: Hits) -> Batch:
    """Reads of these keys."""
    return Batch(ids[reads], sizes[reads], np.ones(len(reads), np.int64), is_hit)


def sample_of(
    trace: Trace, sizes: Sizes, *, seed: int = 0, max_size: int | None = None, length: int = DUE
) -> Sample:
    """The sample after these reads, in batches of this length."""
    sample, ids = Sample(), ids_of(sizes, seed)
    for reads in in_batches(trace, length):
        sample.add(batch_of(reads, sizes, ids, np.zeros(len(reads), bool)), max_size)
    return sample


def in_batches(trace: Trace, length: int = DUE) -> Iterator[Trace]:
    """The trace, cut."""
    for start in range(0, len(trace), length):
        yield trace[start : start + length]


def rate(hits: Hits, trace: Trace, sizes: Sizes, fading: float = FADING) -> float:
    """The part of the bytes that were hits, with what is long ago fading."""
    weights = sizes[trace] * np.exp(-np.arange(len(trace))[::-1] / fading)
    return float((hits * weights).sum() / weights.sum())


def total(trace: Trace, sizes: Sizes) -> int:
    """Bytes of all keys of the trace."""
    return int(sizes[np.unique(trace)].sum())


class AutoCache:
    """A cache that evicts the least recently used, or nothing, as the sample decides."""

    def __init__(self, sizes: Sizes, max_size: int, seed: int = 0) -> None:
        self._sizes, self._max_size = sizes, max_size
        self._ids = ids_of(sizes, seed)
        self._cached: OrderedDict[int, int] = OrderedDict()
        self._used = 0
        self.sample = Sample()
        self.changes: list[int] = []

    def read(self, trace: Trace) -> Hits:
        """Which reads are hits; after each batch, the sample decides."""
        hits = []
        for reads in in_batches(trace, DUE_TO_DECIDE):
            keeps = self.sample.decision.keeps
            hits.append(np.array([self._is_hit(key, keeps=keeps) for key in reads.tolist()]))
            batch = batch_of(reads, self._sizes, self._ids, hits[-1])
            self.sample.add(batch, self._max_size)
            if self.sample.decision.keeps != keeps:
                self.changes.append(int((~hits[-1]).sum()))
        return np.concatenate(hits)

    def _is_hit(self, key: int, *, keeps: bool) -> bool:
        if key in self._cached:
            self._cached.move_to_end(key)
            return True
        size = int(self._sizes[key])
        if size > self._max_size or (keeps and self._used + size > self._max_size):
            return False
        while self._used + size > self._max_size:
            self._used -= self._cached.popitem(last=False)[1]
        self._cached[key] = size
        self._used += size
        return False
