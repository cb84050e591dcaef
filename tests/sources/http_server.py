"""An HTTP server whose values have versions, and the clients that zarr has for it.

It follows the conditions of RFC 9110, counts what it is asked and what it sends, and can be told to
fail, to wait, and to ignore what a server may ignore.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import struct
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import obstore.store
from zarr.core.sync import sync
from zarr.storage import FsspecStore, ObjectStore

from zarr_cache.cli.demo.server import RangeNotSatisfiableError, byte_span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from zarr.abc.store import Store

LONG_AGO = datetime(2024, 1, 1, tzinfo=UTC)
"""When the first value was put. Each later one is put an hour after the one before."""

type ETags = Literal["strong", "weak", "odd"]


class Version(NamedTuple):
    """One version of a value."""

    data: bytes
    modified: datetime
    number: int

    def etag(self, kind: ETags) -> str:
        """The ETag, of this kind: no two versions have the same, whatever their bytes."""
        text = f"{hashlib.sha256(self.data).hexdigest()[:12]}-{self.number}"
        return {"strong": f'"{text}"', "weak": f'W/"{text}"', "odd": text}[kind]


class VersionedServer(ThreadingHTTPServer):
    """Serves values by their keys.

    Attributes
    ----------
    etags
        Which ETags it sends; None for none.
    tells_modified
        Whether it sends ``Last-Modified``.
    fault
        A status that every request gets, or ``"down"``: connections are reset.
    head_status
        A status that every ``HEAD`` gets; None if they are answered.
    page
        What every request gets with the status 200, as from a login page; None if nothing does.
    ignores_conditions, ignores_range
        Whether it sends the whole response all the same.
    refuses_matches
        Whether no ``If-Match`` holds, as if it compared with a compressed representation.
    before_send
        Called with the method and the key once the response is decided and before it is sent, so
        that a test can hold the request or change the value.
    requests
        How many there were, by method and key.
    conditions
        The names and values of the headers of each request that state a condition or a range.
    sent_bytes
        How many bytes of bodies were sent.
    """

    daemon_threads = True
    # A client may keep its connections open.
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.versions: dict[str, Version] = {}
        self.etags: ETags | None = "strong"
        self.tells_modified = True
        self.fault: HTTPStatus | Literal["down"] | None = None
        self.head_status: HTTPStatus | None = None
        self.page: bytes | None = None
        self.ignores_conditions = False
        self.ignores_range = False
        self.refuses_matches = False
        self.before_send: Callable[[str, str], None] = lambda _method, _key: None
        self._puts = 0
        self._counting = threading.Lock()
        self.reset()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, key: str, data: bytes, *, modified: datetime | None = None) -> None:
        """Change a value."""
        self._puts += 1
        modified = modified or LONG_AGO + timedelta(hours=self._puts)
        self.versions[key] = Version(data, modified, self._puts)

    def delete(self, key: str) -> None:
        """Remove a value."""
        del self.versions[key]

    def etag(self, key: str) -> str:
        """The strong ETag of the present version."""
        return self.versions[key].etag("strong")

    def reset(self) -> None:
        """Forget the requests so far."""
        self.requests: Counter[tuple[str, str]] = Counter()
        self.conditions: list[dict[str, str]] = []
        self.sent_bytes = 0

    def by_method(self) -> dict[str, int]:
        """How many requests there were, by method."""
        counted: Counter[str] = Counter()
        for (method, _), number in self.requests.items():
            counted[method] += number
        return dict(counted)

    def count(self, method: str, key: str, conditions: dict[str, str]) -> None:
        with self._counting:
            self.requests[method, key] += 1
            self.conditions.append(conditions)

    def count_sent(self, nbytes: int) -> None:
        with self._counting:
            self.sent_bytes += nbytes

    def handle_error(self, *_: object) -> None:
        """Say nothing: a client may close its connection whenever it likes."""


CONDITIONS = ["If-Match", "If-None-Match", "If-Unmodified-Since", "If-Modified-Since", "Range"]

USERS_HEADER = "X-Token"
"""A header of the user that is recorded with the conditions."""


class _Handler(BaseHTTPRequestHandler):
    server: VersionedServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def _respond(self) -> None:
        key = unquote(urlsplit(self.path).path.removeprefix("/"))
        conditions = {
            name: self.headers[name] for name in [*CONDITIONS, USERS_HEADER] if name in self.headers
        }
        self.server.count(self.command, key, conditions)
        if self.server.fault == "down":
            # Closing a socket that lingers for 0 seconds sends RST: see socket(7).
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        page = self.server.page
        sent = (HTTPStatus.OK, {"ETag": '"page"'}, page) if page is not None else self._decide(key)
        status, headers, body = sent
        self.server.before_send(self.command, key)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET" and body:
            self.server.count_sent(len(body))
            self.wfile.write(body)

    def _decide(self, key: str) -> tuple[HTTPStatus, dict[str, str], bytes]:
        server, version = self.server, self.server.versions.get(key)
        status = server.head_status if self.command == "HEAD" else None
        status = server.fault if isinstance(server.fault, HTTPStatus) else status
        if status is None and version is None:
            status = HTTPStatus.NOT_FOUND
        if status is not None or version is None:
            return status or HTTPStatus.NOT_FOUND, {}, b""
        headers = {}
        if server.etags is not None:
            headers["ETag"] = version.etag(server.etags)
        if server.tells_modified:
            headers["Last-Modified"] = format_datetime(version.modified, usegmt=True)
        if not server.ignores_conditions:
            failed = self._failed_condition(version)
            if failed is not None:
                return failed, headers, b""
        if server.ignores_range:
            return HTTPStatus.OK, headers, version.data
        try:
            place = byte_span(self.headers["Range"], len(version.data))
        except RangeNotSatisfiableError:
            return HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers, b""
        if place is None:
            return HTTPStatus.OK, headers, version.data
        start, stop = place
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(version.data)}"
        return HTTPStatus.PARTIAL_CONTENT, headers, version.data[start:stop]

    def _failed_condition(self, version: Version) -> HTTPStatus | None:
        """The status of a condition that does not hold, in the order of RFC 9110, 13.2.2."""
        etags, modified = self.server.etags, version.modified.replace(microsecond=0)
        etag = version.etag(etags) if etags else None
        match, none_match = self.headers["If-Match"], self.headers["If-None-Match"]
        unmodified, since = self._date("If-Unmodified-Since"), self._date("If-Modified-Since")
        # The comparison for If-Match is strong, and a weak ETag is equal to none.
        if match is not None and self.server.refuses_matches:
            return HTTPStatus.PRECONDITION_FAILED
        if (match is not None and (etags != "strong" or match != etag)) or (
            match is None and unmodified is not None and modified > unmodified
        ):
            return HTTPStatus.PRECONDITION_FAILED
        if (none_match is not None and none_match == etag) or (
            none_match is None and since is not None and modified <= since
        ):
            return HTTPStatus.NOT_MODIFIED
        return None

    def _date(self, name: str) -> datetime | None:
        return parsedate_to_datetime(self.headers[name]) if name in self.headers else None

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def in_thread[S: ThreadingHTTPServer](server: S) -> Iterator[S]:
    """The server serves in a thread, until the end."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def serving() -> AbstractContextManager[VersionedServer]:
    """A server without values, until the end."""
    return in_thread(VersionedServer())


@contextlib.contextmanager
def through_fsspec(url: str, **options: Any) -> Iterator[Store]:
    """The values of a server as a store of fsspec, whose session ends with it."""
    options["skip_instance_cache"] = True
    source = FsspecStore.from_url(url, storage_options=options, read_only=True)

    async def close() -> None:
        await (await source.fs.set_session()).close()

    try:
        yield source
    finally:
        sync(close())


@contextlib.contextmanager
def through_obstore(url: str) -> Iterator[Store]:
    """The values of a server as a store of obstore, which tries nothing twice."""
    retries: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=1)}
    options: Any = {"allow_http": True}
    http = obstore.store.HTTPStore(url, client_options=options, retry_config=retries)
    yield ObjectStore(http, read_only=True)
