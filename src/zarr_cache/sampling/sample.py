"""The sample of reads: keys whose hash is low, their order of use, and what each read needs.

After Waldspurger and others, "Efficient MRC Construction with SHARDS" (FAST '15).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zarr_cache.sampling.decision import Decision, Recent
from zarr_cache.sampling.distances import FIRST, reuse_distances
from zarr_cache.sampling.histogram import FADING, RECENT, Histogram, at

if TYPE_CHECKING:
    import numpy.typing as npt

    type Numbers = npt.NDArray[np.int64]

MAX_SAMPLED = 8192
"""If more values and ranges are in the sample, half of the keys leave it."""

MAX_HALVINGS = 31
"""The upper half of an id is of its key alone: all ranges of a key are sampled, or none."""

MAX_SIZES = 16
"""What was not read since so many times the budget is forgotten: to keep a part brings little."""

MOST = 0.9
"""The part of the reads that are reused within the working set."""


class Batch(NamedTuple):
    """Reads in their order; those of the same bytes that follow each other are one.

    Attributes
    ----------
    ids
        63 bits: see `reads.id_of`.
    sizes
        Bytes.
    counts
        How many reads it is.
    is_hit
        Whether the cache has served it.
    """

    ids: Numbers
    sizes: Numbers
    counts: Numbers
    is_hit: npt.NDArray[np.bool_]

    def where(self, is_meant: npt.NDArray[np.bool_]) -> Batch:
        """Those of the reads."""
        return Batch(
            self.ids[is_meant], self.sizes[is_meant], self.counts[is_meant], self.is_hit[is_meant]
        )


def _none() -> Numbers:
    return np.zeros(0, np.int64)


@dataclass(slots=True)
class Sample:
    """What is known of the reads of a file.

    Attributes
    ----------
    halvings
        Keys are sampled whose ids are below 2 ** (63 - halvings).
    position
        Sampled reads so far.
    ids, sizes, used
        What is in the sample, the least recently used first; `used` are positions.
    reads, nbytes
        All reads and their bytes, as they fade by `FADING`.
    recent_reads
        Sampled reads, as they fade by `RECENT`.
    recent_bytes, recent_served
        Bytes of all reads, and those that the cache has served, as they fade by `RECENT`.
    max_size
        The budget; None if there is none.
    """

    halvings: int = 0
    position: int = 0
    ids: Numbers = field(default_factory=_none)
    sizes: Numbers = field(default_factory=_none)
    used: Numbers = field(default_factory=_none)
    histogram: Histogram = field(default_factory=Histogram)
    reads: float = 0.0
    nbytes: float = 0.0
    recent_reads: float = 0.0
    recent_bytes: float = 0.0
    recent_served: float = 0.0
    max_size: int | None = None
    decision: Decision = field(default_factory=Decision)

    @property
    def scale(self) -> int:
        """How many keys each one in the sample stands for."""
        return 1 << self.halvings

    def _is_sampled(self, ids: Numbers) -> npt.NDArray[np.bool_]:
        is_sampled: npt.NDArray[np.bool_] = (ids >> (63 - self.halvings)) == 0
        return is_sampled

    def add(self, batch: Batch, max_size: int | None) -> None:
        """Add a batch of reads, of a cache of this budget."""
        self.max_size = max_size
        is_sampled = self._is_sampled(batch.ids)
        sampled_counts = np.where(is_sampled, batch.counts, 0)
        later = np.cumsum(sampled_counts[::-1])[::-1] - sampled_counts
        self._add_all(batch, later, int(sampled_counts.sum()))
        self._add_sampled(batch.where(is_sampled), later[is_sampled])
        self._forget(max_size)
        if max_size is not None:
            nbytes = batch.sizes * batch.counts
            missed = np.where(batch.is_hit, 0, 1)
            self.decision = self.decision.after(
                int((missed * batch.counts).sum()),
                int((missed * nbytes).sum()),
                int(nbytes.sum()),
                self.recent(max_size),
                max_size,
            )

    def _add_all(self, batch: Batch, later: Numbers, sampled: int) -> None:
        """Let what is there fade, and add what is known of all reads, sampled or not."""
        self.histogram.fade(sampled)
        slowly, fast = np.exp(-later / FADING), np.exp(-later / RECENT)
        nbytes = batch.sizes * batch.counts
        before, recently = float(np.exp(-sampled / FADING)), float(np.exp(-sampled / RECENT))
        self.reads = self.reads * before + float((slowly * batch.counts).sum())
        self.nbytes = self.nbytes * before + float((slowly * nbytes).sum())
        self.recent_reads *= recently
        self.recent_bytes = self.recent_bytes * recently + float((fast * nbytes).sum())
        served = float((fast * nbytes * batch.is_hit).sum())
        self.recent_served = self.recent_served * recently + served

    def _add_sampled(self, batch: Batch, later: Numbers) -> None:
        ids, sizes, counts, _ = batch
        if not len(ids):
            return
        distances, last = reuse_distances(self.ids, self.sizes, ids, sizes)
        needed = np.where(distances == FIRST, np.inf, distances * float(self.scale) + sizes)
        if self.max_size is not None:
            needed[needed > MAX_SIZES * self.max_size] = np.inf
        self.histogram.add(needed, sizes, np.full(len(ids), float(self.scale)), later)
        is_repeated = counts > 1
        if is_repeated.any():
            # What follows at once needs only a place for itself.
            self.histogram.add(
                sizes[is_repeated].astype(float),
                sizes[is_repeated],
                np.multiply(counts[is_repeated] - 1, self.scale, dtype=np.float64),
                later[is_repeated],
            )
        self.recent_reads += float((np.exp(-later / RECENT) * counts).sum())
        used = self.position + np.cumsum(counts)
        self.position += int(counts.sum())
        self.ids = np.concatenate([self.ids, ids])[last]
        self.sizes = np.concatenate([self.sizes, sizes])[last]
        self.used = np.concatenate([self.used, used])[last]

    def _forget(self, max_size: int | None) -> None:
        """Forget what no cache would still have, and half of the keys if they are too many."""
        is_kept = np.ones(len(self.ids), bool)
        if max_size is not None:
            above = np.cumsum(self.sizes[::-1])[::-1] - self.sizes
            is_kept = above * float(self.scale) < MAX_SIZES * max_size
        while is_kept.sum() > MAX_SAMPLED and self.halvings < MAX_HALVINGS:
            self.halvings += 1
            is_kept &= self._is_sampled(self.ids)
        self.ids, self.sizes, self.used = self.ids[is_kept], self.sizes[is_kept], self.used[is_kept]

    def recent(self, max_size: int) -> Recent:
        """What is known of the reads of late, for a cache of this size."""
        weights = self.histogram.recent
        total = float(weights.sum())
        if not total or not self.recent_bytes:
            return Recent(0, 0, 0, 0, 0)
        sizes, served = self.histogram.curve(weights)
        reused = float(served[-1]) if len(served) else 0.0
        within = served >= MOST * reused
        reach = float(sizes[within][0]) if reused else 0.0
        footprint = float(self.sizes[self.used > self.position - 2 * RECENT].sum()) * self.scale
        working_set = max(reach, footprint)
        kept = min(1.0, max_size / working_set) if working_set else 0.0
        return Recent(
            self.recent_reads,
            at(sizes, served, max_size) / total,
            kept * reused / total,
            self.recent_served / self.recent_bytes,
            working_set,
        )

    def rates(self) -> tuple[list[float], list[float]]:
        """Sizes, ascending, and the part of the bytes that a cache of each would have served.

        The sample may have more or less of the reads than its part, mostly since it has one of the
        few keys that are read most, or not. Those are read again soon: the difference is added at
        the smallest sizes (SHARDS-adj).
        """
        if not self.nbytes:
            return [], []
        sizes, served = self.histogram.curve(self.histogram.nbytes)
        missing = self.nbytes - float(self.histogram.nbytes.sum())
        rates = np.maximum.accumulate(np.clip((served + missing) / self.nbytes, 0, 1))
        return sizes.tolist(), rates.tolist()
