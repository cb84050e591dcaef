"""A folder over HTTP on loopback that tells versions, counts requests and responds late.

It serves a client of S3 too that names the bucket in the path: reading takes no more than this.
"""

from __future__ import annotations

import threading
import time
from email.utils import formatdate
from hashlib import md5
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

from zarr_cache.cli.demo.server import RangeNotSatisfiableError, byte_span

if TYPE_CHECKING:
    from pathlib import Path


class _Handler(BaseHTTPRequestHandler):
    server: Source
    protocol_version = "HTTP/1.1"
    # Otherwise the second of two writes may wait 40 ms for the acknowledgement of the first.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._respond()

    def do_HEAD(self) -> None:
        self._respond()

    def _respond(self) -> None:
        self.server.count()
        time.sleep(self.server.latency)
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self._send(HTTPStatus.NOT_FOUND, b"", {})
            return
        data = path.read_bytes()
        etag = f'"{md5(data, usedforsecurity=False).hexdigest()}"'
        headers = {
            "ETag": etag,
            "Last-Modified": formatdate(path.stat().st_mtime, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        if self.headers["If-None-Match"] == etag:
            self._send(HTTPStatus.NOT_MODIFIED, b"", headers)
            return
        try:
            span = byte_span(self.headers["Range"], len(data))
        except RangeNotSatisfiableError:
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", headers)
            return
        if span is None:
            self._send(HTTPStatus.OK, data, headers)
            return
        start, stop = span
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self._send(HTTPStatus.PARTIAL_CONTENT, data[start:stop], headers)

    def _send(self, status: HTTPStatus, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as in the base class
        """Say nothing."""


class Source(ThreadingHTTPServer):
    """Serves the folder on a free port of 127.0.0.1 for as long as the block runs."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, latency: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.latency = latency
        self._requests = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """Of the folder, without a slash at the end."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def requests(self) -> int:
        """Since it began."""
        return self._requests

    def count(self) -> None:
        """One request more."""
        with self._lock:
            self._requests += 1

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: a reader that has ended closes its connections."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
