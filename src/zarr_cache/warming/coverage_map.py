"""A map of which chunks are cached: as text for a terminal, as SVG and as PNG."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

import numpy as np
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from zarr_cache.warming.coverage import CachedPlaces


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
    cached: CachedPlaces,
    title: str,
    names: Sequence[str | None] | None = None,
    *,
    slice_of: tuple[int | slice, ...] = (),
    most: tuple[int, int],
    noun: str = "chunk",
    notes: Sequence[str] = (),
) -> CoverageMap:
    """The map of the chunks that are cached.

    The last two dimensions are drawn; each cell is the mean over all others. A single dimension is
    wrapped like text. Takes time for each chunk that is cached, and memory for each cell.

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
    names = names or [None] * len(cached.shape)
    titles = [
        _printable(str(number) if name is None else f"{number} ({name})")
        for number, name in enumerate(names)
    ]
    each = [*slice_of, *[slice(None)] * (len(cached.shape) - len(slice_of))]
    chosen = [
        _chosen(one, length, number)
        for number, (one, length) in enumerate(zip(each, cached.shape, strict=True))
    ]
    drawn = [number for number, one in enumerate(each) if isinstance(one, slice)]
    lengths = [len(chosen[number]) for number in drawn]
    size = math.prod(lengths)
    is_plane = len(drawn) > 1
    per_cell = _per_cell(lengths[-2:], most) if is_plane else _per_cell_of_lines(size, most)
    number, counts = _count_cells(cached.blocks, chosen, drawn, lengths, per_cell)
    share = f" ({100 * number // size} %)" if size else ""
    count = partial(_count, noun)
    caption = [f"{number} of {count(size)} cached{share}", *notes]
    shares = counts / np.maximum(_sizes_of_cells(lengths, per_cell), 1)
    if is_plane:
        caption += [
            f"down: dimension {titles[drawn[-2]]}, {count(lengths[-2], per_cell[0])}",
            f"across: dimension {titles[drawn[-1]]}, {count(lengths[-1], per_cell[1])}",
        ]
        if drawn[:-2]:
            caption.append(f"mean over dimension {', '.join(titles[each] for each in drawn[:-2])}")
    else:
        shares = _wrapped(shares[0], most)
    if len(drawn) == 1:
        caption.append(f"line by line: dimension {titles[drawn[0]]}, {count(size, per_cell[1])}")
    return CoverageMap(shares, _printable(title), tuple(caption))


def _chosen(one: int | slice, length: int, dimension: int) -> range:
    """The chunk indices along a dimension that are drawn."""
    if isinstance(one, slice):
        return range(length)[one]
    if not -length <= one < length:
        raise IndexError(f"index {one} is out of bounds for axis {dimension} with size {length}")
    return range(length)[one:][:1]


