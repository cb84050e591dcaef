"""A persistent, SQLite-backed cache for Zarr stores."""

from __future__ import annotations

from zarr_cache.cache_store import CacheStore
from zarr_cache.errors import (
    CacheError,
    FileDamagedError,
    FileFullError,
    FileLockedError,
    ForeignFileError,
    MigrationError,
    NewerSchemaError,
    StorageError,
)
from zarr_cache.faults import CacheWarning
from zarr_cache.namespace import register_namespace
from zarr_cache.sqlite_store import SqliteStore
from zarr_cache.verify import Problem

__all__ = [
    "CacheError",
    "CacheStore",
    "CacheWarning",
    "FileDamagedError",
    "FileFullError",
    "FileLockedError",
    "ForeignFileError",
    "MigrationError",
    "NewerSchemaError",
    "Problem",
    "SqliteStore",
    "StorageError",
    "register_namespace",
]
