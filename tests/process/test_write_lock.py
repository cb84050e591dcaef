"""Hits while somebody else holds the write lock of the file, and does not let go."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import MemoryStore

from tests.fakes import PROTOTYPE, CountingStore, buffer, open_file, read
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.backend.counters import MAX_PENDING
from zarr_cache.file import connection

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
    from pathlib import Path

# So many that the uses are gathered to the full more than twice.
KEYS = [f"k{number}" for number in range(2 * MAX_PENDING + 100)]
PART = RangeByteRequest(1, 3)


@pytest.fixture
def source() -> CountingStore:
    return CountingStore(MemoryStore({key: buffer(key.encode()) for key in KEYS}))


@pytest.fixture
def store(source: CountingStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> CacheStore:
    """A store that has read everything, and that waits for no lock."""
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_SECONDS", 0)
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    asyncio.run(read_all(store))
    source.reset()
    return store


async def read_all(store: CacheStore) -> list[bytes | None]:
    return await asyncio.gather(*(read(store, key) for key in KEYS))


@pytest.fixture
def held(store: CacheStore, path: Path) -> Iterator[sqlite3.Connection]:
    """Another connection, which holds the write lock once the store has filled the file."""
    assert store.cache_stats()["misses"] == len(KEYS)
    with open_file(path) as db:
        db.execute("BEGIN IMMEDIATE")
        yield db


def values_sync(store: CacheStore) -> list[bytes | None]:
    found = [store.get_sync(key) for key in KEYS]
    return [None if each is None else each.to_bytes() for each in found]


def values_async(store: CacheStore) -> list[bytes | None]:
    return asyncio.run(read_all(store))


def parts(store: CacheStore) -> list[bytes | None]:
    async def read_parts() -> list[bytes | None]:
        found = await store.get_partial_values(PROTOTYPE, [(key, PART) for key in KEYS])
        return [None if each is None else each.to_bytes() for each in found]

    return asyncio.run(read_parts())


def existences(store: CacheStore) -> list[bool]:
    async def ask() -> list[bool]:
        return [await store.exists(key) for key in KEYS]

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("ask", "responses"),
    [
        pytest.param(values_sync, [key.encode() for key in KEYS], id="sync"),
        pytest.param(values_async, [key.encode() for key in KEYS], id="async"),
        pytest.param(parts, [key.encode()[1:3] for key in KEYS], id="parts"),
        pytest.param(existences, [True] * len(KEYS), id="existence"),
    ],
)
def test_a_hit_never_takes_the_write_lock(
    ask: Callable[[CacheStore], list[object]],
    responses: list[object],
    store: CacheStore,
    source: CountingStore,
    held: sqlite3.Connection,
) -> None:
    found = ask(store)
    stats = store.cache_stats()
    held.rollback()

    assert found == responses
    assert (stats["hits"], stats["faults"]) == (len(KEYS), 0)
    assert source.requests == {}


def test_what_could_not_be_written_is_written_when_the_lock_is_free(
    store: CacheStore, path: Path, held: sqlite3.Connection
) -> None:
    for key in reversed(KEYS):
        store.get_sync(key)
    held.rollback()
    store.close()

    with open_file(path) as db:
        order = [key for (key,) in db.execute("SELECT key FROM entry ORDER BY used_at")]
        (hits,) = db.execute("SELECT hits FROM statistics").fetchone()
    assert order == KEYS[::-1]
    assert hits == len(KEYS)
