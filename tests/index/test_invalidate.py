"""Tombstones and removals of folders: their number, their leases, and what a removal leaves."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from zarr.storage import MemoryStore

from tests.fakes import (
    CountingStore,
    WhileWriting,
    buffer,
    cached_keys,
    file_cache,
    open_file,
    read,
    writers,
)
from tests.systems import needs_data_file
from zarr_cache import CacheStore, CacheWarning, SqliteStore
from zarr_cache.core.errors import FileLockedError
from zarr_cache.file.connection import Connection
from zarr_cache.index import evict, invalidate, removals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes import HeldTime


KEYS = [f"c/{number}" for number in range(6)]


def source_and_store(path: Path) -> tuple[CountingStore, CacheStore]:
    source = CountingStore(MemoryStore({key: buffer(b"old") for key in KEYS}))
    return source, CacheStore(source, cache_store=SqliteStore(path), namespace="source")


def tombstones(path: Path) -> list[str]:
    """Keys of the tombstones, the oldest first."""
    with open_file(path) as db:
        rows = db.execute(
            "SELECT key FROM entry WHERE kind = 'tombstone' ORDER BY used_at"
        ).fetchall()
    return [key for (key,) in rows]


async def test_the_tombstone_of_a_write_in_flight_is_not_removed_when_there_are_too_many(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, store = source_and_store(path)
    monkeypatch.setattr(invalidate, "MAX_TOMBSTONES", 2)
    begun: list[int] = []
    values = file_cache(store)
    now_ns = values.clock().now_ns()
    values._database.run(invalidate.begin_write, "source", [KEYS[0]], now_ns, begun)
    for key in KEYS[1:]:
        await store.delete(key)

    assert KEYS[0] in tombstones(path)
    assert len(begun) == 1


async def test_a_removal_whose_end_was_not_recorded_expires_after_an_hour(
    path: Path, monkeypatch: pytest.MonkeyPatch, held_time: HeldTime
) -> None:
    def locked(*_: object) -> None:
        raise FileLockedError(f"{path}: database is locked")

    source, store = source_and_store(path)
    with monkeypatch.context() as patch:
        patch.setattr(removals, "end_removal", locked)
        with pytest.warns(CacheWarning, match="locked"):
            await store.delete_dir("other/")
    held_time.step(3540)
    await read(store, KEYS[0])
    store.flush()
    kept = cached_keys(path)
    held_time.step(61)
    await read(store, KEYS[0])
    source.reset()

    assert kept == set()
    assert await read(store, KEYS[0]) == b"old"
    assert source.requests == {}


async def test_a_removal_that_never_ends_expires_after_an_hour_however_many_begin_meanwhile(
    path: Path, held_time: HeldTime
) -> None:
    source, store = source_and_store(path)
    values = file_cache(store)
    values._database.run(removals.begin_removal, "source", values.clock().now_ns())
    for _ in range(2):
        held_time.step(1801)
        await store.delete_dir("other/")
    await read(store, KEYS[0])
    source.reset()

    assert await read(store, KEYS[0]) == b"old"
    assert source.requests == {}
    assert writers(path) == 0


async def test_a_value_that_is_written_between_two_steps_of_a_removal_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, store = source_and_store(path)
    for key in KEYS:
        await read(store, key)
    store.flush()
    monkeypatch.setattr(removals, "MAX_AT_ONCE", 2)
    begin = Connection.writing_much
    steps = []

    @contextlib.contextmanager
    def write_first(connection: Connection) -> Iterator[None]:
        steps.append(connection)
        if len(steps) == 2:
            store.set_sync(KEYS[0], buffer(b"new"))
        with begin(connection):
            yield

    monkeypatch.setattr(Connection, "writing_much", write_first)
    await store.clear_cache()
    source.reset()

    assert cached_keys(path) == {KEYS[0]}
    assert await read(store, KEYS[0]) == b"new"
    assert source.requests == {}


async def test_the_oldest_tombstones_are_removed_when_there_are_too_many(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invalidate, "MAX_TOMBSTONES", 3)
    _, store = source_and_store(path)
    for key in KEYS:
        await store.delete(key)

    assert tombstones(path) == KEYS[-3:]


@needs_data_file
async def test_values_of_a_write_are_not_cached_once_a_folder_was_removed_between_its_batches(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mib = 2**20
    source = CountingStore(MemoryStore())
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source", max_size=5 * mib)
    writing = WhileWriting(monkeypatch)
    database = file_cache(store)._database

    trim = evict.trim

    def remove_a_folder() -> None:
        database.run(removals.invalidate_prefix, "source", "other/")

    def remove_a_folder_after_this_batch(*arguments: Any) -> None:
        trim(*arguments)
        monkeypatch.setattr(invalidate, "trim", trim)
        writing.happens = remove_a_folder

    monkeypatch.setattr(invalidate, "trim", remove_a_folder_after_this_batch)
    await store._set_many([(key, buffer(bytes(mib))) for key in KEYS])

    assert cached_keys(path) == set(KEYS[:2])
