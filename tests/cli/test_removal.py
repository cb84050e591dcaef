"""``zarr-cache evict`` and ``zarr-cache clear``: what is removed, what stays, what is printed."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import SIZES, caching, value_of
from tests.fakes import (
    CountingStore,
    HeldStore,
    Statements,
    assert_accounts,
    buffer,
    open_file,
    read,
    restart,
    stopped_at,
)
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.inspect import removal
from zarr_cache.inspect.selection import Selection

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from tests.cli.conftest import Command

ALL = {("", "mine"), ("era5", "t/c/0"), ("era5", "t/c/1"), ("era5", "t/c/9")} | {
    ("era5", "zarr.json"),
    ("sst", "t/c/0"),
}


def left(path: Path) -> set[tuple[str, str]]:
    """What the file holds, but for fences."""
    with open_file(path) as db:
        return set(db.execute("SELECT namespace, key FROM cache_entries WHERE kind <> 'tombstone'"))


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        (["--to-size", "7196"], set()),
        (["--to-size", "7195"], {("era5", "t/c/1")}),
        (["--to-size", "5100"], {("era5", "t/c/1"), ("era5", "zarr.json")}),
        (
            ["--to-size", "0"],
            {("era5", "t/c/0"), ("era5", "t/c/1"), ("era5", "zarr.json"), ("sst", "t/c/0")},
        ),
        (
            ["--to-size", "1.05 kB", "--namespace", "era5"],
            {("era5", "t/c/1"), ("era5", "zarr.json")},
        ),
        (["--older-than", "5.9 min"], {("era5", "t/c/0"), ("era5", "t/c/1")}),
        (["--unused-for", "5.9 min"], {("era5", "t/c/1")}),
        (["--prefix", "t/c/0"], {("era5", "t/c/0"), ("sst", "t/c/0")}),
        (["--prefix", "t/c/0", "--namespace", "sst"], {("sst", "t/c/0")}),
        (["--namespace", "era5"], {each for each in ALL if each[0] == "era5"}),
        (["--namespace", "nobody"], set()),
        (["--namespace", ""], set()),
    ],
)
def test_what_was_chosen_is_removed_and_the_rest_stays(
    command: Command, filled: Path, options: list[str], gone: set[tuple[str, str]]
) -> None:
    would = command.json("evict", *options, "--dry-run")
    before = left(filled)
    reported = command.json("evict", *options)

    assert before == ALL
    assert left(filled) == ALL - gone
    assert reported == would | {"is_dry_run": False}
    assert reported["removed_entries"] == len(gone)
    assert reported["removed_bytes"] == sum(SIZES[name].get(key, 0) for name, key in gone)
    assert reported["cached_bytes"] == 7196 - reported["removed_bytes"]


@pytest.mark.usefixtures("filled")
def test_what_was_removed_is_reported_on_one_line(command: Command) -> None:
    would = command.lines("evict", "--prefix", "t/", "--dry-run")
    reported = command.lines("evict", "--prefix", "t/")

    assert would == [f"would remove 4 entries (6.9 KiB); 100 B are still cached in {command.path}"]
    assert reported == [f"removed 4 entries (6.9 KiB); 100 B are still cached in {command.path}"]


@pytest.mark.usefixtures("filled")
def test_evict_without_a_choice_is_a_question_of_usage(command: Command) -> None:
    result = command("evict")

    assert result.exit_code == 2
    assert "zarr-cache clear" in result.stderr


SPANS = {100: 200, 4096: 70_000, -16: 16}
"""The size of each range of mur, by its start."""


def spans_left(path: Path) -> set[int]:
    """Where the ranges begin that the file holds."""
    with open_file(path) as db:
        return {
            start for (start,) in db.execute("SELECT start FROM cache_entries WHERE kind = 'range'")
        }


@pytest.mark.parametrize(
    ("options", "gone", "values"),
    [
        (["--to-size", "77412"], set(), 4),
        # The values were used before.
        (["--to-size", "70216"], set(), 0),
        (["--to-size", "70215"], {100}, 0),
        (["--to-size", "70015"], {100, 4096}, 0),
        (["--to-size", "70016", "--namespace", "mur"], {100}, 4),
        (["--to-size", "0"], {100, 4096, -16}, 0),
        (["--prefix", "s/"], {100, 4096, -16}, 4),
        (["--namespace", "mur"], {100, 4096, -16}, 4),
        (["--namespace", "mur", "--older-than", "1.9 min"], {100, 4096}, 4),
        (["--namespace", "mur", "--unused-for", "2.9 min"], {100}, 4),
        (["--prefix", "t/"], set(), 1),
    ],
)
def test_ranges_are_removed_as_values_are(
    command: Command, ranged: Path, options: list[str], gone: set[int], values: int
) -> None:
    would = command.json("evict", *options, "--dry-run")
    reported = command.json("evict", *options)
    with open_file(ranged) as db:
        counted = db.execute("SELECT count(*) FROM entry WHERE kind = 'value'").fetchone()
        (kept,) = db.execute(
            "SELECT total(size) FROM entry WHERE kind IN ('value', 'range')"
        ).fetchone()

    assert spans_left(ranged) == SPANS.keys() - gone
    assert counted == (values,)
    assert reported == would | {"is_dry_run": False}
    assert reported["cached_bytes"] == kept
    assert reported["removed_bytes"] == 7196 + sum(SPANS.values()) - kept
    assert_accounts(ranged)


def test_clear_removes_ranges(command: Command, ranged: Path) -> None:
    reported = command.lines("clear", "--yes")

    assert reported == [f"removed 8 entries (75.6 KiB); 0 B are still cached in {ranged}"]
    assert left(ranged) == {("", "mine")}
    assert_accounts(ranged)


def test_more_than_a_step_is_removed_in_several_transactions(
    command: Command, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "MAX_AT_ONCE", 3)
    store = caching(path, "era5", read_only=True)
    for number in range(10):
        store.get_sync(f"absent/{number}")
    restart(store)
    reported = command.json("evict", "--prefix", "absent/")

    assert reported["removed_entries"] == 10
    assert left(path) == set()


class InterruptedAt(Statements):
    """What is asked of SQLite, interrupted as by Ctrl-C where entries are removed the n-th time."""

    def __init__(self, turn: int) -> None:
        super().__init__()
        self._turn = turn

    def run(self, text: str, connection: sqlite3.Connection | None) -> None:
        super().run(text, connection)
        if text == removal.REMOVE and self.number("DELETE FROM entry") == self._turn:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("arguments", [("evict", "--prefix", "absent/"), ("clear", "--yes")])
def test_ctrl_c_reports_how_much_was_removed(
    command: Command, path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(removal, "MAX_AT_ONCE", 3)
    store = caching(path, "era5", read_only=True)
    for number in range(10):
        store.get_sync(f"absent/{number}")
    restart(store)
    InterruptedAt(3).install(monkeypatch)
    result = command(*arguments)

    assert result.exit_code == 130
    assert result.stderr == "stopped: 6 entries (0 B) are removed\n"
    assert len(left(path)) == 4


def test_what_was_read_during_an_eviction_stays(path: Path, filled: Path) -> None:
    database = SqliteStore(path).database
    chosen = database.run(removal.too_much, Selection(), 5100)
    assert chosen is not None
    with open_file(filled) as db, db:
        db.execute("UPDATE entry SET used_at = used_at + 1e12 WHERE key = 'zarr.json'")
    database.run(removal.remove, chosen)

    assert left(filled) == ALL - {("era5", "t/c/1")}


@pytest.mark.parametrize("kind", ["stored", "tombstone"])
def test_nothing_but_responses_of_a_source_can_be_removed(path: Path, kind: str) -> None:
    with pytest.raises(ValueError, match=kind):
        SqliteStore(path).database.run(removal.remove, Selection(kinds=(kind,)))


def test_clear_asks_and_shows_what_it_would_remove(command: Command, filled: Path) -> None:
    result = command("clear", typed="y\n")

    assert result.exit_code == 0
    assert result.stderr == f"Remove 5 entries (7.0 KiB) of all sources from {filled}? [y/N]: "
    assert result.stdout == f"removed 5 entries (7.0 KiB); 0 B are still cached in {filled}\n"
    assert left(filled) == {("", "mine")}


@pytest.mark.parametrize("typed", ["n\n", "\n", ""])
def test_clear_leaves_everything_unless_the_user_says_yes(
    command: Command, filled: Path, typed: str
) -> None:
    result = command("clear", typed=typed)

    assert result.exit_code == 1
    assert result.stderr.endswith("[y/N]: nothing is removed\n")
    assert left(filled) == ALL


def test_clear_of_one_namespace_leaves_the_others(command: Command, filled: Path) -> None:
    reported = command.json("clear", "--yes", "--namespace", "sst")

    assert reported["removed_entries"] == 1
    assert left(filled) == {each for each in ALL if each[0] != "sst"}


def test_clear_in_a_dry_run_asks_nothing_and_removes_nothing(
    command: Command, filled: Path
) -> None:
    reported = command.json("clear", "--dry-run")

    assert (reported["removed_entries"], reported["cached_bytes"]) == (5, 0)
    assert left(filled) == ALL


def test_json_of_clear_is_alone_on_stdout(command: Command, filled: Path) -> None:
    result = command("clear", "--json", typed="y\n")

    assert json.loads(result.stdout)["path"] == str(filled)


async def test_what_was_being_fetched_when_it_was_cleared_is_not_kept(
    command: Command, path: Path
) -> None:
    era5 = caching(path, "era5")
    source = HeldStore(era5._store)
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="era5")
    await read(store, "zarr.json")
    store.flush()
    async with stopped_at(source.hold_after("get"), read(store, "t/c/0")):
        result = await asyncio.to_thread(command, "clear", "--yes")
    store.flush()

    assert result.exit_code == 0
    assert left(path) == set()


async def test_what_was_evicted_is_fetched_again_and_what_stayed_is_not(
    command: Command, path: Path
) -> None:
    source = CountingStore(caching(path, "era5")._store)
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="era5", read_only=True)
    for key in SIZES["era5"]:
        await read(store, key)
    store.flush()
    command("evict", "--prefix", "t/")
    source.reset()
    found = {key: await read(store, key) for key in SIZES["era5"]}

    assert found == {key: value_of(key, size) for key, size in SIZES["era5"].items()}
    assert sorted(source.keys) == ["t/c/0", "t/c/1"]


async def test_what_a_write_has_made_invalid_stays_so_after_an_eviction(
    command: Command, path: Path
) -> None:
    source = HeldStore(caching(path, "era5")._store)
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="era5")
    async with stopped_at(source.hold_after("get"), read(store, "t/c/0")):
        await store.set("t/c/0", buffer(b"new"))
        store.flush()
        await asyncio.to_thread(command, "evict", "--namespace", "era5")

    assert await read(store, "t/c/0") == b"new"
