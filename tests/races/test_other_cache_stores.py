"""Races of a CacheStore whose values are in another store than a SqliteStore."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from tests.fakes import (
    CountingStore,
    FailingStore,
    Gate,
    HeldStore,
    buffer,
    leave_process,
    read,
    stopped_at,
)
from zarr_cache import CacheStore
from zarr_cache.core.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from zarr.abc.store import Store
    from zarr.core.buffer import Buffer

OLD, NEW = b"old" * 100, b"new" * 100


def source_of(data: bytes) -> MemoryStore:
    return MemoryStore({"k": buffer(data)})


def cached(source: CountingStore, kept: MemoryStore, *, cache_set_data: bool = True) -> CacheStore:
    return CacheStore(source, cache_store=kept, namespace="source", cache_set_data=cache_set_data)


def next_process(store: CacheStore, source: CountingStore, kept: MemoryStore) -> CacheStore:
    """What another process has of the values of `store`."""
    leave_process(store)
    return cached(source, kept)


@pytest.mark.parametrize("cache_set_data", [True, False])
async def test_a_response_that_a_write_has_overtaken_is_not_left_for_the_next_process(
    cache_set_data: bool,
) -> None:
    source, kept = HeldStore(source_of(OLD)), MemoryStore()
    store = cached(source, kept, cache_set_data=cache_set_data)
    answered = source.hold_after("get")
    reading = asyncio.create_task(read(store, "k"))
    await answered.reached()
    await store.set("k", buffer(NEW))
    answered.open()
    await reading

    # What another process finds: the values, and nothing that is known of them.
    assert await read(next_process(store, source, kept), "k") == NEW
    assert await read(store, "k") == NEW


async def test_nothing_is_left_for_the_next_process_while_the_source_is_written() -> None:
    source, kept = HeldStore(source_of(OLD)), MemoryStore()
    store = cached(source, kept)
    await read(store, "k")
    gate = source.hold_before("set")
    writing = asyncio.create_task(store.set("k", buffer(NEW)))
    await gate.reached()
    left = dict(kept._store_dict)
    gate.open()
    await writing

    assert left == {}
    assert await read(next_process(store, source, kept), "k") == NEW


class HeldKeeper(MemoryStore):
    """Keeps values, and stops at a gate before the first."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gates = [gate]

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        if self.gates:
            await self.gates.pop().wait()
        await super().set(key, value, byte_range)


async def test_a_write_that_overtakes_a_response_while_it_is_written_is_what_stays() -> None:
    gate = Gate()
    source, kept = HeldStore(source_of(OLD)), HeldKeeper(gate)
    store = cached(source, kept)
    reading = asyncio.create_task(read(store, "k"))
    await gate.reached()
    written = source.hold_after("set")
    writing = asyncio.create_task(store.set("k", buffer(NEW)))
    await written.reached()
    written.open()
    gate.open()
    await asyncio.gather(reading, writing)

    assert await read(next_process(store, source, kept), "k") == NEW
    assert await read(store, "k") == NEW


async def test_a_thread_does_not_wait_for_a_task_that_is_writing_a_response() -> None:
    put_away = Gate()
    source = HeldStore(source_of(OLD))
    store = cached(source, HeldKeeper(put_away))
    by_task, by_thread = source.hold_after("get"), source.hold_after("get_sync")
    reading = asyncio.create_task(read(store, "k"))
    await by_task.reached()
    thread = asyncio.create_task(asyncio.to_thread(store.get_sync, "k"))
    await by_thread.reached()
    by_task.open()
    await put_away.reached()
    by_thread.open()

    assert await thread == buffer(OLD)

    put_away.open()
    assert await reading == OLD
    assert store.cache_stats()["faults"] == 0


async def test_a_write_in_a_thread_that_finds_a_task_writing_a_response_is_what_stays() -> None:
    put_away = Gate()
    source, kept = CountingStore(source_of(OLD)), HeldKeeper(put_away)
    store = cached(source, kept)
    reading = asyncio.create_task(read(store, "k"))
    await put_away.reached()

    await asyncio.to_thread(store.set_sync, "k", buffer(NEW))

    put_away.open()
    await reading
    assert [await read(store, "k") for _ in range(2)] == [NEW, NEW]
    assert store.cache_stats()["faults"] == 0
    assert source.requests["get"] == 2
    assert await read(next_process(store, source, kept), "k") == NEW


