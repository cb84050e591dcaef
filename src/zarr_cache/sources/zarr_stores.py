"""Names of zarr's stores: a function for each class, and the table of them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import (
    FsspecStore,
    LocalStore,
    LoggingStore,
    ObjectStore,
    WrapperStore,
    ZipStore,
)
from zarr.storage._fsspec import ALLOWED_EXCEPTIONS

from zarr_cache.core import private
from zarr_cache.sources import object_stores, urls
from zarr_cache.sources.file_systems import is_open_at

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from zarr.abc.store import Store

    from zarr_cache.sources.urls import OfFileSystem


FIRST_SNAPSHOT = "1CECHNKREP0F1RSTCMT0"
"""The first snapshot of every Icechunk repository. All other ids are 96 random bits."""


# A function of the table is given the store, and `names` of fsspec's file systems. It returns the
# name; a store that has the same keys with the same bytes, which is then named instead; or None if
# the store does not outlive the process, or cannot be distinguished from another one.


def wrapped(source: Any, _of_file_system: OfFileSystem | None = None) -> Store:
    """The store below a wrapper that changes nothing."""
    store: Store = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
    return store


def _of_fsspec(source: Any, of_file_system: OfFileSystem) -> str | None:
    name = of_file_system(source.fs, source.path)
    allowed = set(source.allowed_exceptions)
    if name is None or allowed == set(ALLOWED_EXCEPTIONS):
        return name
    # This store takes an error, such as a 403, for an absent key; others raise it.
    return f"{name} absent by {' '.join(sorted(map(urls.class_name, allowed)))}"


def _of_local(source: Any, _of_file_system: OfFileSystem) -> str:
    return Path(source.root).resolve().as_uri()


def _of_zip(source: Any, _of_file_system: OfFileSystem) -> str | None:
    if source.path is None:
        return None  # it was given an open file
    path = Path(source.path).resolve()
    # An open archive stays what it is when its path leads elsewhere.
    if source._is_open and not is_open_at(source._zf.fp, path):  # noqa: SLF001 - zarr's
        return None
    return f"zip:{path.as_uri()}"


def _of_obstore(source: Any, _of_file_system: OfFileSystem) -> str | None:
    return object_stores.of_object_store(source.store)


def _of_cache_store(source: Any, _of_file_system: OfFileSystem) -> str | None:
    # Not the name of its source: both CacheStores may use one file, and with one name a fetch of
    # the outer one would wait for itself.
    return None if private.is_private(source.namespace) else f"cached:{source.namespace}"


def _of_sqlite_store(source: Any, _of_file_system: OfFileSystem) -> str:
    return f"sqlite:{source.path.resolve().as_uri()}"


def _of_icechunk(source: Any, _of_file_system: OfFileSystem) -> str | None:
    """The snapshot that a read-only session reads, and the locations of its virtual chunks.

    The id of a snapshot is random, and its content never changes, so a copy of the repository has
    the same bytes. A writable session holds changes that are not committed. Virtual chunks lie
    elsewhere: the configuration names their locations, which may differ between two copies.
    """
    session = source.session
    if not session.read_only:
        raise urls.NoNameError(
            "its session is writable, and holds changes that are not committed",
            advice="read with a session of repository.readonly_session()",
        )
    if session.snapshot_id == FIRST_SNAPSHOT:
        raise urls.NoNameError("its snapshot is the first one of every repository")
    containers = session.config.virtual_chunk_containers or {}
    locations = [_of_container(container) for container in containers.values()]
    if None in locations:
        return None
    return " with ".join([f"icechunk:{session.snapshot_id}", *sorted(map(str, locations))])


def _of_container(container: Any) -> str | None:
    """The location of the virtual chunks of a prefix, or None if it cannot be named."""
    prefix = urls.of_endpoint(container.url_prefix)
    options = getattr(container.store, "_0", None)
    match type(container.store).__name__:
        case "S3" | "S3Compatible" | "Tigris":
            endpoint = getattr(options, "endpoint_url", None)
            where = urls.of_endpoint(endpoint) if endpoint else "s3"
        case "LocalFileSystem":
            prefix, where = "file", Path(str(options)).resolve().as_uri()
        case "Gcs" if not options:
            where = "default"
        case "Http" if not options:
            headers = getattr(container.store, "_1", None) or {}
            urls.check_neutral(headers)
            prefix = urls.of_url(container.url_prefix, urls.users_of(headers.items()))
            where = "default"
        case _:
            where = None
    return f"{container.name or ''}={prefix} at {where}" if prefix and where else None


def _open_zip(source: Any) -> None:
    # The lock that zarr has since 3.4.2.
    with getattr(source, "_lock", nullcontext()):
        if not source._is_open:  # noqa: SLF001 - zarr's
            source._sync_open()  # noqa: SLF001 - opens it without an event loop


def _open_cache_store(source: Any) -> None:
    source._view.open_source()  # noqa: SLF001 - names its own source


OPENING: Mapping[str, Callable[[Any], None]] = {
    urls.class_name(ZipStore): _open_zip,
    "zarr_cache.CacheStore": _open_cache_store,
}
"""Stores that have to be open before they are named."""


ZARR_STORES: Mapping[str, Callable[[Any, OfFileSystem], str | Store | None]] = {
    urls.class_name(FsspecStore): _of_fsspec,
    urls.class_name(LocalStore): _of_local,
    urls.class_name(LoggingStore): wrapped,
    urls.class_name(ObjectStore): _of_obstore,
    urls.class_name(WrapperStore): wrapped,
    urls.class_name(ZipStore): _of_zip,
    "icechunk.store.IcechunkStore": _of_icechunk,
    "zarr.experimental.cache_store.CacheStore": wrapped,
    "zarr.testing.store.LatencyStore": wrapped,
    "zarr_cache.CacheStore": _of_cache_store,
    "zarr_cache.SqliteStore": _of_sqlite_store,
}
