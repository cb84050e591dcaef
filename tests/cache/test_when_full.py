"""With when_full="keep", what has no room is returned and not cached, and evicts nothing."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import LocalStore, MemoryStore

from benchmarks import traces
from tests.fakes import (
    CountingStore,
    Statements,
    assert_accounts,
    buffer,
    cached_bytes,
    cached_keys,
    cached_ranges,
    close_everything,
    file_cache,
    flush_everything,
    leave_process,
    open_file,
    read,
    restart,
    tell_versions,
    values,
    versioned,
)
from tests.warming.arrays import CHUNK, cached, rows
from zarr_cache import CacheStore, SqliteStore, warm
from zarr_cache.backend.ranges import ENTRY_BYTES
from zarr_cache.core import private
from zarr_cache.index import listing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store

    from tests.fakes import HeldTime
    from zarr_cache.backend.ranges import RangeEntry
    from zarr_cache.index.admit import Admission

    type Read = Callable[[Store, str], Awaitable[bytes | None]]

SIZE = 1000
LARGE = 100_000
"""In the data file."""


def new_source(number: int = 8, size: int = SIZE) -> CountingStore:
    """The keys "0", "1" and so on, each with a value of its own."""
    held = {f"{key}": buffer(bytes([key + 1]) * size) for key in range(number)}
    return CountingStore(MemoryStore(held))


def new_store(source: Store, path: Path, **settings: Any) -> CacheStore:
    settings = {"when_full": "keep", "max_size": 3 * SIZE, "namespace": "source", **settings}
    return CacheStore(source, cache_store=SqliteStore(path), **settings)


async def read_sync(store: Any, key: str) -> bytes | None:
    found = store.get_sync(key)
    return None if found is None else bytes(found.to_bytes())


async def fill(store: CacheStore, keys: str = "012") -> None:
    """Read each of the keys, and wait until they are written."""
    for key in keys:
        await read(store, key)
    flush_everything()


def write_nothing_behind(patch: pytest.MonkeyPatch, store: CacheStore) -> None:
    """Let responses wait until they are flushed."""
    writer = file_cache(store)._writer
    writer.stop()
    patch.setattr(writer, "wake", lambda **_: None)


@pytest.fixture(params=[read, read_sync], ids=["async", "sync"])
def get(request: pytest.FixtureRequest) -> Read:
    """A read of a value on either surface."""
    found: Read = request.param
    return found


# The parameter


def test_it_evicts_by_default(path: Path) -> None:
    store = CacheStore(MemoryStore(), cache_store=SqliteStore(path))

    assert store.when_full == store.cache_info()["when_full"] == "evict"


@pytest.mark.parametrize("given", ["evict", "keep", "auto"])
def test_copies_and_views_have_the_same_setting(path: Path, given: Any) -> None:
    store = new_store(LocalStore(path.parent), path, when_full=given)
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301 - of this test

    assert copy.when_full == store.with_read_only(True).when_full == given
    assert store.cache_info()["when_full"] == given


@pytest.mark.parametrize(
    ("given", "error"), [("lru", ValueError), ("", ValueError), (None, TypeError), (1, TypeError)]
)
def test_another_word_is_refused(path: Path, given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"when_full must be 'evict', 'keep' or 'auto', got "):
        new_store(MemoryStore(), path, when_full=given)


async def test_auto_goes_by_what_would_have_had_more_hits(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(new_source(), path, when_full="auto")
    await fill(store, "0123")
    after_evicting = cached_keys(path)
    monkeypatch.setattr(type(file_cache(store)), "keeps", lambda _: True)
    await fill(store, "4567")

    assert after_evicting == cached_keys(path) == set("123")


# What has no room


async def test_what_has_no_room_is_returned_and_not_cached(path: Path, get: Read) -> None:
    source = new_source()
    store = new_store(source, path)
    await fill(store)
    source.reset()
    found = [await get(store, key) for key in "01234567" * 2]
    stats = store.cache_stats()

    assert found == [bytes([key + 1]) * SIZE for key in range(8)] * 2
    assert source.keys == list("34567") * 2
    assert cached_keys(path) == set("012")
    assert (stats["evictions"], stats["hits"], stats["misses"]) == (0, 6, 13)


@pytest.mark.parametrize("size", [SIZE, LARGE])
@pytest.mark.parametrize("persist_ranges", [False, True])
async def test_a_miss_without_room_costs_no_write_transaction(
    path: Path,
    get: Read,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    persist_ranges: bool,
) -> None:
    statements = Statements()
    statements.install(monkeypatch)
    store = new_store(new_source(8, size), path, max_size=3 * size, persist_ranges=persist_ranges)
    await fill(store)
    writer = file_cache(store)._writer
    writer.stop()
    before = statements.number("BEGIN IMMEDIATE")
    for key in "34567" * 20:
        await get(store, key)
        await read(store, key, RangeByteRequest(0, 10))
    writer.stop()
    flush_everything()

    assert statements.number("BEGIN IMMEDIATE") == before > 0


@pytest.mark.usefixtures("pipeline")
def test_an_array_that_is_larger_than_the_budget_fills_it_and_the_same_chunks_are_hits(
    path: Path,
) -> None:
    source, store, array = cached(rows(30), path, max_size=10 * CHUNK + 999, when_full="keep")
    kept = []
    for _ in range(3):
        source.reset()
        assert values(array, np.s_[:, 0]) == list(range(1, 31))
        store.flush()
        kept.append(cached_keys(path))

    assert kept[0] == kept[1] == kept[2]
    assert len(source.keys) == 20
    assert 10 * CHUNK < cached_bytes(path) <= 10 * CHUNK + 999
    assert store.cache_stats()["evictions"] == 0


async def test_a_small_value_still_has_the_room_that_is_left(path: Path) -> None:
    source = new_source()
    source.set_sync("small", buffer(bytes(400)))
    store = new_store(source, path, max_size=3 * SIZE + 500)
    await fill(store, "01234567")
    await fill(store, ["small"])  # type: ignore[arg-type] # one key

    assert cached_keys(path) == {*"012", "small"}


async def test_responses_that_wait_take_room(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements = Statements()
    statements.install(monkeypatch)
    store = new_store(new_source(), path)
    await read(store, "0")
    flush_everything()
    write_nothing_behind(monkeypatch, store)
    before = statements.number("BEGIN IMMEDIATE")
    for key in "1234567":
        await read(store, key)
    queued = file_cache(store).room.queued_bytes
    flush_everything()

    assert queued == 2 * SIZE
    assert cached_keys(path) == set("012")
    assert statements.number("BEGIN IMMEDIATE") == before + 1


async def test_that_it_is_full_is_logged_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zarr_cache")
    store = new_store(new_source(), path)
    await fill(store)
    before = caplog.text
    await fill(store, "34567")

    assert "used up" not in before
    assert caplog.text.count("max_size of 2.9 KiB is used up; what it has no room for is") == 1


async def test_absences_take_no_room(path: Path) -> None:
    source = new_source()
    store = new_store(source, path, max_age_absent_seconds=60)
    await fill(store)
    await fill(store, "xy")
    source.reset()

    assert await read(store, "x") is None
    assert source.keys == []


# What makes room


async def test_what_is_cleared_or_deleted_makes_room(path: Path) -> None:
    store = new_store(new_source(), path)
    await fill(store)
    await store.delete("1")
    await fill(store, "34")
    after_deleting = cached_keys(path)
    await store.clear_cache()
    await fill(store, "7654")

    assert after_deleting == set("023")
    assert cached_keys(path) == set("765")


async def test_what_is_stale_makes_room(path: Path, held_time: HeldTime) -> None:
    store = new_store(new_source(), path, max_age_seconds=60)
    await fill(store)
    held_time.step(59)
    await fill(store, "345")
    before = cached_keys(path)
    held_time.step(2)
    await fill(store, "345")

    assert before == set("012")
    assert cached_keys(path) == set("345")
    assert store.cache_stats()["expirations"] == 3


async def test_what_is_stale_and_has_a_validator_makes_room_the_oldest_first(
    path: Path, held_time: HeldTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell_versions(monkeypatch)
    store = new_store(new_source(), path, max_age_seconds=60)
    for key in "012":
        await fill(store, key)
        held_time.step(1)
    held_time.step(58.5)
    # "0" and "1" are stale; the source confirms "0", which is then as good as new.
    await fill(store, "0")
    store.flush()
    await fill(store, "34")
    first = cached_keys(path)
    held_time.step(50)
    await fill(store, "45")

    assert first == set("023")
    assert cached_keys(path) == set("034")


@pytest.mark.parametrize("size", [300 * 10, LARGE])
async def test_one_value_takes_the_room_of_many_stale_ones(
    path: Path, held_time: HeldTime, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    tell_versions(monkeypatch)
    source = CountingStore(MemoryStore())
    for number in range(300):
        source.set_sync(f"{number}", buffer(bytes(size // 300)))
    source.set_sync("one", buffer(bytes(size)))
    store = new_store(source, path, max_size=size, max_age_seconds=60)
    for number in range(300):
        await read(store, f"{number}")
    flush_everything()
    held_time.step(61)
    await read(store, "one")
    flush_everything()

    assert cached_keys(path) == {"one"}


async def test_what_may_be_served_while_the_source_fails_makes_no_room(
    path: Path, held_time: HeldTime
) -> None:
    store = new_store(new_source(), path, max_age_seconds=60, stale_if_error_seconds=3600)
    await fill(store)
    held_time.step(1000)
    await fill(store, "345")

    assert cached_keys(path) == set("012")


async def test_the_file_is_searched_for_stale_entries_once_a_second(
    path: Path, held_time: HeldTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements()
    statements.install(monkeypatch)
    store = new_store(new_source(), path, max_age_seconds=60)
    await fill(store)
    searches = listing.STALE_BYTES.strip()
    for _ in range(10):
        await fill(store, "34567")
        held_time.step(0.2)

    # For each kind of entries, with and without a validator.
    assert statements.number(searches) == 2 * 4


async def test_ever_fresh_entries_are_never_searched_for_stale_ones(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements()
    statements.install(monkeypatch)
    store = new_store(new_source(), path)
    await fill(store, "01234567")

    assert statements.number(listing.STALE_BYTES.strip()) == 0


async def test_what_is_left_by_a_killed_process_makes_room_a_week_later(
    path: Path, held_time: HeldTime
) -> None:
    other = new_store(new_source(), path)
    other._view.namespace = f"{private.PREFIX}token/0"
    await fill(other)
    file_cache(other)._writer.stop()
    leave_process(other)
    held_time.step(8 * 24 * 3600)
    store = new_store(new_source(), path)
    await fill(store, "3")
    file_cache(store)._writer.stop()
    await fill(store, "4567")

    assert cached_keys(path) == set("456")


async def test_a_smaller_max_size_still_evicts(path: Path) -> None:
    store = new_store(new_source(), path, max_size=5 * SIZE)
    await fill(store, "01234")
    await fill(store, "0")
    restart(store)
    store = new_store(new_source(), path, max_size=2 * SIZE)
    await fill(store, "4567")

    assert cached_keys(path) == set("40")


# Writes


@pytest.mark.parametrize("size", [SIZE // 2, SIZE])
async def test_a_written_value_that_is_not_larger_replaces_the_cached_one(
    path: Path, size: int
) -> None:
    source = new_source()
    store = new_store(source, path)
    await fill(store)
    await store.set("1", buffer(b"n" * size))
    source.reset()

    assert await read(store, "1") == b"n" * size
    assert source.keys == []
    assert cached_keys(path) == set("012")


@pytest.mark.parametrize("size", [SIZE, LARGE])
async def test_a_larger_written_value_is_not_cached_and_evicts_nothing(
    path: Path, size: int
) -> None:
    source = new_source(8, size)
    store = new_store(source, path, max_size=3 * size)
    await fill(store)
    await store.set("1", buffer(b"n" * (size + 1)))
    await store.set("5", buffer(b"m" * size))
    await store.set("6", buffer(b"m" * size))
    source.reset()
    found = [await read(store, key) for key in "0125"]
    flush_everything()

    assert found == [b"\1" * size, b"n" * (size + 1), b"\3" * size, b"m" * size]
    assert source.keys == ["1"]
    # The room that "1" has left went to "5".
    assert cached_keys(path) == set("025")
    assert store.cache_stats()["evictions"] == 0


async def test_of_many_values_that_are_written_those_are_cached_that_have_room(
    path: Path,
) -> None:
    store = new_store(MemoryStore(), path)
    await store._set_many([(key, buffer(key.encode() * SIZE)) for key in "abcdef"])

    assert cached_keys(path) == set("abc")


async def test_a_value_that_has_grown_in_the_source_is_not_served_from_the_cache_again(
    path: Path, held_time: HeldTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell_versions(monkeypatch)
    source = new_source()
    store = new_store(source, path, max_age_seconds=60, stale_if_error_seconds=1000)
    await fill(store)
    held_time.step(61)
    source._store.set_sync("1", buffer(b"n" * (SIZE + 1)))  # type: ignore[attr-defined] # a MemoryStore
    found = await read(store, "1")
    flush_everything()

    assert found == b"n" * (SIZE + 1)
    assert cached_keys(path) == set("02")


# Ranges

FIRST, SECOND = RangeByteRequest(0, 600), RangeByteRequest(500, 900)


@pytest.mark.parametrize("persist_ranges", [False, True])
async def test_a_range_without_room_evicts_nothing(
    path: Path,
    persist_ranges: bool,
) -> None:
    source = new_source()
    store = new_store(source, path, persist_ranges=persist_ranges)
    await fill(store, "01")
    for key in "23":
        await read(store, key, FIRST)
        flush_everything()
    source.reset()
    found = [await read(store, key) for key in "01"]
    parts = [await read(store, key, FIRST) for key in "23"]

    assert found == [b"\1" * SIZE, b"\2" * SIZE]
    assert parts == [b"\3" * 600, b"\4" * 600]
    assert source.keys == ["3"]
    assert store.cache_stats()["evictions"] == 0


@pytest.mark.parametrize("persist_ranges", [False, True])
@pytest.mark.parametrize(
    "larger", [RangeByteRequest(0, 900), OffsetByteRequest(0), RangeByteRequest(0, 1000)]
)
async def test_a_range_has_the_room_of_those_inside_it_or_leaves_them(
    path: Path,
    persist_ranges: bool,
    larger: ByteRequest,
) -> None:
    store = new_store(new_source(), path, persist_ranges=persist_ranges, max_size=2 * SIZE)
    await fill(store, "0")
    await read(store, "1", FIRST)
    flush_everything()
    await read(store, "1", larger)
    flush_everything()
    replaced = store.cache_info()
    await read(store, "1", RangeByteRequest(0, 5))
    await read(store, "2", FIRST)
    info = store.cache_info()

    nbytes = 900 if larger == RangeByteRequest(0, 900) else 1000
    assert replaced["current_size"] == info["current_size"] == SIZE + nbytes
    assert info["ranges"] + info["file_ranges"] == 1


@pytest.mark.parametrize("persist_ranges", [False, True])
async def test_a_range_that_is_too_large_leaves_those_inside_it(
    path: Path,
    persist_ranges: bool,
) -> None:
    store = new_store(new_source(), path, persist_ranges=persist_ranges, max_size=SIZE + 700)
    await fill(store, "0")
    for request in (FIRST, RangeByteRequest(0, 900), SuffixByteRequest(100), SuffixByteRequest(90)):
        await read(store, "1", request)
        flush_everything()
    info = store.cache_info()

    assert info["current_size"] == SIZE + 700
    assert info["ranges"] + info["file_ranges"] == 2


@pytest.mark.parametrize("persist_ranges", [False, True])
async def test_a_whole_value_has_the_room_of_its_ranges(
    path: Path,
    persist_ranges: bool,
) -> None:
    source = new_source()
    store = new_store(source, path, persist_ranges=persist_ranges, max_size=2 * SIZE)
    await fill(store, "0")
    for request in (FIRST, SECOND):
        await read(store, "1", request)
        flush_everything()
    await fill(store, "1")
    info = store.cache_info()
    await read(store, "2", FIRST)

    assert (info["file_size"], info["range_size"]) == (2 * SIZE, 0)
    assert cached_keys(path) == set("01")
    assert file_cache(store).ranges.nbytes == 0
    assert cached_ranges(path) == []


@pytest.mark.parametrize("persist_ranges", [False, True])
async def test_a_whole_value_without_room_leaves_its_ranges(
    path: Path,
    persist_ranges: bool,
) -> None:
    store = new_store(new_source(), path, persist_ranges=persist_ranges, max_size=2 * SIZE - 1)
    await fill(store, "0")
    for request in (FIRST, SuffixByteRequest(300)):
        await read(store, "1", request)
        flush_everything()
    await fill(store, "1")
    info = store.cache_info()

    assert cached_keys(path) == {"0"}
    assert info["current_size"] == SIZE + 900


async def test_max_memory_evicts_no_range_for_another(path: Path) -> None:
    memory = 2 * (100 + ENTRY_BYTES)
    source = new_source()
    store = new_store(source, path, max_memory=memory)
    for key in "0123":
        await read(store, key, RangeByteRequest(0, 100))
    source.reset()
    for key in "0123":
        await read(store, key, RangeByteRequest(0, 100))

    assert source.keys == ["2", "3"]
    assert store.cache_stats()["evictions"] == 0


async def test_a_smaller_max_memory_still_evicts(path: Path) -> None:
    store = new_store(new_source(), path)
    other = new_store(new_source(), path, max_memory=100 + ENTRY_BYTES)
    for key in "0123":
        await read(store, key, RangeByteRequest(0, 100))
    await read(other, "4", RangeByteRequest(0, 100))

    assert [each.key for each in file_cache(store).ranges._by_use] == ["3"]


async def test_ranges_in_memory_go_first_when_another_process_has_filled_the_file(
    path: Path,
) -> None:
    store = new_store(new_source(), path)
    await read(store, "0", FIRST)
    leave_process(store)
    other = new_store(new_source(), path)
    await fill(other, "45")
    # It is the most recently used now.
    await read(store, "0", FIRST)
    await fill(other, "6")
    await read(store, "7")

    assert cached_keys(path) == set("456")
    assert file_cache(store).ranges.nbytes == 0


async def test_responses_that_wait_leave_ranges_in_memory_no_room(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(new_source(), path)
    await fill(store, "0")
    write_nothing_behind(monkeypatch, store)
    await read(store, "1")
    for key in "234":
        await read(store, key, FIRST)
    kept = [each.key for each in file_cache(store).ranges._by_use]

    assert kept == ["2"]


async def test_stale_ranges_in_memory_make_room_for_a_written_value(
    path: Path, held_time: HeldTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    tell_versions(monkeypatch)
    store = new_store(new_source(), path, max_age_seconds=60, max_size=SIZE)
    await read(store, "0", FIRST)
    held_time.step(61)
    await store.set("1", buffer(b"n" * SIZE))

    assert cached_keys(path) == {"1"}
    assert file_cache(store).ranges.nbytes == 0


async def test_stale_ranges_in_memory_make_room(path: Path, held_time: HeldTime) -> None:
    store = new_store(new_source(), path, max_age_seconds=60, max_size=SIZE)
    await read(store, "0", FIRST)
    held_time.step(61)
    await read(store, "1", FIRST)
    kept = [each.key for each in file_cache(store).ranges._by_use]
    held_time.step(61)
    await fill(store, "2")

    assert kept == ["1"]
    assert cached_keys(path) == {"2"}


async def test_threads_that_keep_ranges_at_once_take_no_room_twice(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(new_source(), path, max_size=1000)
    ranges = file_cache(store).ranges
    add = ranges.add

    def add_after_another(entry: RangeEntry, *, fence: int) -> None:
        monkeypatch.setattr(ranges, "add", add)
        store.get_sync("2", byte_range=FIRST)
        add(entry, fence=fence)

    monkeypatch.setattr(ranges, "add", add_after_another)
    found = store.get_sync("1", byte_range=FIRST)

    assert found is not None
    assert [each.key for each in ranges._by_use] == ["2"]


async def test_a_range_moves_from_memory_to_a_full_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(new_source(), path, max_size=SIZE + 600)
    persisting = new_store(new_source(), path, max_size=SIZE + 600, persist_ranges=True)
    await fill(store, "0")
    await read(store, "1", FIRST)
    queue = file_cache(store)._queue
    add = queue.add

    def add_and_write(admission: Admission) -> None:
        add(admission)
        flush_everything()

    monkeypatch.setattr(queue, "add", add_and_write)
    await read(persisting, "1", FIRST)

    assert [each.key for each in cached_ranges(path)] == ["1"]
    assert file_cache(store).ranges.nbytes == 0


# Two processes, restarts, other stores


async def test_the_room_that_another_process_takes_first_is_not_taken_twice(path: Path) -> None:
    store = new_store(new_source(), path)
    await fill(store, "01")
    leave_process(store)
    other = new_store(new_source(), path)
    caches = [file_cache(each) for each in (store, other)]
    with pytest.MonkeyPatch.context() as patch:
        for one in (store, other):
            write_nothing_behind(patch, one)
        await read(store, "2")
        await read(other, "3")
        queued = [each.room.queued_bytes for each in caches]
        for each in caches:
            each.flush()

    assert queued == [SIZE, SIZE]
    assert cached_keys(path) == set("012")
    assert [await read(each, "3") for each in (store, other)] == [b"\4" * SIZE] * 2


@pytest.mark.parametrize("size", [SIZE, LARGE])
@pytest.mark.parametrize("request_of_other", [None, RangeByteRequest(0, 400)])
async def test_a_range_that_another_process_left_no_room_leaves_those_inside_it(
    path: Path, size: int, request_of_other: ByteRequest | None
) -> None:
    small, large = RangeByteRequest(0, size - 100), RangeByteRequest(0, size - 10)
    source = new_source(8, size)
    source.set_sync("7", buffer(bytes(400)))
    settings = {"persist_ranges": True, "max_size": size + 310}
    store = new_store(source, path, **settings)
    await read(store, "1", small)
    flush_everything()
    leave_process(store)
    other = new_store(source, path, **settings)
    caches = [file_cache(each) for each in (store, other)]
    with pytest.MonkeyPatch.context() as patch:
        for one in (store, other):
            write_nothing_behind(patch, one)
        await read(other, "7", request_of_other)
        await read(store, "1", large)
        queued = [each.room.queued_bytes for each in caches]
        for each in reversed(caches):
            each.flush()

    assert queued == [size - 10, 400]
    assert cached_ranges(path)[0] == ("1", 0, size - 100)
    assert cached_bytes(path) == size + 300


@pytest.mark.parametrize("size", [SIZE, LARGE])
async def test_what_is_cached_when_it_is_full_stays_over_restarts(path: Path, size: int) -> None:
    source = new_source(8, size)
    for keys in ("01234567", "76543210", "34567012"):
        store = new_store(source, path, max_size=3 * size)
        await fill(store, keys)
        restart(store)

    assert cached_keys(path) == set("012")


EPOCH = """
import random, sys
from zarr.storage import LocalStore
from zarr_cache import CacheStore, SqliteStore

