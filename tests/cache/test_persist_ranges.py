"""Byte ranges in the file: found by every process, gone with a write, and within the limits."""

from __future__ import annotations

import asyncio
import os
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import LocalStore, MemoryStore

from tests.fakes import (
    PROTOTYPE,
    CountingStore,
    HeldStore,
    Statements,
    buffer,
    cached_keys,
    cached_ranges,
    end_everything,
    file_cache,
    leave_process,
    read,
    read_ranges,
    restart,
    stopped_at,
    writers,
)
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.byte_range import span
from zarr_cache.index import evict, invalidate, ranges

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store

    from tests.fakes import HeldTime

    type Ask = Callable[[CacheStore, str, ByteRequest], Awaitable[bytes | None]]
    type Reader = Callable[[CacheStore, Store, Path], CacheStore]

KEY = "a/0"
DATA = bytes(range(256)) * 40
SIZE = len(DATA)
"""10240 bytes."""


def of(request: ByteRequest, data: bytes = DATA) -> bytes:
    """The bytes that the request means."""
    return data[slice(*span(request, len(data)))]


def in_source(*keys: str) -> MemoryStore:
    """A source with the same value under each key."""
    return MemoryStore({key: buffer(DATA) for key in keys or (KEY,)})


def persisting(source: Store, path: Path, **settings: Any) -> CacheStore:
    """A store that keeps ranges in the file."""
    chosen: dict[str, Any] = {"namespace": "source", "persist_ranges": True, **settings}
    return CacheStore(source, cache_store=SqliteStore(path), **chosen)


async def get_sync(store: Any, key: str, request: ByteRequest) -> bytes | None:
    found = await asyncio.to_thread(store.get_sync, key, byte_range=request)
    return None if found is None else found.to_bytes()


async def get_ranges(store: Store, key: str, request: ByteRequest) -> bytes | None:
    (found,) = await read_ranges(store, key, [request])
    return found


def read_ranges_sync(
    store: Store, key: str, byte_ranges: Sequence[ByteRequest | None]
) -> Awaitable[Any]:
    """As `read_ranges`, through the sync surface, in a thread."""
    return asyncio.to_thread(store.get_ranges_sync, key, byte_ranges, prototype=PROTOTYPE)


async def get_ranges_sync(store: Store, key: str, request: ByteRequest) -> bytes | None:
    ((_, found),) = await read_ranges_sync(store, key, [request])
    return None if found is None else bytes(found.to_bytes())


METHODS: dict[Ask, str] = {
    read: "get",
    get_sync: "get_sync",
    get_ranges: "get_ranges",
    get_ranges_sync: "get_ranges_sync",
}
"""Each way to read a range, and the method by which it is read from the source."""

each_way = pytest.mark.parametrize("ask", METHODS, ids=METHODS.values())


# Which range finds which


COVERED: list[tuple[ByteRequest, ByteRequest]] = [
    (RangeByteRequest(10, 300), RangeByteRequest(10, 300)),
    (RangeByteRequest(10, 300), RangeByteRequest(10, 11)),
    (RangeByteRequest(10, 300), RangeByteRequest(50, 300)),
    (SuffixByteRequest(100), SuffixByteRequest(100)),
    (SuffixByteRequest(100), SuffixByteRequest(1)),
    (OffsetByteRequest(9000), OffsetByteRequest(9000)),
    (OffsetByteRequest(9000), OffsetByteRequest(10_000)),
    (OffsetByteRequest(9000), SuffixByteRequest(1240)),
    (OffsetByteRequest(9000), SuffixByteRequest(3)),
    (OffsetByteRequest(9000), RangeByteRequest(9100, 9200)),
    (OffsetByteRequest(9000), RangeByteRequest(10_000, 20_000)),
    (OffsetByteRequest(0), SuffixByteRequest(20_000)),
    (OffsetByteRequest(0), RangeByteRequest(5, 6)),
]

NOT_COVERED: list[tuple[ByteRequest, ByteRequest]] = [
    (RangeByteRequest(10, 300), RangeByteRequest(9, 20)),
    (RangeByteRequest(10, 300), RangeByteRequest(290, 301)),
    (RangeByteRequest(10, 300), RangeByteRequest(300, 301)),
    (RangeByteRequest(10, SIZE), OffsetByteRequest(10)),
    (RangeByteRequest(10, SIZE), SuffixByteRequest(1)),
    (SuffixByteRequest(100), SuffixByteRequest(101)),
    (SuffixByteRequest(100), OffsetByteRequest(SIZE - 100)),
    (SuffixByteRequest(100), RangeByteRequest(SIZE - 100, SIZE - 90)),
    (OffsetByteRequest(9000), SuffixByteRequest(1241)),
    (OffsetByteRequest(9000), RangeByteRequest(8999, 9001)),
]


