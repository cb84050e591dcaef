"""``zarr-cache ls``."""

from enum import StrEnum
from typing import Annotated, Literal

import typer

from zarr_cache.cli.file import existing, opened_to_read
from zarr_cache.cli.options import CacheFile, Json, Namespace, Prefix
from zarr_cache.cli.terminal import (
    Column,
    count,
    is_terminal,
    iso_time,
    local_time,
    print_json,
    print_table,
)
from zarr_cache.core.sizes import format_size
from zarr_cache.inspect import report
from zarr_cache.inspect.report import Listed
from zarr_cache.inspect.selection import Selection

MAX_IN_TERMINAL = 100
"""Without ``--limit``, at most this many entries are listed in a terminal."""


# typer has no list of a Literal.
Kind = StrEnum("Kind", ["value", "range", "absent", "stored", "tombstone"])

LISTED = ("value", "range", "absent", "stored")
"""The kinds that are listed without ``--kind``."""

SortBy = Literal["key", "size", "stored", "used"]


def ls(
    cache_file: CacheFile = None,
    *,
    namespace: Namespace = None,
    prefix: Prefix = "",
    kind: Annotated[
        list[Kind] | None,
        typer.Option(help="Only this kind; may be repeated.  [default: all but tombstone]"),
    ] = None,
    sort: Annotated[
        SortBy, typer.Option(help="By key, or the largest, last stored or last used first.")
    ] = "key",
    is_reversed: Annotated[
        bool, typer.Option("--reverse", "-r", help="Reverse the order.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"At most this many, 0 for all.  [default: {MAX_IN_TERMINAL} in a terminal]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the entries of the file."""
    path = existing(cache_file)
    selection = Selection(namespace, prefix, tuple(map(str, kind or LISTED)))
    if limit is None and is_terminal() and not as_json:
        limit = MAX_IN_TERMINAL
    most = limit or None
    with opened_to_read(path) as connection:
        found = report.entries(connection, selection, sort, is_reversed=is_reversed, most=most)
        is_cut = most is not None and len(found) == most
        in_all = report.amount(connection, selection).entries if is_cut else len(found)
    if as_json:
        print_json([_as_json(each) for each in found])
        return
    with_spans = any(each.kind == "range" for each in found)
    spans = [Column("start", is_number=True), Column("stop", is_number=True)]
    columns = [
        Column("size", is_number=True),
        Column("stored"),
        Column("used"),
        Column("kind"),
        *(spans if with_spans else []),
        Column("namespace"),
        Column("key"),
    ]
    if found:
        print_table(columns, [_row(each, with_spans=with_spans) for each in found])
    if in_all > len(found):
        left_out = f"{count(len(found), 'entry', 'entries')} of {in_all:,}; --limit 0 lists all"
        typer.echo(left_out, err=True)


def _row(each: Listed, *, with_spans: bool) -> list[str]:
    spans = ["-" if byte is None else str(byte) for byte in (each.start, each.stop)]
    return [
        format_size(each.size),
        local_time(each.stored_at),
        local_time(each.used_at),
        each.kind,
        *(spans if with_spans else []),
        each.namespace or "-",
        each.key,
    ]


def _as_json(each: Listed) -> dict[str, object]:
    return {
        "namespace": each.namespace,
        "key": each.key,
        "kind": each.kind,
        "start": each.start,
        "stop": each.stop,
        "bytes": each.size,
        "stored_at": iso_time(each.stored_at),
        "used_at": iso_time(each.used_at),
    }
