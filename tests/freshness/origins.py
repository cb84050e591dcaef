"""Sources that others change, through each client of zarr, and what they were asked for.

An `Origin` is where the values are: a server or a folder. Each version of a value consists of one
byte, repeated, so that every part of it tells its version.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple

import zarr.storage._local as zarr_local
from fsspec.implementations.local import LocalFileSystem
from zarr.storage import FsspecStore, LocalStore

from tests.sources.http_server import VersionedServer, serving
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.keys import is_metadata

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from typing import Any

    from zarr.abc.store import Store
    from zarr.core.buffer import Buffer

    from tests.sources.s3 import S3Server

SIZE = 4096
"""Bytes of a value."""

NAMESPACE = "changing"


def version(number: int, size: int = SIZE) -> bytes:
    """The bytes of one version of a value."""
    return bytes([number]) * size


def document(number: int) -> bytes:
    """As `version`, but of metadata: what is no metadata is never cached."""
    return json.dumps({"zarr_format": 3, "version": number}).encode().ljust(SIZE)


def version_of(key: str, number: int) -> bytes:
    """One version of the value of a key."""
    return document(number) if is_metadata(key) else version(number)


def settle(path: Path, hours: int) -> None:
    """Let a file be so many hours younger than the first, and all of them be long ago."""
    seconds = 1_600_000_000 + 3600 * hours
    os.utime(path, (seconds, seconds))


class Asked(NamedTuple):
    """What an origin was asked for.

    Attributes
    ----------
    requests
        The methods of the requests: ``GET``, ``HEAD``, ``LIST``, in alphabetic order. Of a folder
        only ``GET``, for the reads.
    nbytes
        Bytes of values that were sent.
    """

    requests: list[str]
    nbytes: int


class Origin(ABC):
    """Values that others change.

    Attributes
    ----------
    source
        A read-only store of them.
    asks_first
        Whether the client has to ask for the version by a request of its own.
    """

    def __init__(self, source: Store, *, asks_first: bool) -> None:
        self.source = source
        self.asks_first = asks_first

    @abstractmethod
    def put(self, key: str, data: bytes) -> None:
        """Change a value, as somebody else would."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove a value, as somebody else would."""

    @abstractmethod
    def reset(self) -> None:
        """Forget what was asked for so far."""

    @abstractmethod
    def asked(self) -> Asked:
        """What was asked for since `reset`."""

    def copy(self, values: dict[str, bytes]) -> None:
        """Put all these values."""
        for key, data in values.items():
            self.put(key, data)


class HttpOrigin(Origin):
    """Values of the HTTP server."""

    def __init__(self, server: VersionedServer, source: Store, *, asks_first: bool) -> None:
        super().__init__(source, asks_first=asks_first)
        self.server = server

    def put(self, key: str, data: bytes) -> None:
        self.server.put(key, data)

    def delete(self, key: str) -> None:
        self.server.delete(key)

    def reset(self) -> None:
        self.server.reset()

    def asked(self) -> Asked:
        methods = [method for (method, _) in self.server.requests.elements()]
        return Asked(sorted(methods), self.server.sent_bytes)


class S3Origin(Origin):
    """Values of a bucket."""

    def __init__(self, server: S3Server, source: Store, *, asks_first: bool) -> None:
        super().__init__(source, asks_first=asks_first)
        self.server = server
        self._keys: set[str] = set()

    def put(self, key: str, data: bytes) -> None:
        self._keys.add(key)
        self.server.put(key, data)

    def delete(self, key: str) -> None:
        self._keys.discard(key)
        self.server.delete(key)

    def reset(self) -> None:
        self.server.reset()

    def asked(self) -> Asked:
        requests = self.server.requests()
        sent = [each.nbytes for each in requests if each.method == "GET" and each.status < 300]
        return Asked(sorted(each.method for each in requests), sum(sent))

    def empty(self) -> None:
        """Remove every value."""
        for key in list(self._keys):
            self.delete(key)


class FolderOrigin(Origin):
    """Values in a folder. Each version is an hour later than the one before, and all long ago."""

    def __init__(self, root: Path, source: Store, reads: list[int]) -> None:
        super().__init__(source, asks_first=False)
        self.root = root
        self._reads = reads
        self._puts = 0

    def put(self, key: str, data: bytes) -> None:
        self._puts += 1
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f"{path.name}.new")
        new.write_bytes(data)
        settle(new, self._puts)
        new.replace(path)

    def delete(self, key: str) -> None:
        (self.root / key).unlink()

    def reset(self) -> None:
        self._reads.clear()

    def asked(self) -> Asked:
        return Asked(["GET"] * len(self._reads), sum(self._reads))

    def remove(self) -> None:
        """Remove the folder with everything in it."""
        shutil.rmtree(self.root)


@contextlib.contextmanager
def over_http(
    through: Callable[[str], AbstractContextManager[Store]], *, asks_first: bool
) -> Iterator[HttpOrigin]:
    """An HTTP server, through a client."""
    with serving() as server, through(server.url) as source:
        yield HttpOrigin(server, source, asks_first=asks_first)


@contextlib.contextmanager
def over_s3(
    server: S3Server,
    through: Callable[[str], AbstractContextManager[Store]],
    *,
    asks_first: bool,
) -> Iterator[S3Origin]:
    """A bucket, through a client; it is emptied in the end."""
    with through(server.url) as source:
        origin = S3Origin(server, source, asks_first=asks_first)
        try:
            yield origin
        finally:
            origin.empty()


@contextlib.contextmanager
def over_local_store(root: Path) -> Iterator[FolderOrigin]:
    """A folder, through zarr's LocalStore."""
    reads: list[int] = []
    get = zarr_local._get

    def counted(*arguments: Any) -> Buffer:
        buffer = get(*arguments)
        reads.append(len(buffer))
        return buffer

    zarr_local._get = counted  # type: ignore[assignment] # the same
    try:
        yield FolderOrigin(root, LocalStore(root, read_only=True), reads)
    finally:
        zarr_local._get = get


@contextlib.contextmanager
def over_fsspec_files(root: Path) -> Iterator[FolderOrigin]:
    """A folder, through fsspec."""
    reads: list[int] = []
    cat_file = LocalFileSystem.cat_file

    def counted(*arguments: Any, **settings: Any) -> Any:
        data = cat_file(*arguments, **settings)
        reads.append(len(data))
        return data

    LocalFileSystem.cat_file = counted
    try:
        source = FsspecStore.from_url(f"file://{root}", read_only=True)
        yield FolderOrigin(root, source, reads)
    finally:
        LocalFileSystem.cat_file = cat_file


def caching(origin: Origin, path: Path, **settings: Any) -> CacheStore:
    """A read-only CacheStore over the origin."""
    return CacheStore(origin.source, cache_store=SqliteStore(path), namespace=NAMESPACE, **settings)