def in_this_process(store: CacheStore, *_: Any) -> CacheStore:
    store.flush()
    return store


def in_another_process(store: CacheStore, source: Store, path: Path) -> CacheStore:
    restart(store)
    return persisting(source, path)


def without_persist_ranges(store: CacheStore, source: Store, path: Path) -> CacheStore:
    restart(store)
    return persisting(source, path, persist_ranges=False)


each_reader = pytest.mark.parametrize(
    "reader", [in_this_process, in_another_process, without_persist_ranges]
)


@each_way
@each_reader
async def test_a_range_is_served_from_one_in_the_file_that_has_all_its_bytes(
    path: Path, ask: Ask, reader: Reader
) -> None:
    cases = {f"a/{number}": pair for number, pair in enumerate(COVERED)}
    source = CountingStore(in_source(*cases))
    store = persisting(source, path)
    first = [await ask(store, key, kept) for key, (kept, _) in cases.items()]
    store = reader(store, source, path)
    source.reset()
    found = [await ask(store, key, asked) for key, (_, asked) in cases.items()]

    assert first == [of(kept) for kept, _ in COVERED]
    assert found == [of(asked) for _, asked in COVERED]
    assert source.requests.total() == 0
    assert len(cached_ranges(path)) == len(COVERED)
    assert store.cache_info()["ranges"] == 0


@each_way
@each_reader
async def test_a_range_is_fetched_if_the_file_does_not_show_all_its_bytes(
    path: Path, ask: Ask, reader: Reader
) -> None:
    cases = {f"a/{number}": pair for number, pair in enumerate(NOT_COVERED)}
    source = CountingStore(in_source(*cases))
    store = persisting(source, path)
    for key, (kept, _) in cases.items():
        await ask(store, key, kept)
    store = reader(store, source, path)
    source.reset()
    found = [await ask(store, key, asked) for key, (_, asked) in cases.items()]

    assert found == [of(asked) for _, asked in NOT_COVERED]
    assert source.keys == list(cases)


@each_way
async def test_a_range_is_served_while_it_waits_to_be_written(path: Path, ask: Ask) -> None:
    cases = {f"a/{number}": pair for number, pair in enumerate(COVERED)}
    source = CountingStore(in_source(*cases))
    store = persisting(source, path)
    with file_cache(store)._queue._turn:
        for key, (kept, _) in cases.items():
            await ask(store, key, kept)
        source.reset()
        found = [await ask(store, key, asked) for key, (_, asked) in cases.items()]
        sizes = [await store.getsize(key) for key in list(cases)[5:]]
        waiting = len(file_cache(store)._queue._ranges)

    assert found == [of(asked) for _, asked in COVERED]
    assert sizes == [SIZE] * 8
    assert (source.requests.total(), waiting) == (0, len(COVERED))
    assert len(cached_ranges(path)) == len(COVERED)


@each_reader
async def test_a_range_that_reaches_the_end_tells_the_size(path: Path, reader: Reader) -> None:
    source = CountingStore(in_source("offset", "range", "suffix", "none"))
    store = persisting(source, path)
    await read(store, "offset", OffsetByteRequest(5000))
    await read(store, "range", RangeByteRequest(0, SIZE))
    await read(store, "suffix", SuffixByteRequest(SIZE))
    store = reader(store, source, path)
    source.reset()
    sizes = [await store.getsize(key) for key in ("offset", "range", "suffix", "none")]
    exist = [await store.exists(key) for key in ("offset", "range", "suffix", "none")]

    assert sizes == [SIZE] * 4
    assert exist == [True] * 4
    assert source.requests == {"getsize": 3, "exists": 1}
    assert source.keys == ["range", "suffix", "none", "none"]


