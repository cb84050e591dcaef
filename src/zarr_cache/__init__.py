"""A persistent, SQLite-backed cache for Zarr stores."""

from __future__ import annotations

from importlib.metadata import version as _version_of
from typing import TYPE_CHECKING

from zarr_cache.backend.failures import CacheWarning
from zarr_cache.cache.opening import open_store
from zarr_cache.cache.sqlite_store import SqliteStore
from zarr_cache.cache.store import CacheStore
from zarr_cache.core.errors import (
    CacheError,
    CircuitOpenError,
    DataFileError,
    FileDamagedError,
    FileFullError,
    FileLockedError,
    FileNameTooLongError,
    FileReadOnlyError,
    ForeignFileError,
    HardLinkedFileError,
    LeftAloneError,
    MigrationError,
    MountedFileError,
    NetworkFileSystemError,
    NewerSchemaError,
    OfflineError,
    OutOfMemoryError,
    SourceChangedError,
    StorageError,
    UnstorableKeyError,
)
from zarr_cache.inspect.problem import Problem
from zarr_cache.sources.names import register_namespace
from zarr_cache.warming.coverage import coverage
from zarr_cache.warming.report import WarmPlan, WarmReport
from zarr_cache.warming.revalidate import RevalidateReport, revalidate
from zarr_cache.warming.warm import warm, warm_async

__all__ = [
    "CacheError",
    "CacheStore",
    "CacheWarning",
    "CircuitOpenError",
    "DataFileError",
    "FileDamagedError",
    "FileFullError",
    "FileLockedError",
    "FileNameTooLongError",
    "FileReadOnlyError",
    "ForeignFileError",
    "HardLinkedFileError",
    "LeftAloneError",
    "MigrationError",
    "MountedFileError",
    "NetworkFileSystemError",
    "NewerSchemaError",
    "OfflineError",
    "OutOfMemoryError",
    "Problem",
    "RevalidateReport",
    "SourceChangedError",
    "SqliteStore",
    "StorageError",
    "UnstorableKeyError",
    "WarmPlan",
    "WarmReport",
    "coverage",
    "open_store",
    "register_namespace",
    "revalidate",
    "warm",
    "warm_async",
]

# Pickles and tracebacks name the place that users import from, whichever module defines it.
for _name in __all__:
    globals()[_name].__module__ = __name__

if TYPE_CHECKING:
    __version__: str
else:
    # Not at the import: a program that was frozen without the metadata of its packages has none.
    def __getattr__(name: str) -> str:
        if name == "__version__":
            return _version_of("zarr-cache")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
