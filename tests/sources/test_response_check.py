"""Several ranges of a key through a reader: each of zarr's requests is for one version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import LocalStore

from tests.fakes import PROTOTYPE
from tests.sources.http_server import VersionedServer, serving, through_fsspec, through_obstore
from tests.sources.reading import DATA, KEY, known_version, reader_for
from zarr_cache.sources.response_check import RangeCheckedStore, with_range_check
from zarr_cache.sources.source_reader import ChangedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store

RANGES: list[ByteRequest | None] = [
    RangeByteRequest(10, 20),
    RangeByteRequest(30, 40),
    SuffixByteRequest(9),
]
PARTS = [DATA[10:20], DATA[30:40], DATA[-9:]]


@pytest.fixture
def server() -> Iterator[VersionedServer]:
    with serving() as server:
        server.put(KEY, DATA)
        yield server


def checked(source: Store, method: str = "get_ranges", **settings: Any) -> RangeCheckedStore:
    """The store to read the ranges from, through the reader of the source."""
    store = with_range_check(source, method, reader_for(source), **settings)
    return cast("RangeCheckedStore", store)


def read(store: Store, byte_ranges: Sequence[ByteRequest | None] = RANGES) -> list[bytes]:
    """The ranges, in their order."""

    async def collect() -> list[bytes]:
        found: dict[int, Any] = {}
        async for batch in store.get_ranges(KEY, byte_ranges, prototype=PROTOTYPE):
            found.update(batch)
        return [found[index].to_bytes() for index in range(len(byte_ranges))]

    return sync(collect())


def test_merged_requests_are_conditional(server: VersionedServer) -> None:
    with through_obstore(server.url) as source:
        known = known_version(source)
        server.reset()
        store = checked(source, only=known)
        parts = read(store)

    assert parts == PARTS
    assert sorted(each["Range"] for each in server.conditions) == ["bytes=-9", "bytes=10-39"]
    assert {each["If-Match"] for each in server.conditions} == {known}
    assert (store.validators, store.is_torn) == ({known}, False)


def test_another_version_is_an_error_in_the_group(server: VersionedServer) -> None:
    with through_obstore(server.url) as source:
        known = known_version(source)
        server.put(KEY, DATA[::-1])
        store = checked(source, only=known)
        with pytest.RaisesGroup(ChangedError):
            read(store, RANGES[:2])

    assert store.validators == set()


def test_two_versions_between_two_requests_are_two_validators(server: VersionedServer) -> None:
    first = server.etag(KEY)
    with through_obstore(server.url) as source:
        store = checked(source)
        read(store, RANGES[:1])
        server.put(KEY, DATA[::-1])
        read(store, RANGES[2:])

    assert store.validators == {first, server.etag(KEY)}


def test_fsspec_asks_for_no_validator_if_told_so(server: VersionedServer) -> None:
    with through_fsspec(server.url) as source:
        without = checked(source, with_version=False)
        parts = read(without, RANGES[:2])
        of_without = server.by_method()
        with_it = checked(source)
        read(with_it, RANGES[:2])

    assert parts == PARTS[:2]
    assert (of_without, without.validators) == ({"GET": 1}, {None})
    assert (server.by_method(), with_it.validators) == ({"GET": 2, "HEAD": 1}, {server.etag(KEY)})


def test_a_response_of_another_length_may_be_wrong(server: VersionedServer) -> None:
    server.ignores_range = True
    with through_fsspec(server.url) as source:
        store = checked(source)
        read(store, RANGES[:2])

    assert store.may_be_wrong(RANGES[0])
    assert not store.may_be_wrong(RangeByteRequest(50, 60))


def test_a_key_that_is_absent_has_no_validator(server: VersionedServer) -> None:
    server.delete(KEY)
    with through_obstore(server.url) as source:
        store = checked(source)
        with pytest.RaisesGroup(FileNotFoundError):
            read(store, RANGES[:1])

    assert store.validators == set()


def test_the_sync_surface_reads_one_version_or_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = LocalStore(tmp_path)
    file = tmp_path / KEY
    file.parent.mkdir()
    file.write_bytes(DATA)
    known = reader_for(source).version_sync
    monkeypatch.setattr("zarr_cache.sources.validators.is_settled", lambda *_: True)
    validator = known(KEY)
    store = checked(source, "get_ranges_sync", only=validator)
    parts: dict[int, Any] = dict(store.get_ranges_sync(KEY, RANGES, prototype=PROTOTYPE))
    file.write_bytes(DATA + DATA)

    assert [parts[index].to_bytes() for index in range(3)] == PARTS
    assert store.validators == {validator}
    with pytest.raises(ChangedError):
        store.get_ranges_sync(KEY, RANGES, prototype=PROTOTYPE)


def test_a_torn_response_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = LocalStore(tmp_path)
    file = tmp_path / KEY
    file.parent.mkdir()
    file.write_bytes(DATA)
    plain = LocalStore.get_sync

    def get_sync(store: LocalStore, key: str, **settings: Any) -> Any:
        file.write_bytes(DATA + DATA)
        return plain(store, key, **settings)

    monkeypatch.setattr(LocalStore, "get_sync", get_sync)
    store = checked(source)
    parts = read(store, RANGES[:1])

    assert (parts, store.validators, store.is_torn) == (PARTS[:1], {None}, True)


def test_without_a_reader_the_source_itself_is_read(server: VersionedServer) -> None:
    with through_obstore(server.url) as source:
        store = with_range_check(source, "get_ranges")
        parts = read(store)

    assert isinstance(store, RangeCheckedStore)
    assert parts == PARTS
    assert store.validators == set()
