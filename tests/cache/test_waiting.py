"""A flush writes the responses that wait, and not those that are added meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from zarr.storage import MemoryStore

from tests.fakes import buffer, cached_keys
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.backend.queue import MAX_TOGETHER
from zarr_cache.core.flow import run
from zarr_cache.index.admit import Response

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from zarr_cache.backend.file_cache import FileCache


def test_a_flush_ends_although_each_response_that_is_written_adds_another(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CacheStore(MemoryStore(), cache_store=SqliteStore(path), namespace="source")
    values: FileCache = store._view.values
    run(values.opened())
    # No other thread writes.
    monkeypatch.setattr(values._writer, "wake", lambda **_: None)
    brought: list[str] = []

    def bring(_: object = None) -> None:
        if len(brought) == 1000:
            return
        brought.append(f"k{len(brought)}")
        now = values.clock()
        response = Response(np.zeros(1, np.uint8), now.now_ns(), now.timestamp_ns(), 2**61)
        run(values.admit("source", brought[-1], response, store._view.limits(), bring))

    bring()
    store.flush()

    assert brought == ["k0", "k1"]


def test_closing_writes_all_that_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {f"k{number}" for number in range(2 * MAX_TOGETHER + 1)}
    source = MemoryStore({key: buffer(key.encode()) for key in keys})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    monkeypatch.setattr(store._view.values._writer, "wake", lambda **_: None)
    for key in keys:
        store.get_sync(key)

    store.close()

    assert cached_keys(path) == keys
