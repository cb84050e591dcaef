"""Values of any size, whole and in parts, come back as they were stored."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from tests.fakes import PROTOTYPE, STRESS, CountingStore, open_file, restart
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.file.connection import Connection

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from zarr.core.buffer import Buffer

KIB, MIB = 2**10, 2**20
BLOCK, PART = 64 * KIB, 4 * MIB

SIZES = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, PART - 1, PART, PART + 1, 9 * MIB]
BORDERS = [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, PART - 1, PART, PART + 1, 2 * PART, 9 * MIB]
SPANS = [(start, stop) for start in BORDERS for stop in BORDERS if start <= stop]


def pattern(size: int) -> npt.NDArray[np.uint8]:
    """Bytes of which no two blocks are the same."""
    return np.arange(-(-size // 4), dtype=np.uint32).view(np.uint8)[:size]


def as_buffer(data: npt.NDArray[np.uint8]) -> Buffer:
    return cpu.Buffer.from_array_like(data)


def numbers(found: Buffer | None) -> Any:
    assert found is not None
    return found.as_numpy_array()


@pytest.mark.parametrize("size", SIZES)
async def test_a_value_comes_back_whole(path: Path, size: int) -> None:
    store = SqliteStore(path)
    await store.set("k", as_buffer(pattern(size)))
    restart(store)
    store = SqliteStore(path)

    np.testing.assert_array_equal(numbers(await store.get("k", PROTOTYPE)), pattern(size))
    np.testing.assert_array_equal(numbers(store.get_sync("k")), pattern(size))
    assert await store.getsize("k") == size


@pytest.mark.parametrize("size", SIZES)
def test_a_range_is_a_slice_across_blocks_and_parts(path: Path, size: int) -> None:
    store = SqliteStore(path)
    data = pattern(size)
    store.set_sync("k", as_buffer(data))

    for start, stop in SPANS:
        found = store.get_sync("k", byte_range=RangeByteRequest(start, stop))
        np.testing.assert_array_equal(numbers(found), data[start:stop])
    for start in BORDERS:
        found = store.get_sync("k", byte_range=OffsetByteRequest(start))
        np.testing.assert_array_equal(numbers(found), data[start:])
    for suffix in BORDERS[1:]:
        found = store.get_sync("k", byte_range=SuffixByteRequest(suffix))
        np.testing.assert_array_equal(numbers(found), data[-suffix:])


@pytest.mark.parametrize("size", SIZES)
async def test_a_cached_value_serves_ranges_across_blocks_and_parts(path: Path, size: int) -> None:
    data = pattern(size)
    source = CountingStore(MemoryStore({"k": as_buffer(data)}))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    await store.get("k", PROTOTYPE)
    source.reset()

    for start, stop in SPANS:
        found = await store.get("k", PROTOTYPE, RangeByteRequest(start, stop))
        np.testing.assert_array_equal(numbers(found), data[start:stop])
    assert source.requests.total() == 0


@pytest.mark.parametrize("size", SIZES)
def test_a_shorter_or_longer_value_takes_the_place_of_another(path: Path, size: int) -> None:
    store = SqliteStore(path)
    store.set_sync("k", as_buffer(pattern(5 * MIB)))
    store.set_sync("k", as_buffer(pattern(size)))

    np.testing.assert_array_equal(numbers(store.get_sync("k")), pattern(size))


def test_parts_have_the_same_length_but_for_the_last(path: Path) -> None:
    SqliteStore(path).set_sync("k", as_buffer(pattern(9 * MIB)))
    with open_file(path) as db:
        lengths = db.execute("SELECT length(data) FROM value ORDER BY part").fetchall()

    assert lengths == [(PART,), (PART,), (MIB,)]


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """SQLite's limit for one blob, which is 10^9 bytes, reduced on every connection."""
    limit = PART + MIB
    initialize = Connection.__init__

    def initialize_with_limit(connection: Connection, *args: Any, **kwargs: Any) -> None:
        initialize(connection, *args, **kwargs)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, limit)

    monkeypatch.setattr(Connection, "__init__", initialize_with_limit)
    return limit


def test_a_value_may_exceed_the_limit_for_one_blob(path: Path, small_limit: int) -> None:
    store = SqliteStore(path)
    data = pattern(2 * small_limit + 1)
    store.set_sync("k", as_buffer(data))
    found = store.get_sync("k", byte_range=RangeByteRequest(1, 2 * small_limit))

    np.testing.assert_array_equal(numbers(store.get_sync("k")), data)
    np.testing.assert_array_equal(numbers(found), data[1:-1])


async def test_a_cached_value_may_exceed_the_limit_for_one_blob(
    path: Path, small_limit: int
) -> None:
    data = pattern(2 * small_limit + 1)
    source = CountingStore(MemoryStore({"k": as_buffer(data)}))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    await store.get("k", PROTOTYPE)
    found = await store.get("k", PROTOTYPE)

    np.testing.assert_array_equal(numbers(found), data)
    assert source.requests.total() == 1


@pytest.mark.skipif(STRESS < 10, reason="takes gigabytes: set ZARR_CACHE_STRESS to 10 or more")
def test_a_value_of_more_than_a_gigabyte_comes_back_whole(path: Path) -> None:
    store = SqliteStore(path)
    data = pattern(10**9 + 100 * MIB)
    store.set_sync("k", as_buffer(data))

    np.testing.assert_array_equal(numbers(store.get_sync("k")), data)
