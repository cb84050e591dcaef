"""Whose keys these are: a name for a source that outlives the process and tells no secret."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from zarr.storage import FsspecStore, LocalStore, ObjectStore, WrapperStore, ZipStore

from zarr_cache.sqlite_store import SqliteStore

if TYPE_CHECKING:
    from zarr.abc.store import Store

PRIVATE = "private:"
"""How the name of a source begins that does not outlive the process."""

# Where the URL, and the endpoint beside it, tell one file system from another. Others do not: a
# fsspec "reference" file system has one URL for all sets of references.
_PROTOCOLS = frozenset(
    {"abfs", "abfss", "adl", "az", "file", "gcs", "gs", "http", "https", "local", "s3", "s3a"}
)

# What tells one obstore store from another, in the names of its configuration.
_PLACES = ("endpoint", "account_name", "container_name", "bucket")

# Parameters of a query whose names have one of these in them are not for telling.
_SECRETS = ("key", "token", "secret", "sig", "auth", "password", "credential", "x-amz", "x-goog")


def name_of(source: Store) -> str:
    """A name for the keys of `source`, the same in every process that reads the same data.

    A source whose identity does not outlive the process (``MemoryStore``, a class that is not known
    here) gets a name of its own: its keys are never taken for another's.
    """
    while isinstance(source, WrapperStore):
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
    name = None
    match source:
        case LocalStore():
            name = source.root.resolve().as_uri()
        case ZipStore() if source.path is not None:
            name = f"zip:{source.path.resolve().as_uri()}"
        case SqliteStore():
            name = f"sqlite:{source.path.as_uri()}"
        case FsspecStore():
            name = _name_of_fsspec(source.fs, source.path)
        case ObjectStore():
            name = _name_of_obstore(source.store)
    return name or f"{PRIVATE}{os.getpid()}:{uuid.uuid4()}"


def _name_of_fsspec(file_system: Any, path: str) -> str | None:
    protocol = file_system.protocol
    protocol = protocol if isinstance(protocol, str) else protocol[0]
    if protocol not in _PROTOCOLS:
        return None
    name = without_credentials(path if "://" in path else f"{protocol}://{path}")
    options = getattr(file_system, "storage_options", None) or {}
    places = (
        options.get("endpoint_url"),
        (options.get("client_kwargs") or {}).get("endpoint_url"),
        options.get("account_name"),
        options.get("account_host"),
    )
    return " at ".join([name, *(without_credentials(str(place)) for place in places if place)])


def _name_of_obstore(store: Any) -> str | None:
    kind, prefix = type(store).__name__, getattr(store, "prefix", None) or ""
    match kind:
        case "HTTPStore":
            return without_credentials(store.url)
        case "LocalStore" if prefix:
            return prefix.resolve().as_uri() if hasattr(prefix, "resolve") else None
        case "S3Store" | "GCSStore" | "AzureStore":
            places = [str(store.config[name]) for name in _PLACES if store.config.get(name)]
            return "/".join([f"{kind}:", *map(without_credentials, places), str(prefix).strip("/")])
    return None


def without_credentials(url: str) -> str:
    """The URL without user info, fragment, and the parameters of its query that are secrets."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if not any(secret in name.lower() for secret in _SECRETS)
    ]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), urlencode(query), ""))
