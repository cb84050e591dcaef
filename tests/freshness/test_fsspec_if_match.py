"""fsspec's HTTP takes headers, so ranges of a value are asked for with ``If-Match``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from tests.fakes import read, read_ranges, restart
from tests.freshness.origins import NAMESPACE, version
from tests.sources.http_server import USERS_HEADER, VersionedServer, serving, through_fsspec
from zarr_cache import CacheStore, SourceChangedError, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zarr.abc.store import ByteRequest

KEY = "array/c/0"
FIRST, SECOND, THIRD = (RangeByteRequest(start, start + 100) for start in (0, 1000, 2000))
PARTS: list[ByteRequest] = [FIRST, SECOND, OffsetByteRequest(4000), SuffixByteRequest(500)]


@pytest.fixture
def server() -> Iterator[VersionedServer]:
    with serving() as server:
        server.put(KEY, version(1))
        yield server


@pytest.fixture(params=[False, True], ids=["in memory", "persisted"])
def cache(
    server: VersionedServer, path: Path, request: pytest.FixtureRequest
) -> Iterator[CacheStore]:
    """With the default ages: what is cached is fresh for ever."""
    with through_fsspec(server.url) as source:
        cache = CacheStore(
            source,
            cache_store=SqliteStore(path),
            namespace=NAMESPACE,
            persist_ranges=request.param,
            read_only=True,
        )
        yield cache
        restart(cache)


def versions_of_parts(cache: CacheStore) -> list[set[int]]:
    parts = [sync(read(cache, KEY, part)) for part in PARTS]
    return [set(part or b"") for part in parts]


def test_a_value_that_was_replaced_between_two_ranges_is_refused_without_a_head_for_each(
    server: VersionedServer, cache: CacheStore
) -> None:
    assert versions_of_parts(cache) == [{1}] * len(PARTS)
    asked = server.by_method()
    server.put(KEY, version(2))

    assert asked == {"HEAD": 1, "GET": len(PARTS)}
    with pytest.raises(SourceChangedError, match=KEY):
        sync(read(cache, KEY, THIRD))
    assert versions_of_parts(cache) == [{2}] * len(PARTS)


def test_several_missing_ranges_are_of_the_version_of_those_that_are_cached(
    server: VersionedServer, cache: CacheStore
) -> None:
    sync(read_ranges(cache, KEY, [FIRST]))
    server.put(KEY, version(2))

    with pytest.raises(ExceptionGroup) as raised:
        sync(read_ranges(cache, KEY, [FIRST, SECOND, THIRD]))
    assert [type(each) for each in raised.value.exceptions] == [SourceChangedError]
    assert sync(read_ranges(cache, KEY, [SECOND, THIRD])) == [version(2)[:100]] * 2


def test_a_server_that_refuses_the_version_that_it_has_is_read_without_conditions(
    server: VersionedServer, cache: CacheStore
) -> None:
    server.refuses_matches = True

    for part in (FIRST, SECOND):
        assert sync(read(cache, KEY, part)) == version(1)[:100]
    assert sync(read_ranges(cache, KEY, [FIRST, SECOND, THIRD])) == [version(1)[:100]] * 3
    # The HEAD of the first range, one after it was refused, and none after that.
    assert server.by_method() == {"HEAD": 2, "GET": 4}
    assert sum("If-Match" in each for each in server.conditions) == 1


def test_headers_of_the_user_are_sent_as_well(server: VersionedServer, path: Path) -> None:
    source = FsspecStore.from_url(
        server.url, storage_options={"headers": {USERS_HEADER: "secret"}}, read_only=True
    )
    cache = CacheStore(source, cache_store=SqliteStore(path), namespace=NAMESPACE)
    for part in (FIRST, SECOND):
        sync(read(cache, KEY, part))

    assert [each.get(USERS_HEADER) for each in server.conditions] == ["secret"] * 3
    assert [each.get("If-Match") for each in server.conditions].count(server.etag(KEY)) == 2