async def test_an_index_of_a_shard_at_its_start_and_one_at_its_end_are_found(path: Path) -> None:
    source = CountingStore(in_source())
    store = persisting(source, path)
    requests: list[ByteRequest] = [
        RangeByteRequest(0, 68),
        SuffixByteRequest(68),
        RangeByteRequest(68, 500),
    ]
    for request in requests:
        await read(store, KEY, request)
    restart(store)
    store = persisting(source, path)
    source.reset()

    assert [await read(store, KEY, request) for request in requests] == list(map(of, requests))
    assert source.requests.total() == 0


# What replaces what


def spans(path: Path, key: str = KEY) -> list[tuple[int, int | None]]:
    """The ranges of the key in the file."""
    return [(each.start, each.stop) for each in cached_ranges(path) if each.key == key]


REPLACED: dict[str, tuple[list[ByteRequest], list[tuple[int, int | None]]]] = {
    "those inside a larger one go": (
        [RangeByteRequest(10, 20), RangeByteRequest(30, 40), RangeByteRequest(5, 40)],
        [(5, 40)],
    ),
    "one with the same start and longer replaces": (
        [RangeByteRequest(10, 20), RangeByteRequest(10, 30)],
        [(10, 30)],
    ),
    "one with the same end and longer replaces": (
        [RangeByteRequest(10, 20), RangeByteRequest(5, 20)],
        [(5, 20)],
    ),
    "those that overlap stay": (
        [RangeByteRequest(10, 20), RangeByteRequest(15, 25), RangeByteRequest(5, 12)],
        [(5, 12), (10, 20), (15, 25)],
    ),
    "one around all but a part of it stays": (
        [RangeByteRequest(10, 20), RangeByteRequest(25, 30), RangeByteRequest(12, 40)],
        [(10, 20), (12, 40)],
    ),
    "a longer suffix replaces": ([SuffixByteRequest(10), SuffixByteRequest(20)], [(-20, None)]),
    "a suffix has no place among the others": (
        [RangeByteRequest(SIZE - 10, SIZE), SuffixByteRequest(20)],
        [(-20, None), (SIZE - 10, SIZE)],
    ),
    "to the end replaces a suffix and what is inside": (
        [SuffixByteRequest(10), RangeByteRequest(9000, SIZE), OffsetByteRequest(9000)],
        [(9000, SIZE)],
    ),
    "to the end leaves a longer suffix": (
        [SuffixByteRequest(2000), OffsetByteRequest(9000)],
        [(-2000, None), (9000, SIZE)],
    ),
    "a longer one to the end replaces": (
        [OffsetByteRequest(9000), OffsetByteRequest(8000)],
        [(8000, SIZE)],
    ),
}


async def read_in_one_transaction(store: CacheStore, requests: list[ByteRequest]) -> None:
    with file_cache(store)._queue._turn:
        for request in requests:
            await read(store, KEY, request)


async def read_in_a_transaction_each(store: CacheStore, requests: list[ByteRequest]) -> None:
    for request in requests:
        await read(store, KEY, request)
        store.flush()


@pytest.mark.parametrize(("requests", "left"), REPLACED.values(), ids=list(REPLACED))
@pytest.mark.parametrize("read_all", [read_in_one_transaction, read_in_a_transaction_each])
async def test_of_the_ranges_of_a_key_none_lies_inside_another(
    path: Path,
    read_all: Callable[[CacheStore, list[ByteRequest]], Awaitable[None]],
    requests: list[ByteRequest],
    left: list[tuple[int, int | None]],
) -> None:
    source = CountingStore(in_source())
    store = persisting(source, path)
    await read_all(store, requests)
    found = spans(path)
    restart(store)
    store = persisting(source, path)
    source.reset()
    again = [await read(store, KEY, request) for request in requests]

    assert found == left
    assert again == list(map(of, requests))
    assert source.requests.total() == 0


async def test_the_ranges_of_a_key_go_when_its_whole_value_is_cached(path: Path) -> None:
    store = persisting(in_source(KEY, "a"), path)
    await read(store, KEY, RangeByteRequest(0, 1))
    for request in (RangeByteRequest(5, 10), SuffixByteRequest(2000), OffsetByteRequest(9000)):
        await read(store, KEY, request)
        await read(store, "a", request)
    before = len(cached_ranges(path))
    await read(store, KEY)
    after = {each.key for each in cached_ranges(path)}
    info = store.cache_info()

    assert (before, after, cached_keys(path)) == (7, {"a"}, {KEY})
    assert info["current_size"] == info["file_size"] == SIZE + 3245
    assert (info["cached_keys"], info["file_ranges"], info["file_range_size"]) == (4, 3, 3245)


