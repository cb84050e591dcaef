"""What happens at once: driven by gates at which the source waits, and which the test opens."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from zarr.abc.store import (
    OffsetByteRequest,
    RangeByteRequest,
    SuffixByteRequest,
    _store_supports_sync_io,
)
from zarr.core.buffer import cpu
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from tests.fakes import (
    PROTOTYPE,
    STRESS,
    AsyncOnlyStore,
    CancelledAt,
    CountingStore,
    DetachedStore,
    FailingStore,
    HeldStore,
    HeldTime,
    YieldingStore,
    buffer,
    cached_bytes,
    cached_keys,
    close_everything,
    leave_process,
    open_file,
    read,
    stopped_at,
    writers,
)
from zarr_cache import CacheStore, CacheWarning, SqliteStore
from zarr_cache.core.errors import StorageError
from zarr_cache.core.single_flight import Flights
from zarr_cache.index import invalidate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

type Maker = Callable[..., CacheStore]

OLD, NEW = b"old bytes", b"new"
KEY = "a/k"


def memory(**values: bytes) -> MemoryStore:
    """A store with `KEY`, and with others that are named."""
    items = {KEY: OLD} | values
    return MemoryStore({key: buffer(value) for key, value in items.items()})


def cached(source: Store, path: Path, **settings: Any) -> CacheStore:
    return CacheStore(source, cache_store=SqliteStore(path), namespace="source", **settings)


@pytest.fixture(params=["file", "memory"])
def make(request: pytest.FixtureRequest, path: Path) -> Maker:
    """Makes a CacheStore over a file, and one over another store, where no lookup waits."""
    if request.param == "file":
        return lambda source, **settings: cached(source, path, **settings)
    cache = MemoryStore()
    return lambda source, **settings: CacheStore(source, cache_store=cache, **settings)


@pytest.fixture(scope="module", autouse=True)
def _collections_are_short() -> Iterator[None]:
    """Collecting looks at no object that was there before the first test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _connections_are_closed(_accounts_are_right: None) -> Iterator[None]:
    """A connection that is left open warns when it is collected: here, and not in a later test."""
    yield
    close_everything()
    gc.collect()


async def turns(number: int = 30) -> None:
    """Let the other tasks go on as far as they get without waiting for a thread."""
    for _ in range(number):
        await asyncio.sleep(0)


def in_threads(number: int, call: Callable[[], Any]) -> list[Any]:
    """The results of so many threads that call at once."""
    barrier = threading.Barrier(number)

    def call_with_the_others() -> Any:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(number) as threads:
        calls = [threads.submit(call_with_the_others) for _ in range(number)]
        return [each.result() for each in calls]


# A fetch that began before a write and ends after it


async def whole(store: Store) -> None:
    await store.get(KEY, PROTOTYPE)


async def part(store: Store) -> None:
    await store.get(KEY, PROTOTYPE, RangeByteRequest(0, 3))


async def suffix(store: Store) -> None:
    await store.get(KEY, PROTOTYPE, SuffixByteRequest(3))


async def parts(store: Store) -> None:
    with contextlib.suppress(BaseExceptionGroup):
        async for _ in store.get_ranges(KEY, [RangeByteRequest(0, 3)], prototype=PROTOTYPE):
            pass


async def existence(store: Store) -> None:
    await store.exists(KEY)


async def size(store: Store) -> None:
    with contextlib.suppress(FileNotFoundError):
        await store.getsize(KEY)


READS = [
    pytest.param(whole, "get", id="value"),
    pytest.param(part, "get", id="range"),
    pytest.param(suffix, "get", id="suffix"),
    pytest.param(parts, "get_ranges", id="ranges"),
    pytest.param(existence, "exists", id="existence"),
    pytest.param(size, "getsize", id="size"),
]


async def set_(store: Store) -> None:
    await store.set(KEY, buffer(NEW))


async def set_sync(store: Any) -> None:
    store.set_sync(KEY, buffer(NEW))


async def set_many(store: Store) -> None:
    await store._set_many([(KEY, buffer(NEW)), ("other", buffer(NEW))])


async def set_anew(store: Store) -> None:
    await store.delete(KEY)
    await store.set_if_not_exists(KEY, buffer(NEW))


async def delete(store: Store) -> None:
    await store.delete(KEY)


async def delete_sync(store: Any) -> None:
    store.delete_sync(KEY)


async def delete_dir(store: Store) -> None:
    await store.delete_dir("a")


async def clear(store: Store) -> None:
    await store.clear()


WRITES = [set_, set_sync, set_many, set_anew, delete, delete_sync, delete_dir, clear]
WRITING = (
    "set",
    "set_sync",
    "_set_many",
    "set_if_not_exists",
    "delete",
    "delete_sync",
    "delete_dir",
    "clear",
)


at_first = pytest.mark.parametrize("at_first", [{KEY: OLD}, {}], ids=["a value", "no value"])


def source_of(values: dict[str, bytes]) -> MemoryStore:
    return MemoryStore({key: buffer(value) for key, value in values.items()})


def same(store: CacheStore, _: Callable[[], CacheStore]) -> CacheStore:
    return store


