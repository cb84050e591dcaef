"""A map of which chunks are cached, and the map as text for a terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt


SHADES = "·░▒▓█"
"""Without colours: a cell with no cached chunk, three in between, and one with all cached."""

ASCII_SHADES = ".-+*#"
"""The same for a terminal without Unicode."""

COLOURS = ("#71717a", "#31688e", "#21918c", "#35b779", "#fde725")
"""The same as colours, visible on light and on dark: grey, and a part of viridis."""

LEGEND = ((len(SHADES) - 1, "cached"), (2, "in part"), (0, "not cached"))
"""Shades and their meaning."""

NOTHING = -1
"""The shade of a cell without a chunk."""


@dataclass(frozen=True, eq=False)
class CoverageMap:
    """A plane of cells, each for one chunk or for several.

    Attributes
    ----------
    shares
        Share of the chunks of each cell that are cached, from 0 to 1; NaN where there is no chunk.
    title
        Name of the array.
    caption
        How many chunks are cached, what the notes say, and what the two axes are.
    """

    shares: npt.NDArray[np.float64]
    title: str
    caption: tuple[str, ...]

    def shades(self) -> npt.NDArray[np.int8]:
        """For each cell an index of `SHADES`: the first only for none, the last only for all."""
        found = 1 + np.floor(np.nan_to_num(self.shares) * (len(SHADES) - 2))
        found[self.shares == 0] = 0
        found[np.isnan(self.shares)] = NOTHING
        return found.astype(np.int8)


def map_of(
    covered: npt.NDArray[np.bool_],
    title: str,
    names: Sequence[str | None] | None = None,
    *,
    slice_of: tuple[int | slice, ...] = (),
    most: tuple[int, int],
    noun: str = "chunk",
    notes: Sequence[str] = (),
) -> CoverageMap:
    """The map of a result of `coverage`.

    The last two dimensions are drawn; each cell is the mean over all others. A single dimension is
    wrapped like text.

    Parameters
    ----------
    names
        Names of the dimensions; None for those that have none.
    slice_of
        A part of the grid, in chunk indices. A dimension with a single index is not drawn.
    most
        Most rows and columns; a larger grid has several chunks in a cell.
    noun
        The chunks are counted as these.
    notes
        Lines after the number of cached chunks.

    Raises
    ------
    IndexError
        `slice_of` does not fit the grid.
    """
    names = names or [None] * covered.ndim
    titles = [
        _printable(str(number) if name is None else f"{number} ({name})")
        for number, name in enumerate(names)
    ]
    chosen = covered[slice_of]
    shown = [
        titles[number]
        for number in range(covered.ndim)
        if number >= len(slice_of) or isinstance(slice_of[number], slice)
    ]
    cached = int(np.count_nonzero(chosen))
    share = f" ({math.floor(100 * cached / chosen.size)} %)" if chosen.size else ""
    count = partial(_count, noun)
    caption = [f"{cached} of {count(chosen.size)} cached{share}", *notes]
    if chosen.ndim < 2:  # noqa: PLR2004 - two dimensions make a plane
        plane, per_cell = _lines(chosen.reshape(-1).astype(float), most)
    else:
        along = tuple(range(chosen.ndim - 2))
        plane = chosen.mean(axis=along) if chosen.size else np.zeros(chosen.shape[-2:])
        plane, per_cell = _shrunk(plane, most)
        caption += [
            f"down: dimension {shown[-2]}, {count(chosen.shape[-2], per_cell[0])}",
            f"across: dimension {shown[-1]}, {count(chosen.shape[-1], per_cell[1])}",
        ]
        if along:
            caption.append(f"mean over dimension {', '.join(shown[:-2])}")
    if chosen.ndim == 1:
        caption.append(f"line by line: dimension {shown[0]}, {count(chosen.size, per_cell[1])}")
    return CoverageMap(plane, _printable(title), tuple(caption))


def _printable(text: str) -> str:
    """The text without characters that control a terminal or that XML does not allow."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _count(noun: str, chunks: int, per_cell: int = 1) -> str:
    number = f"1 {noun}" if chunks == 1 else f"{chunks} {noun}s"
    return f"{number}, {per_cell} to a cell" if per_cell > 1 else number


def _lines(
    values: npt.NDArray[np.float64], most: tuple[int, int]
) -> tuple[npt.NDArray[np.float64], tuple[int, int]]:
    """The values wrapped into lines, and the number of values in a cell."""
    rows, columns = most
    per_cell = max(1, math.ceil(values.size / (rows * columns)))
    cells = _means(values[None, :], per_cell, axis=1)[0]
    width = max(1, min(columns, cells.size))
    height = math.ceil(cells.size / width)
    plane = np.full(height * width, np.nan)
    plane[: cells.size] = cells
    return plane.reshape(height, width), (1, per_cell)


def _shrunk(
    plane: npt.NDArray[np.float64], most: tuple[int, int]
) -> tuple[npt.NDArray[np.float64], tuple[int, int]]:
    """The plane reduced to `most` cells, and how many values each cell is the mean of."""
    down, across = (
        max(1, math.ceil(length / limit)) for length, limit in zip(plane.shape, most, strict=True)
    )
    return _means(_means(plane, down, axis=0), across, axis=1), (down, across)


def _means(plane: npt.NDArray[np.float64], per_cell: int, *, axis: int) -> npt.NDArray[np.float64]:
    """Means over `per_cell` neighbours along an axis; the last may be over fewer."""
    length = plane.shape[axis]
    if per_cell == 1 or not length:
        return plane
    starts = np.arange(0, length, per_cell)
    counts = np.diff(np.append(starts, length))
    sums = np.add.reduceat(plane, starts, axis=axis)
    return np.asarray(sums / (counts[:, None] if axis == 0 else counts))


def as_text(drawn: CoverageMap, *, is_coloured: bool, letters: str = SHADES) -> Text:
    """The map for a terminal: with colours in half blocks, two rows a line; otherwise in shades.

    Parameters
    ----------
    letters
        Characters for the shades, used without colours.
    """
    shades = drawn.shades()
    text = Text(no_wrap=True, overflow="crop")
    text.append(f"{drawn.title}\n", style="bold")
    lines = _half_blocks(shades) if is_coloured else _shades(shades, letters)
    for line in lines:
        text.append_text(line)
        text.append("\n")
    for shade, meaning in LEGEND:
        text.append("■" if is_coloured else letters[shade], COLOURS[shade] if is_coloured else "")
        text.append(f" {meaning}   ")
    text.rstrip()
    for caption in drawn.caption:
        text.append(f"\n{caption}")
    return text


def _shades(shades: npt.NDArray[np.int8], letters: str) -> Iterator[Text]:
    for row in shades:
        yield Text("".join(" " if shade == NOTHING else letters[shade] for shade in row))


def _half_blocks(shades: npt.NDArray[np.int8]) -> Iterator[Text]:
    if len(shades) % 2:
        shades = np.vstack([shades, np.full((1, shades.shape[1]), NOTHING, np.int8)])
    for upper, lower in zip(shades[::2], shades[1::2], strict=True):
        drawn = Text()
        for top, bottom in zip(upper, lower, strict=True):
            if top == NOTHING:
                drawn.append(" ")
            elif bottom == NOTHING:
                drawn.append("▀", COLOURS[top])
            else:
                drawn.append("▀", f"{COLOURS[top]} on {COLOURS[bottom]}")
        yield drawn
