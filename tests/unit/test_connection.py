"""How connections to a file are opened."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import buffer, restart
from zarr_cache import CacheStore, CacheWarning, SqliteStore, StorageError, connection
from zarr_cache.connection import mmap_bytes

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("value", "expected"), [(None, 2**33), ("", 2**33), ("0", 0), ("1 GiB", 2**30)]
)
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
