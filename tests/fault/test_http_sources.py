"""An HTTP server that fails, also in the middle of an answer, under the clients zarr has for it."""

from __future__ import annotations

import contextlib
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import aiohttp
import numpy as np
import pytest
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, LoggingStore

from tests.fakes import PROTOTYPE, assert_accounts, read, values
from tests.sources.http_server import in_thread, through_fsspec, through_obstore
from zarr_cache import CacheStore, SqliteStore, warm
from zarr_cache.cli.demo.server import byte_span
from zarr_cache.core.byte_range import span
from zarr_cache.sources import urls

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store

    type Fault = Literal["unavailable", "cut", "dropped", "whole", "less"]
    type Question = Callable[[CacheStore], Coroutine[None, None, object]]

KEY = "value"
DATA = bytes(range(256)) * 40
RANGES: list[ByteRequest | None] = [
    RangeByteRequest(10, 300),
    RangeByteRequest(5000, 6000),
    OffsetByteRequest(9000),
    SuffixByteRequest(16),
    None,
]


class _Handler(BaseHTTPRequestHandler):
    server: FaultyServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        self.server.asked += 1
        fault = self.server.fault
        data = self.server.values.get(self.path.lstrip("/"))
        status, headers, body = HTTPStatus.OK, {}, data or b""
        if fault == "unavailable":
            status, body = HTTPStatus.SERVICE_UNAVAILABLE, b"try again later"
        elif data is None:
            status = HTTPStatus.NOT_FOUND
        elif fault != "whole" and (place := byte_span(self.headers["Range"], len(data))):
            start, stop = place
            if fault == "less":
                stop = (start + stop + 1) // 2
            status, body = HTTPStatus.PARTIAL_CONTENT, data[start:stop]
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        if fault == "dropped":
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body:
            return
        if fault == "cut":
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class FaultyServer(ThreadingHTTPServer):
    """Serves `values` by their keys, as well as `fault` lets it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.values: dict[str, bytes] = {KEY: DATA}
        self.fault: Fault | None = None
        self.asked = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[FaultyServer]:
    with in_thread(FaultyServer()) as server:
        yield server


each_client = pytest.mark.parametrize("client", [through_fsspec, through_obstore])


async def exists(store: CacheStore) -> bool:
    return await store.exists(KEY)


async def getsize(store: CacheStore) -> int:
    return await store.getsize(KEY)


async def get(
    store: CacheStore, byte_ranges: Sequence[ByteRequest | None] = RANGES
) -> list[bytes | None]:
    return [await read(store, KEY, byte_range) for byte_range in byte_ranges]


async def get_ranges(
    store: CacheStore, byte_ranges: Sequence[ByteRequest | None] = RANGES
) -> list[bytes | None]:
    found: dict[int, Any] = {}
    async for batch in store.get_ranges(KEY, byte_ranges, prototype=PROTOTYPE):
        found.update(batch)
    return [found[place].to_bytes() for place in range(len(byte_ranges))]


PARTS = [DATA[slice(*span(byte_range, len(DATA)))] for byte_range in RANGES]
TRUTH: dict[Question, object] = {
    exists: True,
    getsize: len(DATA),
    get_ranges: PARTS,
    get: PARTS,
}


@each_client
@pytest.mark.parametrize("fault", ["unavailable", "cut", "dropped"])
@pytest.mark.parametrize("question", TRUTH)
def test_nothing_is_cached_of_a_response_that_failed(
    question: Question,
    fault: Fault,
    client: Callable[[str], contextlib.AbstractContextManager[Store]],
    server: FaultyServer,
    path: Path,
) -> None:
    with client(server.url) as source:
        store = CacheStore(source, cache_store=SqliteStore(path), max_age_absent_seconds="infinity")
        server.fault = fault
        # Each client has errors of its own, and fsspec none for some of these.
        with contextlib.suppress(Exception):
            sync(question(store))
        server.fault = None
        truth: dict[Question, object] = {each: sync(each(store)) for each in TRUTH}

    assert truth == TRUTH
    assert_accounts(path)


@each_client
@pytest.mark.parametrize("fault", ["whole", "less"])
@pytest.mark.parametrize("method", ["get", "get_ranges"])
@pytest.mark.parametrize("persist_ranges", [False, True], ids=["in memory", "in the file"])
def test_nothing_is_cached_of_a_response_to_another_request(
    persist_ranges: bool,
    method: str,
    fault: Fault,
    client: Callable[[str], contextlib.AbstractContextManager[Store]],
    server: FaultyServer,
    path: Path,
) -> None:
    # Neighbours, which are read in one, and the end.
    asked: list[ByteRequest | None] = [
        RangeByteRequest(10, 300),
        RangeByteRequest(400, 600),
        SuffixByteRequest(16),
    ]
    ask = get_ranges if method == "get_ranges" else get
    with client(server.url) as source:
        store = CacheStore(source, cache_store=SqliteStore(path), persist_ranges=persist_ranges)
        server.fault = fault
        # obstore refuses most of these, and fsspec hands them on.
        with contextlib.suppress(Exception):
            sync(ask(store, asked))
        server.fault = None
        kept = store.cache_info()["cached_keys"]
        size = sync(getsize(store))
        parts = sync(ask(store, asked))
        asked_again = server.asked
        again = sync(ask(store, asked))

    assert (kept, size) == (0, len(DATA))
    assert parts == again == [DATA[slice(*span(each, len(DATA)))] for each in asked]
    assert server.asked == asked_again


def test_an_error_that_one_source_reports_as_absence_is_not_cached_for_another(
    server: FaultyServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server stands for one of another machine, which has a name.
    monkeypatch.setattr(urls, "is_loopback", lambda _: False)
    with through_fsspec(server.url) as strict:
        assert isinstance(strict, FsspecStore)
        errors = (FileNotFoundError, aiohttp.ClientResponseError)
        lenient = FsspecStore(
            strict.fs, read_only=True, path=strict.path, allowed_exceptions=errors
        )
        cache, of_lenient = (
            CacheStore(each, cache_store=SqliteStore(path)) for each in (strict, lenient)
        )
        server.fault = "unavailable"
        absent = sync(read(of_lenient, KEY))
        server.fault = None

        assert absent is None
        assert sync(read(cache, KEY)) == DATA
        assert cache.namespace == server.url


def test_neither_client_is_served_for_the_other_where_a_key_is_no_end_of_a_url(
    server: FaultyServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urls, "is_loopback", lambda _: False)  # the same
    keys = ["a b", "a%20b", "a#b", "a?b", "a+b"]
    server.values = {"a": b"fsspec"} | {quote(key): key.encode() for key in keys}
    with through_fsspec(server.url) as fsspecs, through_obstore(server.url) as obstores:
        sources = [fsspecs, LoggingStore(fsspecs), obstores]
        stores = [CacheStore(each, cache_store=SqliteStore(path)) for each in sources]
        found = [[sync(read(store, key)) for key in keys] for store in [*stores, *stores]]
        truth = [[sync(read(source, key)) for key in keys] for source in sources]

    assert found == [*truth, *truth]
    assert truth[0] != truth[2]
    assert len({store.namespace for store in stores}) == 1


@each_client
def test_a_chunk_is_not_taken_for_absent_because_the_server_was_down_in_a_dry_run(
    client: Callable[[str], contextlib.AbstractContextManager[Store]],
    server: FaultyServer,
    tmp_path: Path,
    path: Path,
) -> None:
    data = np.arange(1, 9)
    folder = tmp_path / "array"
    zarr.create_array(LocalStore(folder), data=data, chunks=(2,))
    files = [file for file in folder.rglob("*") if file.is_file()]
    server.values = {str(file.relative_to(folder)): file.read_bytes() for file in files}
    with client(server.url) as source:
        array = zarr.open_array(CacheStore(source, cache_store=SqliteStore(path)), mode="r")
        server.fault = "unavailable"
        with contextlib.suppress(Exception):
            warm(array, dry_run=True)
        server.fault = None
        report = warm(array)

        assert values(array) == data.tolist()
        assert (report.fetched, report.absent) == (4, 0)
