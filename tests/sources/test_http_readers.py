"""Reading from an HTTP server with validators, through fsspec and through obstore."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import obstore
import pytest
from obstore.exceptions import NotSupportedError
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync

from tests.sources.http_server import VersionedServer, serving, through_fsspec, through_obstore
from tests.sources.reading import (
    DATA,
    KEY,
    REQUESTS,
    data_of,
    each_part,
    fetch,
    known_version,
    outcome,
    outcome_of_plain,
    reader_for,
    version,
)
from zarr_cache.sources.source_reader import ChangedError, Fetched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc.store import ByteRequest, Store

    from tests.sources.http_server import ETags

OTHER = DATA[::-1]


@pytest.fixture
def server() -> Iterator[VersionedServer]:
    with serving() as server:
        server.put(KEY, DATA)
        yield server


@pytest.fixture
def fsspecs(server: VersionedServer) -> Iterator[Store]:
    with through_fsspec(server.url) as source:
        yield source


@pytest.fixture
def obstores(server: VersionedServer) -> Iterator[Store]:
    with through_obstore(server.url) as source:
        yield source


@pytest.fixture(params=["fsspecs", "obstores"])
def source(request: pytest.FixtureRequest) -> Store:
    store: Store = request.getfixturevalue(request.param)
    return store


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_a_fetch_has_the_bytes_of_the_plain_store_and_the_etag(
    request_: ByteRequest | None, server: VersionedServer, source: Store
) -> None:
    plain = outcome_of_plain(source, request_)

    assert outcome(source, request_) == plain
    assert outcome(source, request_, with_version=False) == plain
    assert outcome(source, request_, only=server.etag(KEY)) == plain
    if isinstance(plain, bytes):
        assert fetch(source, request_).validator == server.etag(KEY)


def test_obstore_asks_once_and_fsspec_for_the_validator_first(
    server: VersionedServer, fsspecs: Store, obstores: Store
) -> None:
    fetch(obstores, RangeByteRequest(10, 20))
    of_obstore = server.by_method()
    server.reset()
    fetch(fsspecs, RangeByteRequest(10, 20))
    of_fsspec = server.by_method()
    server.reset()
    without = fetch(fsspecs, with_version=False)

    assert (of_obstore, of_fsspec) == ({"GET": 1}, {"HEAD": 1, "GET": 1})
    assert server.by_method() == {"GET": 1}
    assert (data_of(without), without.validator) == (DATA, None)


@pytest.mark.parametrize("etags", ["strong", None])
def test_no_byte_is_sent_of_what_is_unchanged(
    etags: ETags | None, server: VersionedServer, source: Store
) -> None:
    server.etags = etags
    known = known_version(source)
    server.reset()

    assert fetch(source, unless=known) == Fetched(None, known, is_unchanged=True)
    assert server.sent_bytes == 0
    assert sum(server.by_method().values()) == 1


@pytest.mark.parametrize("etags", ["strong", None])
def test_what_has_changed_is_sent_with_its_validator(
    etags: ETags | None, server: VersionedServer, source: Store
) -> None:
    server.etags = etags
    known = known_version(source)
    server.put(KEY, OTHER)

    fetched = fetch(source, unless=known)

    assert (data_of(fetched), fetched.is_unchanged) == (OTHER, False)
    assert fetched.validator == version(source) != known


def test_a_value_that_an_older_one_has_replaced_is_changed(
    server: VersionedServer, source: Store
) -> None:
    server.etags = None
    known = known_version(source)
    server.put(KEY, OTHER, modified=datetime(2000, 1, 1, tzinfo=UTC))

    assert data_of(fetch(source, unless=known)) == OTHER
    with pytest.raises(ChangedError):
        fetch(source, RangeByteRequest(0, 9), only=known)


@pytest.mark.parametrize("etags", ["strong", None])
@each_part
def test_a_version_is_sent_while_it_is_the_only_one(
    request_: ByteRequest | None,
    part: bytes,
    etags: ETags | None,
    server: VersionedServer,
    source: Store,
) -> None:
    server.etags = etags
    known = known_version(source)
    found = fetch(source, request_, only=known)
    server.put(KEY, OTHER)
    server.reset()

    assert (data_of(found), found.validator) == (part, known)
    with pytest.raises(ChangedError, match=KEY):
        fetch(source, request_, only=known)
    assert server.sent_bytes == 0


def test_a_key_that_is_gone_is_no_version(server: VersionedServer, source: Store) -> None:
    known = known_version(source)
    server.delete(KEY)

    assert fetch(source) == fetch(source, unless=known) == Fetched(None, None)
    assert version(source) is None
    with pytest.raises(ChangedError):
        fetch(source, only=known)


@pytest.mark.parametrize("fault", ["down", HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.FORBIDDEN])
def test_a_fault_raises_what_the_plain_store_raises(
    fault: HTTPStatus, server: VersionedServer, source: Store
) -> None:
    known = known_version(source)
    server.fault = fault
    plain = outcome_of_plain(source, None)

    assert isinstance(plain, type)
    assert issubclass(plain, Exception)
    for settings in ({}, {"unless": known}, {"only": known}, {"with_version": False}):
        assert outcome(source, None, **settings) is plain


@pytest.mark.parametrize("fault", ["down", HTTPStatus.INTERNAL_SERVER_ERROR])
def test_obstore_tells_that_the_server_is_down_and_fsspec_does_not(
    fault: HTTPStatus, server: VersionedServer, fsspecs: Store, obstores: Store
) -> None:
    server.fault = fault

    assert version(fsspecs) is None
    with pytest.raises(Exception, match="HTTP"):
        version(obstores)


@pytest.mark.parametrize("status", [HTTPStatus.FORBIDDEN, HTTPStatus.METHOD_NOT_ALLOWED])
@pytest.mark.parametrize("etags", ["strong", None])
def test_a_server_that_refuses_head_is_read_all_the_same(
    status: HTTPStatus, etags: ETags | None, server: VersionedServer, source: Store
) -> None:
    server.etags = etags
    known = known_version(source)
    server.head_status = status

    # fsspec asks again with GET, and obstore learns it from the bytes.
    assert fetch(source).validator == known
    assert fetch(source, unless=known).is_unchanged
    assert data_of(fetch(source, only=known)) == DATA
    assert version(source) in {None, known}


def test_fsspec_reads_the_bytes_if_nothing_tells_their_version(
    server: VersionedServer, fsspecs: Store
) -> None:
    def fail_once(method: str, _key: str) -> None:
        # The second request of fsspec's for headers, before the one for the bytes.
        server.fault = None if method == "GET" else HTTPStatus.FORBIDDEN

    server.fault = HTTPStatus.FORBIDDEN
    server.before_send = fail_once
    fetched = fetch(fsspecs)

    assert server.by_method() == {"HEAD": 1, "GET": 2}
    assert (data_of(fetched), fetched.validator) == (DATA, None)


@pytest.mark.parametrize("etags", ["weak", "odd"])
def test_a_weak_or_odd_etag_is_no_validator(
    etags: ETags, server: VersionedServer, source: Store
) -> None:
    server.etags = etags

    assert data_of(fetch(source)) == DATA
    assert fetch(source).validator is None
    assert version(source) is None
    # It cannot be shown to be that version.
    with pytest.raises(ChangedError):
        fetch(source, RangeByteRequest(1, 2), only='"known"')


def test_a_value_modified_a_minute_ago_has_a_validator_without_etag(
    server: VersionedServer, source: Store
) -> None:
    server.etags = None
    now = datetime.now(UTC)
    found = []
    for modified in (now, now - timedelta(seconds=50), now - timedelta(seconds=70)):
        server.put(KEY, DATA, modified=modified)
        found.append(fetch(source).validator)
    server.tells_modified = False

    assert [each is not None for each in found] == [False, False, True]
    assert fetch(source).validator is version(source) is None


@pytest.mark.parametrize("etags", ["strong", None])
def test_a_server_that_ignores_conditions_is_read_right(
    etags: ETags | None, server: VersionedServer, source: Store
) -> None:
    server.etags, server.ignores_conditions = etags, True
    known = known_version(source)
    same, part = fetch(source, unless=known), fetch(source, RangeByteRequest(5, 9), only=known)
    server.put(KEY, OTHER)

    assert same == Fetched(None, known, is_unchanged=True)
    assert (data_of(part), part.validator) == (DATA[5:9], known)
    assert data_of(fetch(source, unless=known)) == OTHER
    with pytest.raises(ChangedError):
        fetch(source, RangeByteRequest(5, 9), only=known)


def test_a_server_that_ignores_ranges_is_read_as_by_the_plain_store(
    server: VersionedServer, source: Store
) -> None:
    server.ignores_range = True

    # But for the last one: zarr asks obstore for a negative range then.
    for request in REQUESTS[:-1]:
        assert outcome(source, request) == outcome_of_plain(source, request)


def test_a_server_that_ignores_ranges_and_refuses_head_is_read_as_by_the_plain_store(
    server: VersionedServer, source: Store
) -> None:
    server.ignores_range, server.head_status = True, HTTPStatus.METHOD_NOT_ALLOWED

    for request in REQUESTS:
        assert outcome(source, request) == outcome_of_plain(source, request)


def test_obstore_asks_for_the_one_version_in_the_request_for_the_bytes(
    server: VersionedServer, obstores: Store
) -> None:
    known = known_version(obstores)
    server.reset()
    fetch(obstores, unless=known)
    fetch(obstores, RangeByteRequest(1, 3), only=known)

    assert server.conditions == [
        {"If-None-Match": known},
        {"If-Match": known, "Range": "bytes=1-2"},
    ]


def test_obstore_asks_for_the_date_of_the_one_version(
    server: VersionedServer, obstores: Store
) -> None:
    server.etags = None
    known = known_version(obstores)
    server.reset()
    fetch(obstores, RangeByteRequest(1, 3), only=known)

    assert server.conditions == [
        {"If-Unmodified-Since": "Mon, 01 Jan 2024 01:00:00 GMT", "Range": "bytes=1-2"}
    ]


def test_bytes_that_fsspec_reads_after_a_change_do_not_have_the_later_validator(
    server: VersionedServer, fsspecs: Store
) -> None:
    # Under the earlier one they are found out of date; under the later one they never are.
    first = known_version(fsspecs)

    def change(method: str, _key: str) -> None:
        if method == "HEAD":
            server.put(KEY, OTHER)

    server.before_send = change
    fetched = fetch(fsspecs)

    assert (data_of(fetched), fetched.validator) == (OTHER, first)
    assert first != server.etag(KEY)


def test_a_suffix_is_a_range_where_the_store_has_no_requests_for_it(
    server: VersionedServer, obstores: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_suffixes(monkeypatch)
    known = known_version(obstores)
    server.reset()
    fetched = fetch(obstores, SuffixByteRequest(9))

    assert (data_of(fetched), fetched.validator, fetched.is_torn) == (DATA[-9:], known, False)
    assert server.by_method() == {"HEAD": 1, "GET": 1}
    assert data_of(fetch(obstores, SuffixByteRequest(9), only=known)) == DATA[-9:]
    assert data_of(fetch(obstores, SuffixByteRequest(len(DATA) + 1))) == DATA


def test_a_suffix_by_the_size_of_another_version_is_torn(
    server: VersionedServer, obstores: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_suffixes(monkeypatch)
    known = known_version(obstores)

    def grow(method: str, _key: str) -> None:
        if method == "HEAD":
            server.put(KEY, DATA + DATA)

    server.before_send = grow
    fetched = fetch(obstores, SuffixByteRequest(9))
    server.put(KEY, DATA)

    assert (data_of(fetched), fetched.validator, fetched.is_torn) == (DATA[-9:], None, True)
    with pytest.raises(ChangedError):
        fetch(obstores, SuffixByteRequest(9), only=known)


def refuse_suffixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a store of Azure does."""
    plain = obstore.get_async

    async def get_async(*args: Any, options: Any) -> Any:
        if isinstance(options.get("range"), dict):
            raise NotSupportedError
        return await plain(*args, options=options)

    monkeypatch.setattr(obstore, "get_async", get_async)


