"""What the commands print: formatted in a terminal, plain text in a pipe or a file, or JSON."""

from __future__ import annotations

import io
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_MARGIN = 7
"""Columns left of a curve."""

_UNITS = (("days", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


class Column(NamedTuple):
    """A column of a table: its heading, and whether it holds numbers."""

    name: str
    is_number: bool = False


def shown(text: str) -> str:
    """`text` on one line, with unprintable characters as escapes of a Python string.

    Keys and names of sources are untrusted: a control character could move the cursor, and a mark
    of writing direction could make one key look like another.
    """
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def escape_unencodable() -> None:
    """Print characters that the encoding of stdout lacks as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # stderr does so by default.
        sys.stdout.reconfigure(errors="backslashreplace")


def fail(message: str) -> NoReturn:
    """Exit with 1, with `message` as the only line on stderr."""
    typer.echo(f"zarr-cache: {shown(message)}", err=True)
    raise typer.Exit(1)


def say(line: str) -> None:
    """Print the line, with unprintable characters escaped."""
    typer.echo(shown(line))


def ask(question: str) -> None:
    """Return if the user says yes, and exit with 1 otherwise. The question is on stderr."""
    typer.echo(f"{shown(question)} [y/N]: ", err=True, nl=False)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        typer.echo("nothing is removed", err=True)
        raise typer.Exit(1)


def print_json(value: object) -> None:
    """Print the value as one JSON document, in ASCII."""
    typer.echo(json.dumps(value, indent=2))


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return Console().is_terminal


def print_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Print the rows: folded to the width of a terminal; elsewhere each on one line, never cut."""
    escaped = [[shown(cell) for cell in row] for row in rows]
    if not is_terminal():
        _print_plain([[column.name for column in columns], *escaped], columns)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        # Keys and namespaces may be of any length.
        is_short = column is not columns[-1] and column.name != "namespace"
        table.add_column(
            Text(column.name),
            justify="right" if column.is_number else "left",
            overflow="fold",
            no_wrap=is_short,
        )
    for row in escaped:
        table.add_row(*map(Text, row))
    Console().print(table)


def _print_plain(lines: Sequence[Sequence[str]], columns: Sequence[Column]) -> None:
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.rjust(width) if column.is_number else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def bar(share: float, width: int = 20) -> str:
    """A bar filled to `share` of its width, in characters that the output can show."""
    filled = round(min(max(share, 0.0), 1.0) * width)
    full, empty = ("█", "░") if _has_blocks() else ("#", ".")
    return (full * filled).ljust(width, empty)


def curve_width(most: int = 60) -> int:
    """How many columns a curve may have: at most `most`, and no more than the terminal."""
    console = Console()
    return min(most, max(console.width - _MARGIN, 10)) if console.is_terminal else most


def curve_lines(
    shares: Sequence[float], ends: tuple[str, str], mark: tuple[int, str] | None, height: int = 8
) -> list[str]:
    """The area below a curve, a column for each share of one, as lines.

    Parameters
    ----------
    ends
        What the first and the last column stand for.
    mark
        A column to mark, and what it stands for.
    """
    full, upwards = ("█", "▲") if _has_blocks() else ("#", "^")
    width = len(shares)
    filled = [round(min(max(share, 0.0), 1.0) * height) for share in shares]
    labels = {0: "100 %", height // 2: "50 %"}
    lines = [
        f"{labels.get(row, ''):>5} |"
        + "".join(full if height - row <= each else " " for each in filled)
        for row in range(height)
    ]
    lines.append(f"{'0 %':>5} +{'-' * width}")
    if mark is not None:
        column, name = mark
        is_left = column + 2 + len(name) > width
        start = max(0, column - 1 - len(name)) if is_left else column
        lines.append(
            " " * (_MARGIN + start) + (f"{name} {upwards}" if is_left else f"{upwards} {name}")
        )
    first, last = ends
    lines.append(" " * _MARGIN + first + last.rjust(width - len(first)))
    return [line.rstrip() for line in lines]


def _has_blocks() -> bool:
    """Whether the output is a terminal that can show blocks."""
    console = Console()
    return console.is_terminal and console.encoding.startswith("utf")


def percent(share: float | None) -> str:
    """`share` of one; ``-`` for None."""
    return "-" if share is None else f"{100 * share:.1f} %"


def count(number: int, of: str, plural: str = "") -> str:
    """``1 entry``, ``1,234 entries``."""
    return f"{number:,} {of if number == 1 else plural or f'{of}s'}"


def local_time(timestamp_ns: int | None) -> str:
    """A timestamp of the file in the local time zone; ``-`` for None."""
    if timestamp_ns is None:
        return "-"
    return f"{_time(timestamp_ns).astimezone():%Y-%m-%d %H:%M:%S}"


def iso_time(timestamp_ns: int | None) -> str | None:
    """A timestamp of the file in UTC, in ISO 8601."""
    return None if timestamp_ns is None else f"{_time(timestamp_ns):%Y-%m-%dT%H:%M:%S.%fZ}"


def _time(timestamp_ns: int) -> datetime:
    return _EPOCH + timedelta(microseconds=timestamp_ns // 1000)


def duration(seconds: float) -> str:
    """``3.2 days``, ``5.0 min``: in the largest unit of which there is at least one."""
    unit, length = next((each for each in _UNITS if round(seconds, 1) >= each[1]), _UNITS[-1])
    return f"{seconds / length:.1f} {unit}"
