"""A source that takes any error for an absent key is believed for a minute, by one process.

zarr's ``FsspecStore(allowed_exceptions=...)`` lets a source do so, since S3 refuses keys that are
absent with a 403 to users who may not list them. An expired login is a 403 as well. Kept for ever,
it would be fill values for ever, in every process.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from aiohttp import ClientResponseError
from fsspec.implementations.http import HTTPFileSystem
from zarr.core.sync import sync
from zarr.experimental.cache_store import CacheStore as ZarrCacheStore
from zarr.storage import FsspecStore, LoggingStore, MemoryStore, WrapperStore
from zarr.storage._fsspec import ALLOWED_EXCEPTIONS

from tests.fakes import leave_process, open_file, read, restart
from tests.freshness.origins import version
from tests.sources.http_server import VersionedServer, serving
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zarr.abc.store import Store

    from tests.fakes import HeldTime

CHUNK = "array/c/0"


class Renamed(FsspecStore):
    """A store of a user."""


class Wrapped(WrapperStore["Store"]):
    """A wrapper of a user."""


type Wrapping = Callable[[FsspecStore, Path], Store]

SOURCES: dict[str, Wrapping] = {
    "FsspecStore": lambda source, _: source,
    "a subclass of it": lambda source, _: Renamed(
        source.fs, path=source.path, read_only=True, allowed_exceptions=source.allowed_exceptions
    ),
    "LoggingStore": lambda source, _: LoggingStore(source),
    "a wrapper of a user": lambda source, _: Wrapped(source),
    "zarr's CacheStore": lambda source, _: ZarrCacheStore(source, cache_store=MemoryStore()),
    "CacheStore": lambda source, folder: CacheStore(
        source, cache_store=SqliteStore(folder / "inner.sqlite"), namespace="inner"
    ),
}


@pytest.fixture
def server() -> Iterator[VersionedServer]:
    """A server that refuses what it has."""
    with serving() as server:
        server.put(CHUNK, version(1))
        server.fault = HTTPStatus.FORBIDDEN
        yield server


@pytest.fixture(params=list(SOURCES.values()), ids=list(SOURCES))
def source(
    server: VersionedServer, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Store]:
    """A source that takes a refusal for an absent key."""
    file_system = HTTPFileSystem(asynchronous=True, skip_instance_cache=True)
    taking = FsspecStore(
        file_system,
        path=server.url,
        read_only=True,
        allowed_exceptions=(*ALLOWED_EXCEPTIONS, ClientResponseError),
    )
    yield request.param(taking, tmp_path)

    async def close() -> None:
        await (await file_system.set_session()).close()

    sync(close())


def caching(source: Store, path: Path) -> CacheStore:
    return CacheStore(
        source,
        cache_store=SqliteStore(path),
        namespace="refusing",
        max_age_absent_seconds="infinity",
        read_only=True,
    )


def test_no_other_process_is_told(server: VersionedServer, source: Store, path: Path) -> None:
    cache = caching(source, path)
    assert sync(read(cache, CHUNK)) is None
    cache.flush()
    leave_process(cache)
    with open_file(path) as db:
        assert db.execute("SELECT count(*) FROM entry").fetchone() == (0,)
    server.fault = None


def test_once_the_login_is_renewed_the_value_is_read(
    server: VersionedServer, source: Store, path: Path, held_time: HeldTime
) -> None:
    cache = caching(source, path)
    assert sync(read(cache, CHUNK)) is None
    server.fault = None
    # A minute of each CacheStore.
    held_time.step(61)
    sync(read(cache, CHUNK))
    held_time.step(61)

    assert sync(read(cache, CHUNK)) == version(1)
    restart(cache)
