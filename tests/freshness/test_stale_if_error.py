"""While the source fails, what is stale by a little is served, and one warning tells."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.core.sync import sync

from tests.fakes import read, read_ranges, restart
from tests.freshness.origins import NAMESPACE, caching, document, over_http, version
from tests.sources.http_server import through_obstore
from zarr_cache import CacheWarning, SourceChangedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zarr.abc.store import Store

    from tests.fakes import HeldTime
    from tests.freshness.origins import HttpOrigin
    from zarr_cache import CacheStore

CHUNK, METADATA, ABSENT = "array/c/0", "array/zarr.json", "array/c/1"
AGE, LONGER = 10, 100
FIRST, SECOND = RangeByteRequest(0, 100), RangeByteRequest(1000, 1100)
ONE = version(1)[:100]

FAULTS: dict[str, Any] = {
    "down": "down",
    "500": HTTPStatus.INTERNAL_SERVER_ERROR,
    "403": HTTPStatus.FORBIDDEN,
}


@pytest.fixture(params=list(FAULTS.values()), ids=list(FAULTS))
def fault(request: pytest.FixtureRequest) -> Any:
    """How the server fails."""
    return request.param


@pytest.fixture
def obstore() -> Iterator[HttpOrigin]:
    """Values of the HTTP server, through obstore."""
    with over_http(through_obstore, asks_first=False) as origin:
        yield origin


@pytest.fixture(params=[False, True], ids=["in memory", "persisted"])
def cache(
    http: HttpOrigin, path: Path, held_time: HeldTime, request: pytest.FixtureRequest
) -> Iterator[CacheStore]:
    """A cache whose values are stale now, and may be served for a while if the source fails."""
    http.copy({CHUNK: version(1), METADATA: document(1), "array/c/3": version(1)})
    cache = caching(
        http,
        path,
        max_age_seconds=AGE,
        stale_if_error_seconds=LONGER,
        persist_ranges=request.param,
    )
    for key in (CHUNK, METADATA, ABSENT):
        sync(read(cache, key))
    sync(read(cache, "array/c/3", FIRST))
    sync(read(cache, "array/c/3", SECOND))
    cache.flush()
    held_time.step(AGE + 1)
    yield cache
    restart(cache)


def stale_served(cache: CacheStore) -> object:
    return cache.cache_stats()["stale_served"]


READS: dict[str, Any] = {
    "chunk": (lambda store: sync(read(store, CHUNK)), version(1), 1),
    "metadata": (lambda store: sync(read(store, METADATA)), document(1), 1),
    "sync": (lambda store: store.get_sync(CHUNK).to_bytes(), version(1), 1),
    "absence": (lambda store: sync(read(store, ABSENT)), None, 1),
    "range": (lambda store: sync(read(store, "array/c/3", FIRST)), ONE, 1),
    "ranges": (
        lambda store: sync(read_ranges(store, "array/c/3", [FIRST, SECOND])),
        [ONE, ONE],
        2,
    ),
}
each_read = pytest.mark.parametrize(("ask", "found", "number"), READS.values(), ids=READS)


@pytest.mark.pairs
@each_read
def test_what_is_stale_by_a_little_is_served_and_one_warning_tells(
    http: HttpOrigin, cache: CacheStore, fault: Any, ask: Any, found: object, number: int
) -> None:
    http.server.fault = fault
    with pytest.warns(CacheWarning) as told:
        assert ask(cache) == found
    assert ask(cache) == found

    (warning,) = [str(each.message) for each in told]
    assert NAMESPACE in warning
    assert "127.0.0.1" not in warning
    assert stale_served(cache) in {2, 2 * number}


@pytest.mark.pairs
@pytest.mark.parametrize("ask", [ask for ask, _, _ in READS.values()], ids=READS)
def test_what_is_staler_than_that_is_not_served(
    http: HttpOrigin, cache: CacheStore, fault: Any, held_time: HeldTime, ask: Any
) -> None:
    held_time.step(LONGER)
    http.server.fault = fault

    with pytest.raises(Exception) as raised:  # noqa: PT011 - each client has errors of its own
        ask(cache)
    assert not isinstance(raised.value, SourceChangedError)
    assert stale_served(cache) == 0


def test_existence_and_size_are_those_of_what_is_stale_by_a_little(
    obstore: HttpOrigin, path: Path, held_time: HeldTime, fault: Any
) -> None:
    # fsspec says "no such file" of a server that is down as well, which is no failure.
    obstore.put(CHUNK, version(1))
    cache = caching(obstore, path, max_age_seconds=AGE, stale_if_error_seconds=LONGER)
    assert [sync(read(cache, key)) for key in (CHUNK, ABSENT)] == [version(1), None]
    held_time.step(AGE + 1)
    obstore.server.fault = fault

    with pytest.warns(CacheWarning, match="the source fails"):
        assert sync(cache.exists(CHUNK))
    assert sync(cache.getsize(CHUNK)) == len(version(1))
    assert not sync(cache.exists(ABSENT))
    with pytest.raises(FileNotFoundError):
        sync(cache.getsize(ABSENT))
    assert stale_served(cache) == 4
    held_time.step(LONGER)
    with pytest.raises(Exception):  # noqa: B017, PT011 - an error of the client
        sync(cache.exists(CHUNK))
    with pytest.raises(Exception):  # noqa: B017, PT011 - the same
        sync(cache.getsize(CHUNK))
    assert stale_served(cache) == 4


def test_an_absence_is_no_failure(http: HttpOrigin, cache: CacheStore) -> None:
    for key in (CHUNK, METADATA, "array/c/3"):
        http.delete(key)

    assert [sync(read(cache, key)) for key in (CHUNK, METADATA)] == [None, None]
    assert not sync(cache.exists(METADATA))
    with pytest.raises(FileNotFoundError):
        sync(cache.getsize(CHUNK))
    assert stale_served(cache) == 0


def test_of_several_ranges_all_are_served_or_none(http: HttpOrigin, cache: CacheStore) -> None:
    http.server.fault = HTTPStatus.INTERNAL_SERVER_ERROR

    with pytest.raises(ExceptionGroup) as raised:
        sync(read_ranges(cache, "array/c/3", [FIRST, RangeByteRequest(3000, 3100)]))
    assert raised.value.subgroup(SourceChangedError) is None


def test_a_change_is_no_failure(http: HttpOrigin, cache: CacheStore) -> None:
    http.put("array/c/3", version(2))

    with pytest.raises((SourceChangedError, ExceptionGroup)):
        sync(read(cache, "array/c/3", FIRST))
    assert sync(read(cache, "array/c/3", FIRST)) == version(2)[:100]
    assert stale_served(cache) == 0


def test_a_server_that_answers_late_and_then_fails_has_failed(
    http: HttpOrigin, cache: CacheStore
) -> None:
    arrived, may_fail = threading.Event(), threading.Event()

    def hold(_method: str, _key: str) -> None:
        arrived.set()
        may_fail.wait()

    http.server.fault = HTTPStatus.SERVICE_UNAVAILABLE
    http.server.before_send = hold
    with ThreadPoolExecutor(1) as thread:
        found = thread.submit(lambda: sync(read(cache, CHUNK)))
        arrived.wait()
        assert not found.done()
        may_fail.set()
        with pytest.warns(CacheWarning, match="the source fails"):
            assert found.result() == version(1)


def test_nothing_stale_is_served_by_default(
    http: HttpOrigin, path: Path, held_time: HeldTime, fault: Any
) -> None:
    http.put(CHUNK, version(1))
    store: Store = caching(http, path, max_age_seconds=AGE)
    sync(read(store, CHUNK))
    held_time.step(AGE + 1)
    http.server.fault = fault

    with pytest.raises(Exception):  # noqa: B017, PT011 - each client has errors of its own
        sync(read(store, CHUNK))
