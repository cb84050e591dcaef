"""The curve of a file: hit rate over size."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from zarr_cache.file.connection import Connection


class Curve(NamedTuple):
    """Stand-in until the sampling is merged."""

    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    reads: float
    reach: int | None = None

    def at(self, nbytes: float) -> float:
        """Interpolated."""
        sizes, rates = (0, *self.sizes), (0.0, *self.rates)
        after = bisect_right(sizes, nbytes)
        if after == len(sizes):
            return rates[-1]
        part = (nbytes - sizes[after - 1]) / (sizes[after] - sizes[after - 1])
        return rates[after - 1] + part * (rates[after] - rates[after - 1])


def curve_of(connection: Connection) -> Curve | None:
    """Nothing is known yet."""
    del connection
    return None
