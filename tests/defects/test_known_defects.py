"""What goes wrong in zarr's experimental CacheStore (3.4.2), and does not here.

Each test runs on both. The original is an expected failure, with the number of the defect as the
reason, so that the day it is repaired this comparison says so.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
from abc import ABC, abstractmethod
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
import zarr.experimental.cache_store as original
from zarr.abc.store import RangeByteRequest, _store_supports_sync_io
from zarr.storage import LocalStore, MemoryStore

from tests.fakes import (
    PROTOTYPE,
    AsyncOnlyStore,
    CountingStore,
    FailingStore,
    HeldStore,
    HeldTime,
    buffer,
    cached_bytes,
    cached_keys,
    open_file,
    read,
    restart,
    stopped_at,
    values,
)
from zarr_cache import CacheStore, CacheWarning, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import Store


class Subject(ABC):
    """One of the two CacheStores, with a cache that outlives the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def open(self, source: Store, **settings: Any) -> Any:
        """A CacheStore over the files in `folder`."""

    @abstractmethod
    def over(self, source: Store, cache_store: Store, **settings: Any) -> Any:
        """A CacheStore over any store."""

    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of full values in `folder`, counted."""

    @abstractmethod
    def keys(self) -> set[str]:
        """Keys of the full values in `folder`."""

    @abstractmethod
    def flip_a_byte(self, key: str) -> None:
        """Damage the value of the key on the disk, while nobody has it open."""


class Ours(Subject):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "cache.sqlite"

    def open(self, source: Store, **settings: Any) -> CacheStore:
        named = {"namespace": "source"} | settings
        return CacheStore(source, cache_store=SqliteStore(self.path), **named)

    def over(self, source: Store, cache_store: Store, **settings: Any) -> CacheStore:
        return CacheStore(source, cache_store=cache_store, **settings)

    def nbytes(self) -> int:
        return cached_bytes(self.path)

    def keys(self) -> set[str]:
        return cached_keys(self.path)

    def flip_a_byte(self, key: str) -> None:
        with open_file(self.path) as db:
            found = "SELECT entry, data FROM value JOIN entry ON id = entry WHERE key = ?"
            entry, data = db.execute(found, (key,)).fetchone()
            parameters = (flipped(data), entry)
            db.execute("UPDATE value SET data = ? WHERE entry = ?", parameters)
            db.commit()


class Original(Subject):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.path = folder / "cache"

    def open(self, source: Store, **settings: Any) -> original.CacheStore:
        settings.pop("namespace", None)
        return original.CacheStore(source, cache_store=LocalStore(self.path), **settings)

    def over(self, source: Store, cache_store: Store, **settings: Any) -> original.CacheStore:
        return original.CacheStore(source, cache_store=cache_store, **settings)

    def nbytes(self) -> int:
        return sum(file.stat().st_size for file in self._files())

    def keys(self) -> set[str]:
        return {file.relative_to(self.path).as_posix() for file in self._files()}

    def flip_a_byte(self, key: str) -> None:
        file = self.path / key
        file.write_bytes(flipped(file.read_bytes()))

    def _files(self) -> list[Path]:
        return [file for file in self.path.rglob("*") if file.is_file()]


def flipped(data: bytes) -> bytes:
    """`data` with one bit of its first byte flipped."""
    return bytes([data[0] ^ 1]) + data[1:]


def row(
    name: str, *, raises: type[Exception] = AssertionError, is_sure: bool = True
) -> pytest.MarkDecorator:
    """Run the test on ours, and on the original, where it is expected to fail.

    Parameters
    ----------
    name
        The row of the table, and what it is about.
    raises
        How the original fails.
    is_sure
        Whether it fails each time.
    """
    fails = pytest.mark.xfail(reason=name, raises=raises, strict=is_sure)
    kinds = [pytest.param(Ours, id="ours"), pytest.param(Original, id="original", marks=fails)]
    return pytest.mark.parametrize("subject", kinds, indirect=True)


@pytest.fixture
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    made: Subject = request.param(tmp_path)
    return made


@pytest.fixture
def held_monotonic(held_time: HeldTime, monkeypatch: pytest.MonkeyPatch) -> HeldTime:
    """The held time, which the original sees too."""
    held = SimpleNamespace(monotonic=lambda: held_time.monotonic_ns / 10**9)
    monkeypatch.setattr(original, "time", held)
    return held_time


@pytest.fixture
def source() -> CountingStore:
    """Forty values of 100 bytes, ``k0`` to ``k39``, that count who asks for them."""
    return CountingStore(MemoryStore({f"k{n}": buffer(bytes([n]) * 100) for n in range(40)}))


async def get_all(store: Store, *numbers: int) -> None:
    for number in numbers:
        await read(store, f"k{number}")


# After a restart


@row("B1: the bookkeeping is empty after reopening")
async def test_the_budget_holds_for_what_an_earlier_process_left(
    subject: Subject, source: CountingStore
) -> None:
    first = subject.open(source, max_size=2000)
    await get_all(first, *range(20))
    restart(first)
    second = subject.open(source, max_size=2000)

    await get_all(second, *range(20))
    after_hits = second.cache_info()["current_size"]
    await get_all(second, *range(20, 40))

    assert after_hits == 2000
    assert subject.nbytes() == 2000


READ_IN_A_PROCESS = """
import asyncio, sys
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore

