"""``zarr-cache compact``: the file gets smaller, and what it holds stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import buffer, open_file, restart
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.sizes import format_size
from zarr_cache.disk.paths import data_file_of
from zarr_cache.index import upkeep

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command

SMALL = {f"{name}/{number}": bytes([number]) * 50_000 for name in "ab" for number in range(100)}
LARGE = {f"{name}/large/{number}": bytes([number]) * 2**18 for name in "ab" for number in range(16)}
VALUES = SMALL | LARGE


@pytest.fixture
def store(path: Path) -> CacheStore:
    """32 values of 256 KiB and 200 of 50 kB, kept."""
    source = MemoryStore({key: buffer(value) for key, value in VALUES.items()})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    for key in VALUES:
        store.get_sync(key)
    store.flush()
    return store


def on_disk(path: Path) -> int:
    """Bytes of the file and its data file, if it has one, which no process has open."""
    return sum(each.stat().st_size for each in (path, data_file_of(path)) if each.exists())


def test_what_was_evicted_is_given_back_to_the_disk(
    command: Command, path: Path, store: CacheStore
) -> None:
    restart(store)
    before = on_disk(path)
    command("evict", "--prefix", "a/")
    free = command.json("info")["free_bytes"]
    reported = command.json("compact")

    assert free > 2**23
    assert reported == {
        "path": str(path),
        "before_bytes": before,
        "after_bytes": on_disk(path),
        "can_shrink": True,
        "is_log_written_back": True,
    }
    assert before - on_disk(path) > 2**23
    assert command.json("info")["free_bytes"] == 0


def test_it_prints_one_line(command: Command, path: Path, store: CacheStore) -> None:
    restart(store)
    size = format_size(on_disk(path))
    lines = command.lines("compact")

    assert lines == [f"{path}: {size} before, {size} now"]


def test_steps_are_short_and_a_store_works_between_them(
    command: Command, path: Path, store: CacheStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "MAX_VACUUM_BYTES", 2**20)
    command("evict", "--prefix", "a/")
    given_back = []
    with open_file(path) as other:
        while freed := store._cache.database.run(upkeep.give_back):  # type: ignore[attr-defined] # of a SqliteStore
            given_back.append(freed)
            other.execute("UPDATE statistics SET hits = hits + 1")
            other.commit()
    restart(store)

    assert len(given_back) >= 3
    assert max(given_back) <= 2**20
    assert {key for key in VALUES if store.get_sync(key) is not None} == set(VALUES)


def test_a_reader_that_keeps_the_wal_from_being_written_back_is_reported(
    command: Command, path: Path, store: CacheStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zarr_cache.file.connection.BUSY_TIMEOUT_SECONDS", 0.05)
    restart(store)
    with open_file(path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entry").fetchone()
        command("evict", "--prefix", "a/")
        lines = command.lines("compact")

    assert lines[1].startswith("another process is reading")


def test_a_file_without_auto_vacuum_is_reported_to_be_unable_to_shrink(
    command: Command, path: Path, store: CacheStore
) -> None:
    restart(store)
    with open_file(path) as db:
        db.execute("PRAGMA journal_mode = DELETE").fetchone()
        db.execute("PRAGMA auto_vacuum = NONE")
        db.execute("VACUUM")
    lines = command.lines("compact")

    assert (
        lines[1]
        == "the file was made without incremental auto-vacuum and cannot shrink: start a new one"
    )
