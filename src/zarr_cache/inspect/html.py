"""HTML that notebooks show of a store, made of numbers and escaped names.

Its only colour is that of the text, so that it is readable on light and on dark pages.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


MAX_ROWS = 10
"""At most this many namespaces of a file are shown."""

_CARD = "max-width:44em;line-height:1.5;overflow-wrap:anywhere"

_GRID = "display:grid;grid-template-columns:max-content 1fr;column-gap:1.5em"

_FRAME = (
    "height:.7em;margin:.3em 0;border:1px solid currentColor;border-radius:.4em;overflow:hidden"
)

_FILLED = "height:100%;background:currentColor;opacity:.55"

_NAME = "opacity:.75"

_DRAWING = "display:block;max-width:100%;height:auto;margin:.5em 0 .2em"

_WIDTH, _HEIGHT = 440, 150
_LEFT, _TOP, _RIGHT, _BOTTOM = 44, 20, 430, 130
"""The size of a drawing, and the place of its axes."""

_EDGE = 0.15
"""So near an end, the name of a mark would not fit on both sides of it."""

_NOTICE = "border-left:3px solid currentColor;padding-left:.6em;margin:.3em 0"


class Share(NamedTuple):
    """How much of a file one namespace takes, and its hit rate.

    Attributes
    ----------
    hit_rate
        None without reads.
    """

    namespace: str
    values: int
    ranges: int
    nbytes: int
    hit_rate: float | None


def card(title: str, parts: Iterable[str]) -> str:
    """A title, and the parts below it."""
    return f'<div style="{_CARD}"><div><b>{text(title)}</b></div>{"".join(parts)}</div>'


def facts(named: Iterable[tuple[str, str]]) -> str:
    """Names and values, one pair a line."""
    cells = (
        f'<div style="{_NAME}">{text(name)}</div><div>{text(value)}</div>' for name, value in named
    )
    return f'<div style="{_GRID}">{"".join(cells)}</div>'


def notice(message: str) -> str:
    """A message in place of numbers."""
    return f'<div role="note" style="{_NOTICE}">{text(message)}</div>'


def bar(nbytes: int, of_bytes: int) -> str:
    """A bar filled to the share of `nbytes` in `of_bytes`."""
    share = min(1.0, nbytes / of_bytes) if of_bytes else float(nbytes > 0)
    label = f"{format_size(nbytes)} of {format_size(of_bytes)}, {percent(share)}"
    return (
        f'<div role="img" aria-label="{label}" title="{label}" style="{_FRAME}">'
        f'<div style="{_FILLED};width:{share:.2%}"></div></div>'
    )


class Mark(NamedTuple):
    """A point of a curve: its place and its height, from 0 to 1, and what it stands for."""

    place: float
    height: float
    name: str


def paragraph(sentence: str) -> str:
    """A sentence below the facts."""
    return f"<div>{text(sentence)}</div>"


def curve(
    points: Sequence[tuple[float, float]],
    ends: tuple[str, str],
    mark: Mark | None,
    *,
    title: str,
    description: str,
) -> str:
    """A curve in a frame of two axes, the upright one from 0 to 100 %.

    Parameters
    ----------
    points
        Places and heights, from 0 to 1, from left to right.
    ends
        What the first and the last place stand for.
    mark
        A point that is marked.
    title, description
        What a screen reader says of it.
    """
    line = " ".join(f"{_across(place)},{_down(height)}" for place, height in points)
    (first, _), (last, _) = points[0], points[-1]
    area = f"{_across(first)},{_BOTTOM} {line} {_across(last)},{_BOTTOM}"
    parts = [
        f"<title>{text(title)}</title><desc>{text(description)}</desc>",
        f'<polygon points="{area}" fill="currentColor" opacity=".2"/>',
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/>',
        f'<path d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}" fill="none" stroke="currentColor"/>',
        *(
            _label(_LEFT - 4, _down(height) + 4, "end", f"{height:.0%}".replace("%", " %"))
            for height in (0, 0.5, 1)
        ),
        _label(_LEFT, _BOTTOM + 14, "start", ends[0]),
        _label(_RIGHT, _BOTTOM + 14, "end", ends[1]),
    ]
    if mark is not None:
        across = _across(mark.place)
        anchor = "start" if mark.place < _EDGE else "end" if mark.place > 1 - _EDGE else "middle"
        parts += [
            f'<path d="M{across} {_TOP}V{_BOTTOM}" stroke="currentColor" stroke-dasharray="3 3"/>',
            f'<circle cx="{across}" cy="{_down(mark.height)}" r="3.5" fill="currentColor"/>',
            _label(across, _TOP - 5, anchor, mark.name),
        ]
    return (
        f'<svg role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'style="{_DRAWING}">{"".join(parts)}</svg>'
    )


def _across(place: float) -> float:
    return round(_LEFT + place * (_RIGHT - _LEFT), 1)


def _down(height: float) -> float:
    return round(_BOTTOM - min(max(height, 0.0), 1.0) * (_BOTTOM - _TOP), 1)


def _label(across: float, down: float, anchor: str, name: str) -> str:
    return (
        f'<text x="{across}" y="{down}" text-anchor="{anchor}" fill="currentColor" '
        f'font-size="11">{text(name)}</text>'
    )


def shares(found: Iterable[Share]) -> str:
    """A line and a bar for each namespace, the largest first."""
    ordered = sorted(found, key=lambda each: (-each.nbytes, each.namespace))
    total = sum(each.nbytes for each in ordered)
    parts = []
    for each in ordered[:MAX_ROWS]:
        numbers = f"{amount(each.values, each.ranges, each.nbytes)}, {hits(each.hit_rate)}"
        parts.append(f"<div><code>{text(each.namespace)}</code>: {numbers}</div>")
        parts.append(bar(each.nbytes, total))
    if len(ordered) > MAX_ROWS:
        parts.append(f"<div>and {len(ordered) - MAX_ROWS:,} more</div>")
    return "".join(parts)


def amount(values: int, ranges: int, nbytes: int) -> str:
    """``3 values, 12 ranges, 4.0 MiB``; without ranges, they are not named."""
    of_ranges = f"{count(ranges, 'range')}, " if ranges else ""
    return f"{count(values, 'value')}, {of_ranges}{format_size(nbytes)}"


def hits(rate: float | None) -> str:
    """A hit rate as text."""
    return "no reads yet" if rate is None else f"{percent(rate)} hits"


def count(number: int, noun: str) -> str:
    """A number with its noun, whose plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float) -> str:
    """A share as a percentage; only 0 and 1 are shown as 0 % and 100 %."""
    if 0 < share < 0.001:  # noqa: PLR2004 - it would be rounded to 0.0 %
        return "less than 0.1 %"
    return f"{min(share, 0.999) if share < 1 else share:.1%}".replace("%", " %")


def text(data: str) -> str:
    """`data` escaped for a page; the bytes of a path that are not UTF-8 are shown as escapes."""
    return escape(data.encode("utf-8", "backslashreplace").decode("utf-8"))
