"""Reading from S3 with validators, through s3fs and through obstore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import obstore
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from zarr.abc.store import RangeByteRequest
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from tests.sources.reading import (
    DATA,
    KEY,
    REQUESTS,
    data_of,
    each_part,
    fetch,
    known_version,
    listed,
    outcome,
    outcome_of_plain,
    version,
)
from tests.sources.s3 import (
    S3Request,
    S3Server,
    serving_s3,
    store_of,
    through_s3_of_obstore,
    through_s3fs,
)
from zarr_cache.sources.source_reader import ChangedError, Fetched

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc.store import ByteRequest, Store

OTHER = DATA[::-1]


@pytest.fixture(scope="module")
def process() -> Iterator[S3Server]:
    with serving_s3() as server:
        yield server


@pytest.fixture
def server(process: S3Server) -> S3Server:
    process.put(KEY, DATA)
    process.reset()
    return process


@pytest.fixture
def s3fs_store(server: S3Server) -> Iterator[Store]:
    with through_s3fs(server.url) as source:
        yield source


@pytest.fixture
def obstores(server: S3Server) -> Iterator[Store]:
    with through_s3_of_obstore(server.url) as source:
        yield source


@pytest.fixture(params=["s3fs_store", "obstores"])
def source(request: pytest.FixtureRequest) -> Store:
    store: Store = request.getfixturevalue(request.param)
    return store


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_a_fetch_has_the_bytes_of_the_plain_store(
    request_: ByteRequest | None, source: Store
) -> None:
    plain = outcome_of_plain(source, request_)

    assert outcome(source, request_) == plain
    assert outcome(source, request_, with_version=False) == plain


def test_both_clients_have_the_same_validator(s3fs_store: Store, obstores: Store) -> None:
    assert known_version(s3fs_store) == known_version(obstores)


def test_no_byte_is_sent_of_what_is_unchanged(server: S3Server, source: Store) -> None:
    known = known_version(source)
    server.reset()
    fetched = fetch(source, unless=known)

    assert fetched == Fetched(None, known, is_unchanged=True)
    assert [(method, nbytes) for method, _, nbytes in server.requests()] in (
        [("HEAD", 0)],
        [("GET", 0)],
    )


def test_what_has_changed_is_sent_with_its_validator(server: S3Server, source: Store) -> None:
    known = known_version(source)
    server.put(KEY, OTHER)
    fetched = fetch(source, unless=known)

    assert data_of(fetched) == OTHER
    assert fetched.validator == version(source) != known


@each_part
def test_a_version_is_sent_while_it_is_the_only_one(
    request_: ByteRequest | None, part: bytes, server: S3Server, source: Store
) -> None:
    known = known_version(source)
    found = fetch(source, request_, only=known)
    server.put(KEY, OTHER)

    assert (data_of(found), found.validator) == (part, known)
    with pytest.raises(ChangedError):
        fetch(source, request_, only=known)


def test_a_key_that_is_gone_is_no_version(server: S3Server, source: Store) -> None:
    known = known_version(source)
    server.delete(KEY)

    assert fetch(source) == fetch(source, unless=known) == Fetched(None, None)
    assert version(source) is None
    with pytest.raises(ChangedError):
        fetch(source, only=known)


def test_obstore_makes_one_request(server: S3Server, obstores: Store) -> None:
    known = known_version(obstores)
    fetch(obstores, RangeByteRequest(10, 20), only=known)
    fetch(obstores, unless=known)
    version(obstores)

    assert server.requests() == [
        S3Request("GET", 200, len(DATA)),
        S3Request("GET", 206, 10),
        S3Request("GET", 304, 0),
        S3Request("HEAD", 200, 0),
    ]


def test_s3fs_makes_one_request_more_for_a_validator(server: S3Server, s3fs_store: Store) -> None:
    found = []
    for with_version in (False, True):
        server.reset()
        fetch(s3fs_store, RangeByteRequest(10, 20), with_version=with_version)
        found.append(server.methods())

    assert found == [["GET"], ["HEAD", "GET"]]


def test_a_listing_tells_the_validators_of_a_page_in_one_request(
    server: S3Server, source: Store
) -> None:
    keys = {f"many/c/{number}" for number in range(5)}
    for key in keys:
        server.put(key, key.encode())
    server.reset()
    found = listed(source, "many/")
    methods = server.methods()

    assert methods == ["LIST"]
    assert set(found) == keys
    for key, (name, validator, size, modified_ns) in found.items():
        assert (name, validator, size) == (key, version(source, key), len(key))
        assert modified_ns is not None
        assert modified_ns > 10**18


def test_a_listing_of_all_keys_has_those_of_the_store_alone(
    server: S3Server, source: Store
) -> None:
    obstore.put(store_of(server.url, "data.zarr.bak"), "key", b"beside it")
    server.put("zarr.json", b"{}")

    assert {KEY, "zarr.json"} <= set(listed(source))
    assert not [key for key in listed(source) if "bak" in key]
    assert listed(source, "nothing/") == {}


@pytest.mark.parametrize("lister", ["ls", "find", "ours"])
def test_an_earlier_listing_does_not_tell_the_validator(
    lister: str, server: S3Server, s3fs_store: Store
) -> None:
    assert isinstance(s3fs_store, FsspecStore)
    file_system: Any = s3fs_store.fs
    folder = f"{s3fs_store.path}/group"
    if lister == "ls":
        sync(file_system._ls(folder))
    elif lister == "find":
        sync(file_system._find(folder))
    else:
        listed(s3fs_store)
    known = known_version(s3fs_store)
    server.put(KEY, OTHER[:5])

    assert version(s3fs_store) != known
    assert data_of(fetch(s3fs_store, unless=known)) == OTHER[:5]
    assert listed(s3fs_store)[KEY].validator == version(s3fs_store)
    # Nor does what was listed for us tell the store itself a size.
    assert sync(s3fs_store.getsize(KEY)) == 5


def test_a_folder_of_a_file_system_has_the_validators_of_what_it_forwards_to(
    server: S3Server, s3fs_store: Store
) -> None:
    assert isinstance(s3fs_store, FsspecStore)
    bucket, _, folder = s3fs_store.path.partition("/")
    inside = FsspecStore(
        DirFileSystem(bucket, s3fs_store.fs, asynchronous=True), path=folder, read_only=True
    )
    server.put("folder/key", b"value")

    assert fetch(inside) == fetch(s3fs_store)
    assert version(inside) == known_version(s3fs_store)
    assert listed(inside, "folder/") == listed(s3fs_store, "folder/")
    assert set(listed(inside, "folder/")) == {"folder/key"}
