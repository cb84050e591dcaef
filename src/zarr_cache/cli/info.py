"""``zarr-cache info``."""

import sqlite3
from pathlib import Path

from zarr_cache.cache import other_sizes
from zarr_cache.cli.file import existing, opened_to_read, size_of
from zarr_cache.cli.options import CacheFile, Json, MaxAge, MaxSize
from zarr_cache.cli.terminal import (
    Column,
    bar,
    count,
    curve_lines,
    curve_width,
    iso_time,
    local_time,
    percent,
    print_json,
    print_table,
    say,
)
from zarr_cache.core import ages
from zarr_cache.core.sizes import format_size
from zarr_cache.disk import sqlite_build
from zarr_cache.disk.paths import data_file_of, wal_of
from zarr_cache.index import extents
from zarr_cache.index.upkeep import space
from zarr_cache.inspect import report
from zarr_cache.inspect.report import NamespaceReport
from zarr_cache.inspect.selection import NOTHING, Amount
from zarr_cache.sampling.curve import Curve, curve_of

STORED_HERE = "(stored with SqliteStore)"
"""In place of the empty name of that namespace."""


def info(
    cache_file: CacheFile = None,
    *,
    max_size: MaxSize = None,
    max_age: MaxAge = None,
    as_json: Json = False,
) -> None:
    """Show what the file holds of each source, the hits, and what another size would bring."""
    path = existing(cache_file)
    with opened_to_read(path) as connection:
        fresh_after = ages.fresh_after(max_age, report.now_ns(connection, path))
        namespaces = report.namespaces(connection, None if max_age is None else fresh_after)
        in_file = space(connection)
        curve = curve_of(connection)
        recorded = report.recorded_max_size(connection)
        free_bytes = in_file.free_bytes + extents.free_bytes(connection)
    cached = sum((each.cached for each in namespaces), NOTHING)
    ranges = sum((each.ranges for each in namespaces), NOTHING)
    if as_json:
        print_json(
            {
                "path": str(path),
                "sqlite_version": sqlite3.sqlite_version,
                "sqlite_has_wal_reset_fault": sqlite_build.has_wal_reset_fault(),
                "file_bytes": path.stat().st_size,
                "data_bytes": size_of(data_file_of(path)),
                "wal_bytes": size_of(wal_of(path)),
                "free_bytes": free_bytes,
                "cached_bytes": cached.bytes,
                "file_ranges": ranges.entries,
                "file_range_size": ranges.bytes,
                "max_size": max_size,
                "max_age_seconds": max_age,
                "hit_rate_by_size": curve
                and [
                    {"bytes": size, "hit_rate": rate}
                    for size, rate in other_sizes.by_size(curve).items()
                ],
                "namespaces": [_as_json(each) for each in namespaces],
            }
        )
        return
    _print_file(path, free_bytes, cached.bytes, ranges, max_size)
    known = [each for each in namespaces if any(each.entries.values()) or each.hit_rate is not None]
    if known:
        with_ranges = ranges.entries > 0
        with_stale = max_age is not None
        columns = [
            Column("values", is_number=True),
            Column("bytes", is_number=True),
            *([Column("ranges", is_number=True)] if with_ranges else []),
            *([Column("range bytes", is_number=True)] if with_ranges else []),
            Column("share"),
            Column("absent", is_number=True),
            Column("hits", is_number=True),
            Column("oldest"),
            Column("newest"),
            *([Column("stale", is_number=True)] if with_stale else []),
            Column("namespace"),
        ]
        say("")
        whole = max_size or cached.bytes
        print_table(
            columns,
            [_row(each, whole, with_ranges=with_ranges, with_stale=with_stale) for each in known],
        )
        print_other_sizes(curve, recorded if max_size is None else max_size)


def print_other_sizes(curve: Curve | None, max_size: int | None) -> None:
    """A sentence, and below it the curve of hit rate over size, if it is known."""
    say("")
    say(other_sizes.sentence(curve, max_size))
    if curve is None or not curve.sizes:
        return
    axis = other_sizes.axis_of(curve, max_size)
    width = curve_width()
    mark = None
    if max_size is not None:
        mark = round(axis.place(max_size) * (width - 1)), f"{other_sizes.text_of(max_size)} now"
    say("")
    ends = other_sizes.text_of(axis.least), other_sizes.text_of(axis.most)
    for line in curve_lines([curve.at(each) for each in axis.sizes(width)], ends, mark):
        say(line)


def _print_file(
    path: Path, free_bytes: int, cached: int, ranges: Amount, max_size: int | None
) -> None:
    say(f"{path}")
    say(
        f"on disk: database {format_size(path.stat().st_size)}, "
        f"data file {format_size(size_of(data_file_of(path)))}, "
        f"WAL {format_size(size_of(wal_of(path)))}; "
        f"{format_size(free_bytes)} of them are free"
    )
    of_ranges = (
        f"; {format_size(ranges.bytes)} of them are in {count(ranges.entries, 'range')}"
        if ranges.entries
        else ""
    )
    if max_size is None:
        say(f"cached:  {format_size(cached)}{of_ranges}")
    else:
        share = cached / max_size if max_size else float(cached > 0)
        say(
            f"cached:  {format_size(cached)} of {format_size(max_size)} "
            f"{bar(share)} {percent(share)}{of_ranges}"
        )
    say(f"SQLite:  {sqlite_build.description()}")


def _row(each: NamespaceReport, whole: int, *, with_ranges: bool, with_stale: bool) -> list[str]:
    is_stored = each.namespace == ""
    values = each.amount("stored" if is_stored else "value")
    ranges = ["-", "-"] if is_stored else _cells(each.ranges)
    share = None if is_stored or not whole else each.cached.bytes / whole
    stale = f"{each.stale.entries:,} ({format_size(each.stale.bytes)})" if each.stale else "-"
    return [
        *_cells(values),
        *(ranges if with_ranges else []),
        "-" if share is None else f"{bar(share, 10)} {percent(share)}",
        "-" if is_stored else f"{each.entries.get('absent', 0):,}",
        percent(each.hit_rate),
        local_time(each.oldest),
        local_time(each.newest),
        *([stale] if with_stale else []),
        STORED_HERE if is_stored else each.namespace,
    ]


def _cells(amount: Amount) -> list[str]:
    return [f"{amount.entries:,}", format_size(amount.bytes)]


def _as_json(each: NamespaceReport) -> dict[str, object]:
    return {
        "namespace": each.namespace,
        "entries": each.entries,
        "bytes": each.bytes,
        "oldest": iso_time(each.oldest),
        "newest": iso_time(each.newest),
        "stale_entries": each.stale.entries if each.stale else None,
        "stale_bytes": each.stale.bytes if each.stale else None,
        "hits": each.hits,
        "misses": each.misses,
        "hit_rate": each.hit_rate,
        "bytes_served": each.bytes_served,
        "bytes_fetched": each.bytes_fetched,
        "evictions": each.evictions,
        "expirations": each.expirations,
    }
