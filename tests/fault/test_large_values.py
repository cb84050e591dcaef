"""A large value on its way into the data file: killed, overtaken, and the disk full."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
from zarr.storage import MemoryStore

from tests.fakes import (
    CountingStore,
    WhileWriting,
    assert_accounts,
    buffer,
    cached_bytes,
    cached_keys,
    close_everything,
    file_cache,
    leave_process,
    open_file,
    read,
)
from tests.fault.children import run_child
from tests.fault.real import filled, mounted
from tests.fault.sources import LONGEST_SECONDS, drain, new_cache, told
from tests.systems import needs_data_file
from zarr_cache.disk import data_file
from zarr_cache.index import extents, large_values, upkeep

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fakes import HeldTime
    from zarr_cache import CacheStore
    from zarr_cache.file.connection import Connection

MIB = 2**20

LARGE = bytes(range(256)) * (10 * MIB // 256)
MIDDLE = bytes(300_000)
MAX_SIZE = 20_000_000

KILLED = """
import pytest, signal
from tests.fault.test_large_values import MAX_SIZE, new_source

store = new_cache(new_source(), path, max_size=MAX_SIZE)
store.get_sync("middle")
store.flush()
with pytest.MonkeyPatch.context() as patch:
    writing = WhileWriting(patch, is_written=arguments[0] == "written")
    writing.happens = lambda: os.kill(os.getpid(), signal.SIGKILL)
    store.get_sync("large")
    store.flush()
"""


def reserved_bytes(connection: Connection) -> int:
    """Bytes of the values that are being written."""
    (nbytes,) = connection.execute("SELECT coalesce(sum(bytes), 0) FROM reservation").fetchone()
    return int(nbytes)


def new_source() -> CountingStore:
    kept = {"large": LARGE, "middle": MIDDLE, "other": MIDDLE}
    return CountingStore(MemoryStore({key: buffer(data) for key, data in kept.items()}))


def reserved(path: Path) -> list[int]:
    """Bytes of the values that are being written, or were."""
    with open_file(path) as db:
        return [nbytes for (nbytes,) in db.execute("SELECT bytes FROM reservation")]


@needs_data_file
@pytest.mark.parametrize("when", ["reserved", "written"])
async def test_what_a_killed_process_had_reserved_is_released_when_another_writes(
    path: Path, when: str
) -> None:
    ended = run_child(path, KILLED, when)
    left = reserved(path)
    assert_accounts(path)
    source = new_source()
    store = new_cache(source, path, max_size=MAX_SIZE)
    found = [await read(store, key) for key in ("middle", "large", "other")]
    drain(store)

    assert ended.code == -signal.SIGKILL, ended.errors
    assert left == [len(LARGE)]
    assert found == [MIDDLE, LARGE, MIDDLE]
    assert source.keys == ["large", "other"]
    assert reserved(path) == []
    assert cached_keys(path) == {"middle", "large", "other"}


@needs_data_file
async def test_what_another_process_is_writing_stays_and_counts_for_the_budget(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = WhileWriting(monkeypatch)
    store = new_cache(new_source(), path, max_size=len(LARGE) + len(MIDDLE))
    await read(store, "middle")
    drain(store)
    seen = []

    def in_another_process() -> None:
        leave_process(store)
        other = new_cache(new_source(), path, max_size=len(LARGE) + len(MIDDLE))
        for key in ("other", "middle"):
            other.get_sync(key)
        drain(other)
        file_cache(other)._database.run(lambda db: seen.append(reserved_bytes(db)))
        seen.append(other.cache_stats()["evictions"])
        other.close()

    writing.happens = in_another_process
    await read(store, "large")
    drain(store)

    # There was room for one of the two beside it.
    assert seen == [len(LARGE), 1]
    assert "large" in cached_keys(path)
    assert cached_bytes(path) == len(LARGE) + len(MIDDLE)
    assert reserved(path) == []


@needs_data_file
async def test_a_writer_whose_lease_has_expired_keeps_nothing(
    path: Path, held_time: HeldTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = WhileWriting(monkeypatch, is_written=True)
    store = new_cache(new_source(), path, max_size=MAX_SIZE)
    await read(store, "middle")
    drain(store)

    def in_another_process() -> None:
        leave_process(store)
        held_time.step(extents.LEASE_NS // 10**9 + 1)
        other = new_cache(new_source(), path, max_size=MAX_SIZE)
        other.get_sync("other")
        drain(other)
        other.close()

    writing.happens = in_another_process
    found = [await read(store, "large")]
    drain(store)
    kept = cached_keys(path)
    found.append(await read(store, "large"))
    drain(store)

    assert found == [LARGE] * 2
    assert kept == {"middle", "other"}
    assert "large" in cached_keys(path)


@needs_data_file
async def test_a_large_response_that_a_write_overtakes_is_not_cached(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = WhileWriting(monkeypatch, is_written=True)
    source = new_source()
    store = new_cache(source, path, max_size=2 * MAX_SIZE)
    await read(store, "middle")
    drain(store)
    other = new_cache(source, path, max_size=2 * MAX_SIZE)
    new = buffer(LARGE[::-1])
    writing.happens = lambda: other.set_sync("large", new)
    await read(store, "large")
    drain(store)

    assert await read(store, "large") == LARGE[::-1]
    assert reserved(path) == []
    assert cached_bytes(path) == len(MIDDLE) + len(LARGE)


async def test_a_value_that_changes_places_has_room_for_one_of_it(path: Path) -> None:
    source = new_source()
    store = new_cache(source, path, max_size=len(LARGE), max_age_seconds=0.001)
    for _ in range(3):
        assert await read(store, "large") == LARGE
        drain(store)

    assert cached_bytes(path) in {0, len(LARGE)}
    assert store.cache_stats()["faults"] == 0


async def test_more_is_waiting_than_there_is_room_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # All of them are taken together.
    monkeypatch.setattr(large_values, "MAX_BYTES", 100 * MIB)
    values = {f"{n}": buffer(bytes([n]) * 2 * MIB) for n in range(12)}
    store = new_cache(MemoryStore(values), path, max_size=5 * MIB)
    for key in values:
        await read(store, key)
    drain(store)

    # The last ones, as if each had been kept by itself.
    assert cached_keys(path) == {"10", "11"}
    assert store.cache_stats()["evictions"] == 10


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Where a file has room for the large value."""
    with mounted(tmp_path, nbytes=24 * MIB):
        yield tmp_path / "cache.sqlite"
        close_everything()
        assert_accounts(tmp_path / "cache.sqlite")


