"""A histogram of reuse: how large a cache must be to serve each read. Old reads fade."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    type Floats = npt.NDArray[np.float64]
    type Numbers = npt.NDArray[np.int64]

PER_OCTAVE = 8
NEVER = PER_OCTAVE * 62
"""The bucket of reads that a cache of no size would serve. Below it are 62 octaves of bytes."""

FADING = 65_536
"""After so many sampled reads a read counts 1 / e of what it did."""

RECENT = 1024
"""As `FADING`, of what the order of eviction is decided by."""

_NEGLIGIBLE = 1e-3
"""A bucket of fewer reads is empty."""


def _zeros() -> Floats:
    return np.zeros(NEVER + 1)


@dataclass(slots=True)
class Histogram:
    """The reads that need a cache of some size, by buckets of sizes.

    All are of sampled reads, scaled to all reads.

    Attributes
    ----------
    reads, nbytes
        Reads, and their bytes, as they fade by `FADING`.
    recent
        Their bytes, as they fade by `RECENT`.
    least, most
        The least and the largest size that a read in the bucket needs.
    """

    reads: Floats = field(default_factory=_zeros)
    nbytes: Floats = field(default_factory=_zeros)
    recent: Floats = field(default_factory=_zeros)
    least: Floats = field(default_factory=_zeros)
    most: Floats = field(default_factory=_zeros)

    def fade(self, reads: float) -> None:
        """Let what is there fade by so many sampled reads."""
        self.reads *= np.exp(-reads / FADING)
        self.nbytes *= np.exp(-reads / FADING)
        self.recent *= np.exp(-reads / RECENT)
        is_empty = self.reads < _NEGLIGIBLE
        for each in (self.reads, self.nbytes, self.recent, self.least, self.most):
            each[is_empty] = 0

    def add(self, needed: Floats, sizes: Numbers, counts: Floats, later: Numbers) -> None:
        """Add reads: what size each needs, infinite if none serves it; its bytes, and how many.

        `later` are the sampled reads that came after each.
        """
        buckets = bucket_of(needed)
        weight = counts * np.exp(-later / FADING)
        recent = counts * np.exp(-later / RECENT)
        length = len(self.reads)
        self.reads += np.bincount(buckets, weight, length)
        self.nbytes += np.bincount(buckets, weight * sizes, length)
        self.recent += np.bincount(buckets, recent * sizes, length)
        is_finite = buckets < NEVER
        buckets, needed = buckets[is_finite], needed[is_finite]
        self.least[self.least == 0] = np.inf
        np.minimum.at(self.least, buckets, needed)
        self.least[np.isinf(self.least)] = 0
        np.maximum.at(self.most, buckets, needed)

    def curve(self, weights: Floats) -> tuple[Floats, Floats]:
        """Sizes, ascending, and the sum of the weights that a cache of each would serve."""
        used = np.flatnonzero(self.reads[:NEVER] > 0)
        up_to = np.cumsum(weights[used])
        sizes = np.stack([self.least[used], self.most[used]], axis=1).ravel()
        served = np.stack([up_to - weights[used], up_to], axis=1).ravel()
        return sizes, served


def bucket_of(needed: Floats) -> npt.NDArray[np.int64]:
    """The bucket of each size."""
    with np.errstate(invalid="ignore"):
        octaves = PER_OCTAVE * np.log2(np.maximum(needed, 1))
    buckets: npt.NDArray[np.int64] = np.minimum(octaves, NEVER).astype(np.int64)
    return buckets


def at(sizes: Sequence[float] | Floats, served: Sequence[float] | Floats, size: float) -> float:
    """What a cache of this size would serve: between two points of a curve, in proportion."""
    if not len(sizes) or size < sizes[0]:
        return 0.0
    # Of several points of one size, the last: a bucket may have one size only.
    after = int(np.searchsorted(sizes, size, side="right"))
    if after == len(sizes):
        return float(served[-1])
    part = (size - sizes[after - 1]) / (sizes[after] - sizes[after - 1])
    return float(served[after - 1] + part * (served[after] - served[after - 1]))
