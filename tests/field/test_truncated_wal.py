"""A WAL that is cut under an open file, as by a disk that is full or by a tool that "cleans up"."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import warnings
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import PROTOTYPE, Statements, buffer, read, restart
from zarr_cache import CacheStore, CacheWarning, FileDamagedError, SqliteStore
from zarr_cache.disk.paths import wal_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEYS = [f"k{number}" for number in range(100)]

MORE_KEYS = [f"more{number}" for number in range(10)]


def value_of(key: str) -> bytes:
    return key.encode() * 500


@pytest.fixture
def store(path: Path) -> CacheStore:
    """One whose values are in the file, most of them in its WAL."""
    source = MemoryStore({key: buffer(value_of(key)) for key in (*KEYS, *MORE_KEYS)})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    read_all_sync(store, KEYS)
    return store


def read_all_sync(store: CacheStore, keys: list[str]) -> None:
    """Read each key, and see that its value is the source's."""
    for key in keys:
        found = store.get_sync(key, prototype=PROTOTYPE)
        assert found is not None
        assert found.to_bytes() == value_of(key)
    store.flush()


def read_all_async(store: CacheStore, keys: list[str]) -> None:
    """As `read_all_sync`, on an event loop."""

    async def on_loop() -> list[bytes | None]:
        return [await read(store, key) for key in keys]

    assert asyncio.run(on_loop()) == [value_of(key) for key in keys]
    store.flush()


def hits(store: CacheStore) -> int:
    """How many of the keys are hits now."""
    before = store.cache_stats()["hits"]
    read_all_sync(store, KEYS)
    return int(store.cache_stats()["hits"] - before)


def forget_pages(path: Path) -> None:
    """Let SQLite read from the disk again what it has in memory."""
    SqliteStore(path).database.run(lambda connection: connection.execute("PRAGMA shrink_memory"))


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


@pytest.mark.leaves_damage
@pytest.mark.parametrize("cut", [cut_in_half, empty])
@pytest.mark.parametrize("then", [MORE_KEYS, []], ids=["then written", "then read"])
@pytest.mark.parametrize("read_all", [read_all_sync, read_all_async])
def test_the_file_is_quarantined_and_nothing_has_to_be_restarted(
    store: CacheStore,
    path: Path,
    cut: Callable[[Path], None],
    then: list[str],
    read_all: Callable[[CacheStore, list[str]], None],
) -> None:
    """Every read went to the source until the process closed the file."""
    cut(wal_of(path))
    with warnings.catch_warnings():
        # Whether a read or a write behind it meets the fault is a matter of time.
        warnings.simplefilter("ignore", CacheWarning)
        read_all(store, then)
        forget_pages(path)
        read_all(store, KEYS)
        read_all(store, KEYS)

    assert hits(store) == len(KEYS)
    assert len(list(path.parent.glob("*.damaged-*Z"))) == 1


@pytest.mark.leaves_damage
def test_the_warning_says_that_the_wal_was_cut(store: CacheStore, path: Path) -> None:
    empty(wal_of(path))
    forget_pages(path)
    with pytest.warns(CacheWarning, match=r"cannot be read \(disk I/O error\), or its WAL was cut"):
        read_all_sync(store, KEYS)


@pytest.mark.leaves_damage
def test_a_file_with_values_stored_since_it_was_opened_stays_where_it_is(path: Path) -> None:
    """Of a file that cannot be read it is not known otherwise that it holds a user's data."""
    source = MemoryStore({"k": buffer(b"value")})
    cache_store = SqliteStore(path)
    store = CacheStore(source, cache_store=cache_store, namespace="source")
    store.get_sync("k", prototype=PROTOTYPE)
    store.flush()
    cache_store.set_sync("theirs", buffer(bytes(10_000)))
    empty(wal_of(path))
    forget_pages(path)
    with pytest.warns(CacheWarning, match="holds values that were stored with SqliteStore"):
        found = store.get_sync("k", prototype=PROTOTYPE)
    with pytest.raises(FileDamagedError, match="cannot be read"):
        cache_store.get_sync("theirs", prototype=PROTOTYPE)

    assert found is not None
    assert found.to_bytes() == b"value"
    assert not list(path.parent.glob("*.damaged-*"))


READ_ERRORS = [
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
]

OTHER_ERRORS = [
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_IOERR_WRITE,
    sqlite3.SQLITE_IOERR_FSYNC,
    sqlite3.SQLITE_IOERR_SHMMAP,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_CANTOPEN,
]


@pytest.mark.parametrize("code", READ_ERRORS)
def test_a_disk_that_fails_for_a_moment_costs_nothing(
    path: Path, statements: Statements, code: int
) -> None:
    store = cached(path)
    statements.fail(code, at=1)
    read_all_sync(store, KEYS[:1])

    assert store.cache_stats()["faults"] == 0
    assert store.cache_stats()["hits"] == 1
    assert not list(path.parent.glob("*.damaged-*"))


@pytest.mark.parametrize("code", READ_ERRORS)
def test_a_file_that_cannot_be_read_twice_is_quarantined(
    path: Path, statements: Statements, code: int
) -> None:
    store = cached(path)
    statements.fail(code, at=1, times=2)
    with pytest.warns(CacheWarning, match="cannot be read"):
        read_all_sync(store, KEYS[:1])
    # This read is cached in the new file: the one before began before there was that file.
    read_all_sync(store, KEYS[:1])
    read_all_sync(store, KEYS[:1])

    assert store.cache_stats()["faults"] == 1
    assert store.cache_stats()["hits"] == 1
    assert len(list(path.parent.glob("*.damaged-*Z"))) == 1


@pytest.mark.parametrize("code", OTHER_ERRORS)
def test_no_other_fault_throws_the_file_away(path: Path, statements: Statements, code: int) -> None:
    store = cached(path)
    statements.fail(code, at=1, times=2)
    with pytest.warns(CacheWarning):
        read_all_sync(store, KEYS[:1])

    assert not list(path.parent.glob("*.damaged-*"))


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    """What runs on connections that are made from now on."""
    statements = Statements()
    statements.install(monkeypatch)
    return statements


def cached(path: Path) -> CacheStore:
    """A store with one key in its file, and no thread that runs statements."""
    source = MemoryStore({KEYS[0]: buffer(value_of(KEYS[0]))})
    before = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    before.get_sync(KEYS[0], prototype=PROTOTYPE)
    restart(before)
    cache_store = SqliteStore(path)
    cache_store.database.clock()
    return CacheStore(source, cache_store=cache_store, namespace="source")
