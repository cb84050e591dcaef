"""Origins through each client, as fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.freshness.origins import over_fsspec_files, over_http, over_local_store, over_s3
from tests.sources.http_server import through_fsspec, through_obstore
from tests.sources.s3 import S3Server, serving_s3, through_s3_of_obstore, through_s3fs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.freshness.origins import HttpOrigin, Origin

HTTP = ["obstore-http", "fsspec-http"]
S3 = ["obstore-s3", "s3fs"]
FILES = ["LocalStore", "fsspec-files"]


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One server for all modules: it takes two seconds to start. Each origin empties it."""
    with serving_s3() as server:
        yield server


def opened(client: str, request: pytest.FixtureRequest, root: Path) -> AbstractContextManager[Any]:
    """What the client reads."""
    match client:
        case "obstore-http":
            return over_http(through_obstore, asks_first=False)
        case "fsspec-http":
            return over_http(through_fsspec, asks_first=True)
        case "obstore-s3":
            server = request.getfixturevalue("s3")
            return over_s3(server, through_s3_of_obstore, asks_first=False)
        case "s3fs":
            return over_s3(request.getfixturevalue("s3"), through_s3fs, asks_first=True)
        case "LocalStore":
            return over_local_store(root)
        case _:
            return over_fsspec_files(root)


@pytest.fixture(params=[*HTTP, *S3, *FILES])
def origin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Origin]:
    """Values through each client."""
    root = tmp_path / "source"
    root.mkdir()
    with opened(request.param, request, root) as origin:
        yield origin


@pytest.fixture(params=HTTP)
def http(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HttpOrigin]:
    """Values of the HTTP server, through each client of it."""
    with opened(request.param, request, tmp_path) as origin:
        yield origin
