"""What a cache of another size would have served: in a sentence, and the axis of its curve."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core.sizes import UNITS, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr_cache.sampling.curve import Curve


LITTLE = 0.01
"""Hit rates that differ by at most this are equal."""

MUCH = 0.1
"""A size is worth naming if its part of the gain is larger than its part of the bytes by this."""

_ROUND = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 50, 64, 80, 100, 128, 160, 200, 256),
    *(320, 400, 512, 640, 800),
)
"""So many bytes, KiB, MiB and so on are round sizes."""


class Axis(NamedTuple):
    """A logarithmic axis of sizes, from `least` to `most`."""

    least: int
    most: int

    def place(self, nbytes: int) -> float:
        """Where on the axis the size is, from 0 to 1."""
        if nbytes <= self.least or self.least == self.most:
            return 0.0
        return min(1.0, math.log(nbytes / self.least) / math.log(self.most / self.least))

    def sizes(self, number: int) -> list[float]:
        """So many sizes, at least two, equally far apart on the axis."""
        ratio = self.most / self.least
        return [self.least * ratio ** (step / (number - 1)) for step in range(number)]


def axis_of(curve: Curve, max_size: int | None) -> Axis:
    """The axis on which the curve and the present size are."""
    # A size of 0 is on no logarithmic axis: it is at its beginning.
    every = [*curve.sizes, *([max_size] if max_size else [])]
    # Users edit files: no size is below a byte.
    return Axis(max(1, min(every)), max(1, *every))


def by_size(curve: Curve | None) -> dict[int, float]:
    """Hit rates by size in bytes, ascending; empty with too few reads."""
    return {} if curve is None else dict(zip(curve.sizes, curve.rates, strict=True))


def sentence(curve: Curve | None, max_size: int | None, *, evicts: bool = True) -> str:
    """What the present size, a better one and the best one would have served.

    The better one is round, and the curve rises much up to it. The best one is the least round one
    with a hit rate within `LITTLE` of the highest.

    Parameters
    ----------
    curve
        That of the file; None with too few reads.
    max_size
        The present size; None for no limit, or where it is not known.
    evicts
        Whether the cache evicts the least recently used, as the curve assumes.
    """
    if curve is None:
        return "Too few reads are recorded to say what another size would bring."
    highest = curve.rates[-1] if curve.rates else 0.0
    if highest < LITTLE:
        if curve.reach is None:
            return "No size would have served 1 % of the bytes: hardly any were read again."
        return (
            f"No size up to {text_of(curve.reach)} would have served 1 % of the bytes; "
            "what a larger one would bring is not known."
        )
    best = best_of(curve)
    present = curve.at(max_size or 0)
    if max_size is not None and present >= highest - LITTLE:
        as_much = f", and so would {text_of(best)}" if 3 * best <= 2 * max_size else ""
        return f"{_served(curve, max_size)}{as_much}; {_no_more(curve, 'more', max_size)}."
    better = better_of(curve, max_size or 0, best)
    parts = [_served(curve, better or best)]
    if max_size is not None:
        size, rate = text_of(max_size), _percent(present)
        parts.append(f"now {rate} with {size}" if evicts else f"{size} {rate} if it evicted")
    more = "more" if better is None else f"more than {text_of(best)} ({_percent(curve.at(best))})"
    return f"{'; '.join([*parts, _no_more(curve, more, best)])}."


def _no_more(curve: Curve, more: str, size: int) -> str:
    """That what is more than `size` brings nothing, as far as that is known."""
    if curve.reach is None:
        return f"{more} would bring nothing"
    if size >= curve.reach:
        return f"what {more} would bring is not known"
    return f"{more} would bring nothing, up to {text_of(curve.reach)}"


def best_of(curve: Curve) -> int:
    """The least round size with a hit rate within `LITTLE` of the highest.

    The last size of the curve, if that is larger than every round one.
    """
    enough = curve.rates[-1] - LITTLE
    return next((size for size in _round_sizes() if curve.at(size) >= enough), curve.sizes[-1])


def better_of(curve: Curve, present: int, best: int) -> int | None:
    """The round size between, at which the curve bends most; None if it does not bend much.

    Of those a tenth larger than `present`, it is the farthest above a straight line from `present`
    to `best`.
    """
    low, gain = curve.at(present), curve.at(best) - curve.at(present)
    found, most = None, MUCH
    for size in _round_sizes(present + present // 10 + 1):
        if size >= best:
            break
        bend = (curve.at(size) - low) / gain - (size - present) / (best - present)
        if bend > most:
            found, most = size, bend
    return found


def _round_sizes(least: int = 1) -> Iterator[int]:
    """The round sizes from `least` on, ascending."""
    for power in range(len(UNITS)):
        for number in _ROUND:
            if (size := number * 1024**power) >= least:
                yield size


def _served(curve: Curve, nbytes: int) -> str:
    return f"{text_of(nbytes)} would have served {_percent(curve.at(nbytes))} of the bytes"


def text_of(nbytes: int) -> str:
    """``20 GiB``, ``7.5 GiB``."""
    return format_size(nbytes).replace(".0 ", " ")


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %"
