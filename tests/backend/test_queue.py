"""Responses that wait are written together, and no flush waits for those that come later."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, buffer, cached_keys, file_cache
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.backend import file_cache as backend_file_cache
from zarr_cache.backend.queue import MAX_BATCH
from zarr_cache.core.flow import run, step
from zarr_cache.index.admit import Response

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from zarr_cache.index.admit import Admission


def test_a_flush_ends_although_each_response_that_is_written_brings_another(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CacheStore(MemoryStore(), cache_store=SqliteStore(path), namespace="source")
    values = file_cache(store)
    run(values.ensure_open())
    # No other thread writes.
    monkeypatch.setattr(values._writer, "wake", lambda **_: None)
    brought: list[str] = []
    is_over = threading.Event()

    def bring(_: object = None) -> None:
        if is_over.is_set() or len(brought) == 1000:
            return
        brought.append(f"k{len(brought)}")
        now = values.clock()
        response = Response(np.zeros(1, np.uint8), now.now_ns(), now.timestamp_ns(), 2**61)
        run(values.admit("source", brought[-1], response, store._view.limits(), bring))

    bring()
    store.flush()
    # Or the thread that writes would go on in the tests that follow.
    is_over.set()

    assert brought == ["k0", "k1"]


def test_closing_writes_all_that_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {f"k{number}" for number in range(2 * MAX_BATCH + 1)}
    source = MemoryStore({key: buffer(key.encode()) for key in keys})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    monkeypatch.setattr(file_cache(store)._writer, "wake", lambda **_: None)
    for key in keys:
        store.get_sync(key)

    store.close()

    assert cached_keys(path) == keys


def test_lookups_find_a_response_that_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = CountingStore(MemoryStore({"k": buffer(b"value")}))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    monkeypatch.setattr(file_cache(store)._writer, "wake", lambda **_: None)

    values = [store.get_sync("k"), store.get_sync("k")]

    assert values == [buffer(b"value")] * 2
    assert source.requests.total() == 1


def test_a_response_that_is_cancelled_is_not_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemoryStore({key: buffer(key.encode()) for key in "ab"})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    monkeypatch.setattr(file_cache(store)._writer, "wake", lambda **_: None)
    for key in "ab":
        store.get_sync(key)

    file_cache(store)._queue.cancel("source", "a")
    store.flush()

    assert cached_keys(path) == {"b"}


def test_a_reader_that_fills_the_queue_waits_until_the_oldest_response_is_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"{number:03}" for number in range(2 * MAX_BATCH)]
    source = MemoryStore({key: buffer(key.encode()) for key in keys})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    values = file_cache(store)
    run(values.ensure_open())
    monkeypatch.setattr(values._writer, "wake", lambda **_: None)
    monkeypatch.setattr(backend_file_cache, "MAX_WAITING_BYTES", 3 * len(keys) - 1)
    for key in keys[:-1]:
        store.get_sync(key)
    oldest = values._queue.oldest()
    assert oldest is not None
    left: list[int] = []

    def write_one_batch() -> None:
        """In place of the thread that the reader waits for."""
        batch: list[Admission] = []
        values._writes.run(values._queue._write_batch, batch, values.clock().now_ns())
        for each in batch:
            each.end(None)
        left.append(values._queue.nbytes)

    async def nothing() -> None:
        raise NotImplementedError  # the reader has no event loop

    monkeypatch.setattr(oldest, "wait", lambda: step(write_one_batch, nothing))
    store.get_sync(keys[-1])

    assert left == [3 * MAX_BATCH]
    assert cached_keys(path) == set(keys)
