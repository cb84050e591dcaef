"""What the byte ranges of a process take in memory is bounded; the least recently used leave."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import MemoryStore

from tests.fakes import (
    CountingStore,
    buffer,
    cached_keys,
    cached_ranges,
    file_cache,
    flush_everything,
    open_file,
    read,
    read_ranges,
)
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.backend.ranges import ENTRY_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store

KEY = "c/0"
NBYTES = 1000
DATA = bytes(range(250)) * 4 * 40
CHUNKS = [RangeByteRequest(start, start + NBYTES) for start in range(0, len(DATA), NBYTES)]
"""Forty ranges of 1000 bytes."""

TEN = 10 * (NBYTES + ENTRY_BYTES)
"""So much memory ten of them take."""


def new_source() -> CountingStore:
    return CountingStore(MemoryStore({KEY: buffer(DATA)}))


def new_store(source: Store, path: Path, **settings: Any) -> CacheStore:
    return CacheStore(source, cache_store=SqliteStore(path), namespace="source", **settings)


def in_memory(store: CacheStore) -> list[int]:
    """The numbers of the ranges in memory, the least recently used first."""
    return [entry.request.start // NBYTES for entry in file_cache(store).ranges._by_use]  # type: ignore[union-attr] # all are `CHUNKS`


async def test_ranges_stay_within_max_memory_and_the_least_recently_used_leave(
    path: Path,
) -> None:
    store = new_store(new_source(), path, max_memory=TEN)
    for request in CHUNKS[:10]:
        await read(store, KEY, request)
    await read(store, KEY, CHUNKS[0])
    for request in CHUNKS[10:15]:
        await read(store, KEY, request)
    info = store.cache_info()

    assert in_memory(store) == [6, 7, 8, 9, 0, 10, 11, 12, 13, 14]
    assert (info["ranges"], info["range_size"]) == (10, 10_000)
    assert store.cache_stats()["evictions"] == 5


@pytest.mark.parametrize(
    ("max_memory", "number"),
    [(TEN - 1, 9), ("4096 B", 2), ("4 KiB", 2), (0, 0), (NBYTES, 0), ("1 GiB", 40), (None, 40)],
)
async def test_max_memory_bounds_their_bytes_and_what_they_take_besides(
    path: Path, max_memory: int | str | None, number: int
) -> None:
    source = new_source()
    store = new_store(source, path, max_memory=max_memory)
    found = await read_ranges(store, KEY, CHUNKS)
    again = [await read(store, KEY, request) for request in CHUNKS[40 - number :]]

    assert found == [DATA[each.start : each.end] for each in CHUNKS]
    assert again == found[40 - number :]
    assert in_memory(store) == list(range(40 - number, 40))
    assert source.requests.total() == 1


async def test_a_range_larger_than_max_memory_evicts_nothing(path: Path) -> None:
    store = new_store(new_source(), path, max_memory=TEN)
    for request in CHUNKS[:10]:
        await read(store, KEY, request)
    found = await read(store, KEY, RangeByteRequest(10_000, 40_000))

    assert found == DATA[10_000:]
    assert in_memory(store) == list(range(10))
    assert store.cache_stats()["evictions"] == 0


async def test_ranges_in_the_file_take_no_memory_of_it(path: Path) -> None:
    source = new_source()
    store = new_store(source, path, max_memory=0, persist_ranges=True)
    await read_ranges(store, KEY, CHUNKS)
    store.flush()
    source.reset()
    again = await read_ranges(store, KEY, CHUNKS)
    info = store.cache_info()

    assert again == [DATA[each.start : each.end] for each in CHUNKS]
    assert source.requests.total() == 0
    assert (info["ranges"], info["file_ranges"]) == (0, 40)


async def test_max_memory_does_not_loosen_max_size(path: Path) -> None:
    store = new_store(new_source(), path, max_memory=None, max_size=5 * NBYTES)
    for request in CHUNKS:
        await read(store, KEY, request)

    assert in_memory(store) == [35, 36, 37, 38, 39]


# One order over values, ranges in the file and ranges in memory


class Mixed:
    """A value, a range in the file and a range in memory, of ten bytes each, in one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source = CountingStore(
            MemoryStore({key: buffer(key.encode() * 10) for key in ("v", "f", "m", "n", "o")})
        )
        settings: dict[str, Any] = {"max_size": 30}
        self.persisting = new_store(self.source, path, persist_ranges=True, **settings)
        self.other = new_store(self.source, path, **settings)

    async def use(self, key: str) -> bytes | None:
        """Read a key in the way in which it is kept."""
        store = self.persisting if key == "f" else self.other
        request: ByteRequest | None = RangeByteRequest(0, 10) if key in {"f", "m"} else None
        found = await read(store, key, request)
        flush_everything()
        return found

    @property
    def cached(self) -> set[str]:
        """The keys of which anything is cached."""
        ranges = file_cache(self.other).ranges.list_spans("source", "", 0)
        in_file = {each.key for each in cached_ranges(self.path)}
        assert not in_file & set(ranges)
        return cached_keys(self.path) | in_file | set(ranges)


@pytest.mark.parametrize("order", list(permutations("vfm")), ids="".join)
async def test_the_least_recently_used_leaves_first_wherever_it_is(
    path: Path, order: tuple[str, str, str]
) -> None:
    mixed = Mixed(path)
    for key in "vfm":
        await mixed.use(key)
    for key in order:
        await mixed.use(key)
    before = mixed.cached
    await mixed.use("n")
    after_one = mixed.cached
    await mixed.use("o")

    assert before == set("vfm")
    assert after_one == {"n", *order[1:]}
    assert mixed.cached == {"n", "o", order[2]}
    assert mixed.source.requests["get"] == 5


# The budget


async def test_the_budget_holds_after_each_read_of_values_and_ranges(path: Path) -> None:
    sizes = [700, 3000, 90_000, 150, 20_000, 70_000, 11]
    keys = [f"{size}/{number}" for number in range(3) for size in sizes]
    data = {key: key.encode() * (int(key.partition("/")[0]) // 3) for key in keys}
    source = CountingStore(MemoryStore({key: buffer(each) for key, each in data.items()}))
    budget = 200_000
    persisting = new_store(source, path, persist_ranges=True, max_size=budget)
    other = new_store(source, path, max_size=budget)
    over = []
    for turn in range(3 * len(keys)):
        key = keys[turn * 5 % len(keys)]
        size = len(data[key])
        requests = [None, RangeByteRequest(0, size // 2), RangeByteRequest(size // 3, size)]
        request = requests[turn % 3]
        store = other if turn % 4 == 3 else persisting
        found = await read(store, key, request)
        assert found == (data[key][request.start : request.end] if request else data[key])
        flush_everything()
        with open_file(path) as db:
            (in_file,) = db.execute("SELECT TOTAL(size) FROM entry").fetchone()
        if in_file + file_cache(other).ranges.nbytes > budget:
            over.append((turn, key, in_file))
    info = other.cache_info()

    assert over == []
    assert info["file_size"] + info["range_size"] <= budget
    assert min(info["file_ranges"], info["ranges"], len(cached_keys(path))) > 0
