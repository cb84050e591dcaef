"""Two S3 endpoints that have a bucket of the same name, over one file."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import obstore.store
import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import FsspecStore, ObjectStore

from tests.fakes import CountingStore, flush_everything, read, restart
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from zarr.abc.store import Store

    type Opener = Callable[[str], Store]

SERVER = Path(__file__).with_name("s3_server.py")
BUCKET = "climate"
SECRETS = {"access_key_id": "AKIAUNTOLD", "secret_access_key": "HUSHSECRET", "token": "HUSHTOKEN"}
KEY, SECRET, TOKEN = SECRETS.values()


def through_s3fs(endpoint: str) -> Store:
    return of_s3fs(endpoint_url=endpoint)


def through_a_client_of_s3fs(endpoint: str) -> Store:
    return of_s3fs(client_kwargs={"endpoint_url": endpoint})


def through_obstore(endpoint: str) -> Store:
    store = obstore.store.S3Store(
        BUCKET,
        prefix="data.zarr",
        endpoint=endpoint.replace("://", f"://{KEY}:{SECRET}@"),
        region="us-east-1",
        access_key_id=KEY,
        secret_access_key=SECRET,
        token=TOKEN,
        client_options={"allow_http": True},
    )
    return ObjectStore(store, read_only=True)


def of_s3fs(**options: object) -> Store:
    with_keys = {"key": KEY, "secret": SECRET, "token": TOKEN, "skip_instance_cache": True}
    return FsspecStore.from_url(
        f"s3://{BUCKET}/data.zarr", storage_options={**with_keys, **options}, read_only=True
    )


OPENERS: list[Opener] = [through_s3fs, through_a_client_of_s3fs, through_obstore]
each_way = pytest.mark.parametrize("opener", OPENERS, ids=lambda opener: opener.__name__)

A, B = (b'{"of": "%s", "zarr_format": 3}' % name for name in (b"a", b"b"))


@pytest.fixture(scope="module")
def endpoints() -> Iterator[list[str]]:
    """Two servers, each with the same bucket and key, and a value that names the server."""
    with ExitStack() as servers:
        endpoints = []
        for value in (A, B):
            server = servers.enter_context(
                subprocess.Popen(
                    [sys.executable, SERVER],
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                )
            )
            assert server.stdin is not None
            assert server.stdout is not None
            servers.callback(server.stdin.close)
            endpoint = server.stdout.readline().strip()
            put(f"{endpoint}/{BUCKET}", b"")
            put(f"{endpoint}/{BUCKET}/data.zarr/zarr.json", value)
            endpoints.append(endpoint)
        yield endpoints


def put(url: str, data: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data, headers, method="PUT")  # noqa: S310 - our own server
    with urllib.request.urlopen(request):  # noqa: S310 - the same
        pass


@asynccontextmanager
async def opened(opener: Opener, endpoint: str) -> AsyncIterator[CountingStore]:
    """The source at an endpoint, with its connections closed at the end."""
    source = opener(endpoint)
    try:
        yield CountingStore(source)
    finally:
        if isinstance(source, FsspecStore):
            client = await source.fs.set_session()
            await client.close()


@each_way
async def test_neither_of_two_endpoints_is_served_for_the_other(
    opener: Opener, endpoints: list[str], path: Path
) -> None:
    async with opened(opener, endpoints[0]) as of_a, opened(opener, endpoints[1]) as of_b:
        a, b = (CacheStore(each, cache_store=SqliteStore(path)) for each in (of_a, of_b))
        for _ in range(2):
            assert await read(a, "zarr.json", RangeByteRequest(8, 9)) == b"a"
            assert await read(b, "zarr.json", RangeByteRequest(8, 9)) == b"b"
            assert await read(a, "zarr.json") == A
            assert await read(b, "zarr.json") == B

        assert of_a.requests == of_b.requests == {"get": 2}
        assert [a.namespace, b.namespace] == [
            f"s3://{BUCKET}/data.zarr at {endpoint}" for endpoint in endpoints
        ]


@each_way
async def test_an_endpoint_is_known_again_whatever_reads_it(
    opener: Opener, endpoints: list[str], path: Path
) -> None:
    async with opened(through_s3fs, endpoints[0]) as source:
        before = CacheStore(source, cache_store=SqliteStore(path))
        await read(before, "zarr.json")
        restart(before)
    async with opened(opener, endpoints[0]) as source:
        again = CacheStore(source, cache_store=SqliteStore(path))

        assert await read(again, "zarr.json") == A
        assert source.requests == {}


@each_way
async def test_no_credential_of_a_bucket_is_shown_or_written(
    opener: Opener, endpoints: list[str], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(opener, endpoints[0]) as source:
        store = CacheStore(source, cache_store=SqliteStore(path))
        await read(store, "zarr.json")
        flush_everything()
        shown = [repr(store), str(store), str(store.cache_info()), caplog.text]
    kept = b"".join(file.read_bytes() for file in path.parent.glob("cache.sqlite*"))

    assert not [secret for secret in SECRETS.values() if secret in "".join(shown)]
    assert not [secret for secret in SECRETS.values() if secret.encode() in kept]
    assert BUCKET.encode() in kept