def other_store(_: CacheStore, make_another: Callable[[], CacheStore]) -> CacheStore:
    return make_another()


def other_process(store: CacheStore, make_another: Callable[[], CacheStore]) -> CacheStore:
    leave_process(store)
    return make_another()


of_each_writer = pytest.mark.parametrize("writer_of", [same, other_store, other_process])


def everything(source: Store) -> dict[str, bytes]:
    """What a memory store below any number of wrappers holds."""
    while not isinstance(source, MemoryStore):
        source = source._store  # type: ignore[attr-defined] # a wrapper
    return {key: value.to_bytes() for key, value in source._store_dict.items()}


async def all_reads(store: Store) -> list[object]:
    """The results of all reads of `KEY`, from a store that is read-only."""
    ranges: list[ByteRequest] = [
        RangeByteRequest(0, 3),
        SuffixByteRequest(3),
        OffsetByteRequest(1),
    ]
    return [
        *[await read(store, KEY, request) for request in ranges],
        await store.exists(KEY),
        await read(store, KEY),
    ]


async def read_part(store: Store) -> bytes | None:
    return await read(store, KEY, RangeByteRequest(0, 3))


async def read_pieces(store: Store) -> bytes | None:
    """The same by ``get_ranges``."""
    return dict(await pieces(store, RangeByteRequest(0, 3))).get(0)


METHODS: dict[object, str] = {read_part: "get", read_pieces: "get_ranges"}


@pytest.mark.pairs
@at_first
@pytest.mark.parametrize("writer_of", [same, other_process])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("slow_read", "method"), READS)
async def test_a_slow_read_does_not_put_the_old_response_back(
    slow_read: Callable[[Store], Awaitable[None]],
    method: str,
    write: Callable[[Store], Awaitable[None]],
    writer_of: Callable[..., CacheStore],
    at_first: dict[str, bytes],
    path: Path,
) -> None:
    source = HeldStore(source_of(at_first))
    store = cached(source, path)
    reader = store.with_read_only(read_only=True)
    writer = writer_of(store, lambda: cached(source, path))
    async with stopped_at(source.hold_after(method), slow_read(reader)):
        await write(writer)

    truth = await all_reads(source._store)
    assert await all_reads(store) == truth
    assert await all_reads(writer.with_read_only(read_only=True)) == truth
    assert await all_reads(reader) == truth


@pytest.mark.pairs
@at_first
@of_each_writer
@pytest.mark.parametrize("write", WRITES)
async def test_what_was_cached_before_a_write_is_not_read_after_it(
    write: Callable[[Store], Awaitable[None]],
    writer_of: Callable[..., CacheStore],
    at_first: dict[str, bytes],
    path: Path,
) -> None:
    source = CountingStore(source_of(at_first))
    store = cached(source, path)
    reader = store.with_read_only(read_only=True)
    writer = writer_of(store, lambda: cached(source, path))
    expected = await all_reads(source._store)
    before = await all_reads(reader)

    await write(writer)

    assert before == expected
    assert await all_reads(reader) == await all_reads(source._store)


@pytest.mark.parametrize("ask", [read_part, read_pieces])
@pytest.mark.parametrize("write", [set_, delete])
async def test_a_read_that_began_after_a_write_does_not_get_what_was_requested_before_it(
    ask: Callable[[Store], Awaitable[bytes | None]],
    write: Callable[[Store], Awaitable[None]],
    make: Maker,
) -> None:
    source = HeldStore(memory())
    store = make(source, cache_set_data=False)
    async with stopped_at(source.hold_after(METHODS[ask]), ask(store)) as slow:
        await write(store)
        async with asyncio.timeout(30):
            after = await ask(store)

    assert await slow == OLD[:3]
    assert after == await ask(source._store)


