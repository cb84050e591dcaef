"""That a key is absent is remembered whichever way its bytes were requested."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.sync import sync
from zarr.storage import MemoryStore, WrapperStore

from tests.fakes import PROTOTYPE, CountingStore, FailingStore, buffer, leave_process, restart
from tests.freshness.origins import NAMESPACE, SIZE, caching, version
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from tests.fakes import HeldTime
    from tests.freshness.origins import Origin

    type Ask = Callable[[CacheStore], list[bytes | None] | None]

CHUNK = "array/c/0"
# zarr merges them into one request. Of two, it would cancel the second, which the server may count
# later.
REQUESTS: list[ByteRequest | None] = [RangeByteRequest(0, 10), RangeByteRequest(20, 24)]
VALUE = version(1)
PIECES = [VALUE[:10], VALUE[20:24]]


def as_bytes(pieces: Sequence[Buffer | None]) -> list[bytes | None]:
    return [None if each is None else each.to_bytes() for each in pieces]


# The pieces of the value, or None if there is no such key.


def ask_ranges(store: CacheStore) -> list[bytes | None] | None:
    async def ask() -> dict[int, Buffer | None]:
        batches = store.get_ranges(CHUNK, REQUESTS, prototype=PROTOTYPE)
        return {index: piece async for batch in batches for index, piece in batch}

    try:
        found = sync(ask())
    except ExceptionGroup as group:
        if group.split(FileNotFoundError)[1] is not None:
            raise
        return None
    return as_bytes([found[index] for index in sorted(found)])


def ask_ranges_sync(store: CacheStore) -> list[bytes | None] | None:
    try:
        found = dict(store.get_ranges_sync(CHUNK, REQUESTS, prototype=PROTOTYPE))
    except ExceptionGroup as group:
        if group.split(FileNotFoundError)[1] is not None:
            raise
        return None
    return as_bytes([found[index] for index in sorted(found)])


def ask_partial_values(store: CacheStore) -> list[bytes | None] | None:
    requests = [(CHUNK, each) for each in REQUESTS]
    found = as_bytes(sync(store.get_partial_values(PROTOTYPE, requests)))
    return None if found == [None, None] else found


def ask_range(store: CacheStore) -> list[bytes | None] | None:
    found = as_bytes([sync(store.get(CHUNK, PROTOTYPE, each)) for each in REQUESTS])
    return None if found == [None, None] else found


ASKS = [ask_ranges, ask_ranges_sync, ask_partial_values, ask_range]
OF_RANGES = ASKS[:2]


@pytest.mark.parametrize("ask", ASKS)
def test_an_absence_is_remembered_for_a_minute(
    ask: Ask, origin: Origin, path: Path, held_time: HeldTime
) -> None:
    cache = caching(origin, path)
    assert ask(cache) is None
    origin.reset()
    origin.put(CHUNK, VALUE)
    held_time.step(59)

    assert [each(cache) for each in ASKS] == [None] * len(ASKS)
    assert not sync(cache.exists(CHUNK))
    with pytest.raises(FileNotFoundError):
        sync(cache.getsize(CHUNK))
    assert origin.asked().requests == []
    held_time.step(2)
    assert ask(cache) == PIECES
    assert sync(cache.getsize(CHUNK)) == SIZE
    restart(cache)


@pytest.mark.parametrize("ask", OF_RANGES)
def test_another_process_and_an_offline_one_find_the_absence(
    ask: Ask, origin: Origin, path: Path, held_time: HeldTime
) -> None:
    first = caching(origin, path)
    assert ask(first) is None
    first.flush()
    leave_process(first)
    origin.put(CHUNK, VALUE)
    second = caching(origin, path)
    offline = caching(origin, path, offline=True)

    assert ask(second) is None
    held_time.step(3600)
    assert ask(offline) is None
    restart(second)
    restart(first)


@pytest.mark.parametrize("ask", [ask_ranges, ask_range])
def test_an_absence_has_no_version_and_what_is_there_later_has_its_own(
    ask: Ask, origin: Origin, path: Path, held_time: HeldTime
) -> None:
    # Nothing is kept of the value, so that nothing of it is to be left.
    cache = caching(origin, path, max_size=1)
    origin.put(CHUNK, VALUE)
    assert ask(cache) == PIECES
    held_time.step(60)
    origin.delete(CHUNK)
    assert ask(cache) is None
    cache.flush()
    rows = SqliteStore(path).database.run(
        lambda connection: connection.execute("SELECT kind, validator FROM entry").fetchall()
    )
    origin.put(CHUNK, version(2))
    held_time.step(61)
    origin.reset()

    assert rows == [("absent", None)]
    assert ask(cache) == [version(2)[:10], version(2)[20:24]]
    assert origin.asked().requests.count("HEAD") == int(origin.asks_first)
    restart(cache)


def over_memory(path: Path, source: Store, **settings: Any) -> CacheStore:
    return CacheStore(source, cache_store=SqliteStore(path), namespace=NAMESPACE, **settings)


@pytest.mark.parametrize("ask", ASKS)
@pytest.mark.parametrize("age", [None, 10])
def test_a_writable_view_remembers_it_only_if_the_user_gave_an_age(
    ask: Ask, age: float | None, path: Path
) -> None:
    memory = MemoryStore()
    cache = over_memory(path, memory, max_age_absent_seconds=age)
    assert ask(cache) is None
    sync(memory.set(CHUNK, buffer(VALUE)))

    assert ask(cache) == (PIECES if age is None else None)
    restart(cache)


@pytest.mark.parametrize("ask", ASKS)
def test_a_write_makes_it_forgotten(ask: Ask, path: Path) -> None:
    cache = over_memory(path, MemoryStore(), max_age_absent_seconds="infinity")
    assert ask(cache) is None
    sync(cache.set(CHUNK, buffer(VALUE)))
    assert ask(cache) == PIECES
    sync(cache.delete(CHUNK))
    assert ask(cache) is None
    cache.set_sync(CHUNK, buffer(VALUE))

    assert ask(cache) == PIECES
    restart(cache)


def test_a_write_of_the_key_while_its_absence_is_on_its_way_counts(path: Path) -> None:
    class Late(WrapperStore[MemoryStore]):
        """A source whose key is written while it sends that there is none."""

        get_ranges_sync = Store.get_ranges_sync

        def get_sync(self, key: str, **_: Any) -> None:
            writer.set_sync(key, buffer(VALUE))

    memory = MemoryStore()
    writer = over_memory(path, memory)
    cache = over_memory(path, Late(memory), max_age_absent_seconds="infinity")
    assert ask_ranges_sync(cache) is None

    other = over_memory(path, memory, max_age_absent_seconds="infinity")
    assert ask_ranges_sync(other) == PIECES
    restart(cache)
    restart(writer)


@pytest.mark.parametrize("ask", OF_RANGES)
def test_it_is_one_miss_and_then_one_hit(ask: Ask, path: Path) -> None:
    cache = over_memory(path, CountingStore(MemoryStore(read_only=True)))
    assert ask(cache) is None
    assert ask(cache) is None

    counts = cache.cache_stats()
    assert (counts["misses"], counts["hits"], counts["absent_hits"]) == (1, 1, 1)
    restart(cache)


@pytest.mark.parametrize("flushes", [0, 1, 2], ids=["waiting", "absence waits", "written"])
@pytest.mark.parametrize("persist_ranges", [False, True], ids=["memory", "file"])
@pytest.mark.parametrize("read_only", [False, True], ids=["writable", "read_only"])
def test_ranges_of_a_value_that_was_removed_are_served_no_more(
    path: Path,
    read_only: bool,
    persist_ranges: bool,
    flushes: int,
) -> None:
    memory = MemoryStore({CHUNK: buffer(VALUE)})
    cache = over_memory(
        path, memory.with_read_only(read_only=read_only), persist_ranges=persist_ranges
    )
    assert ask_ranges(cache) == PIECES
    if flushes > 0:
        cache.flush()
    sync(memory.delete(CHUNK))
    assert sync(cache.get(CHUNK, PROTOTYPE)) is None
    if flushes > 1:
        cache.flush()

    assert [each(cache) for each in ASKS] == [None] * len(ASKS)
    assert not sync(cache.exists(CHUNK))
    restart(cache)


class WithoutServer(WrapperStore[Store]):
    """A source whose ``get`` raises what fsspec raises for a server that is down."""

    is_down = True

    # zarr's methods, which call `get` of this one.
    get_ranges = Store.get_ranges  # type: ignore[assignment] # WrapperStore has other defaults
    get_ranges_sync = Store.get_ranges_sync

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if self.is_down:
            raise FileNotFoundError(key)
        return await self._store.get(key, prototype, byte_range)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if self.is_down:
            raise FileNotFoundError(key)
        return super().get_sync(key, prototype=prototype, byte_range=byte_range)


class WithoutDisk(WrapperStore[Store]):
    """A source with a ``get_ranges`` of its own, which raises an error of the system."""

    is_down = True

    async def get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        **settings: Any,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        if self.is_down:
            error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/mnt/share")
            raise ExceptionGroup("reading failed", [error])
        async for batch in self._store.get_ranges(
            key, byte_ranges, prototype=prototype, **settings
        ):
            yield batch


class OfTwoMinds(WithoutDisk):
    """A source that says of one range that there is no such key, and fails at the other."""

    async def get_ranges(self, *args: Any, **settings: Any) -> AsyncIterator[Any]:
        if self.is_down:
            raise ExceptionGroup("reading failed", [FileNotFoundError(), OSError("reset")])
        async for batch in super().get_ranges(*args, **settings):
            yield batch


@pytest.mark.parametrize("kind", [WithoutServer, WithoutDisk, OfTwoMinds])
def test_an_error_of_a_source_is_no_absence(kind: type[Any], path: Path) -> None:
    source = kind(MemoryStore({CHUNK: buffer(VALUE)}, read_only=True))
    cache = over_memory(path, source)
    with pytest.raises(ExceptionGroup):
        sync(first_batch(cache))
    source.is_down = False

    assert ask_ranges(cache) == PIECES
    restart(cache)


async def first_batch(store: CacheStore) -> object:
    return await anext(store.get_ranges(CHUNK, REQUESTS, prototype=PROTOTYPE))


def test_an_error_of_a_source_is_no_absence_on_the_sync_surface(path: Path) -> None:
    source = WithoutServer(MemoryStore({CHUNK: buffer(VALUE)}, read_only=True))
    failing = FailingStore(MemoryStore({CHUNK: buffer(VALUE)}, read_only=True))
    failing.fail("get_ranges_sync")
    caches = [over_memory(path, source), over_memory(path.with_name("other"), failing)]
    for cache in caches:
        with pytest.raises(OSError, match=CHUNK):
            cache.get_ranges_sync(CHUNK, REQUESTS, prototype=PROTOTYPE)
    source.is_down = False

    assert [ask_ranges_sync(cache) for cache in caches] == [PIECES] * 2
    restart(*caches)


@pytest.mark.parametrize("ask", OF_RANGES)
def test_while_the_source_fails_a_stale_absence_is_served(
    ask: Ask, path: Path, held_time: HeldTime
) -> None:
    source = FailingStore(MemoryStore(read_only=True))
    cache = over_memory(path, source, max_age_seconds=10, stale_if_error_seconds=100)
    assert ask(cache) is None
    held_time.step(11)
    source.fail(times=9)

    with pytest.warns(UserWarning, match="the source fails"):
        assert ask(cache) is None
    assert cache.cache_stats()["stale_served"] == 1
    held_time.step(100)
    with pytest.raises((OSError, ExceptionGroup)):  # as the surface has it
        ask(cache)
    restart(cache)
