"""A persistent, SQLite-backed cache for Zarr stores."""

from __future__ import annotations

from zarr_cache.cache_store import CacheStore
from zarr_cache.chunk_coverage import coverage
from zarr_cache.errors import (
    CacheError,
    DataFileError,
    FileDamagedError,
    FileFullError,
    FileLockedError,
    FileReadOnlyError,
    ForeignFileError,
    HardLinkedFileError,
    LeftAloneError,
    MigrationError,
    NetworkFileSystemError,
    NewerSchemaError,
    OutOfMemoryError,
    StorageError,
    UnstorableKeyError,
)
from zarr_cache.faults import CacheWarning
from zarr_cache.namespace import register_namespace
from zarr_cache.problem import Problem
from zarr_cache.sqlite_store import SqliteStore
from zarr_cache.warm_report import WarmPlan, WarmReport
from zarr_cache.warming import warm, warm_async

__all__ = [
    "CacheError",
    "CacheStore",
    "CacheWarning",
    "DataFileError",
    "FileDamagedError",
    "FileFullError",
    "FileLockedError",
    "FileReadOnlyError",
    "ForeignFileError",
    "HardLinkedFileError",
    "LeftAloneError",
    "MigrationError",
    "NetworkFileSystemError",
    "NewerSchemaError",
    "OutOfMemoryError",
    "Problem",
    "SqliteStore",
    "StorageError",
    "UnstorableKeyError",
    "WarmPlan",
    "WarmReport",
    "coverage",
    "register_namespace",
    "warm",
    "warm_async",
]
