"""One cache in a process for each cache file and each other store, shared by all over it."""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

from zarr_cache.backend.file_cache import FileCache
from zarr_cache.backend.store_cache import StoreCache

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.abc.store import Store

    from zarr_cache.file.database import Database


_lock = threading.Lock()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the child of a fork may have inherited it held
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


# The hooks of a database keep its cache.
_of_databases: weakref.WeakKeyDictionary[Database, weakref.ref[FileCache]] = (
    weakref.WeakKeyDictionary()
)

_of_stores: weakref.WeakSet[StoreCache] = weakref.WeakSet()


def file_cache_of(database: Database) -> FileCache:
    """The cache of this process in the database."""
    with _lock:
        reference = _of_databases.get(database)
        cache = reference() if reference else None
        if cache is None:
            cache = FileCache(database)
            _of_databases[database] = weakref.ref(cache)
        return cache


def store_cache_of(store: Store, name_of: Callable[[Store], str]) -> StoreCache:
    """The cache of this process in the store, or in another object for the same store.

    Parameters
    ----------
    name_of
        Stores to which it gives the same name have the same values. What a relative path leads to,
        or what the object is in the child of a fork, may be another now than it was.
    """
    name = name_of(store)
    with _lock:
        for each in _of_stores:
            if name_of(each.store) == name:
                return each
        cache = StoreCache(store)
        _of_stores.add(cache)
        return cache