async def test_when_the_disk_is_full_all_else_stays_and_the_reservation_is_released(
    small_disk: Path,
    short_waits: HeldTime,
    warned: list[WarningMessage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writing = WhileWriting(monkeypatch)
    source = new_source()
    store = new_cache(source, small_disk, max_size=MAX_SIZE)
    await read(store, "middle")
    drain(store)
    full = filled(small_disk.parent)
    writing.happens = full.__enter__
    found = [await read(store, "large")]
    drain(store)
    found += [await read(store, "middle")]
    drain(store)
    kept = cached_keys(small_disk)
    full.__exit__(None, None, None)
    short_waits.step(LONGEST_SECONDS)
    for _ in range(2):
        # One read finds that the fault is over, and what comes next is kept.
        found += [await read(store, "large")]
        drain(store)
    source.reset()
    again = await read(store, "large")

    assert found == [LARGE, MIDDLE, LARGE, LARGE]
    assert kept == {"middle"}
    assert reserved(small_disk) == []
    assert "No space left" in "".join(told(warned))
    assert again == LARGE
    assert source.requests.total() == 0
    assert cached_bytes(small_disk) == len(LARGE) + len(MIDDLE)
    assert store.cache_stats()["evictions"] == 0


@needs_data_file
async def test_a_process_that_reads_first_holds_its_lock_while_it_writes(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_cache(new_source(), path, max_size=2 * MAX_SIZE)
    await read(store, "middle")
    drain(store)
    store.close()
    await read(store, "middle")
    writing = WhileWriting(monkeypatch, is_written=True)
    seen = []

    def in_another_process() -> None:
        leave_process(store)
        other = new_cache(new_source(), path, max_size=2 * MAX_SIZE)
        other.get_sync("other")
        drain(other)
        file_cache(other)._database.run(lambda db: seen.append(reserved_bytes(db)))
        other.close()

    writing.happens = in_another_process
    await read(store, "large")
    drain(store)

    assert seen == [len(LARGE)]
    assert cached_keys(path) == {"middle", "other", "large"}


@needs_data_file
async def test_many_large_values_that_are_written_are_reserved_some_at_a_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_cache(MemoryStore(), path, max_size=5 * MIB)
    writing = WhileWriting(monkeypatch)
    most = []
    values = [(f"{n}", buffer(bytes([n]) * MIB)) for n in range(12)]

    def note_what_is_reserved() -> None:
        most.append(sum(reserved(path)))
        writing.happens = note_what_is_reserved

    writing.happens = note_what_is_reserved
    await store._set_many(values)
    # Not when the values that are read below are written: a look at the file waits for that.
    writing.happens = None

    assert max(most) <= 5 * MIB // 2
    # The last ones, as if each had been written by itself.
    assert cached_keys(path) == {f"{n}" for n in range(7, 12)}
    for key, value in values:
        assert await read(store, key) == value.to_bytes()


async def cache_with_a_gap(path: Path) -> CacheStore:
    """A cache of three values, of which the first was deleted: the last may take its place."""
    values = {f"{n}": buffer(bytes([n]) * MIB) for n in range(3)}
    store = new_cache(MemoryStore(values), path)
    for key in values:
        await read(store, key)
    drain(store)
    with open_file(path) as shell:
        shell.execute("DELETE FROM entry WHERE key = '0'")
        shell.commit()
    return store


def move_last(store: CacheStore) -> None:
    """Move the last value to the front."""
    now_ns = store._view.values.clock().now_ns()
    file_cache(store)._database.run(upkeep.move_last, now_ns)


@needs_data_file
async def test_a_value_that_is_written_while_it_is_moved_is_the_new_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await cache_with_a_gap(path)
    copy = data_file.copy

    def copy_and_write(*arguments: Any) -> None:
        copy(*arguments)
        # It has the same number then, and the same place.
        store.set_sync("2", buffer(b"n" * MIB))

    monkeypatch.setattr(data_file, "copy", copy_and_write)
    move_last(store)

    assert await read(store, "2") == b"n" * MIB
    assert store.cache_stats()["damaged"] == 0


async def test_a_value_stays_where_it_is_if_the_place_it_is_moved_to_was_given_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await cache_with_a_gap(path)
    copy = data_file.copy

    def copy_and_be_taken_for_dead(*arguments: Any) -> None:
        copy(*arguments)
        with open_file(path) as shell:
            shell.execute("DELETE FROM reservation")
            shell.commit()

    monkeypatch.setattr(data_file, "copy", copy_and_be_taken_for_dead)
    move_last(store)

    assert await read(store, "2") == bytes([2]) * MIB
    assert store.cache_stats()["damaged"] == 0
    assert_accounts(path)
