"""Races of a CacheStore whose values are in another store than a SqliteStore."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, Gate, HeldStore, buffer, read
from zarr_cache import CacheStore
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
