"""``zarr-cache explain``."""

from dataclasses import dataclass
from typing import Annotated

import typer

from zarr_cache.cli.file import existing, opened_to_read
from zarr_cache.cli.options import CacheFile, Json, MaxAge, MaxSize, Namespace, parse_age
from zarr_cache.cli.terminal import (
    count,
    duration,
    iso_time,
    local_time,
    print_json,
    say,
)
from zarr_cache.core import ages
from zarr_cache.core.byte_range import Span
from zarr_cache.core.keys import is_metadata
from zarr_cache.core.sizes import format_size
from zarr_cache.file.invalidation import Markers
from zarr_cache.index import evict, lookup
from zarr_cache.inspect import explanation, report
from zarr_cache.inspect.explanation import Explanation, RangesExplanation
from zarr_cache.inspect.selection import CACHED, Selection

NO_WHOLE_VALUE = "the whole value is not cached: a read of it goes to the source"

MAX_NAMED = 3
"""So many ranges of a key are named; there may be thousands."""


@dataclass(frozen=True)
class _Explained:
    """An entry, and what follows from the options of the command.

    Attributes
    ----------
    is_damaged
        The bytes do not match the checksums: the next read goes to the source.
    is_invalidated
        A write to the source could not be recorded: the next read goes to the source.
    fresh_until
        Timestamp until which it is fresh; None without ``--max-age``, or if it has no age.
    room
        Bytes that can be cached before something is evicted; None without ``--max-size``.
    """

    entry: Explanation
    is_damaged: bool
    is_invalidated: bool
    now: int
    fresh_until: int | None
    room: int | None

    @property
    def is_answer(self) -> bool:
        """Whether a read would be served from it."""
        is_stale = self.fresh_until is not None and self.fresh_until <= self.now
        is_unusable = is_stale or self.is_damaged or self.is_invalidated
        return self.entry.kind != "tombstone" and not is_unusable

    @property
    def evicted_after(self) -> int | None:
        """How many more bytes can be cached before it is evicted."""
        return _evicted_after(self.room, self.entry.bytes_before)


@dataclass(frozen=True)
class _ExplainedRanges:
    """The ranges of the key in a namespace.

    Attributes
    ----------
    first
        Those that are named.
    is_invalidated, now, room
        As of `_Explained`.
    """

    ranges: RangesExplanation
    first: list[Span]
    is_invalidated: bool
    now: int
    room: int | None

    @property
    def evicted_after(self) -> int | None:
        """How many more bytes can be cached before the least recently used is evicted."""
        return _evicted_after(self.room, self.ranges.bytes_before)


def explain(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="The key, such as 'temperature/c/0/0'.")
    ],
    cache_file: CacheFile = None,
    *,
    namespace: Namespace = None,
    max_age: MaxAge = None,
    max_age_metadata: Annotated[
        float | None,
        typer.Option(
            parser=parse_age,
            metavar="AGE",
            help="The same for Zarr's metadata, such as zarr.json. By default as --max-age.",
        ),
    ] = None,
    max_size: MaxSize = None,
    as_json: Json = False,
) -> None:
    """Show whether a key is cached, what the next read of it does, and what is evicted before it.

    The ages are settings of a CacheStore, not of the file: without them, what is cached counts as
    fresh. Exits with 1 if a read of the whole value would ask the source.
    """
    if max_age_metadata is not None and is_metadata(key):
        max_age = max_age_metadata
    path = existing(cache_file)
    markers = Markers(path)
    with opened_to_read(path) as connection:
        now = report.now_ns(connection, path)
        fresh_after = None if max_age is None else ages.fresh_after(max_age, now)
        room = None if max_size is None else max_size - evict.cached_bytes(connection)
        explained = [
            _Explained(
                each,
                # Reads and verifies the bytes, and records no use.
                lookup.lookup(connection, each.namespace, key).is_damaged,
                each.kind in CACHED and markers.is_marked(each.namespace),
                now,
                _fresh_until(each, fresh_after, now),
                room,
            )
            for each in explanation.explain(connection, key, namespace)
        ]
        ranges = [
            _ExplainedRanges(
                each,
                explanation.first_ranges(connection, each.namespace, key, MAX_NAMED),
                markers.is_marked(each.namespace),
                now,
                room,
            )
            for each in explanation.explain_ranges(connection, key, namespace, fresh_after)
        ]
        kinds = (*CACHED, "stored")
        below = report.count_keys(connection, Selection(namespace, f"{key.rstrip('/')}/", kinds))
    if as_json:
        print_json(
            {
                "key": key,
                "path": str(path),
                "entries": [_as_json(each) for each in explained],
                "ranges": [_ranges_as_json(each) for each in ranges],
            }
        )
    else:
        _print(key, explained, ranges, below)
    if not any(each.is_answer for each in explained):
        raise typer.Exit(1)