async def test_a_range_is_not_kept_beside_the_whole_value(path: Path) -> None:
    held = HeldStore(in_source())
    store = persisting(held, path)
    gate = held.hold_after("get")
    async with stopped_at(gate, read(store, KEY, RangeByteRequest(5, 10))) as part:
        await read(store, KEY)

    assert await part == DATA[5:10]
    assert (cached_ranges(path), cached_keys(path)) == ([], {KEY})


async def test_a_range_is_not_kept_beside_a_later_absence(path: Path) -> None:
    held = HeldStore(in_source())
    store = persisting(held, path, max_age_absent_seconds=60)
    gate = held.hold_after("get")
    async with stopped_at(gate, read(store, KEY, RangeByteRequest(5, 10))) as part:
        # By a process without a cache.
        await held.delete(KEY)
        absent = await read(store, KEY)
        store.flush()

    assert (await part, absent) == (DATA[5:10], None)
    assert cached_ranges(path) == []
    assert store.cache_info()["absent_keys"] == 1


@pytest.mark.parametrize("read_all", [read_ranges, read_ranges_sync])
async def test_kept_is_what_was_asked_for_where_pieces_came_in_one_response(
    path: Path, read_all: Callable[..., Awaitable[Any]]
) -> None:
    source = CountingStore(in_source())
    store = persisting(source, path)
    asked: list[ByteRequest | None] = [
        RangeByteRequest(start, start + 100) for start in range(500, 9000, 250)
    ]
    await read_all(store, KEY, asked)
    requests = source.requests.total()
    kept = spans(path)
    source.reset()
    gap = await read(store, KEY, RangeByteRequest(620, 630))

    assert requests == 1
    assert kept == [(start, start + 100) for start in range(500, 9000, 250)]
    assert (gap, source.requests.total()) == (DATA[620:630], 1)


# Writes


async def write(store: CacheStore) -> None:
    await store.set(KEY, buffer(b"new" * 4000))


async def write_sync(store: CacheStore) -> None:
    await asyncio.to_thread(store.set_sync, KEY, buffer(b"new" * 4000))


async def write_many(store: CacheStore) -> None:
    await store._set_many([("a/1", buffer(b"")), (KEY, buffer(b"new" * 4000))])


async def delete(store: CacheStore) -> None:
    await store.delete(KEY)


async def delete_sync(store: CacheStore) -> None:
    await asyncio.to_thread(store.delete_sync, KEY)


async def delete_dir(store: CacheStore) -> None:
    await store.delete_dir("a")


async def clear(store: CacheStore) -> None:
    await store.clear()


WRITES: dict[str, Callable[[CacheStore], Awaitable[None]]] = {
    "set": write,
    "set_sync": write_sync,
    "_set_many": write_many,
    "delete": delete,
    "delete_sync": delete_sync,
    "delete_dir": delete_dir,
    "clear": clear,
}
each_write = pytest.mark.parametrize(("method", "write"), WRITES.items(), ids=list(WRITES))

BEFORE: list[ByteRequest] = [RangeByteRequest(10, 300), OffsetByteRequest(9000)]


async def read_both(store: Store) -> list[bytes | None]:
    return [await read(store, KEY, request) for request in BEFORE]


@each_write
async def test_a_write_removes_the_ranges_of_its_key_before_the_source_is_written(
    path: Path, method: str, write: Callable[[CacheStore], Awaitable[None]]
) -> None:
    held = HeldStore(in_source(KEY, "b"))
    in_memory = persisting(held, path, persist_ranges=False)
    await read_both(in_memory)
    leave_process(in_memory)
    reader = persisting(held, path)
    await read_both(reader)
    await read(reader, "b", BEFORE[0])
    leave_process(reader)
    before = spans(path)
    writer = persisting(held, path)
    # Of two keys, the second.
    gates = [held.hold_before(method) for _ in range(1 + (method == "_set_many"))]
    if len(gates) > 1:
        gates[0].open()
    async with stopped_at(gates[-1], write(writer)):
        during = spans(path)
        written = writers(path)
        held.reset()
        old = [await read_both(store) for store in (in_memory, reader, writer)]
        requests = held.requests["get"]
        kept_meanwhile = spans(path)
    after = [await read_both(store) for store in (in_memory, reader, writer)]
    held_now = await read_both(held)

    assert before == [(10, 300), (9000, SIZE)]
    assert during == kept_meanwhile == []
    assert written >= 1
    # Each of them from the source: the write may be done at any moment.
    assert requests == 6
    assert old == [list(map(of, BEFORE))] * 3
    assert after == [held_now] * 3
    assert held_now != old[0]


