"""One store in many threads and in many event loops, one after the other and at once."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from tests.fakes import (
    AsyncOnlyStore,
    CountingStore,
    Gate,
    YieldingStore,
    buffer,
    close_everything,
    read,
    values,
)
from tests.systems import needs_removal_of_open_files
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.ages import EVER
from zarr_cache.file import loop_connections
from zarr_cache.file.file_database import FileDatabase
from zarr_cache.file.loop_connections import LoopConnection
from zarr_cache.index import lookup

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEYS = [f"k{number}" for number in range(50)]
VALUES: list[bytes | None] = [key.encode() * 100 for key in KEYS]
THREADS = 8


def source_of(kind: type[CountingStore]) -> CountingStore:
    return kind(MemoryStore({key: buffer(key.encode() * 100) for key in KEYS}))


@pytest.fixture(params=[CountingStore, AsyncOnlyStore])
def source(request: pytest.FixtureRequest) -> CountingStore:
    """A source with a sync surface, and one without."""
    return source_of(request.param)


@pytest.fixture
def store(source: CountingStore, path: Path) -> CacheStore:
    return CacheStore(source, cache_store=SqliteStore(path))


async def read_all(store: CacheStore) -> list[bytes | None]:
    return await asyncio.gather(*(read(store, key) for key in KEYS))


def by_the_sync_surface(store: CacheStore) -> list[bytes | None]:
    found = [store.get_sync(key) for key in KEYS]
    return [None if each is None else each.to_bytes() for each in found]


def in_zarr_s_loop(store: CacheStore) -> list[bytes | None]:
    return sync(read_all(store))


def in_a_loop_of_its_own(store: CacheStore) -> list[bytes | None]:
    return asyncio.run(read_all(store))


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """What the calls return, each in a thread, and all begun together."""
    barrier = threading.Barrier(len(calls))

    def begin(call: Callable[[], Any]) -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(begin, calls))


WAYS = [by_the_sync_surface, in_zarr_s_loop, in_a_loop_of_its_own]


@pytest.mark.parametrize("way", WAYS)
def test_threads_that_share_a_store_fetch_each_value_once(
    way: Callable[[CacheStore], list[bytes | None]], store: CacheStore, source: CountingStore
) -> None:
    first = at_once(*[lambda: way(store)] * THREADS)
    fetched = sorted(source.keys)
    second = at_once(*[lambda: way(store)] * THREADS)

    assert first == second == [VALUES] * THREADS
    assert fetched == sorted(source.keys) == sorted(KEYS)
    assert store.cache_stats()["total_requests"] == 2 * THREADS * len(KEYS)


def test_threads_and_loops_of_every_kind_share_a_store(
    store: CacheStore, source: CountingStore
) -> None:
    calls = [lambda way=way: way(store) for way in WAYS * 3]

    assert at_once(*calls) == [VALUES] * len(calls)
    # A thread does not wait for a loop, and may have asked by itself.
    assert set(source.keys) == set(KEYS)


def test_what_one_loop_has_read_is_cached_for_another(
    store: CacheStore, source: CountingStore
) -> None:
    found = [way(store) for way in [*WAYS, in_a_loop_of_its_own, *WAYS]]

    assert found == [VALUES] * 7
    assert sorted(source.keys) == sorted(KEYS)


def test_two_loops_at_once_see_what_the_other_has_written(path: Path) -> None:
    store = CacheStore(YieldingStore(MemoryStore()), cache_store=SqliteStore(path))
    # Two of one barrier for each turn: when both have written, and when both have read.
    barrier = threading.Barrier(2)
    seen: list[tuple[bytes | None, bytes | None]] = []

    async def write_and_read(own: str, other: str) -> None:
        for turn in range(20):
            await store.set(own, buffer(f"{own} {turn}".encode()))
            await asyncio.to_thread(barrier.wait)
            seen.append((f"{other} {turn}".encode(), await read(store, other)))
            await asyncio.to_thread(barrier.wait)

    at_once(
        lambda: asyncio.run(write_and_read("a", "b")), lambda: asyncio.run(write_and_read("b", "a"))
    )

    assert len(seen) == 40
    assert [told for _, told in seen] == [expected for expected, _ in seen]


def at_a_gate(database: FileDatabase, gate: Gate) -> threading.Thread:
    """A thread that keeps the first connection of a loop busy until the gate is open."""
    first = next(iter(database._loops._by_loop.values()))
    busy = threading.Thread(target=lambda: asyncio.run(first.run(lambda _: gate.wait_sync())))
    busy.start()
    gate.wait_until_reached()
    return busy


def test_loops_that_start_at_once_tidy_up_after_the_same_ones_that_have_ended(path: Path) -> None:
    database = FileDatabase.of(path)
    barrier, gate = threading.Barrier(2), Gate()

    async def use_beside_another() -> None:
        await database.run_async(lookup.nothing)
        await asyncio.to_thread(barrier.wait)

    at_once(*[lambda: asyncio.run(use_beside_another())] * 2)
    ended, _ = database._loops._by_loop
    busy = at_a_gate(database, gate)

    async def use() -> None:
        using = asyncio.create_task(database.run_async(lookup.nothing))
        while ended in database._loops._by_loop:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        await asyncio.to_thread(lambda: asyncio.run(database.run_async(lookup.nothing)))
        gate.open()
        await using

    asyncio.run(use())
    busy.join()
    database.close()


def test_a_loop_that_ends_while_its_connection_is_started_is_forgotten(path: Path) -> None:
    database = FileDatabase.of(path)

    async def leave() -> None:
        using = asyncio.create_task(database.run_async(lookup.nothing))
        while not database._loops._starting:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0)
        using.cancel()
        with pytest.raises(asyncio.CancelledError):
            await using

    asyncio.run(leave())

    assert not database._loops._starting
    database.close()


def test_a_file_that_is_used_while_it_is_being_closed_is_closed_at_the_end(path: Path) -> None:
    database = FileDatabase.of(path)
    gate = Gate()
    asyncio.run(database.run_async(lookup.nothing))
    busy = at_a_gate(database, gate)
    closing = threading.Thread(target=database.close)
    closing.start()
    while database.is_open:
        closing.join(0)

    database.run(lookup.nothing)
    gate.open()
    closing.join()
    busy.join()

    assert database in FileDatabase.registry.opened
    database.close()


def test_a_file_is_closed_beside_a_loop_that_is_held_up(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_connections, "BUSY_TIMEOUT_SECONDS", 0.01)
    database = FileDatabase.of(path)
    database.run(lookup.nothing)
    held_up, goes_on = threading.Event(), threading.Event()

    async def use() -> None:
        await database.run_async(lookup.nothing)
        held_up.set()
        goes_on.wait()
        await asyncio.sleep(0)

    using = threading.Thread(target=lambda: asyncio.run(use()))
    using.start()
    held_up.wait()
    database.close()

    assert "closes its connection later" in caplog.text
    goes_on.set()
    using.join()
    # Nobody has the file open: the log has gone into it.
    assert not path.with_name(f"{path.name}-wal").exists()


def test_loops_that_have_ended_leave_no_threads(store: CacheStore) -> None:
    in_a_loop_of_its_own(store)
    # A large value is read on a thread of its loop.
    sync(store.set("large", buffer(bytes(2**20))))
    before = threading.active_count()
    found = {len(asyncio.run(read(store, "large")) or b"") for _ in range(30)}

    assert found == {2**20}
    # One for the last loop, which nothing has told that it has ended.
    assert threading.active_count() <= before + 1
    close_everything()
    assert threading.active_count() <= before


def test_an_array_is_read_by_threads_and_by_a_loop_at_once(path: Path) -> None:
    data = np.arange(4096).reshape(64, 64)
    memory = MemoryStore()
    zarr.create_array(memory, data=data, chunks=(8, 8))
    source = AsyncOnlyStore(memory)
    store = CacheStore(source, cache_store=SqliteStore(path)).with_read_only(read_only=True)
    array = zarr.open_array(store, mode="r")

    async def read_in_loop() -> Any:
        opened = await zarr.api.asynchronous.open_array(store=store, mode="r")
        return np.asarray(await opened.getitem((...,))).tolist()

    found = at_once(*[lambda: values(array)] * 4, *[lambda: asyncio.run(read_in_loop())] * 4)

    assert found == [data.tolist()] * 8
    assert len([key for key in source.keys if key.startswith("c/")]) == 64


def delete(path: Path) -> None:
    path.unlink()


@needs_removal_of_open_files
async def test_a_loop_does_not_wait_for_its_own_connection_that_is_being_started(
    source: CountingStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_go_on = asyncio.Event(), asyncio.Event()
    start = LoopConnection.start

    async def held(self: LoopConnection) -> None:
        begun.set()
        await may_go_on.wait()
        await start(self)

    monkeypatch.setattr(LoopConnection, "start", held)
    store = CacheStore(source, cache_store=SqliteStore(path))
    writing = asyncio.create_task(store.set("k0", buffer(b"written")))
    await begun.wait()
    delete(path)

    # On this thread, which finds that the file is gone, and closes every connection.
    assert store._view.values.lookup_nowait(store.namespace, "k1", None, EVER) is not None

    may_go_on.set()
    await writing
    assert await read(store, "k0") == b"written"
