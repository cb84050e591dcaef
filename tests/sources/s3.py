"""A bucket of a loopback S3 server that counts, and the clients that zarr has for it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import obstore
import obstore.store
from zarr.storage import ObjectStore

from tests.sources.http_server import through_fsspec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from zarr.abc.store import Store

SERVER = Path(__file__).with_name("s3_server.py")
BUCKET = "climate"
FOLDER = "data.zarr"
"""The stores begin here."""


class S3Request(NamedTuple):
    """A request, with the size of the body that was sent."""

    method: str
    status: int
    nbytes: int


class S3Server:
    """One bucket of a server of its own process."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._ask("PUT", f"/{BUCKET}", b"")
        self.reset()

    def _ask(self, method: str, path: str, data: bytes | None = None) -> bytes:
        # moto takes a body of no type for a form.
        headers = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)  # noqa: S310 - our own server
        with urllib.request.urlopen(request) as response:  # noqa: S310 - the same
            body: bytes = response.read()
        return body

    def put(self, key: str, data: bytes) -> None:
        """Change a value."""
        obstore.put(store_of(self.url), key, data)

    def delete(self, key: str) -> None:
        """Remove a value."""
        obstore.delete(store_of(self.url), key)

    def requests(self) -> list[S3Request]:
        """The requests since `reset` that read."""
        found: list[dict[str, Any]] = json.loads(self._ask("GET", "/requests-so-far"))
        return [
            S3Request(
                "LIST" if "list-type" in each["query"] else each["method"],
                each["status"],
                each["nbytes"],
            )
            for each in found
            if each["method"] in {"GET", "HEAD"}
        ]

    def methods(self) -> list[str]:
        """The methods of `requests`, in their order; LIST for a page of a listing."""
        return [request.method for request in self.requests()]

    def reset(self) -> None:
        """Forget the requests so far."""
        self._ask("DELETE", "/requests-so-far")


@contextlib.contextmanager
def serving_s3() -> Iterator[S3Server]:
    """A server with an empty bucket, until the end."""
    with subprocess.Popen(
        [sys.executable, SERVER],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield S3Server(process.stdout.readline().strip())
        finally:
            process.stdin.close()


def through_s3fs(url: str) -> AbstractContextManager[Store]:
    """The values of a server as a store of s3fs."""
    account = {"key": "key", "secret": "secret", "endpoint_url": url}
    return through_fsspec(f"s3://{BUCKET}/{FOLDER}", **account)


@contextlib.contextmanager
def through_s3_of_obstore(url: str) -> Iterator[Store]:
    """The values of a server as a store of obstore."""
    yield ObjectStore(store_of(url), read_only=True)


def store_of(url: str, folder: str = FOLDER) -> obstore.store.S3Store:
    """A folder of the bucket."""
    return obstore.store.S3Store(
        BUCKET,
        prefix=folder,
        endpoint=url,
        region="us-east-1",
        access_key_id="key",
        secret_access_key="secret",  # noqa: S106 - moto takes any
        client_options={"allow_http": True},
    )