class HeldListing(MemoryStore):
    """Says what it holds when the test lets it."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate = gate

    async def getsize(self, key: str) -> int:
        await self.gate.wait()
        return await super().getsize(key)


async def test_a_call_that_is_not_awaited_does_not_wait_for_a_task_of_its_loop() -> None:
    gate = Gate()
    kept = HeldListing(gate)
    await kept.set("k", buffer(OLD))
    source = CountingStore(source_of(OLD))
    store = CacheStore(source, cache_store=kept)
    reading = asyncio.create_task(read(store, "k"))
    await gate.reached()

    with pytest.raises(StorageError, match="task of an event loop"):
        store.cache_info()

    gate.open()
    assert await reading == OLD
    assert store.cache_info()["cached_keys"] == 1


def lengths(kept: MemoryStore) -> int:
    return sum(len(each) for each in kept._store_dict.values())


@pytest.mark.parametrize("surface", ["read", "write"])
async def test_the_index_knows_what_was_being_written_when_the_task_was_cancelled(
    surface: str,
) -> None:
    held = MemoryStore()
    kept = HeldStore(held)
    store = CacheStore(CountingStore(source_of(OLD)), cache_store=kept, namespace="source")
    gate = kept.hold_after("set")
    call = read(store, "k") if surface == "read" else store.set("k", buffer(NEW))
    task = asyncio.create_task(call)
    await gate.reached()

    task.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert store.cache_info()["file_size"] == lengths(held) == len(OLD)


async def test_a_removal_that_is_cancelled_leaves_nothing_for_the_next_process() -> None:
    source = CountingStore(MemoryStore({"a/0": buffer(OLD), "a/1": buffer(OLD)}))
    held = MemoryStore()
    kept = HeldStore(held)
    store = CacheStore(source, cache_store=kept, namespace="source")
    assert [await read(store, key) for key in ("a/0", "a/1")] == [OLD, OLD]
    gate = kept.hold_after("delete")
    task = asyncio.create_task(store.delete_dir("a"))
    await gate.reached()

    task.cancel()
    gate.open()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.delete_dir("a")

    after = next_process(store, source, held)
    assert [await read(after, key) for key in ("a/0", "a/1")] == [None, None]


# Two CacheStores over one other store


@pytest.fixture(params=["folder", "dictionary", "object"])
def make_kept(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Makes a cache store: another object each time, or not, and always the same store."""
    memory = MemoryStore()
    makers: dict[str, Callable[[], Store]] = {
        "folder": lambda: LocalStore(tmp_path / "kept"),
        "dictionary": lambda: MemoryStore(memory._store_dict),
        "object": lambda: memory,
    }
    return makers[request.param]


def two(source: Store, make_kept: Callable[[], Store]) -> tuple[CacheStore, CacheStore]:
    """Two CacheStores of one source."""
    one, other = (CacheStore(source, cache_store=make_kept(), namespace="source") for _ in "ab")
    return one, other


@pytest.mark.parametrize("byte_range", [None, RangeByteRequest(0, 3)], ids=["value", "range"])
async def test_what_was_cached_before_a_write_of_the_other_is_not_read_after_it(
    byte_range: RangeByteRequest | None, make_kept: Callable[[], Store]
) -> None:
    one, other = two(CountingStore(source_of(OLD)), make_kept)
    before = await read(one, "k", byte_range)

    await other.set("k", buffer(NEW))

    assert before == (OLD[:3] if byte_range else OLD)
    assert await read(one, "k", RangeByteRequest(0, 3)) == NEW[:3]
    assert await read(one, "k") == NEW