@of_each_writer
@pytest.mark.parametrize("ask", [read_part, read_pieces])
@pytest.mark.parametrize("write", [set_, delete])
@pytest.mark.filterwarnings("ignore::zarr_cache.CacheWarning")
async def test_a_read_after_a_write_whose_end_was_not_recorded_does_not_get_what_was_before_it(
    ask: Callable[[Store], Awaitable[bytes | None]],
    write: Callable[[Store], Awaitable[None]],
    writer_of: Callable[..., CacheStore],
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(invalidate, "end_write", fail)
    source = HeldStore(memory())
    reader = cached(source, path)
    writer = writer_of(reader, lambda: cached(source, path))
    write_begun = source.hold_before(write.__name__.strip("_"))
    writing = asyncio.ensure_future(write(writer))
    await write_begun.reached()
    answered = source.hold_after(METHODS[ask])
    slow = asyncio.ensure_future(ask(reader))
    await answered.reached()
    write_begun.open()
    await writing
    async with asyncio.timeout(30):
        after = await ask(reader)
    answered.open()

    assert await slow == OLD[:3]
    assert after == await ask(source._store)


@pytest.mark.parametrize("is_failing", [False, True])
@pytest.mark.parametrize("write", [delete, delete_dir, clear])
async def test_what_is_read_while_keys_are_removed_is_not_served_after_it(
    write: Callable[[Store], Awaitable[None]], is_failing: bool, make: Maker
) -> None:
    failing = FailingStore(memory())
    source = HeldStore(failing)
    store = make(source)
    if is_failing:
        # As of a server that does what was requested, and whose response is lost.
        failing.fail(write.__name__, is_done_first=True)
    gate = source.hold_before(write.__name__)
    removal = asyncio.ensure_future(write(store))
    await gate.reached()
    during = [await read(store, KEY, RangeByteRequest(0, 3)), await read(store, KEY)]
    gate.open()
    await asyncio.wait({removal})

    assert isinstance(removal.exception(), OSError) == is_failing
    assert during == [OLD[:3], OLD]
    assert [await read_part(store), await read(store, KEY)] == [None, None]


async def test_a_folder_is_cached_again_when_its_removal_has_ended(path: Path) -> None:
    source = CountingStore(memory())
    store = cached(source, path)
    await store.delete_dir("a")
    await store.set("a/other", buffer(NEW))
    source.reset()

    assert await read(store, "a/other") == NEW
    assert source.requests == {}
    assert writers(path) == 0


@of_each_writer
async def test_nothing_is_cached_of_a_source_while_one_of_two_removals_is_in_flight(
    writer_of: Callable[..., CacheStore], path: Path
) -> None:
    source = HeldStore(memory(other=OLD))
    one = cached(source, path)
    other = writer_of(one, lambda: cached(source, path))
    async with stopped_at(source.hold_before("delete_dir"), one.delete_dir("a")):
        await other.clear()
        await source._store.set(KEY, buffer(OLD))
        during = await read(other, KEY)
        other.flush()
        kept = cached_keys(path)

    assert during == OLD
    assert kept == set()
    assert await read(other, KEY) is None


@of_each_writer
async def test_what_is_read_during_a_write_is_not_served_after_it(
    writer_of: Callable[..., CacheStore], path: Path
) -> None:
    source = HeldStore(memory())
    reader = cached(source, path)
    writer = writer_of(reader, lambda: cached(source, path))
    async with stopped_at(source.hold_before("set"), set_(writer)):
        during = await all_reads(reader)

    assert during[-1] == OLD
    assert await all_reads(reader) == await all_reads(source._store)


@of_each_writer
@pytest.mark.parametrize("hold", [HeldStore.hold_before, HeldStore.hold_after])
async def test_nothing_is_cached_of_a_key_while_one_of_two_writes_of_it_is_in_flight(
    hold: Callable[..., Any], writer_of: Callable[..., CacheStore], path: Path
) -> None:
    source = HeldStore(memory())
    one = cached(source, path)
    other = writer_of(one, lambda: cached(source, path))
    async with stopped_at(hold(source, "set"), one.set(KEY, buffer(b"slow"))):
        await other.set(KEY, buffer(b"quick"))
        kept = [cached_keys(path)]
        during = [await read(one, KEY), await read(other, KEY)]
        other.flush()
        kept.append(cached_keys(path))

    # The slow one may never end, and come to the source all the same.
    assert kept == [set(), set()]
    assert during == [b"quick", b"quick"]
    assert await read(one, KEY) == await read(other, KEY) == everything(source)[KEY]


# One fetch


@pytest.mark.parametrize("byte_range", [None, RangeByteRequest(0, 3)], ids=["value", "range"])
async def test_tasks_that_miss_at_once_make_one_request(
    byte_range: RangeByteRequest | None, make: Maker
) -> None:
    source = HeldStore(memory())
    store = make(source)
    gate = source.hold_after("get")
    reads = [asyncio.ensure_future(read(store, KEY, byte_range)) for _ in range(16)]
    await gate.reached()
    await turns()
    gate.open()

    assert await asyncio.gather(*reads) == [OLD[:3] if byte_range else OLD] * 16
    assert source.requests == {"get": 1}


async def test_a_write_to_another_key_between_two_misses_makes_no_second_request(
    make: Maker,
) -> None:
    source = HeldStore(memory())
    store = make(source)
    async with stopped_at(source.hold_after("get"), read(store, KEY)) as one:
        await store.set("other", buffer(NEW))
        other = asyncio.ensure_future(read(store, KEY))
        await turns()

    assert [await one, await other] == [OLD, OLD]
    assert source.requests == {"get": 1, "set": 1}


async def test_a_hit_cannot_be_changed_by_its_reader(make: Maker) -> None:
    held = np.frombuffer(bytearray(OLD), np.uint8)
    source = MemoryStore({KEY: cpu.Buffer.from_array_like(held)})
    store = make(source)
    await read(store, KEY)
    hit = await store.get(KEY, PROTOTYPE)

    assert hit is not None
    with pytest.raises(ValueError, match="read-only"):
        hit.as_numpy_array()[0] = 0


class EndsEarly(MemoryStore):
    """A source that fails where a range begins at the eighth byte, after a while."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if isinstance(byte_range, RangeByteRequest) and byte_range.start == 8:
            await turns()
            raise OSError(key)
        return await super().get(key, prototype, byte_range)


async def pieces(store: Store, *asked: ByteRequest) -> list[tuple[int, bytes]]:
    """What came of the ranges, each as a request of its own."""
    came: list[tuple[int, bytes]] = []
    with contextlib.suppress(ExceptionGroup):
        async for batch in store.get_ranges(KEY, asked, prototype=PROTOTYPE, max_gap_bytes=1):
            came += [(place, piece.to_bytes()) for place, piece in batch if piece is not None]
    return came


async def all_pieces(store: Store, *asked: ByteRequest) -> None:
    async for _ in store.get_ranges(KEY, asked, prototype=PROTOTYPE):
        pass


async def test_what_came_of_ranges_before_one_failed_is_returned_and_cached(make: Maker) -> None:
    source = CountingStore(EndsEarly({KEY: buffer(OLD)}))
    store = make(source)
    came = await pieces(store, RangeByteRequest(0, 3), RangeByteRequest(8, 9))
    source.reset()

    assert came == [(0, OLD[:3])]
    assert await read(store, KEY, RangeByteRequest(0, 3)) == OLD[:3]
    assert source.requests == {}


@pytest.mark.parametrize("number", [1, 2])
async def test_partial_values_that_fail_raise_what_the_source_does(
    number: int, make: Maker
) -> None:
    store = make(EndsEarly({KEY: buffer(OLD)}))
    asked = [(KEY, RangeByteRequest(8, 9 + place)) for place in range(number)]

    with pytest.raises(OSError, match=KEY):
        await store.get_partial_values(PROTOTYPE, asked)


@pytest.mark.parametrize("kind", [CountingStore, AsyncOnlyStore])
def test_threads_that_miss_at_once_make_one_request(kind: type[CountingStore], path: Path) -> None:
    keys = [f"k{number}" for number in range(40 * STRESS)]
    source = kind(MemoryStore({key: buffer(OLD) for key in keys}))
    store = cached(source, path)

    responses = [in_threads(8, partial(store.get_sync, key)) for key in keys]

    assert responses == [[buffer(OLD)] * 8] * len(keys)
    assert source.keys == keys


def by_the_sync_surface(store: CacheStore) -> bytes | None:
    found = store.get_sync(KEY)
    return None if found is None else found.to_bytes()


def in_an_event_loop(store: CacheStore) -> bytes | None:
    return asyncio.run(read(store, KEY))


@pytest.mark.parametrize(
    ("way", "method"), [(by_the_sync_surface, "get_sync"), (in_an_event_loop, "get")]
)
def test_threads_that_wait_for_a_slow_source_make_one_request(
    way: Callable[[CacheStore], bytes | None], method: str, path: Path
) -> None:
    source = HeldStore(memory())
    store = cached(source, path)
    gate = source.hold_after(method)
    with ThreadPoolExecutor(8) as threads:
        reads = [threads.submit(way, store) for _ in range(8)]
        gate.wait_until_reached()
        gate.open()
        responses = [each.result() for each in reads]

    assert responses == [OLD] * 8
    assert source.requests == {method: 1}


async def test_a_task_waits_for_what_a_thread_fetches(path: Path) -> None:
    source = HeldStore(memory())
    store = cached(source, path)
    async with stopped_at(
        source.hold_after("get_sync"), asyncio.to_thread(store.get_sync, KEY)
    ) as leader:
        follower = asyncio.create_task(read(store, KEY))
        await turns()

    assert await leader == buffer(OLD)
    assert await follower == OLD
    assert source.requests == {"get_sync": 1}


async def test_a_thread_does_not_wait_for_what_a_task_fetches(path: Path) -> None:
    source = HeldStore(memory())
    store = cached(source, path)
    async with stopped_at(source.hold_after("get"), read(store, KEY)) as leader:
        assert await asyncio.to_thread(store.get_sync, KEY) == buffer(OLD)
    assert await leader == OLD
    assert source.requests == {"get": 1, "get_sync": 1}


async def test_a_sync_read_on_the_event_loop_of_its_leader_does_not_wait_for_it(
    make: Maker,
) -> None:
    source = HeldStore(memory())
    store = make(source)
    async with stopped_at(source.hold_after("get"), read(store, KEY)) as leader:
        response = store.get_sync(KEY)

    assert response is not None
    assert response.to_bytes() == await leader == OLD


async def test_threads_of_the_executor_do_not_all_wait_for_the_event_loop(
    path: Path, tmp_path: Path
) -> None:
    # Reads in a thread of the executor, as a local source does.
    source = HeldStore(LocalStore(tmp_path / "source"))
    await source.set(KEY, buffer(OLD))
    store = cached(source, path)
    await store.exists("other")
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    async with stopped_at(source.hold_before("get"), read(store, KEY)) as leader:

        async def batch() -> Buffer | None:
            # What zarr's fused pipeline does with a batch of chunks.
            assert _store_supports_sync_io(store)
            return await asyncio.to_thread(store.get_sync, KEY)

        batches = [asyncio.ensure_future(batch()) for _ in range(2)]
        await asyncio.wait(batches, return_when=asyncio.FIRST_COMPLETED)

    assert await asyncio.gather(*batches) == [buffer(OLD)] * 2
    assert await leader == OLD


async def test_a_sync_read_on_an_event_loop_does_not_wait_for_a_thread(path: Path) -> None:
    source = HeldStore(memory())
    store = cached(source, path)
    async with stopped_at(
        source.hold_after("get_sync"), asyncio.to_thread(store.get_sync, KEY)
    ) as leader:
        assert store.get_sync(KEY) == buffer(OLD)
    assert await leader == buffer(OLD)


def test_a_read_that_ctrl_c_has_ended_at_once_leaves_no_thread_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = Flights.join

    def interrupted(*args: Any) -> Any:
        # Where Python delivers it: behind the call, before its result is assigned.
        join(*args)
        raise KeyboardInterrupt

    store = cached(CountingStore(memory()), path)
    monkeypatch.setattr(Flights, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.get_sync(KEY)
    monkeypatch.undo()

    assert store.get_sync(KEY) == buffer(OLD)


async def test_the_follower_of_a_failed_leader_gets_its_value(make: Maker) -> None:
    failing = FailingStore(memory())
    source = HeldStore(failing)
    store = make(source)
    failing.fail("get")
    gate = source.hold_before("get")
    leader = asyncio.ensure_future(read(store, KEY))
    await gate.reached()
    follower = asyncio.ensure_future(read(store, KEY))
    await turns()
    gate.open()

    with pytest.raises(OSError, match="failed, as the test asked"):
        await leader
    assert await follower == OLD
    assert await read(store, KEY) == OLD
    assert source.requests == {"get": 2}


async def test_a_cancelled_follower_does_not_cancel_its_leader(make: Maker) -> None:
    source = HeldStore(memory())
    store = make(source)
    gate = source.hold_before("get")
    leader = asyncio.ensure_future(read(store, KEY))
    await gate.reached()
    follower = asyncio.ensure_future(read(store, KEY))
    await turns()
    follower.cancel()
    await asyncio.wait({follower})
    gate.open()

    assert await leader == OLD
    assert source.requests == {"get": 1}


def test_the_thread_that_follows_a_failed_thread_gets_its_value(path: Path) -> None:
    failing = FailingStore(memory())
    source = HeldStore(failing)
    store = cached(source, path)
    failing.fail("get_sync")
    gate = source.hold_before("get_sync")
    with ThreadPoolExecutor(2) as threads:
        leader = threads.submit(store.get_sync, KEY)
        gate.wait_until_reached()
        follower = threads.submit(store.get_sync, KEY)
        gate.open()

        assert isinstance(leader.exception(), OSError)
        assert follower.result() == buffer(OLD)


async def test_an_error_is_not_remembered_as_an_absence(make: Maker) -> None:
    source = FailingStore(memory())
    store = make(source).with_read_only(read_only=True)
    source.fail("get")
    with pytest.raises(OSError, match="failed, as the test asked"):
        await read(store, KEY)

    assert await read(store, KEY) == OLD


# A write of the source that fails


@pytest.mark.parametrize("is_done_first", [False, True])
@pytest.mark.parametrize("write", WRITES)
async def test_after_a_write_that_failed_the_value_of_the_source_is_read(
    write: Callable[[Store], Awaitable[None]], is_done_first: bool, make: Maker
) -> None:
    source = FailingStore(memory(other=OLD))
    store = make(source)
    assert [await read(store, KEY), await read(store, "other")] == [OLD, OLD]
    source.fail(*WRITING, is_done_first=is_done_first)
    with pytest.raises(OSError, match="failed, as the test asked"):
        await write(store)

    held = everything(source)
    assert {key: await read(store, key) for key in (KEY, "other")} == {
        key: held.get(key) for key in (KEY, "other")
    }


@pytest.mark.parametrize(
    ("write", "method"),
    [
        (set_, "set"),
        (set_many, "_set_many"),
        (delete, "delete"),
        (delete_dir, "delete_dir"),
        (clear, "clear"),
    ],
)
async def test_what_the_source_writes_after_a_cancellation_is_read(
    write: Callable[[Store], Awaitable[None]], method: str, make: Maker
) -> None:
    source = DetachedStore(memory(other=OLD))
    store = make(source)
    gate = source.hold_before(method)
    task = asyncio.ensure_future(write(store))
    await gate.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # What was there before is still there, and must not be cached.
    before = [await read(store, KEY), await read(store, KEY, RangeByteRequest(0, 3))]
    gate.open()
    await source.settled()
    held = everything(source).get(KEY)

    assert before == [OLD, OLD[:3]]
    assert held != OLD
    assert await read(store, KEY) == held
    assert await read(store, KEY, RangeByteRequest(0, 3)) == (held and held[:3])


async def test_what_set_many_writes_after_it_has_failed_is_read(make: Maker) -> None:
    class Source(MemoryStore):
        async def set(self, key: str, value: Buffer, *args: Any) -> None:
            if key == KEY:
                await opened.wait()
            elif key == "refused":
                raise OSError(key)
            await super().set(key, value, *args)

    opened = asyncio.Event()
    source = Source({KEY: buffer(OLD)})
    store = make(source)
    with pytest.raises(OSError, match="refused"):
        await store._set_many([(KEY, buffer(NEW)), ("refused", buffer(NEW))])
    before = await read(store, KEY)
    opened.set()
    await turns()

    assert before == OLD
    assert await read(store, KEY) == everything(source)[KEY] == NEW


def test_a_write_cancelled_before_it_has_begun_ends_no_other(path: Path) -> None:
    async def cut_off(value: bytes, reached: Callable[[], Awaitable[None]]) -> None:
        write = asyncio.ensure_future(store.set(KEY, buffer(value)))
        await reached()
        write.cancel()
        await asyncio.wait([write])

    source = HeldStore(memory())
    store = cached(source, path)
    gate = source.hold_before("set")
    asyncio.run(cut_off(NEW, gate.reached))
    # Each event loop has yet to get its connection to the file.
    for steps in range(3):
        asyncio.run(cut_off(b"other", partial(turns, steps)))
    before = asyncio.run(read(store, KEY))
    store.flush()
    # The first one is carried out now.
    asyncio.run(source._store.set(KEY, buffer(NEW)))

    assert before == OLD
    assert asyncio.run(read(store, KEY)) == NEW


async def test_a_key_that_is_written_to_every_half_hour_is_cached_again_after_a_cancelled_write(
    path: Path, held_time: HeldTime
) -> None:
    source = HeldStore(memory())
    store = cached(source, path)
    gate = source.hold_before("set")
    write = asyncio.ensure_future(set_(store))
    await gate.reached()
    write.cancel()
    await asyncio.wait([write])
    for _ in range(3):
        held_time.step(1801)
        await store.set(KEY, buffer(b"last"))
    source.reset()

    assert await read(store, KEY) == b"last"
    assert source.requests == {}


@pytest.mark.parametrize("write", WRITES)
async def test_after_a_write_that_failed_reads_are_the_sources_for_an_hour(
    write: Callable[[Store], Awaitable[None]], path: Path, held_time: HeldTime
) -> None:
    source = FailingStore(memory())
    store = cached(source, path)
    source.fail(*WRITING)
    with pytest.raises(OSError, match="failed, as the test asked"):
        await write(store)
    source.reset()
    during = [await read(store, KEY), await read(store, KEY)]
    requests = source.requests.total()
    held_time.step(3601)
    await read(store, KEY)
    source.reset()

    assert during == [OLD, OLD]
    assert requests == 2
    assert await read(store, KEY) == OLD
    assert source.requests == {}


@pytest.mark.parametrize(
    ("write", "method"),
    [(set_, "set"), (delete, "delete"), (delete_dir, "delete_dir"), (clear, "clear")],
)
async def test_a_write_that_fails_after_more_than_an_hour_leaves_nothing_old(
    write: Callable[[Store], Awaitable[None]], method: str, path: Path, held_time: HeldTime
) -> None:
    failing = FailingStore(memory())
    source = HeldStore(failing)
    store = cached(source, path)
    failing.fail(method, is_done_first=True)
    gate = source.hold_before(method)
    task = asyncio.ensure_future(write(store))
    await gate.reached()
    held_time.step(3601)
    during = await read(store, KEY)
    gate.open()
    await asyncio.wait({task})

    assert isinstance(task.exception(), OSError)
    assert during == OLD
    assert await read(store, KEY) == everything(source).get(KEY)


async def test_a_folder_whose_removal_was_killed_is_not_served_as_it_was(path: Path) -> None:
    source = HeldStore(memory())
    killed = cached(source, path)
    async with stopped_at(source.hold_before("delete_dir"), killed.delete_dir("a")):
        leave_process(killed)
        store = cached(source, path)
        before = [await read(store, KEY), await read(store, KEY, RangeByteRequest(0, 3))]
        # The source has done it when the process dies.
        await source._store.delete_dir("a")
        after = [await read(store, KEY), await read(store, KEY, RangeByteRequest(0, 3))]

    assert before == [OLD, OLD[:3]]
    assert after == [None, None]


@pytest.mark.parametrize(("write", "method"), [(set_, "set"), (delete_dir, "delete_dir")])
async def test_a_key_whose_writer_was_killed_a_day_ago_is_cached_again(
    write: Callable[[Store], Awaitable[None]], method: str, path: Path, held_time: HeldTime
) -> None:
    source = HeldStore(memory())
    killed = cached(source, path)
    # What stands for the killed process ends after all, so that the test leaves nothing behind.
    async with stopped_at(source.hold_before(method), write(killed)):
        leave_process(killed)
        held_time.reboot(seconds=24 * 3600)
        store = cached(source, path)
        await read(store, KEY)
        source.reset()
        response = await read(store, KEY)
        requests = dict(source.requests)

    assert response == OLD
    assert requests == {}


async def test_what_is_cached_beside_a_folder_that_is_being_removed_is_read(make: Maker) -> None:
    source = HeldStore(memory(other=OLD))
    store = make(source)
    await read(store, "other")
    store.flush()
    async with stopped_at(source.hold_before("delete_dir"), store.delete_dir("a")):
        source.reset()
        response = await read(store, "other")
        requests = dict(source.requests)

    assert response == OLD
    assert requests == {}


async def test_a_value_that_was_removed_before_its_write_has_ended_is_not_cached(
    make: Maker,
) -> None:
    source = HeldStore(memory())
    store = make(source)
    async with stopped_at(source.hold_after("set"), set_(store)):
        await store.delete_dir("a")

    assert await read(store, KEY) is everything(source).get(KEY) is None


async def test_a_key_written_during_the_removal_of_its_folder_is_read_from_the_source(
    make: Maker,
) -> None:
    source = HeldStore(memory())
    store = make(source)
    async with stopped_at(source.hold_before("delete_dir"), store.delete_dir("a")):
        await store.set(KEY, buffer(NEW))
        source.reset()
        during = await read(store, KEY)
        requests = source.requests.total()

    assert during == NEW
    assert requests == 1
    assert await read(store, KEY) is everything(source).get(KEY) is None


async def test_a_key_with_the_name_of_a_folder_that_was_removed_is_gone_as_well(
    path: Path,
) -> None:
    # fsspec removes both.
    store = cached(FsspecStore.from_url(f"memory://{path.parent.name}"), path)
    await store.set("a", buffer(OLD))
    await store.delete_dir("a")

    assert await read(store, "a") is None


# clear_cache() and close() meanwhile


async def test_what_is_fetched_while_the_cache_is_cleared_is_returned_and_not_cached(
    path: Path,
) -> None:
    source = HeldStore(memory())
    store = cached(source, path)
    async with stopped_at(source.hold_after("get"), read(store, KEY)) as slow:
        await store.clear_cache()

    assert await slow == OLD
    assert cached_keys(path) == set()


@pytest.mark.parametrize(("slow_read", "method"), READS)
async def test_a_read_that_is_in_flight_at_close_returns_its_value(
    slow_read: Callable[[Store], Awaitable[None]], method: str, make: Maker
) -> None:
    source = HeldStore(memory())
    store = make(source)
    async with stopped_at(source.hold_after(method), slow_read(store)):
        store.close()

    assert await read(store, KEY) == OLD


async def test_a_write_that_is_in_flight_at_close_is_done(path: Path) -> None:
    source = HeldStore(memory())
    store = cached(source, path)
    async with stopped_at(source.hold_after("set"), set_(store)):
        store.close()

    assert await read(store, KEY) == NEW
    assert writers(path) == 0


@pytest.mark.parametrize("end", ["close", "clear_cache"])
async def test_tasks_read_while_the_cache_is_closed_or_cleared_again_and_again(
    end: str, path: Path
) -> None:
    source = YieldingStore(MemoryStore({f"k{n}": buffer(bytes([n]) * 50) for n in range(10)}))
    store = cached(source, path, max_size=300)

    async def read_all() -> list[bytes | None]:
        return [await read(store, f"k{n % 10}") for n in range(100)]

    async def end_again_and_again() -> None:
        for _ in range(20 * STRESS):
            await asyncio.sleep(0)
            done = getattr(store, end)()
            await (done or asyncio.sleep(0))

    *responses, _ = await asyncio.gather(*(read_all() for _ in range(6)), end_again_and_again())

    assert responses == [[bytes([n % 10]) * 50 for n in range(100)]] * 6
    assert store.cache_stats()["faults"] == 0


def test_threads_read_while_the_cache_is_closed_again_and_again(path: Path) -> None:
    source = CountingStore(MemoryStore({f"k{n}": buffer(bytes([n]) * 50) for n in range(10)}))
    store = cached(source, path, max_size=300)

    def read_all() -> list[bytes]:
        found = [store.get_sync(f"k{n % 10}") for n in range(100)]
        return [each.to_bytes() for each in found if each is not None]

    with ThreadPoolExecutor(4) as threads:
        reads = [threads.submit(read_all) for _ in range(4)]
        for _ in range(20 * STRESS):
            store.close()
        responses = [each.result() for each in reads]

    assert responses == [[bytes([n % 10]) * 50 for n in range(100)]] * 4
    assert store.cache_stats()["faults"] == 0


# Cancellation


OPERATIONS = [whole, part, parts, existence, set_, set_many, set_anew, delete, delete_dir, clear]


@pytest.mark.parametrize("turn", range(8))
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_nothing_is_torn_or_locked_after_a_cancellation_at_any_await(
    operation: Callable[[Store], Awaitable[None]], turn: int, path: Path, held_time: HeldTime
) -> None:
    async def cancelled() -> None:
        await CancelledAt(turn, operation(store))

    source = YieldingStore(memory(other=OLD))
    store = cached(source, path)
    await read(store, "other")
    await asyncio.wait({asyncio.ensure_future(cancelled())})
    after = {key: await read(store, key) for key in (KEY, "other")}
    held = everything(source)
    # A source may go on with a write that was cut off. After an hour its lease has expired.
    held_time.step(3601)
    await store.set(KEY, buffer(b"last"))
    left = {key: await read(store, key) for key in everything(source)}
    source.reset()

    assert after == {key: held.get(key) for key in (KEY, "other")}
    assert left[KEY] == b"last"
    assert {key: await read(store, key) for key in left} == left
    assert source.requests == {}
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("turn", range(8))
@pytest.mark.parametrize("operation", [whole, part, parts, existence, size])
async def test_the_follower_of_a_read_cancelled_at_any_await_gets_its_value(
    operation: Callable[[Store], Awaitable[None]], turn: int, make: Maker
) -> None:
    async def cancelled() -> None:
        await CancelledAt(turn, operation(store))

    store = make(YieldingStore(memory()))
    leader = asyncio.ensure_future(cancelled())
    followers = [asyncio.ensure_future(all_reads(store)) for _ in range(3)]
    await asyncio.wait({leader})

    expected = [OLD[:3], OLD[-3:], OLD[1:], True, OLD]
    assert await asyncio.gather(*followers) == [expected] * 3


@pytest.mark.parametrize("turn", range(8))
async def test_a_range_is_cached_after_a_cancelled_write(
    turn: int, path: Path, held_time: HeldTime
) -> None:
    async def cancelled() -> None:
        await CancelledAt(turn, set_(store))

    source = YieldingStore(memory())
    store = cached(source, path)
    await asyncio.wait({asyncio.ensure_future(cancelled())})
    held_time.step(3601)
    await part(store)
    source.reset()

    assert await read(store, KEY, RangeByteRequest(0, 3)) == everything(source)[KEY][:3]
    assert source.requests == {}


# All of it at once


def test_processes_that_create_a_file_at_once_all_use_it(tmp_path: Path) -> None:
    source = CountingStore(memory())
    for number in range(20 * STRESS):
        stores = [another_process(source, tmp_path / f"{number}.sqlite") for _ in range(4)]
        responses = in_threads(4, partial(read_through_one_of, stores))

        assert responses == [buffer(OLD)] * 4


def read_through_one_of(stores: list[CacheStore]) -> Buffer | None:
    return stores.pop().get_sync(KEY)


def another_process(source: Store, path: Path) -> CacheStore:
    store = cached(source, path)
    leave_process(store)
    return store


class Written:
    """Six numbers that only grow, and the least that a read that begins now may find."""

    ROUNDS = 60 * STRESS
    TURNS = tuple((number, f"k{key}") for number in range(1, ROUNDS) for key in range(6))

    def __init__(self) -> None:
        self.least = {f"k{key}": 0 for key in range(6)}

    def items(self) -> dict[str, Buffer]:
        return {key: buffer(b"%09d" % number) for key, number in self.least.items()}

    def write(self, stores: list[CacheStore]) -> list[str]:
        for number, key in self.TURNS:
            stores[number % len(stores)].set_sync(key, buffer(b"%09d" % number))
            self.least[key] = number
        return []

    def read_whole(self, store: CacheStore) -> list[str]:
        """What was older than it should be."""
        return [self._complaint(self.least[key], key, store.get_sync(key)) for _, key in self.TURNS]

    def read_parts(self, store: CacheStore) -> list[str]:
        """As `read_whole`, in a part that is cached by itself, in an event loop."""

        async def read_all() -> list[str]:
            request = RangeByteRequest(1, 9)
            return [
                self._complaint(self.least[key], key, await store.get(key, PROTOTYPE, request))
                for _, key in self.TURNS
            ]

        return asyncio.run(read_all())

    @staticmethod
    def _complaint(least: int, key: str, found: Buffer | None) -> str:
        number = -1 if found is None else int(found.to_bytes())
        return "" if number >= least else f"{key}: {number} after {least}"


@pytest.mark.parametrize("max_size", [None, 40])
def test_no_read_that_begins_after_a_write_returned_sees_what_was_there_before(
    max_size: int | None, path: Path
) -> None:
    written = Written()
    source = CountingStore(MemoryStore(written.items()))
    stores = [cached(source, path, max_size=max_size) for _ in range(2)]
    leave_process(stores[0])
    stores.append(cached(source, path, max_size=max_size))

    with ThreadPoolExecutor(7) as threads:
        running = [threads.submit(written.write, stores)]
        running += [threads.submit(written.read_whole, store) for store in stores]
        running += [threads.submit(written.read_parts, store) for store in stores]
        complaints = {each for done in running for each in done.result()}

    assert complaints == {""}
    assert cached_bytes(path) <= (max_size or 54)


async def test_a_write_that_could_not_be_recorded_is_seen_though_the_old_value_was_cached_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A read while the source was written to had removed the old value, fetched it and cached it.
    monkeypatch.setattr("zarr_cache.file.connection.BUSY_TIMEOUT_SECONDS", 0.01)
    source = HeldStore(memory())
    store = cached(source, path)
    assert await read(store, KEY) == OLD
    gate = source.hold_before("set")
    with open_file(path) as another:
        another.execute("BEGIN IMMEDIATE")
        write = asyncio.ensure_future(store.set(KEY, buffer(NEW)))
        with pytest.warns(CacheWarning, match="locked"):
            await gate.reached()
        another.execute("ROLLBACK")
    assert await read(store, KEY) == OLD
    gate.open()
    await write

    assert await read(store, KEY) == NEW
    assert await read(cached(source, path), KEY) == NEW
