"""A map of which chunks are cached, as SVG and as PNG."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, NamedTuple
from xml.sax.saxutils import escape

import numpy as np

from zarr_cache.warming.coverage_map import COLOURS, LEGEND, NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

    from zarr_cache.warming.coverage_map import CoverageMap


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
