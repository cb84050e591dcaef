"""Draw the wings of zarr_cache from its imports.

``python docs/scripts/wings.py`` writes docs/images/wings.svg. A wing is a folder of the package. An
arrow goes from a wing to one that it imports, unless it also gets there by a wing in between.
"""

from __future__ import annotations

import ast
import textwrap
from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "zarr_cache"
PICTURE = ROOT / "docs" / "images" / "wings.svg"

WIDTH = 860
MARGIN = 16
GAP = 28
LINE = 17
LETTERS_OF_PIXEL = 1 / 7.3

STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #18181b; }
.name { font-weight: 700; font-size: 15px; }
.modules { font: 12px ui-monospace, monospace; fill: #52525b; }
.wing { fill: #f4f4f5; stroke: #a1a1aa; }
.arrow { stroke: #52525b; stroke-width: 1.5; marker-end: url(#tip); }
#tip path { fill: #52525b; }
@media (prefers-color-scheme: dark) {
text { fill: #e4e4e7; }
.modules { fill: #a1a1aa; }
.wing { fill: #27272a; stroke: #52525b; }
.arrow { stroke: #a1a1aa; }
#tip path { fill: #a1a1aa; }
}"""


class Wing(NamedTuple):
    """A folder of the package.

    Attributes
    ----------
    sentence
        What its docstring says first.
    modules
        Names of its modules, and of folders in it.
    imports
        Names of the other wings that it imports.
    """

    name: str
    sentence: str
    modules: list[str]
    imports: set[str]


class Box(NamedTuple):
    """Where a wing is drawn, in pixels."""

    x: int
    y: int
    width: int
    height: int


def wings() -> dict[str, Wing]:
    """The wings of the package by their names."""
    folders = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
    names = {folder.name for folder in folders}
    return {folder.name: _wing(folder, names) for folder in folders}


def _wing(folder: Path, names: set[str]) -> Wing:
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    modules = sorted(
        path.stem if path.suffix else f"{path.name}/"
        for path in folder.iterdir()
        if not path.name.startswith("__")
    )
    imports = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zarr_cache."):
                imports.add((node.module or "").split(".")[1])
    return Wing(folder.name, docstring.partition("\n")[0], modules, imports & names - {folder.name})


def arrows(found: dict[str, Wing]) -> set[tuple[str, str]]:
    """The imports between wings that no wing between the two stands for."""

    def reached(name: str) -> set[str]:
        below = found[name].imports
        return below.union(*map(reached, below)) if below else set()

    return {
        (name, lower)
        for name, wing in found.items()
        for lower in wing.imports
        if not any(lower in reached(other) for other in wing.imports - {lower})
    }


def draw() -> str:
    """The picture as SVG."""
    found = wings()
    boxes, height = _boxes(found)
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
            f' viewBox="0 0 {WIDTH} {height}" role="img">'
        ),
        "<title>The wings of zarr_cache, each above those that it imports</title>",
        f"<style>\n{STYLE}\n</style>",
        (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
            ' markerHeight="7" orient="auto"><path d="M0 0 8 4 0 8z"/></marker></defs>'
        ),
    ]
    for name, box in boxes.items():
        lines += _drawn(found[name], box)
    lines += [_arrow(boxes, upper, lower) for upper, lower in sorted(arrows(found))]
    return "\n".join([*lines, "</svg>\n"])


def _boxes(found: dict[str, Wing]) -> tuple[dict[str, Box], int]:
    """Each wing above those that it imports.

    ``flows`` is beside ``inspect``, and ``sources`` beside the wings that do not know it.
    """
    whole, left = WIDTH - 2 * MARGIN, (WIDTH - 2 * MARGIN) * 2 // 3
    half = (left - GAP) // 2
    boxes: dict[str, Box] = {}
    y = MARGIN
    for row in (
        {"cli": whole},
        {"warming": whole},
        {"cache": whole},
        {"inspect": half, "flows": whole - half - GAP},
        {"backend": left},
        {"index": left},
        {"sampling": left},
        {"file": left},
        {"disk": left},
        {"core": whole},
    ):
        height = max(_height(found[name], width) for name, width in row.items())
        x = MARGIN
        for name, width in row.items():
            boxes[name] = Box(x, y, width, height)
            x += width + GAP
        y += height + GAP
    top, last, x = boxes["backend"], boxes["disk"], MARGIN + left + GAP
    bottom = last.y + last.height
    boxes["sources"] = Box(x, top.y, WIDTH - MARGIN - x, bottom - top.y)
    missing = set(found) ^ set(boxes)
    if missing:
        raise ValueError(
            f"the picture has no place for {sorted(missing)}: give it one in {__file__}"
        )
    return boxes, y - GAP + MARGIN


def _text_of(wing: Wing, width: int) -> list[tuple[str, str]]:
    """Lines of text, each with its class."""
    letters = int((width - 2 * MARGIN) * LETTERS_OF_PIXEL)
    modules = textwrap.wrap("  ".join(wing.modules), letters, break_on_hyphens=False)
    sentence = textwrap.wrap(wing.sentence, letters)
    return [(line, "") for line in sentence] + [(line, "modules") for line in modules]


def _height(wing: Wing, width: int) -> int:
    return 34 + LINE * len(_text_of(wing, width))


def _drawn(wing: Wing, box: Box) -> list[str]:
    x, y = box.x + MARGIN, box.y + 22
    lines = [
        (
            f'<rect class="wing" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}"'
            ' rx="6"/>'
        ),
        f'<text class="name" x="{x}" y="{y}">{wing.name}/</text>',
    ]
    for text, kind in _text_of(wing, box.width):
        y += LINE
        attribute = f' class="{kind}"' if kind else ""
        lines.append(f'<text{attribute} x="{x}" y="{y}">{escape(text)}</text>')
    return lines


def _arrow(boxes: dict[str, Box], upper: str, lower: str) -> str:
    start, end = boxes[upper], boxes[lower]
    bottom = start.y + start.height
    first, last = max(start.x, end.x), min(start.x + start.width, end.x + end.width)
    if end.y - bottom != GAP or first >= last:
        raise ValueError(f"{upper} imports {lower}, which is not drawn right below it")
    x = (first + last) // 2
    return f'<line class="arrow" x1="{x}" y1="{bottom}" x2="{x}" y2="{end.y}"/>'


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
