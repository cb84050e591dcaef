"""`open_store`: a CacheStore over a URL or path, in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zarr_cache.cache.source_stores import source_store
from zarr_cache.cache.sqlite_store import SqliteStore
from zarr_cache.cache.store import CacheStore

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from zarr_cache.core.ages import Age
    from zarr_cache.flows.settings import WhenFull


def open_store(
    url: str | os.PathLike[str],
    *,
    max_size: int | str | None,
    cache_file: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    max_age_seconds: Age = "infinity",
    max_age_metadata_seconds: Age = None,
    when_full: WhenFull = "evict",
    cache_set_data: bool = True,
    max_age_absent_seconds: Age = None,
    namespace: str | None = None,
    persist_ranges: bool = True,
    max_memory: int | str | None = "1 GiB",
    stale_if_error_seconds: float = 0,
    offline: bool = False,
    read_only: bool = True,
) -> CacheStore:
    """A CacheStore over the Zarr at a URL or path, for zarr, xarray and whatever takes a store.

    A URL is read by obstore if it is installed and takes the scheme and all of `storage_options`,
    and by fsspec otherwise. The file and the source are opened at the first use.

    Parameters
    ----------
    url
        A URL such as ``"s3://bucket/era5.zarr"``, or the path of a folder.
    max_size
        Maximum total bytes that are cached, such as ``"20 GiB"``; None for no limit.
    cache_file
        The cache file. None: as of `SqliteStore`, one for each user.
    storage_options
        Options of the client that reads the URL: those of fsspec's file system, such as
        ``{"anon": True}``, or those of obstore, such as ``{"skip_signature": True}``.
    persist_ranges
        Whether byte ranges, such as the chunks in shards, are kept in the file.
    read_only
        Whether to refuse writes. Then absent keys are cached, too.
    max_age_seconds, max_age_metadata_seconds, when_full, cache_set_data, max_age_absent_seconds, \
namespace, max_memory, stale_if_error_seconds, offline
        As of `CacheStore`.

    Raises
    ------
    ImportError
        The URL needs a package that is not installed; the message says what to install.
    ValueError
        The scheme of the URL is not known, the path is a file, or an option is invalid.
    TypeError
        `url` is neither a string nor a path, a path has `storage_options`, or an option has another
        type.
    CacheError
        `cache_file` is None, and this user has no home folder: name a file.

    Examples
    --------
    >>> import xarray
    >>> from zarr_cache import open_store
    >>> store = open_store("s3://bucket/era5.zarr", max_size="20 GiB")  # doctest: +SKIP
    >>> data = xarray.open_zarr(store)  # doctest: +SKIP
    """
    if not isinstance(read_only, bool):
        raise TypeError(f"read_only must be True or False, got {read_only!r}")
    return CacheStore(
        source_store(url, storage_options, read_only=read_only),
        cache_store=SqliteStore(cache_file),
        max_age_seconds=max_age_seconds,
        max_age_metadata_seconds=max_age_metadata_seconds,
        max_size=max_size,
        when_full=when_full,
        cache_set_data=cache_set_data,
        max_age_absent_seconds=max_age_absent_seconds,
        namespace=namespace,
        persist_ranges=persist_ranges,
        max_memory=max_memory,
        stale_if_error_seconds=stale_if_error_seconds,
        offline=offline,
    )
