"""Arrays whose requests are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import zarr
from zarr.storage import MemoryStore

from tests.fakes import CountingStore
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import Store

CHUNK = 1000
"""Bytes of a chunk."""


class Cached(NamedTuple):
    """A source, a CacheStore over it, and an array that is read through that."""

    source: CountingStore
    store: CacheStore
    array: zarr.Array[Any]


def rows(count: int, **settings: Any) -> MemoryStore:
    """An array "a/b" of so many chunks, one below the other, of `CHUNK` bytes each."""
    memory = MemoryStore()
    root = zarr.create_group(memory, zarr_format=settings.pop("zarr_format", 3))
    settings = {"shape": (count, CHUNK), "chunks": (1, CHUNK), **settings}
    array = root.create_array("a/b", dtype="u1", compressors=None, fill_value=0, **settings)
    array[...] = np.arange(array.shape[0])[:, None] + 1
    return memory


def cached(
    memory: Store,
    path: Path,
    kind: type[CountingStore] = CountingStore,
    *,
    name: str = "a/b",
    **settings: Any,
) -> Cached:
    """An array of `memory`, opened through a CacheStore."""
    source = kind(memory)
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source", **settings)
    array = zarr.open_array(store, path=name, mode="r")
    source.reset()
    return Cached(source, store, array)


def chunk_keys(source: CountingStore) -> list[str]:
    """The requests for chunks, sorted."""
    return sorted(key for key in source.keys if "/c/" in key)