source, cache, seed = sys.argv[1:]
store = CacheStore(
    LocalStore(source, read_only=True),
    cache_store=SqliteStore(cache),
    max_size=10_000,
    when_full="keep",
)
keys = [str(number) for number in range(40)]
random.Random(int(seed)).shuffle(keys)
for key in keys * 3:
    assert store.get_sync(key).to_bytes() == key.encode() * 500
store.close()
"""


def test_processes_that_read_at_once_fill_the_budget_and_evict_nothing(
    path: Path, tmp_path: Path
) -> None:
    source = LocalStore(tmp_path / "source")
    for number in range(40):
        source.set_sync(f"{number}", buffer(str(number).encode() * 500))
    arguments = [sys.executable, "-W", "error", "-c", EPOCH, str(tmp_path / "source"), str(path)]
    children = [subprocess.Popen([*arguments, str(seed)]) for seed in range(3)]
    codes = [child.wait() for child in children]
    with open_file(path) as db:
        (evictions,) = db.execute("SELECT sum(evictions) FROM statistics").fetchone()

    assert codes == [0, 0, 0]
    assert evictions == 0
    # No value is smaller than 500 bytes, and none is larger than 1000.
    assert 9_000 < cached_bytes(path) <= 10_000


async def test_another_store_keeps_what_it_has(get: Read) -> None:
    cache, source = MemoryStore(), new_source()
    store = CacheStore(source, cache_store=cache, max_size=3 * SIZE, when_full="keep")
    for key in "01234567":
        await get(store, key)
    await store.set("1", buffer(b"n" * (SIZE + 1)))
    await store.set("2", buffer(b"m" * SIZE))
    await store.set("5", buffer(b"m" * (SIZE + 2)))
    source.reset()
    found = [await get(store, key) for key in "0125"]

    assert found == [b"\1" * SIZE, b"n" * (SIZE + 1), b"m" * SIZE, b"m" * (SIZE + 2)]
    assert source.keys == ["1", "5"]
    assert set(cache._store_dict) == set("02")
    assert list(store.verify()) == []


async def test_what_is_stale_makes_room_in_another_store(held_time: HeldTime) -> None:
    cache = MemoryStore()
    store = CacheStore(
        new_source(), cache_store=cache, max_size=3 * SIZE, when_full="keep", max_age_seconds=60
    )
    for key in "0123":
        await read(store, key)
    held_time.step(61)
    await read(store, "4")

    assert set(cache._store_dict) == {"4"}


@pytest.mark.parametrize(
    ("versions", "left"),
    [({"changes": "first"}, {"fresh"}), ({"changes": "first", "old": "v"}, {"fresh", "old"})],
    ids=["a stale value expires", "a stale value stays, since it does not make enough room"],
)
async def test_another_store_has_what_its_index_has_when_a_value_is_not_kept(
    held_time: HeldTime, versions: dict[str, str], left: set[str]
) -> None:
    sizes = {"old": 300, "changes": 1000, "fresh": 2000}
    held = MemoryStore({key: buffer(bytes(size)) for key, size in sizes.items()})
    cache, validators = MemoryStore(), dict(versions)
    store = CacheStore(held, cache_store=cache, max_size=3300, when_full="keep", max_age_seconds=60)
    versioned(store, validators)
    await read(store, "old")
    await read(store, "changes")
    held_time.step(30)
    await read(store, "fresh")
    held_time.step(31)
    validators["changes"] = "second"
    held._store_dict["changes"] = buffer(bytes(1700))
    found = await read(store, "changes")

    assert found == bytes(1700)
    assert set(cache._store_dict) == left
    assert store.cache_stats()["expirations"] == ("old" not in left)
    assert list(store.verify()) == []


# Warming


def test_warm_evicts_nothing_and_fetches_what_has_room(path: Path) -> None:
    memory = rows(20)
    source, store, array = cached(memory, path, max_size=10 * CHUNK, when_full="keep")
    _ = array[:6]
    store.flush()
    before = cached_keys(path)
    source.reset()
    report = warm(array, slice(10, 20))
    store.flush()

    assert report.stopped == "budget"
    assert 0 < report.fetched <= 4
    assert cached_keys(path) > before
    assert cached_bytes(path) <= 10 * CHUNK
    assert store.cache_stats()["evictions"] == 0
    # None was fetched in vain.
    assert sum("/c/" in key for key in source.keys) == report.fetched


def test_warm_evicts_by_default(path: Path) -> None:
    _, store, array = cached(rows(20), path, max_size=10 * CHUNK)
    _ = array[:6]
    report = warm(array, slice(10, 20))

    assert report.fetched > 4
    assert store.cache_stats()["evictions"] > 0


def test_warm_uses_the_room_of_what_is_stale(path: Path, held_time: HeldTime) -> None:
    settings: dict[str, Any] = {"max_size": 10 * CHUNK, "max_age_seconds": 60}
    _, store, array = cached(rows(20), path, when_full="keep", **settings)
    _ = array[:9]
    store.flush()
    held_time.step(61)
    report = warm(array, slice(10, 20))

    assert report.fetched > 7
    assert store.cache_stats()["evictions"] == 0


# A plain model


@given(
    trace=st.lists(st.integers(0, 11), min_size=1, max_size=60),
    sizes=st.lists(st.integers(1, 9), min_size=12, max_size=12),
    capacity=st.integers(1, 40),
)
def test_the_hits_are_those_of_the_simulation(
    trace: list[int], sizes: list[int], capacity: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("trace") / "cache.sqlite"
    source = CountingStore(
        MemoryStore({str(key): buffer(bytes(100 * size)) for key, size in enumerate(sizes)})
    )
    hits = []
    for position, key in enumerate(trace):
        if position % 20 == 0:
            store = new_store(source, path, max_size=100 * capacity)
        source.reset()
        store.get_sync(str(key))
        store.flush()
        hits.append(source.requests.total() == 0)
        if position % 20 == 19:
            restart(store)
    close_everything()
    assert_accounts(path)
    expected = traces.keep(np.array(trace), np.array(sizes), capacity)

    assert hits == expected.tolist()
