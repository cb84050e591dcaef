"""``zarr-cache explain``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from zarr_cache.cli.file import existing, opened_to_read
from zarr_cache.cli.options import CacheFile, Json, MaxAge, MaxSize, Namespace
from zarr_cache.cli.terminal import (
    count,
    duration,
    iso_time,
    local_time,
    print_json,
    say,
)
from zarr_cache.core import ages
from zarr_cache.core.sizes import format_size
from zarr_cache.file.invalidation import marked_ns
from zarr_cache.index import evict, lookup
from zarr_cache.inspect import report
from zarr_cache.inspect.report import Explanation
from zarr_cache.inspect.selection import CACHED, Selection


@dataclass(frozen=True)
class _Told:
    """An entry, and what follows from the options.

    Attributes
    ----------
    is_damaged
        Its bytes are not what was kept: the next read asks the source.
    is_invalidated
        A write to its source could not be recorded: the next read asks the source.
    fresh_until
        Stamp until which it is fresh; None if nobody said for how long, or if it has no age.
    room
        Bytes that can be kept before something is evicted; None without a budget.
    """

    entry: Explanation
    is_damaged: bool
    is_invalidated: bool
    now: int
    fresh_until: int | None
    room: int | None

    @property
    def is_answer(self) -> bool:
        """Whether a read would have it."""
        is_stale = self.fresh_until is not None and self.fresh_until <= self.now
        is_no_answer = is_stale or self.is_damaged or self.is_invalidated
        return self.entry.kind != "fence" and not is_no_answer

    @property
    def evicted_after(self) -> int | None:
        """How many bytes of others may still be kept before it is evicted."""
        if self.room is None or self.entry.bytes_before is None:
            return None
        return max(0, self.room + self.entry.bytes_before)


def explain(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="The key, such as 'temperature/c/0/0'.")
    ],
    cache_file: CacheFile = None,
    *,
    namespace: Namespace = None,
    max_age: MaxAge = None,
    max_size: MaxSize = None,
    as_json: Json = False,
) -> None:
    """Tell whether a key is cached, since when, and what would be evicted before it.

    Ends with 1 if no read would be answered from what is there.
    """
    path = existing(cache_file)
    with opened_to_read(path) as connection:
        now = report.now_ns(connection, path)
        room = None if max_size is None else max_size - evict.cached_bytes(connection)
        told = [
            _Told(
                each,
                # Reads and verifies the bytes, and notes no use.
                lookup.lookup(connection, each.namespace, key).is_damaged,
                _is_invalidated(each, path),
                now,
                _fresh_until(each, max_age, now),
                room,
            )
            for each in report.explain(connection, key, namespace)
        ]
        kinds = ("value", "absent", "stored")
        below = report.amount(connection, Selection(namespace, f"{key.rstrip('/')}/", kinds))
    if as_json:
        print_json({"key": key, "path": str(path), "entries": [_as_json(each) for each in told]})
    else:
        _print(key, told, below.entries)
    if not any(each.is_answer for each in told):
        raise typer.Exit(1)


def _is_invalidated(each: Explanation, path: Path) -> bool:
    return each.kind in CACHED and marked_ns(path.resolve(), each.namespace) is not None


def _fresh_until(each: Explanation, max_age: float | None, now: int) -> int | None:
    # What somebody stored has no age, and neither has an answer that no age is too great for.
    if max_age is None or each.kind not in CACHED:
        return None
    return each.stored_at + now - ages.fresh_after(max_age, now)


def _print(key: str, told: list[_Told], below: int) -> None:
    say(key)
    if not told:
        say("  is not cached: the next read asks the source")
    for each in told:
        say(f"  in {each.entry.namespace or 'what was stored with SqliteStore'}")
        for line in _lines(each):
            say(f"    {line}")
    if below:
        say(f"  {count(below, 'key')} below it: zarr-cache ls --prefix {key.rstrip('/')}/")


def _lines(told: _Told) -> list[str]:
    entry, now = told.entry, told.now
    if entry.kind == "fence":
        return [f"was written to at {_moment(entry.stored_at, now)}: the next read asks the source"]
    what = {
        "value": f"cached whole, {format_size(entry.size)}",
        "absent": "cached as absent: the source had no such key",
        "stored": f"stored here, {format_size(entry.size)}: nothing evicts it",
    }[entry.kind]
    lines = [what, f"since {_moment(entry.stored_at, now)}"]
    if told.is_damaged:
        lines.append("damaged: the next read asks the source")
    if told.is_invalidated:
        lines.append("a write to the source could not be recorded: the next read asks it")
    if entry.kind == "stored":
        return lines
    lines.append(f"last used {_moment(entry.used_at, now)}")
    if told.fresh_until is not None:
        seconds = (told.fresh_until - now) / 1e9
        lines.append(
            f"fresh until {local_time(told.fresh_until)}, for {duration(seconds)}"
            if seconds > 0
            else f"stale since {local_time(told.fresh_until)}: the next read asks the source"
        )
    if entry.entries_before is not None and entry.bytes_before is not None:
        lines.append(
            f"evicted after {count(entry.entries_before, 'other value')}, "
            f"{format_size(entry.bytes_before)}"
        )
    if told.evicted_after is not None:
        lines.append(f"stays until {format_size(told.evicted_after)} more are kept of others")
    return lines


def _moment(timestamp: int, now: int) -> str:
    return f"{local_time(timestamp)}, {duration(max(0, now - timestamp) / 1e9)} ago"


def _as_json(told: _Told) -> dict[str, object]:
    entry = told.entry
    return {
        "namespace": entry.namespace,
        "kind": entry.kind,
        "bytes": entry.size,
        "stored_at": iso_time(entry.stored_at),
        "used_at": iso_time(entry.used_at),
        "fresh_until": iso_time(told.fresh_until),
        "is_damaged": told.is_damaged,
        "is_invalidated": told.is_invalidated,
        "is_answer": told.is_answer,
        "entries_before": entry.entries_before,
        "bytes_before": entry.bytes_before,
        "evicted_after_bytes": told.evicted_after,
    }