async def test_what_the_other_deleted_is_not_read(make_kept: Callable[[], Store]) -> None:
    source = CountingStore(MemoryStore({"a/k": buffer(OLD), "b": buffer(OLD)}))
    one, other = two(source, make_kept)
    before = [await read(one, key) for key in ("a/k", "b")]

    await other.delete_dir("a")
    await other.delete("b")

    assert before == [OLD, OLD]
    assert [await read(one, key) for key in ("a/k", "b")] == [None, None]


async def test_an_absence_is_not_served_after_a_write_of_the_other(
    make_kept: Callable[[], Store],
) -> None:
    one, other = two(CountingStore(MemoryStore()), make_kept)
    view = one.with_read_only(read_only=True)
    before = await read(view, "k")

    await other.set("k", buffer(NEW))

    assert before is None
    assert await read(view, "k") == NEW


async def test_both_that_miss_at_once_make_one_request(make_kept: Callable[[], Store]) -> None:
    source = HeldStore(source_of(OLD))
    one, other = two(source, make_kept)
    gate = source.hold_after("get")
    reads = [asyncio.create_task(read(store, "k")) for store in (one, other)]
    await gate.reached()
    await asyncio.sleep(0)
    gate.open()

    assert await asyncio.gather(*reads) == [OLD, OLD]
    assert source.requests == {"get": 1}


def two_sources(kept: Store) -> tuple[CacheStore, CacheStore]:
    """CacheStores of two sources, one with the old value and one with the new."""
    one, other = (CountingStore(source_of(data)) for data in (OLD, NEW))
    return (
        CacheStore(one, cache_store=kept, namespace="one"),
        CacheStore(other, cache_store=kept, namespace="other"),
    )


async def test_a_value_of_one_source_replaces_that_of_another() -> None:
    kept = MemoryStore()
    one, other = two_sources(kept)
    responses = [await read(store, "k") for store in (one, other, one)]

    assert responses == [OLD, NEW, OLD]
    assert [value.to_bytes() for value in kept._store_dict.values()] == [OLD]
    assert one.cache_info()["file_size"] == len(OLD)
    assert [store.cache_info()["cached_keys"] for store in (one, other)] == [1, 0]
    assert [store.cache_stats()["damaged"] for store in (one, other)] == [0, 0]
    assert list(one.verify()) == list(other.verify()) == []


async def test_a_write_to_one_source_leaves_what_is_cached_of_the_other() -> None:
    one, other = two_sources(MemoryStore())
    await read(one, "k")

    await other.delete("k")
    await other.clear_cache()

    assert await read(one, "k") == OLD
    assert one.cache_stats()["hits"] == 1


async def test_a_value_that_another_source_replaces_while_it_is_read_is_a_miss() -> None:
    held = MemoryStore()
    kept = HeldStore(held)
    one, other = two_sources(kept)
    await read(one, "k")
    async with stopped_at(kept.hold_before("get"), read(one, "k")) as reading:
        assert await read(other, "k") == NEW

    assert await reading == OLD
    assert one.cache_stats()["damaged"] == 0


async def test_what_was_there_before_is_served_as_long_as_there_is_one_source() -> None:
    kept = MemoryStore({"k": buffer(b"who knows whose" * 20)})
    one, other = two_sources(kept)
    before = await read(one, "k")
    await read(other, "another key")

    assert before == b"who knows whose" * 20
    assert await read(one, "k") == OLD
    assert await read(other, "k") == NEW


# Names that are of a key and of a folder