def test_a_listing_of_http_tells_no_validators(source: Store) -> None:
    assert reader_for(source).list_versions("") is None


def test_each_reader_states_what_it_can_do(fsspecs: Store, obstores: Store) -> None:
    of_fsspec, of_obstore = reader_for(fsspecs), reader_for(obstores)

    assert [of_fsspec.can_match, of_obstore.can_match] == [False, True]
    assert [of_fsspec.asks_more, of_obstore.asks_more] == [True, False]
    for reader in (of_fsspec, of_obstore):
        assert not reader.is_sync
        with pytest.raises(TypeError, match=KEY):
            reader.fetch_sync(KEY)
        with pytest.raises(TypeError, match=KEY):
            reader.version_sync(KEY)


def test_a_key_that_is_no_end_of_a_url_has_the_validator_of_its_bytes(
    server: VersionedServer, source: Store
) -> None:
    # fsspec reads "a#b" and "a?b" as the key "a", and obstore does not.
    server.put("a", b"a")
    server.put("a#b", b"a#b")
    etags = {b"a": server.etag("a"), b"a#b": server.etag("a#b")}
    reader = reader_for(source)
    fetched = sync(reader.fetch("a#b"))
    data = data_of(fetched)

    assert data is not None
    assert fetched.validator == etags[data]


def test_an_absent_key_is_not_asked_for_once_more_after_a_404(
    server: VersionedServer, fsspecs: Store
) -> None:
    found = sync(reader_for(fsspecs).fetch("no such key"))

    assert found == Fetched(None, None)
    # The GET is of fsspec's `_info`, which has no HEAD to go by.
    assert server.by_method() == {"HEAD": 1, "GET": 1}


def test_a_server_that_is_down_is_asked_for_the_bytes(
    server: VersionedServer, fsspecs: Store
) -> None:
    server.fault = HTTPStatus.SERVICE_UNAVAILABLE

    with pytest.raises(Exception, match="503"):
        sync(reader_for(fsspecs).fetch("no such key"))