kind, source, cache, first = sys.argv[1:]
if kind == "Ours":
    from zarr_cache import CacheStore, SqliteStore as Cache
else:
    from zarr.experimental.cache_store import CacheStore
    Cache = LocalStore

async def read():
    store = CacheStore(LocalStore(source, read_only=True), cache_store=Cache(cache), max_size=1000)
    for number in range(int(first), int(first) + 10):
        await store.get(f"k{number}", default_buffer_prototype())
    store.close()

asyncio.run(read())
"""


@row("B2: the budget is per process")
def test_processes_share_one_budget(subject: Subject, tmp_path: Path) -> None:
    local = LocalStore(tmp_path / "source")
    for number in range(40):
        local.set_sync(f"k{number}", buffer(b"x" * 100))
    places = [type(subject).__name__, str(local.root), str(vars(subject)["path"])]

    processes = [
        subprocess.Popen([sys.executable, "-c", READ_IN_A_PROCESS, *places, str(first)])
        for first in (0, 10, 20, 30)
    ]
    codes = [process.wait() for process in processes]

    assert codes == [0, 0, 0, 0]
    assert subject.nbytes() == 1000


@pytest.mark.parametrize(("age", "seconds", "requests"), [(100_000, 100_001, 1), (100, 0, 0)])
@row("B3: the age after a restart is the machine's uptime")
async def test_the_age_of_an_entry_is_right_after_a_restart(
    age: int,
    seconds: int,
    requests: int,
    subject: Subject,
    source: CountingStore,
    held_monotonic: HeldTime,
) -> None:
    first = subject.open(source, max_age_seconds=age)
    await read(first, "k1")
    restart(first)
    if seconds:
        held_monotonic.reboot(seconds=seconds)
    source.reset()

    await read(subject.open(source, max_age_seconds=age), "k1")

    assert source.requests.total() == requests


# The budget


@row("B4: delete and miss never subtract the size")
async def test_a_deleted_key_uses_no_budget(subject: Subject, source: CountingStore) -> None:
    store = subject.open(source, max_size=1000)
    for number in range(9):
        await store.set(f"gone{number}", buffer(b"x" * 100))
        await store.delete(f"gone{number}")

    for number in range(5):
        await store.set(f"kept{number}", buffer(b"x" * 100))

    assert subject.keys() == {"kept0", "kept1", "kept2", "kept3", "kept4"}
    assert store.cache_info()["current_size"] == 500


@row("B5: an oversize value is stored and never counted")
async def test_a_value_above_the_budget_is_not_kept(
    subject: Subject, source: CountingStore
) -> None:
    store = subject.open(source, max_size=1000)

    for number in range(5):
        await store.set(f"large{number}", buffer(b"x" * 5000))

    assert subject.nbytes() == store.cache_info()["current_size"] == 0


@row("B6: replacing by an oversize value keeps the old size")
async def test_a_value_replaced_by_one_above_the_budget_uses_none(
    subject: Subject, source: CountingStore
) -> None:
    store = subject.open(source, max_size=1000)

    await store.set("k", buffer(b"x" * 900))
    await store.set("k", buffer(b"x" * 5000))

    assert store.cache_info()["current_size"] == 0


@row("B7: a rewrite may evict itself, its size subtracted twice")
async def test_a_rewrite_evicts_another_and_not_itself(
    subject: Subject, source: CountingStore
) -> None:
    store = subject.open(source, max_size=1000)
    await store.set("k", buffer(b"x" * 400))
    await store.set("j", buffer(b"x" * 500))

    await store.set("k", buffer(b"x" * 600))
    keys = subject.keys()
    await read(store, "k")

    assert keys == {"k"}
    assert store.cache_info()["current_size"] == subject.nbytes() == 600


@row("B8: a rewrite does not move the key to most recent")
async def test_a_rewrite_is_a_use(subject: Subject, source: CountingStore) -> None:
    store = subject.open(source, max_size=300)
    for key in ("a", "b", "c", "a", "d"):
        await store.set(key, buffer(b"x" * 100))

    assert subject.keys() == {"a", "c", "d"}


@row("B26: what is stale keeps using the budget")
async def test_what_is_stale_at_once_uses_no_budget(
    subject: Subject, source: CountingStore
) -> None:
    store = subject.open(source, max_age_seconds=0)

    await get_all(store, 1, 2, 3, 4, 5)

    assert store.cache_info()["cached_keys"] == 0


# What goes around the cache


@row("B9: get_ranges goes around the cache, and sharded arrays read with it")
@pytest.mark.usefixtures("pipeline")
async def test_a_small_window_of_a_shard_is_a_hit_the_second_time(
    subject: Subject, source: CountingStore
) -> None:
    array = zarr.create_array(source._store, shape=64, chunks=4, shards=64, dtype="i4")
    array[:] = np.arange(64)
    cached = await asyncio.to_thread(zarr.open_array, subject.open(source), mode="r")
    await asyncio.to_thread(values, cached, slice(8, 12))
    source.reset()

    again = await asyncio.to_thread(values, cached, slice(8, 12))

    assert again == [8, 9, 10, 11]
    assert source.requests == {}


@row("B11: a cached full value does not answer a range")
async def test_a_range_of_a_cached_value_is_a_hit(subject: Subject, source: CountingStore) -> None:
    store = subject.open(source)
    await read(store, "k7")

    part = await read(store, "k7", RangeByteRequest(2, 4))

    assert part == b"\x07\x07"
    assert source.requests == {"get": 1}


@row("B12: get_partial_values goes around the cache")
async def test_partial_values_are_hits_the_second_time(
    subject: Subject, source: CountingStore
) -> None:
    store = subject.open(source)
    ranges = [("k1", RangeByteRequest(0, 10)), ("k2", None)]
    await store.get_partial_values(PROTOTYPE, ranges)
    source.reset()

    await store.get_partial_values(PROTOTYPE, ranges)

    assert source.requests == {}
    assert store.cache_stats()["hits"] == 2


@row("B16: nothing remembers that a key is absent")
@pytest.mark.usefixtures("held_monotonic")
async def test_an_absent_key_is_requested_once(subject: Subject, source: CountingStore) -> None:
    store = subject.open(source).with_read_only(read_only=True)

    for number in [*range(100, 110)] * 5:
        assert await read(store, f"k{number}") is None

    assert source.requests == {"get": 10}


@row("B17: exists always asks the source")
async def test_a_cached_value_exists(subject: Subject, source: CountingStore) -> None:
    store = subject.open(source)
    await read(store, "k1")
    source.reset()

    responses = [await store.exists("k1") for _ in range(3)]

    assert responses == [True, True, True]
    assert source.requests == {}


@row("B28: no sync surface, so the fused pipeline reads through the event loop")
def test_a_hit_is_sync_where_the_source_is_not(subject: Subject, source: CountingStore) -> None:
    remote = AsyncOnlyStore(source)
    store = subject.open(remote)
    first = store.get_sync("k1", prototype=PROTOTYPE)
    source.reset()

    second = store.get_sync("k1", prototype=PROTOTYPE)

    assert _store_supports_sync_io(subject.open(source))
    assert second.to_bytes() == first.to_bytes() == b"\x01" * 100
    assert source.requests == {}


# Old answers


@pytest.mark.parametrize(("method", "arguments"), [("delete_dir", ["a"]), ("clear", [])])
@row("B13: delete_dir and clear leave the old answers")
async def test_what_was_deleted_is_gone(
    method: str, arguments: list[str], subject: Subject, source: CountingStore
) -> None:
    store = subject.open(source)
    await store.set("a/k", buffer(b"old"))
    await read(store, "a/k")

    await getattr(store, method)(*arguments)

    assert await read(store, "a/k") is None


@row("B14: create_array(overwrite=True), then read")
def test_an_array_created_again_has_its_fill_value(subject: Subject) -> None:
    store = subject.open(MemoryStore())
    settings: dict[str, Any] = {"shape": 8, "chunks": 4, "dtype": "i4", "fill_value": 1}
    array = zarr.create_array(store, **settings)
    array[:] = 7
    assert values(array) == [7] * 8

    anew = zarr.create_array(store, overwrite=True, **settings)

    assert values(anew) == [1] * 8


@row("B15: _set_many and set_if_not_exists leave the old answers")
async def test_what_was_written_is_read(subject: Subject, source: CountingStore) -> None:
    store = subject.open(source)
    await get_all(store, 1, 2)
    await source._store.delete("k2")

    await store._set_many([("k1", buffer(b"new"))])
    await store.set_if_not_exists("k2", buffer(b"new"))

    assert [await read(store, key) for key in ("k1", "k2")] == [b"new", b"new"]


@row("B18: a slow fetch undoes a write")
async def test_a_slow_fetch_does_not_undo_a_write(subject: Subject, source: CountingStore) -> None:
    slow = HeldStore(source)
    store = subject.open(slow)
    async with stopped_at(slow.hold_after("get"), read(store, "k1")):
        await store.set("k1", buffer(b"new"))

    assert await read(store, "k1") == b"new"


# Many at once


async def turns(number: int) -> None:
    """Let the other tasks of this event loop go on so many times."""
    for _ in range(number):
        await asyncio.sleep(0)


async def answer_of[T](task: asyncio.Task[T]) -> T:
    return await task


# LocalStore deletes a file in a thread while others look for it: most runs of the original fail.
@row("B19: get raises KeyError", raises=KeyError, is_sure=False)
async def test_gets_at_once_that_evict_each_other_all_return_their_values(
    subject: Subject, source: CountingStore
) -> None:
    store = subject.open(source, max_size=1000)

    for start in range(40):
        numbers = [(start * 5 + step) % 14 for step in range(16)]
        responses = await asyncio.gather(*(read(store, f"k{number}") for number in numbers))
        assert responses == [bytes([number]) * 100 for number in numbers]


@row("B20: an asyncio.Lock shared by event loops", raises=RuntimeError)
def test_event_loops_that_evict_at_once_all_return_their_values(
    subject: Subject, source: CountingStore
) -> None:
    cache = HeldStore(MemoryStore())
    store = subject.over(source, cache, max_size=300)
    evicts = cache.hold_before("delete")
    with asyncio.Runner() as one, asyncio.Runner() as other, asyncio.Runner() as third:
        one.run(get_all(store, 0, 1, 2))
        evicting = one.get_loop().create_task(read(store, "k3"))
        one.run(evicts.reached())
        waiting = other.get_loop().create_task(read(store, "k4"))
        other.run(turns(20))
        responses = [third.run(read(store, "k5"))]
        evicts.open()
        responses += [one.run(answer_of(evicting)), other.run(answer_of(waiting))]

    assert responses == [b"\x05" * 100, b"\x03" * 100, b"\x04" * 100]


@row("B22: no single flight")
async def test_gets_of_one_key_at_once_make_one_request(
    subject: Subject, source: CountingStore
) -> None:
    slow = HeldStore(source)
    store = subject.open(slow)
    gate = slow.hold_after("get")
    gets = [asyncio.create_task(read(store, "k1")) for _ in range(16)]
    await gate.reached()
    gate.open()
    responses = await asyncio.gather(*gets)

    assert responses == [b"\x01" * 100] * 16
    assert slow.requests == {"get": 1}


# Faults, and what is not one's own


@row("B21: a fault of the cache store fails the read", raises=OSError)
@pytest.mark.filterwarnings("always::zarr_cache.CacheWarning")
@pytest.mark.parametrize("method", ["get", "set"])
async def test_a_fault_of_the_cache_store_does_not_fail_the_read(
    subject: Subject, source: CountingStore, method: str, recwarn: pytest.WarningsRecorder
) -> None:
    cache = FailingStore(MemoryStore())
    store = subject.over(source, cache)
    await read(store, "k1")
    cache.fail(method, times=100)

    responses = [await read(store, f"k{number}") for number in (1, 1, 2, 3)]

    assert responses == [bytes([number]) * 100 for number in (1, 1, 2, 3)]
    assert [warning.category for warning in recwarn] == [CacheWarning]
    assert store.cache_stats()["faults"] == 2


@row("B23: two sources over one cache store")
async def test_two_sources_in_one_cache_keep_apart(subject: Subject, tmp_path: Path) -> None:
    stores = []
    for name in ("one", "other"):
        local = LocalStore(tmp_path / name)
        await local.set("c/0", buffer(name.encode()))
        stores.append(subject.open(local, namespace=None))

    responses = [await read(store, "c/0") for store in stores * 2]

    assert responses == [b"one", b"other"] * 2


@row("B29: a bit flipped on disk is served")
async def test_a_range_around_a_bit_flipped_on_disk_is_not_served(
    subject: Subject, source: CountingStore
) -> None:
    first = subject.open(source)
    await read(first, "k1")
    restart(first)
    subject.flip_a_byte("k1")

    second = subject.open(source.with_read_only(read_only=True))
    stats = second.cache_stats
    responses = [await read(second, "k1", RangeByteRequest(0, 5)), await read(second, "k1")]

    assert responses == [b"\x01" * 5, b"\x01" * 100]
    assert stats()["damaged"] == 1


# What a store can do


@row("B24: not a context manager, no `open`", raises=TypeError)
async def test_a_cache_store_can_be_opened_and_is_a_context_manager(
    subject: Subject, source: CountingStore
) -> None:
    made = subject.open(source)

    with await type(made).open(source, cache_store=made._cache) as opened:
        assert await read(opened, "k1") == b"\x01" * 100


@row('B25: max_age_seconds=None, documented as "never"', raises=TypeError)
async def test_an_age_of_none_is_for_ever(
    subject: Subject, source: CountingStore, held_monotonic: HeldTime
) -> None:
    store = subject.open(source, max_age_seconds=None)
    await read(store, "k1")
    held_monotonic.step(seconds=10**9)

    await read(store, "k1")

    assert source.requests == {"get": 1}


@row("B27: a pickle holds the bookkeeping, the ranges and a MemoryStore's data")
async def test_a_pickle_carries_nothing_that_is_cached(subject: Subject, tmp_path: Path) -> None:
    local = LocalStore(tmp_path / "source")
    await local.set("k", buffer(os.urandom(1_000_000)))
    store = subject.over(local, MemoryStore())
    await read(store, "k", RangeByteRequest(0, 900_000))
    await read(store, "k")

    assert len(pickle.dumps(store)) < 1000
