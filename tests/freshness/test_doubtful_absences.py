"""What a source says that takes other errors for absent keys is believed for a minute."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import ClientResponseError
from fsspec.implementations.http import HTTPFileSystem
from zarr.abc.store import RangeByteRequest
from zarr.core.sync import sync
from zarr.storage import FsspecStore
from zarr.storage._fsspec import ALLOWED_EXCEPTIONS

from tests.fakes import PROTOTYPE, cached_keys, leave_process, read, read_ranges, restart
from tests.freshness.origins import NAMESPACE, version
from tests.sources.http_server import VersionedServer, serving
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fakes import HeldTime

CHUNK = "array/c/0"


@pytest.fixture
def server() -> Iterator[VersionedServer]:
    """A server that refuses what it has."""
    with serving() as server:
        server.put(CHUNK, version(1))
        server.fault = HTTPStatus.FORBIDDEN
        yield server


@pytest.fixture
def source(server: VersionedServer) -> Iterator[FsspecStore]:
    """A source that takes a refusal for an absent key."""
    file_system = HTTPFileSystem(asynchronous=True, skip_instance_cache=True)
    yield FsspecStore(
        file_system,
        path=server.url,
        read_only=True,
        allowed_exceptions=(*ALLOWED_EXCEPTIONS, ClientResponseError),
    )

    async def close() -> None:
        await (await file_system.set_session()).close()

    sync(close())


def caching(source: FsspecStore, path: Path, **settings: Any) -> CacheStore:
    return CacheStore(source, cache_store=SqliteStore(path), namespace=NAMESPACE, **settings)


@pytest.mark.parametrize("age", [None, 3600, "infinity"])
def test_it_is_believed_for_a_minute(
    server: VersionedServer, source: FsspecStore, path: Path, held_time: HeldTime, age: Any
) -> None:
    cache = caching(source, path, max_age_absent_seconds=age)
    assert sync(read(cache, CHUNK)) is None
    server.reset()
    held_time.step(59)

    assert sync(read(cache, CHUNK)) is None
    assert not sync(cache.exists(CHUNK))
    assert server.by_method() == {}
    held_time.step(2)
    server.fault = None
    assert sync(read(cache, CHUNK)) == version(1)
    restart(cache)


@pytest.mark.parametrize("surface", ["async", "sync"])
def test_it_is_believed_for_a_minute_of_ranges_as_well(
    server: VersionedServer, source: FsspecStore, path: Path, held_time: HeldTime, surface: str
) -> None:
    cache = caching(source, path, max_age_absent_seconds="infinity")
    requests = [RangeByteRequest(0, 2), RangeByteRequest(4, 6)]

    def ask() -> list[bytes | None]:
        if surface == "async":
            return sync(read_ranges(cache, CHUNK, requests))
        pieces = dict(cache.get_ranges_sync(CHUNK, requests, prototype=PROTOTYPE))
        return [None if piece is None else piece.to_bytes() for _, piece in sorted(pieces.items())]

    with pytest.raises(ExceptionGroup):
        ask()
    server.reset()
    held_time.step(59)

    with pytest.raises(ExceptionGroup):
        ask()
    assert server.by_method() == {}
    cache.flush()
    assert cached_keys(path) == set()
    held_time.step(2)
    server.fault = None
    assert ask() == [version(1)[:2], version(1)[4:6]]
    restart(cache)


def test_a_shorter_age_of_absences_holds(
    server: VersionedServer, source: FsspecStore, path: Path, held_time: HeldTime
) -> None:
    cache = caching(source, path, max_age_absent_seconds=5)
    assert sync(read(cache, CHUNK)) is None
    server.fault = None
    held_time.step(6)

    assert sync(read(cache, CHUNK)) == version(1)
    restart(cache)


def test_what_is_cached_stays_so(
    server: VersionedServer, source: FsspecStore, path: Path, held_time: HeldTime
) -> None:
    fault, server.fault = server.fault, None
    cache = caching(source, path, max_age_seconds=10)
    assert sync(read(cache, CHUNK)) == version(1)
    held_time.step(11)
    server.fault = fault
    assert sync(read(cache, CHUNK)) is None
    restart(cache)
    offline = caching(source, path, offline=True)

    assert sync(read(offline, CHUNK)) == version(1)
    restart(offline)


def test_another_process_asks_the_source(
    server: VersionedServer, source: FsspecStore, path: Path
) -> None:
    cache = caching(source, path, max_age_absent_seconds="infinity")
    assert sync(read(cache, CHUNK)) is None
    cache.flush()
    assert cached_keys(path) == set()
    leave_process(cache)
    server.fault = None
    other = caching(source, path, max_age_absent_seconds="infinity")

    assert sync(read(other, CHUNK)) == version(1)
    restart(other)
    restart(cache)


def test_a_source_that_takes_no_other_errors_for_absent_is_believed_for_its_age(
    server: VersionedServer, path: Path, held_time: HeldTime
) -> None:
    file_system = HTTPFileSystem(asynchronous=True, skip_instance_cache=True)
    source = FsspecStore(file_system, path=server.url, read_only=True)
    server.fault = None
    server.delete(CHUNK)
    cache = caching(source, path, max_age_absent_seconds="infinity")
    assert sync(read(cache, CHUNK)) is None
    server.reset()
    held_time.step(3600)

    assert sync(read(cache, CHUNK)) is None
    assert server.by_method() == {}
    restart(cache)

    async def close() -> None:
        await (await file_system.set_session()).close()

    sync(close())
