"""How connections to a file are opened."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import buffer, open_file, restart
from zarr_cache import CacheStore, CacheWarning, SqliteStore, StorageError, connection
from zarr_cache.connection import mmap_bytes
from zarr_cache.file_database import FileDatabase
from zarr_cache.memory_database import MemoryDatabase

if TYPE_CHECKING:
    from pathlib import Path

    from zarr_cache.connection import Connection


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


async def test_nor_one_that_was_left_open_on_the_event_loop(path: Path) -> None:
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