async def test_the_ranges_of_other_keys_stay_when_a_key_is_written(path: Path) -> None:
    source = CountingStore(in_source(KEY, "a/1", "ab/0", "b"))
    store = persisting(source, path)
    for key in (KEY, "a/1", "ab/0", "b"):
        await read(store, key, BEFORE[0])
    await store.set(KEY, buffer(b"new"))
    after_set = [each.key for each in cached_ranges(path)]
    await store.delete_dir("a")

    assert after_set == ["a/1", "ab/0", "b"]
    assert [each.key for each in cached_ranges(path)] == ["ab/0", "b"]


async def test_the_ranges_go_in_the_transaction_that_fences_their_key(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements()
    statements.install(monkeypatch)
    store = persisting(in_source(), path)
    await read_both(store)
    store.flush()
    begun = len(statements.texts)
    await store.set(KEY, buffer(b"new"))
    texts = statements.texts[begun:]
    end = texts.index("COMMIT")
    first = texts[:end]

    assert first.count("BEGIN IMMEDIATE") == 1
    assert invalidate.BEGIN_WRITE.strip() in first
    assert ranges.REMOVE_OF_KEY.strip() in first


@each_way
@each_write
async def test_a_response_that_was_in_flight_across_a_write_is_not_kept(
    path: Path, ask: Ask, method: str, write: Callable[[CacheStore], Awaitable[None]]
) -> None:
    del method
    held = HeldStore(in_source())
    reader = persisting(held, path)
    leave_process(reader)
    writer = persisting(held, path)
    gate = held.hold_after(METHODS[ask])
    async with stopped_at(gate, ask(reader, KEY, BEFORE[0])) as reading:
        await write(writer)
    old = await reading
    reader.flush()
    kept = cached_ranges(path)
    new = await read(reader, KEY, BEFORE[0])

    assert old == of(BEFORE[0])
    assert kept == []
    assert new == await read(held, KEY, BEFORE[0])


@pytest.mark.parametrize("write", [write, delete_dir])
async def test_a_range_that_waits_to_be_written_is_not_served_after_a_write(
    path: Path, write: Callable[[CacheStore], Awaitable[None]]
) -> None:
    held = HeldStore(in_source())
    reader = persisting(held, path)
    leave_process(reader)
    writer = persisting(held, path)
    with file_cache(reader)._queue._turn:
        old = await read_both(reader)
        await write(writer)
        new = await read_both(reader)

    assert old == list(map(of, BEFORE))
    assert new == await read_both(held) != old
    reader.flush()
    assert DATA[10:300] != await read(reader, KEY, BEFORE[0])


# Ages


async def test_a_stale_range_is_fetched_again_and_the_new_one_replaces_it(
    path: Path, held_time: HeldTime
) -> None:
    source = CountingStore(in_source())
    store = persisting(source, path, max_age_seconds=10)
    await read_both(store)
    held_time.step(9.9)
    fresh = await read_both(store)
    requests = source.requests.total()
    held_time.step(0.2)
    await source.set(KEY, buffer(DATA[::-1]))
    stale = await read_both(store)
    requests_again = source.requests["get"]
    again = await read_both(store)

    assert fresh == list(map(of, BEFORE))
    assert stale == again == [of(request, DATA[::-1]) for request in BEFORE]
    assert (requests, requests_again, source.requests["get"]) == (2, 4, 4)
    assert spans(path) == [(10, 300), (9000, SIZE)]
    assert store.cache_stats()["expirations"] == 2


async def test_sizes_and_existence_are_not_told_by_stale_ranges(
    path: Path, held_time: HeldTime
) -> None:
    source = CountingStore(in_source())
    store = persisting(source, path, max_age_seconds=10)
    await read_both(store)
    store.flush()
    held_time.step(11)
    await store.exists(KEY)
    await store.getsize(KEY)

    assert source.requests == {"get": 2, "exists": 1, "getsize": 1}


async def test_a_fresh_range_replaces_a_stale_one_around_it_at_once(
    path: Path, held_time: HeldTime
) -> None:
    source = CountingStore(in_source())
    lasting = persisting(source, path)
    store = persisting(source, path, max_age_seconds=10)
    await read_many_that_are_older(lasting, source)
    await read(lasting, KEY, RangeByteRequest(100, 5000))
    lasting.flush()
    held_time.step(11)
    requests = []
    for _ in range(2):
        source.reset()
        await read(store, KEY, RangeByteRequest(120, 130))
        store.flush()
        requests.append(source.requests.total())

    assert requests == [1, 0]
    assert spans(path) == [(120, 130)]


async def read_many_that_are_older(store: CacheStore, source: CountingStore) -> None:
    """Give expiry much to do before it comes to other keys."""
    for number in range(3 * evict.MAX_AT_ONCE):
        await source.set(f"stale/{number}", buffer(DATA))
        await read(store, f"stale/{number}", RangeByteRequest(0, 1))


async def test_a_stale_large_range_does_not_hide_a_fresh_smaller_one_for_ever(
    path: Path, held_time: HeldTime
) -> None:
    source = CountingStore(in_source())
    lasting = persisting(source, path)
    store = persisting(source, path, max_age_seconds=10)
    await read_many_that_are_older(lasting, source)
    await read(lasting, KEY, RangeByteRequest(100, 5000))
    await read(lasting, KEY, OffsetByteRequest(5000))
    lasting.flush()
    held_time.step(11)
    requests = []
    for _ in range(8):
        source.reset()
        for request in (
            RangeByteRequest(50, 150),
            RangeByteRequest(120, 130),
            SuffixByteRequest(9),
        ):
            await read(store, KEY, request)
            store.flush()
        requests.append(source.requests["get"])

    assert requests[0] == 3
    assert requests[-1] == 0


# Whose ranges


async def test_sources_do_not_share_ranges(path: Path) -> None:
    stores = [
        persisting(MemoryStore({KEY: buffer(data)}), path, namespace=namespace)
        for namespace, data in (("one", DATA), ("two", DATA[::-1]))
    ]
    found = [await read_both(store) for store in (*stores, *stores)]
    info = stores[0].cache_info()
    await stores[1].clear_cache()

    assert found[:2] == found[2:]
    assert found[0] == [of(request) for request in BEFORE]
    assert found[1] == [of(request, DATA[::-1]) for request in BEFORE]
    assert (info["cached_keys"], info["file_ranges"]) == (2, 4)
    assert len(cached_ranges(path)) == 2


async def test_ranges_of_a_source_that_ends_with_its_process_end_with_it(path: Path) -> None:
    private = persisting(in_source(), path, namespace=None)
    named = persisting(in_source(), path)
    await read_both(private)
    await read(named, KEY, BEFORE[0])
    before = len(cached_ranges(path))
    end_everything()

    assert before == 3
    assert spans(path) == [(10, 300)]


async def test_a_range_in_the_memory_of_one_store_goes_to_the_file_when_a_persisting_one_is_asked(
    path: Path,
) -> None:
    source = CountingStore(in_source())
    other = persisting(source, path, persist_ranges=False)
    store = persisting(source, path)
    await read_both(other)
    before = store.cache_info()
    source.reset()
    # Of one of them, a part.
    found = [await read(store, KEY, each) for each in (BEFORE[0], RangeByteRequest(9990, 9999))]
    after = store.cache_info()
    again = await read_both(other)

    assert found == [DATA[10:300], DATA[9990:9999]]
    assert again == list(map(of, BEFORE))
    assert source.requests.total() == 0
    assert spans(path) == [(10, 300), (9000, SIZE)]
    assert [before[name] for name in NUMBERS] == [2, 1530, 0, 0, 0]
    # Each counts once.
    assert [after[name] for name in NUMBERS] == [0, 0, 2, 1530, 1530]
    assert before["current_size"] == after["current_size"] == 1530


async def test_two_requests_of_one_read_are_served_from_one_range_that_goes_to_the_file(
    path: Path,
) -> None:
    source = CountingStore(in_source())
    await read(persisting(source, path, persist_ranges=False), KEY, RangeByteRequest(10, 300))
    store = persisting(source, path)
    source.reset()
    requests = [RangeByteRequest(10, 20), RangeByteRequest(20, 30)]
    batches = store.get_ranges(KEY, requests, prototype=PROTOTYPE)
    found = {place: each and each.to_bytes() async for batch in batches for place, each in batch}
    info = store.cache_info()

    assert found == {0: DATA[10:20], 1: DATA[20:30]}
    assert source.requests.total() == 0
    assert [info[name] for name in NUMBERS] == [0, 0, 1, 290, 290]


NUMBERS = ["ranges", "range_size", "file_ranges", "file_range_size", "file_size"]


async def test_a_range_that_another_process_has_put_into_the_file_counts_once(path: Path) -> None:
    source = CountingStore(in_source())
    in_memory = persisting(source, path, persist_ranges=False)
    await read_both(in_memory)
    leave_process(in_memory)
    other = persisting(source, path)
    await read_both(other)
    other.flush()
    source.reset()
    found = await read_both(in_memory)
    info = in_memory.cache_info()

    assert found == list(map(of, BEFORE))
    assert source.requests.total() == 0
    assert [info[name] for name in NUMBERS] == [0, 0, 2, 1530, 1530]


async def test_without_persist_ranges_nothing_of_a_range_is_in_the_file(path: Path) -> None:
    source = CountingStore(in_source())
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    await read_both(store)
    found = await read_both(store)

    assert found == list(map(of, BEFORE))
    assert source.requests.total() == 2
    assert cached_ranges(path) == []
    assert (store.persist_ranges, store.cache_info()["ranges"]) == (False, 2)


# Parameters


@pytest.mark.parametrize("cache_store", [MemoryStore, LocalStore])
def test_ranges_are_persisted_in_a_cache_file_only(
    tmp_path: Path, cache_store: type[MemoryStore | LocalStore]
) -> None:
    store = MemoryStore() if cache_store is MemoryStore else LocalStore(tmp_path / "folder")
    message = rf"^persist_ranges=True .*<{cache_store.__name__}>: pass a SqliteStore, or "

    with pytest.raises(ValueError, match=message):
        CacheStore(MemoryStore(), cache_store=store, persist_ranges=True)


@pytest.mark.parametrize("given", [1, 0, None, "yes"])
def test_persist_ranges_is_true_or_false(path: Path, given: Any) -> None:
    message = rf"^persist_ranges must be True or False, got {given!r}$"
    with pytest.raises(TypeError, match=message):
        persisting(MemoryStore(), path, persist_ranges=given)


@pytest.mark.parametrize(
    ("given", "nbytes"), [("2 MiB", 2 * 2**20), (0, 0), (12345, 12345), (None, None)]
)
def test_max_memory_is_bytes_or_none(path: Path, given: Any, nbytes: int | None) -> None:
    store = persisting(MemoryStore(), path, max_memory=given)

    assert store.max_memory == store.cache_info()["max_memory"] == nbytes


def test_max_memory_is_a_gibibyte_by_default(path: Path) -> None:
    assert persisting(MemoryStore(), path).max_memory == 2**30


@pytest.mark.parametrize(
    ("given", "error"), [("1 XB", ValueError), (-1, ValueError), (1.5, TypeError), ([], TypeError)]
)
def test_what_is_no_max_memory_is_refused(path: Path, given: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^max_memory must (be|not be negative).*, got "):
        persisting(MemoryStore(), path, max_memory=given)


async def test_a_pickle_keeps_the_settings(tmp_path: Path, path: Path) -> None:
    source = LocalStore(tmp_path / "source")
    await source.set(KEY, buffer(DATA))
    # A file that was just written has no version yet, and ranges of it make place for later ones.
    os.utime(tmp_path / "source" / KEY, (1, 1))
    store = persisting(source, path, max_memory="3 MiB")
    again = pickle.loads(pickle.dumps(store))  # noqa: S301 - our own
    found = await read_both(again)
    view = again.with_read_only(read_only=True)

    assert found == list(map(of, BEFORE))
    assert (again.persist_ranges, again.max_memory) == (True, 3 * 2**20)
    assert (view.persist_ranges, view.max_memory) == (True, 3 * 2**20)
    assert again.cache_info()["file_ranges"] == 2


async def test_ranges_are_kept_in_memory_beside_another_cache_store() -> None:
    source = CountingStore(in_source())
    store = CacheStore(source, cache_store=MemoryStore())
    await read_both(store)
    found = await read_both(store)
    info = store.cache_info()

    assert found == list(map(of, BEFORE))
    assert source.requests.total() == 2
    assert [info[name] for name in NUMBERS] == [2, 1530, 0, 0, 0]
