"""How connections to a file are opened."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from zarr.storage import MemoryStore

from tests.fakes import NotedLock, buffer, open_file, restart
from zarr_cache import CacheStore, CacheWarning, SqliteStore, StorageError
from zarr_cache.disk.paths import HAS_LOCKS, wal_of
from zarr_cache.file import connection, migrate
from zarr_cache.file.connection import WriteLock, connect, mmap_bytes
from zarr_cache.file.database import MemoryDatabase
from zarr_cache.file.file_database import FileDatabase
from zarr_cache.index import upkeep

if HAS_LOCKS:
    import fcntl

if TYPE_CHECKING:
    from pathlib import Path

    from zarr_cache.file.connection import Connection


@pytest.mark.parametrize(("value", "expected"), [(None, 0), ("", 0), ("0", 0), ("1 GiB", 2**30)])
def test_the_environment_says_how_much_is_mapped(
    value: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZARR_CACHE_MMAP_BYTES", raising=False)
    if value is not None:
        monkeypatch.setenv("ZARR_CACHE_MMAP_BYTES", value)

    assert mmap_bytes() == expected


def test_what_is_no_size_is_refused_by_name_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZARR_CACHE_MMAP_BYTES", "off")

    with pytest.raises(ValueError, match=r"^ZARR_CACHE_MMAP_BYTES: 'off' is no size"):
        mmap_bytes()


def test_an_sqlite_that_is_too_old_opens_nothing_and_reads_go_to_the_source(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemoryStore({"k": buffer(b"value")})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    store.get_sync("k")
    restart(store)
    before = path.read_bytes()
    # It takes what it does not know of the schema for damage.
    monkeypatch.setattr(connection, "OLDEST_SQLITE", (99, 0))
    monkeypatch.setattr(connection, "LACKS", connection.lacks(sqlite3))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    with pytest.warns(CacheWarning, match=rf"{sqlite3.sqlite_version}.*99\.0 or newer"):
        found = store.get_sync("k")
    with pytest.raises(StorageError, match=r"99\.0 or newer"):
        SqliteStore(path.with_name("other.sqlite")).get_sync("k")

    assert found is not None
    assert found.to_bytes() == b"value"
    assert path.read_bytes() == before


def interrupted(connection: Connection) -> None:
    """An operation that Ctrl-C ends before its transaction has ended."""
    connection.execute("BEGIN")
    connection.execute("SELECT revision FROM counter").fetchone()
    raise KeyboardInterrupt


def unended(connection: Connection) -> None:
    """An operation whose transaction cannot be ended."""
    connection.execute("BEGIN")
    connection.execute("SELECT revision FROM counter").fetchone()
    error = sqlite3.OperationalError("as the test asked")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR
    raise error


def bytes_kept(connection: Connection) -> int:
    """Bytes of what is stored, as this connection sees the file."""
    (nbytes,) = connection.execute("SELECT bytes FROM total WHERE kind = 'stored'").fetchone()
    return int(nbytes)


def test_a_transaction_that_was_left_open_hides_nothing_from_later_reads(path: Path) -> None:
    store = SqliteStore(path)
    store.set_sync("k", buffer(b"12345"))
    database = FileDatabase.of(path)
    with pytest.raises(KeyboardInterrupt):
        database.run(interrupted)
    with open_file(path) as theirs:
        theirs.execute("UPDATE entry SET size = 7")
        theirs.commit()
        seen = database.run(bytes_kept)
        theirs.execute("UPDATE entry SET size = 5")
        theirs.commit()

    assert seen == 7


async def test_a_transaction_left_open_on_the_event_loop_hides_nothing_from_later_reads(
    path: Path,
) -> None:
    store = SqliteStore(path)
    await store.set("k", buffer(b"12345"))
    database = FileDatabase.of(path)
    with pytest.raises(StorageError, match="as the test asked"):
        await database.run_async(unended)
    with open_file(path) as theirs:
        theirs.execute("UPDATE entry SET size = 7")
        theirs.commit()
        seen = await database.run_async(bytes_kept)
        theirs.execute("UPDATE entry SET size = 5")
        theirs.commit()

    assert seen == 7


def test_a_database_in_memory_goes_on_after_a_transaction_that_was_left_open() -> None:
    database = MemoryDatabase()
    with pytest.raises(KeyboardInterrupt):
        database.run(interrupted)

    assert database.run(lambda connection: connection.in_transaction) is False


@pytest.mark.parametrize("longer", [0, 1])
def test_no_row_is_read_that_is_longer_than_any_of_ours(longer: int) -> None:
    nbytes = connection.MAX_ROW_BYTES + longer
    with closing(connect(":memory:", WriteLock())) as db:
        db.execute("CREATE TABLE long (data BLOB)")
        if longer:
            with pytest.raises(sqlite3.DataError, match="too big"):
                db.execute("SELECT length(zeroblob(?) || '')", (nbytes,)).fetchone()
        else:
            assert db.execute("SELECT length(zeroblob(?))", (nbytes,)).fetchone() == (nbytes,)


def test_a_wal_that_has_become_long_is_truncated(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CHECKPOINT_SECONDS", 0)
    store = SqliteStore(path)
    store.set_sync("first", buffer(b""))
    with open_file(path) as reader:
        # What it sees cannot be written over.
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM entry").fetchone()
        for number in range(9):
            store.set_sync(str(number), buffer(bytes(2**20)))
    long = wal_of(path).stat().st_size
    monkeypatch.setattr(connection, "CHECKPOINT_SECONDS", 30)
    FileDatabase.of(path).run(lambda db: db.keep_wal_short())

    assert 8 * 2**20 < long < 12 * 2**20
    assert wal_of(path).stat().st_size == 0


def test_a_writer_queued_behind_a_timed_out_one_fails_at_once() -> None:
    turns, lock = WriteLock(), NotedLock()
    turns._lock = lock  # type: ignore[assignment] # as much of it as is used
    tried, is_told = [], []

    def queue() -> None:
        try:
            with turns.acquire():
                tried.append("queued")
        except sqlite3.OperationalError as error:
            is_told.append(error.sqlite_errorcode == sqlite3.SQLITE_BUSY)

    queued = threading.Thread(target=queue)
    locked = sqlite3.OperationalError("database is locked")
    locked.sqlite_errorcode = sqlite3.SQLITE_BUSY

    def wait_for_the_file() -> None:
        queued.start()
        lock.is_waited_for.wait()
        raise locked

    with pytest.raises(sqlite3.OperationalError), turns.acquire():
        wait_for_the_file()
    queued.join()
    with turns.acquire():
        tried.append("came later")

    assert is_told == [True]
    assert tried == ["came later"]


def is_locked(wal: Path) -> bool:
    """Whether another process would wait for the lock on the WAL."""
    descriptor = os.open(wal, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


@pytest.mark.skipif(not HAS_LOCKS, reason="the system has no flock: see docs/sqlite.md")
def test_each_commit_and_each_checkpoint_is_made_under_a_lock_of_all_processes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LONG_WAL_BYTES", 0)
    seen: list[tuple[str, bool]] = []

    def commit_and_checkpoint(database: Connection) -> None:
        assert database.wal is not None
        wal = database.wal
        database.set_trace_callback(lambda statement: seen.append((statement, is_locked(wal))))
        with database.writing():
            database.execute("PRAGMA user_version").fetchone()
        database.keep_wal_short()
        upkeep.checkpoint(database)
        assert not is_locked(wal)

    SqliteStore(path).set_sync("k", buffer(b"v"))
    FileDatabase.of(path).run(commit_and_checkpoint)
    changing = [each for each in seen if each[0].startswith(("COMMIT", "PRAGMA wal_checkpoint"))]

    assert changing == [
        ("COMMIT", True),
        ("PRAGMA wal_checkpoint(TRUNCATE)", True),
        ("PRAGMA wal_checkpoint(TRUNCATE)", True),
    ]


@pytest.mark.skipif(not HAS_LOCKS, reason="the system has no flock: see docs/sqlite.md")
def test_a_new_file_is_made_under_that_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []
    migrate_as_ever = migrate.migrate

    def noted(*args: Any, **kwargs: Any) -> int:
        made.append(is_locked(wal_of(path)))
        return migrate_as_ever(*args, **kwargs)

    monkeypatch.setattr(migrate, "migrate", noted)
    SqliteStore(path).set_sync("k", buffer(b"v"))

    assert made == [True]