def _fresh_until(each: Explanation, fresh_after: int | None, now: int) -> int | None:
    # Values stored with SqliteStore have no age, and without --max-age nothing becomes stale.
    if fresh_after is None or each.kind not in CACHED:
        return None
    return each.as_of + now - fresh_after


def _evicted_after(room: int | None, bytes_before: int | None) -> int | None:
    if room is None or bytes_before is None:
        return None
    return max(0, room + bytes_before)


def _print(
    key: str, explained: list[_Explained], ranges: list[_ExplainedRanges], below: int
) -> None:
    say(key)
    if not explained and not ranges:
        say("  is not cached: the next read goes to the source")
    rows = {each.entry.namespace: each for each in explained}
    ranges_by_namespace = {each.ranges.namespace: each for each in ranges}
    for namespace in sorted({**rows, **ranges_by_namespace}):
        say(f"  in {namespace or 'the values stored with SqliteStore'}")
        row, of_key = rows.get(namespace), ranges_by_namespace.get(namespace)
        lines = [NO_WHOLE_VALUE] if row is None else _lines(row)
        for line in [*lines, *([] if of_key is None else _range_lines(key, of_key))]:
            say(f"    {line}")
    if below:
        say(f"  {count(below, 'key')} below it: zarr-cache ls --prefix {key.rstrip('/')}/")


def _lines(explained: _Explained) -> list[str]:
    entry, now = explained.entry, explained.now
    if entry.kind == "tombstone":
        return [f"written to at {_moment(entry.stored_at, now)}: the next read goes to the source"]
    what = {
        "value": f"cached, {format_size(entry.size)}",
        "absent": "cached as absent: the source had no such key",
        "stored": f"stored, {format_size(entry.size)}: never evicted",
    }[entry.kind]
    lines = [what, f"since {_moment(entry.stored_at, now)}"]
    if entry.kind == "stored":
        return lines
    lines += _version_lines(entry.validator, entry.confirmed_at, now)
    lines.append(f"last used {_moment(entry.used_at, now)}")
    if explained.fresh_until is not None:
        seconds = (explained.fresh_until - now) / 1e9
        moment = local_time(explained.fresh_until)
        lines.append(
            f"fresh until {moment}, for {duration(seconds)}"
            if seconds > 0
            else f"stale since {moment}"
        )
    lines.append(f"the next read {_next_read(explained)}")
    if entry.entries_before is not None and entry.bytes_before is not None:
        lines.append(f"evicted after {_others(entry.entries_before, entry.bytes_before)}")
    if explained.evicted_after is not None:
        lines.append(f"evicted when {format_size(explained.evicted_after)} more are cached")
    return lines


def _version_lines(validator: str | None, confirmed_at: int | None, now: int) -> list[str]:
    lines = [] if validator is None else [f"version {validator}"]
    if confirmed_at is not None:
        lines.append(f"the source had this version {_moment(confirmed_at, now)}")
    return lines