def _per_cell(lengths: Sequence[int], most: tuple[int, int]) -> tuple[int, int]:
    """How many chunks of a plane a cell has, down and across."""
    down, across = (
        max(1, -(-length // limit)) for length, limit in zip(lengths, most, strict=True)
    )
    return down, across


def _per_cell_of_lines(size: int, most: tuple[int, int]) -> tuple[int, int]:
    """The same of a single dimension, which is one line before it is wrapped."""
    rows, columns = most
    return 1, max(1, -(-size // (rows * columns)))


def _count_cells(
    blocks: Iterable[npt.NDArray[np.int64]],
    chosen: Sequence[range],
    drawn: Sequence[int],
    lengths: Sequence[int],
    per_cell: tuple[int, int],
) -> tuple[int, npt.NDArray[np.int64]]:
    """How many of the chosen chunks are cached: in all, and in each cell."""
    shape = _number_of_cells(lengths, per_cell)
    counts = np.zeros(shape, np.int64)
    for places in blocks:
        is_chosen = np.ones(len(places), np.bool_)
        along = np.zeros_like(places)
        for dimension, indices in enumerate(chosen):
            steps, rest = np.divmod(places[:, dimension] - indices.start, indices.step)
            is_chosen &= (rest == 0) & (steps >= 0) & (steps < len(indices))
            along[:, dimension] = steps
        along = along[is_chosen]
        down = along[:, drawn[-2]] // per_cell[0] if len(drawn) > 1 else 0
        across = along[:, drawn[-1]] // per_cell[1] if drawn else 0
        cells = np.broadcast_to(down * shape[1] + across, len(along))
        counts += np.bincount(cells, minlength=counts.size).reshape(shape)
    return int(counts.sum()), counts


def _number_of_cells(lengths: Sequence[int], per_cell: tuple[int, int]) -> tuple[int, int]:
    """How many cells there are, down and across; before a single dimension is wrapped."""
    down, across = [1, 1, *lengths][-2:]
    return -(-down // per_cell[0]), -(-across // per_cell[1])


def _sizes_of_cells(lengths: Sequence[int], per_cell: tuple[int, int]) -> npt.NDArray[np.float64]:
    """How many chunks each cell has; the last may have fewer."""
    down, across = (
        np.minimum(of_one, length - np.arange(cells) * of_one).astype(float)
        for of_one, length, cells in zip(
            per_cell, [1, 1, *lengths][-2:], _number_of_cells(lengths, per_cell), strict=True
        )
    )
    return np.asarray(np.multiply.outer(down, across) * math.prod(lengths[:-2]))


def _wrapped(cells: npt.NDArray[np.float64], most: tuple[int, int]) -> npt.NDArray[np.float64]:
    """The cells in lines; NaN after the last."""
    width = max(1, min(most[1], cells.size))
    height = -(-cells.size // width)
    plane = np.full(height * width, np.nan)
    plane[: cells.size] = cells
    return plane.reshape(height, width)


def _printable(text: str) -> str:
    """The text without characters that control a terminal or that XML does not allow."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def _count(noun: str, chunks: int, per_cell: int = 1) -> str:
    number = f"1 {noun}" if chunks == 1 else f"{chunks} {noun}s"
    return f"{number}, {per_cell} to a cell" if per_cell > 1 else number


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


ON_WHITE = ("#e4e4e7", *COLOURS[1:])
"""`COLOURS` in pictures."""

ON_DARK = "#3f3f46"
"""The first of them on a dark page."""

MARGIN = 16

LINE = 18

WIDTH = 640
"""Width of a picture in pixels; more if the grid has more columns."""

LARGEST_CELL = 24


class Box(NamedTuple):
    """A rectangle in one shade, in pixels."""

    x: int
    y: int
    width: int
    height: int
    shade: int


class Label(NamedTuple):
    """A line of text whose baseline begins at (x, y)."""

    x: int
    y: int
    text: str


class Layout(NamedTuple):
    """The size and contents of a picture."""

    width: int
    height: int
    boxes: list[Box]
    labels: list[Label]


def _layout(drawn: CoverageMap) -> Layout:
    shades = drawn.shades()
    rows, columns = shades.shape
    cell = max(1, min(LARGEST_CELL, WIDTH // max(1, columns)))
    top = MARGIN + LINE
    # A gap between cells that are large enough.
    gap = 1 if cell > 4 else 0  # noqa: PLR2004 - chosen by eye
    boxes = [
        Box(MARGIN + start * cell, top + row * cell, count * cell - gap, cell - gap, shade)
        for row in range(rows)
        for start, count, shade in _runs(shades[row], is_merged=not gap)
        if shade != NOTHING
    ]
    labels = [Label(MARGIN, MARGIN + LINE // 2, drawn.title)]
    y = top + rows * cell + LINE
    x = MARGIN
    for shade, meaning in LEGEND:
        boxes.append(Box(x, y - 9, 10, 10, shade))
        labels.append(Label(x + 16, y, meaning))
        x += 32 + 8 * len(meaning)
    for number, line in enumerate(drawn.caption, 1):
        labels.append(Label(MARGIN, y + number * LINE, line))
    longest = max(len(label.text) * 8 for label in labels)
    width = max(columns * cell, longest, x) + 2 * MARGIN
    return Layout(width, y + len(drawn.caption) * LINE + MARGIN, boxes, labels)


def _runs(shades: npt.NDArray[np.int8], *, is_merged: bool) -> Iterator[tuple[int, int, int]]:
    """Start, number and shade of runs of equal cells or, unmerged, of each cell."""
    if is_merged:
        starts = np.flatnonzero(np.diff(shades, prepend=NOTHING - 1))
    else:
        starts = np.arange(shades.size)
    counts = np.diff(np.append(starts, shades.size))
    yield from zip(starts.tolist(), counts.tolist(), shades[starts].tolist(), strict=True)


SVG_HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" \
viewBox="0 0 {width} {height}" role="img">
<title>{title}</title>
<style>
text {{ font: 13px system-ui, sans-serif; fill: #18181b; }}
{shades}
@media (prefers-color-scheme: dark) {{
text {{ fill: #e4e4e7; }}
.s0 {{ fill: {dark}; }}
}}
</style>
"""


def as_svg(drawn: CoverageMap) -> str:
    """The map as SVG with a transparent background, for light and dark pages."""
    layout = _layout(drawn)
    shades = "\n".join(f".s{place} {{ fill: {each}; }}" for place, each in enumerate(ON_WHITE))
    lines = [
        f'<rect class="s{box.shade}" x="{box.x}" y="{box.y}" '
        f'width="{box.width}" height="{box.height}"/>'
        for box in layout.boxes
    ]
    lines += [
        f'<text x="{each.x}" y="{each.y}">{escape(each.text)}</text>' for each in layout.labels
    ]
    head = SVG_HEAD.format(
        width=layout.width,
        height=layout.height,
        title=escape(drawn.title),
        shades=shades,
        dark=ON_DARK,
    )
    return head + "\n".join([*lines, "</svg>", ""])


def has_pillow() -> bool:
    """Whether `save_png` can be called: Pillow is in the extra ``map``."""
    return importlib.util.find_spec("PIL") is not None


def save_png(drawn: CoverageMap, path: Path) -> None:
    """Write the map as PNG on a white background."""
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415 - of the extra "map"

    layout = _layout(drawn)
    image = Image.new("RGB", (layout.width, layout.height), "white")
    draw = ImageDraw.Draw(image)
    for box in layout.boxes:
        end = (box.x + box.width - 1, box.y + box.height - 1)
        draw.rectangle([(box.x, box.y), end], fill=ON_WHITE[box.shade])
    font = ImageFont.load_default(size=13)
    for label in layout.labels:
        draw.text((label.x, label.y), label.text, fill="#18181b", font=font, anchor="ls")
    image.save(path, format="PNG")
