"""The hit rate over the size of a cache: operations that read it from the sample."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.sampling import stored
from zarr_cache.sampling.histogram import at

if TYPE_CHECKING:
    from zarr_cache.file.connection import Connection

MIN_READS = 256
"""Of fewer reads no curve is made."""

MAX_SIZES = 8
"""The largest size of a curve, as a multiple of the present one."""

LEAST_PART = 0.01
"""The least size of a curve, as a part of the present one."""

NO_MORE = 0.001
"""A curve ends where all larger sizes would bring less than this."""


class Curve(NamedTuple):
    """The part of the bytes that a cache of each size would have served, with LRU.

    Attributes
    ----------
    sizes
        Bytes, ascending.
    rates
        Parts of one, none less than the one before.
    reads
        So many reads it is made of: those that are long ago count less.
    reach
        Of larger sizes nothing is known: 8 times the budget. None if there was no budget.
    """

    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    reads: float
    reach: int | None = None

    def at(self, nbytes: float) -> float:
        """The part that a cache of so many bytes would have served."""
        return at(self.sizes, self.rates, nbytes)


def curve_of(connection: Connection) -> Curve | None:
    """The curve of the file; None if too few reads are known.

    From about 1 % of the budget to where more brings nothing, and at most to 8 times the budget.
    """
    with connection.reading():
        sample = stored.read(connection)
    if sample.reads < MIN_READS:
        return None
    sizes, rates = sample.rates()
    best: dict[int, float] = {}
    least, most = 0.0, math.inf
    if sample.max_size is not None:
        least, most = LEAST_PART * sample.max_size, float(MAX_SIZES * sample.max_size)
        for end in (least, most):
            if sizes and sizes[0] < end < sizes[-1]:
                best[math.ceil(end)] = at(sizes, rates, end)
    for index, (size, rate) in enumerate(zip(sizes, rates, strict=True)):
        # The first of two is of what a cache that is a byte too small serves.
        nbytes = math.ceil(size) - (index % 2 == 0)
        if least <= nbytes <= most:
            best[nbytes] = max(rate, best.get(nbytes, 0.0))
    points = sorted(best.items())
    enough = [size for size, rate in points if rate >= points[-1][1] - NO_MORE]
    points = [(size, rate) for size, rate in points if size <= enough[0]] if enough else points
    return Curve(
        tuple(size for size, _ in points),
        tuple(rate for _, rate in points),
        sample.reads,
        None if sample.max_size is None else MAX_SIZES * sample.max_size,
    )