def _next_read(explained: _Explained) -> str:
    """What the next read of the key does, and why."""
    entry = explained.entry
    is_stale = explained.fresh_until is not None and explained.fresh_until <= explained.now
    if explained.is_damaged:
        return "fetches it: it is damaged"
    if explained.is_invalidated:
        return "fetches it: a write to the source could not be recorded"
    if not is_stale:
        return "makes no request" + (
            "" if explained.fresh_until else ", unless it is stale by then"
        )
    if entry.kind == "absent":
        return "asks the source for it: the absence is stale"
    if entry.validator is None:
        return "fetches it: it is stale, and its version is not known"
    return "asks the source whether it has changed, and fetches it if so: it is stale"


def _range_lines(key: str, explained: _ExplainedRanges) -> list[str]:
    ranges, now = explained.ranges, explained.now
    lines = [f"{count(ranges.entries, 'range')} of it, {format_size(ranges.bytes)}"]
    lines += [f"  {each}" for each in explained.first]
    if ranges.entries > len(explained.first):
        more = f"{ranges.entries - len(explained.first):,} more"
        lines.append(f"  and {more}: zarr-cache ls --kind range --prefix {key}")
    lines.append(f"the oldest since {_moment(ranges.oldest, now)}")
    lines.append(f"the newest since {_moment(ranges.newest, now)}")
    lines += _version_lines(ranges.validator, ranges.confirmed_at, now)
    lines.append(f"last used {_moment(ranges.used_at, now)}")
    if ranges.stale is not None:
        lines.append(f"{count(ranges.stale, 'of them is', 'of them are')} stale")
    if ranges.validator is not None:
        lines.append("others of the value are read only if the source still has this version")
    if explained.is_invalidated:
        lines.append("a write could not be recorded: the next read goes to the source")
    others = _others(ranges.entries_before, ranges.bytes_before)
    lines.append(f"the least recently used is evicted after {others}")
    if explained.evicted_after is not None:
        size = format_size(explained.evicted_after)
        lines.append(f"the least recently used is evicted when {size} more are cached")
    return lines


def _others(entries: int, nbytes: int) -> str:
    others = count(entries, "other value or range", "other values and ranges")
    return f"{others}, {format_size(nbytes)}"


def _moment(timestamp: int, now: int) -> str:
    return f"{local_time(timestamp)}, {duration(max(0, now - timestamp) / 1e9)} ago"


def _as_json(explained: _Explained) -> dict[str, object]:
    entry = explained.entry
    return {
        "namespace": entry.namespace,
        "kind": entry.kind,
        "bytes": entry.size,
        "stored_at": iso_time(entry.stored_at),
        "used_at": iso_time(entry.used_at),
        "fresh_until": iso_time(explained.fresh_until),
        "validator": entry.validator,
        "confirmed_at": iso_time(entry.confirmed_at),
        "next_read": None if entry.kind in {"stored", "tombstone"} else _next_read(explained),
        "is_damaged": explained.is_damaged,
        "is_invalidated": explained.is_invalidated,
        "is_answer": explained.is_answer,
        "entries_before": entry.entries_before,
        "bytes_before": entry.bytes_before,
        "evicted_after_bytes": explained.evicted_after,
    }


def _ranges_as_json(explained: _ExplainedRanges) -> dict[str, object]:
    ranges = explained.ranges
    return {
        "namespace": ranges.namespace,
        "ranges": ranges.entries,
        "bytes": ranges.bytes,
        "oldest": iso_time(ranges.oldest),
        "newest": iso_time(ranges.newest),
        "stale_entries": ranges.stale,
        "used_at": iso_time(ranges.used_at),
        "validator": ranges.validator,
        "confirmed_at": iso_time(ranges.confirmed_at),
        "is_invalidated": explained.is_invalidated,
        "entries_before": ranges.entries_before,
        "bytes_before": ranges.bytes_before,
        "evicted_after_bytes": explained.evicted_after,
    }
