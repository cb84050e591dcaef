"""Races of a CacheStore whose values are in another store than a SqliteStore."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, FailingStore, Gate, HeldStore, buffer, read
from zarr_cache import CacheStore, CacheWarning
from zarr_cache.errors import StorageError

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

OLD, NEW = b"old" * 100, b"new" * 100


def source_of(data: bytes) -> MemoryStore:
    return MemoryStore({"k": buffer(data)})


def cached(source: CountingStore, kept: MemoryStore, *, cache_set_data: bool = True) -> CacheStore:
    return CacheStore(source, cache_store=kept, namespace="source", cache_set_data=cache_set_data)


@pytest.mark.parametrize("cache_set_data", [True, False])
async def test_an_answer_that_a_write_has_overtaken_is_not_left_for_the_next_process(
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
    assert await read(cached(source, kept), "k") == NEW
    assert await read(store, "k") == NEW


class HeldKeeper(MemoryStore):
    """Keeps values, and stops at a gate before the first."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gates = [gate]

    async def set(self, key: str, value: Buffer, byte_range: tuple[int, int] | None = None) -> None:
        if self.gates:
            await self.gates.pop().wait()
        await super().set(key, value, byte_range)


async def test_a_write_that_overtakes_an_answer_while_it_is_put_away_is_what_stays() -> None:
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

    assert await read(cached(source, kept), "k") == NEW
    assert await read(store, "k") == NEW


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

    with pytest.raises(StorageError, match="task of this event loop"):
        store.cache_info()

    gate.open()
    assert await reading == OLD
    assert store.cache_info()["cached_keys"] == 1


def lengths(kept: MemoryStore) -> int:
    return sum(len(each) for each in kept._store_dict.values())


@pytest.mark.parametrize("surface", ["read", "write"])
async def test_the_index_knows_what_was_being_put_away_when_the_task_was_cancelled(
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

    assert [await read(cached(source, held), key) for key in ("a/0", "a/1")] == [None, None]


async def test_what_could_not_be_deleted_is_deleted_with_what_goes_next() -> None:
    source = CountingStore(MemoryStore({"a": buffer(OLD), "b": buffer(OLD)}))
    held = MemoryStore()
    kept = FailingStore(held)
    store = CacheStore(source, cache_store=kept, namespace="source")
    assert [await read(store, key) for key in "ab"] == [OLD, OLD]
    kept.fail("delete")
    with pytest.warns(CacheWarning, match="failed, as the test asked"):
        await store.delete("a")

    await store.delete("b")

    assert lengths(held) == 0
    assert await read(cached(source, held), "a") is None


async def test_what_could_not_be_put_away_for_certain_does_not_stay() -> None:
    source = CountingStore(MemoryStore({"a": buffer(OLD), "b": buffer(OLD)}))
    held = MemoryStore()
    kept = FailingStore(held)
    store = CacheStore(source, cache_store=kept, namespace="source")
    kept.fail("set", is_done_first=True)
    with pytest.warns(CacheWarning, match="failed, as the test asked"):
        assert await read(store, "a") == OLD

    assert await read(store, "b") == OLD

    assert store.cache_info()["file_size"] == lengths(held) == len(OLD)