@pytest.fixture(params=["LocalStore", "FsspecStore"])
def kept_in_files(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "LocalStore":
        return LocalStore(tmp_path / "kept")
    options = {"auto_mkdir": True}
    return FsspecStore.from_url((tmp_path / "kept").as_uri(), storage_options=options)


KEYS_OF_OTHER = ("a/b/k", "a/k", "c/k")


async def with_values_of_other(kept: Store) -> tuple[CacheStore, CacheStore]:
    """CacheStores of two sources, where all that is cached is of the other."""
    one = CacheStore(MemoryStore(), cache_store=kept, namespace="one")
    source = CountingStore(MemoryStore({key: buffer(NEW) for key in KEYS_OF_OTHER}))
    other = CacheStore(source, cache_store=kept, namespace="other")
    assert [await read(other, key) for key in KEYS_OF_OTHER] == [NEW] * len(KEYS_OF_OTHER)
    return one, other


async def assert_other_has_its_values(one: CacheStore, other: CacheStore, kept: Store) -> None:
    hits = other.cache_stats()["hits"]
    assert [await read(other, key) for key in KEYS_OF_OTHER] == [NEW] * len(KEYS_OF_OTHER)
    assert other.cache_stats()["hits"] - hits == len(KEYS_OF_OTHER)
    assert {key async for key in kept.list()} == set(KEYS_OF_OTHER)
    for store in (one, other):
        assert store.cache_stats()["faults"] == store.cache_stats()["damaged"] == 0


async def delete_all(one: CacheStore) -> None:
    await one.clear()
    await one.clear_cache()


async def delete_folders(one: CacheStore) -> None:
    for folder in ("a/b/", "a/", "a"):
        await one.delete_dir(folder)


async def delete_keys_named_as_folders(one: CacheStore) -> None:
    for key in ("a", "a/b", ""):
        await one.delete(key)


@pytest.mark.parametrize("delete", [delete_all, delete_folders, delete_keys_named_as_folders])
async def test_what_is_deleted_of_one_source_stays_of_another(
    delete: Callable[[CacheStore], Awaitable[None]], kept_in_files: Store
) -> None:
    one, other = await with_values_of_other(kept_in_files)

    await delete(one)

    await assert_other_has_its_values(one, other, kept_in_files)


async def test_a_key_is_deleted_and_a_folder_that_is_not_listed_yet_stays(
    kept_in_files: Store,
) -> None:
    _, other = await with_values_of_other(kept_in_files)
    leave_process(other)
    one = CacheStore(MemoryStore(), cache_store=kept_in_files, namespace="one")

    await one.delete("c")

    assert {key async for key in kept_in_files.list()} == set(KEYS_OF_OTHER)


async def test_an_empty_folder_is_no_value_that_could_not_be_deleted(kept_in_files: Store) -> None:
    source = MemoryStore({"a/b/k": buffer(OLD)})
    store = CacheStore(source, cache_store=kept_in_files, namespace="source")
    await read(store, "a/b/k")

    await store.delete_dir("a")
    await store.delete("a/b")

    assert [key async for key in kept_in_files.list()] == []
    assert store.cache_stats()["faults"] == 0


async def test_a_value_is_deleted_where_a_store_has_others_below_its_name() -> None:
    kept = MemoryStore()
    source = MemoryStore({key: buffer(OLD) for key in ("a", "a/b")})
    store = CacheStore(source, cache_store=kept, namespace="source")
    assert [await read(store, key) for key in ("a", "a/b")] == [OLD, OLD]

    await store.delete("a")

    assert set(kept._store_dict) == {"a/b"}


async def test_what_no_key_ends_with_in_a_store_of_files_is_not_cached() -> None:
    kept = MemoryStore({"b/": buffer(NEW)})
    source = MemoryStore({key: buffer(OLD) for key in ("", "a/", "b/")})
    store = CacheStore(source, cache_store=kept, namespace="source")
    responses = [await read(store, key) for key in ("", "a/", "b/")]
    await store.set("a/", buffer(NEW))

    assert responses == [OLD, OLD, OLD]
    assert await read(store, "a/") == NEW
    assert set(kept._store_dict) == {"b/"}


async def test_a_value_that_cannot_be_deleted_stops_the_deletion_of_no_other() -> None:
    keys = ["a", "b", "c"]
    source = CountingStore(MemoryStore({key: buffer(OLD) for key in keys}))
    held = MemoryStore()
    kept = FailingStore(held)
    store = CacheStore(source, cache_store=kept, namespace="source")
    assert [await read(store, key) for key in keys] == [OLD] * 3
    kept.fail("delete")

    with pytest.raises(StorageError, match="failed, as the test asked"):
        await store.clear_cache()

    assert set(held._store_dict) == {"a"}
    await store.clear_cache()
    assert held._store_dict == {}
