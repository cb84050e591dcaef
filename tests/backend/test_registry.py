"""A process has one cache for a cache file or another store, which all over it share."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from zarr.storage import LocalStore, MemoryStore

from tests.fakes import NotedLock
from zarr_cache import SqliteStore
from zarr_cache.backend import registry
from zarr_cache.backend.file_cache import FileCache
from zarr_cache.backend.registry import file_cache_of, store_cache_of
from zarr_cache.file.file_database import FileDatabase
from zarr_cache.sources.names import name_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_stores_on_one_file_share_its_cache(path: Path) -> None:
    caches = [file_cache_of(SqliteStore(path).database) for _ in range(2)]

    assert caches[0] is caches[1]


def test_objects_for_one_folder_share_its_cache(tmp_path: Path) -> None:
    caches = [store_cache_of(LocalStore(tmp_path / "cache"), name_of) for _ in range(2)]

    assert caches[0] is caches[1]


def test_other_stores_have_other_caches() -> None:
    caches = [store_cache_of(MemoryStore(), name_of) for _ in range(2)]

    assert caches[0] is not caches[1]


def test_the_cache_of_another_store_ends_with_it() -> None:
    reference = weakref.ref(store_cache_of(MemoryStore(), name_of))
    for _ in range(10):
        # It does nothing while another thread collects.
        if reference() is not None:
            gc.collect()

    assert reference() is None


def test_threads_that_make_a_cache_at_once_share_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, first_is_in, may_go_on = NotedLock(), threading.Event(), threading.Event()
    second_is_here = lock.is_waited_for
    begin = FileCache._begin

    def held(self: FileCache) -> None:
        (second_is_here if first_is_in.is_set() else first_is_in).set()
        may_go_on.wait()
        begin(self)

    monkeypatch.setattr(FileCache, "_begin", held)
    monkeypatch.setattr(registry, "_lock", lock)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(file_cache_of, FileDatabase.of(path))
        first_is_in.wait()
        second = threads.submit(file_cache_of, FileDatabase.of(path))
        second_is_here.wait()
        may_go_on.set()

    assert first.result() is second.result()
