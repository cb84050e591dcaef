"""Whose keys these are: a name for a source that outlives the process and tells no secret."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from zarr.storage import FsspecStore, LocalStore, WrapperStore, ZipStore

from zarr_cache.sqlite_store import SqliteStore

if TYPE_CHECKING:
    from zarr.abc.store import Store

PRIVATE = "private:"
"""How the name of a source begins that does not outlive the process."""


def name_of(source: Store) -> str:
    """A name for the keys of `source`, the same in every process that reads the same data.

    A source whose identity does not outlive the process (``MemoryStore``, a class that is not known
    here) gets a name of its own: its keys are never taken for another's.
    """
    while isinstance(source, WrapperStore):
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
    match source:
        case LocalStore():
            return source.root.resolve().as_uri()
        case ZipStore() if source.path is not None:
            return f"zip:{source.path.resolve().as_uri()}"
        case SqliteStore():
            return f"sqlite:{source.path.as_uri()}"
        case FsspecStore():
            return _name_of_fsspec(source.fs, source.path)
        case _:
            return f"{PRIVATE}{os.getpid()}:{uuid.uuid4()}"


def _name_of_fsspec(file_system: Any, path: str) -> str:
    """The URL, without user info, query and fragment, and the endpoint where one is set."""
    protocol = file_system.protocol
    protocol = protocol if isinstance(protocol, str) else protocol[0]
    url = urlsplit(path if "://" in path else f"{protocol}://{path}")
    host = url.netloc.rpartition("@")[2]
    name = urlunsplit((url.scheme, host, url.path.rstrip("/"), "", ""))
    options = getattr(file_system, "storage_options", {})
    endpoint = options.get("endpoint_url") or options.get("client_kwargs", {}).get("endpoint_url")
    if not endpoint:
        return name
    at = urlsplit(endpoint)
    return f"{name} at {urlunsplit((at.scheme, at.netloc.rpartition('@')[2], at.path, '', ''))}"
