"""A process has one cache for a cache file or another store, which all over it share."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING

from zarr.storage import LocalStore, MemoryStore

from zarr_cache import SqliteStore
from zarr_cache.backend.registry import file_cache_of, store_cache_of
from zarr_cache.sources.names import name_of

if TYPE_CHECKING:
    from pathlib import Path


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
    gc.collect()

    assert reference() is None
