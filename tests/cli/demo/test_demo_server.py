"""The server of the demo, asked by a plain HTTP client."""

from __future__ import annotations

import contextlib
import threading
from http.client import HTTPConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from zarr_cache.cli.demo.server import DemoServer, Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.client import HTTPResponse
    from pathlib import Path

DATA = b"0123456789"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "group").mkdir(parents=True)
    (root / "group" / "chunk").write_bytes(DATA)
    (root / "empty").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"secret")
    return root


@pytest.fixture
def server(root: Path) -> Iterator[DemoServer]:
    with DemoServer(root) as server:
        yield server


def ask(
    server: DemoServer, target: str, *, method: str = "GET", byte_range: str | None = None
) -> tuple[HTTPResponse, bytes]:
    with contextlib.closing(HTTPConnection(urlsplit(server.url).netloc, timeout=10)) as connection:
        connection.request(
            method, target, headers={} if byte_range is None else {"Range": byte_range}
        )
        response = connection.getresponse()
        return response, response.read()


def test_a_file_is_served_whole(server: DemoServer) -> None:
    response, body = ask(server, "/group/chunk")

    assert (response.status, body) == (200, DATA)
    assert response.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("byte_range", "body", "content_range"),
    [
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=-30", DATA, "bytes 0-9/10"),
        ("bytes=8-30", b"89", "bytes 8-9/10"),
    ],
)
def test_a_byte_range_is_served_alone(
    server: DemoServer, byte_range: str, body: bytes, content_range: str
) -> None:
    response, found = ask(server, "/group/chunk", byte_range=byte_range)

    assert (response.status, found) == (206, body)
    assert response.headers["Content-Range"] == content_range


@pytest.mark.parametrize("byte_range", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_a_range_without_a_byte_is_not_satisfiable(server: DemoServer, byte_range: str) -> None:
    response, body = ask(server, "/group/chunk", byte_range=byte_range)

    assert (response.status, body) == (416, b"")
    assert response.headers["Content-Range"] == "bytes */10"


def test_no_range_of_an_empty_file_is_satisfiable(server: DemoServer) -> None:
    response, _ = ask(server, "/empty", byte_range="bytes=0-")

    assert response.status == 416


@pytest.mark.parametrize(
    "byte_range", ["bytes=0-1,4-5", "bytes=-", "bytes=4-2", "items=0-1", "bytes=\xb2-"]
)
def test_a_range_that_is_not_understood_is_ignored(server: DemoServer, byte_range: str) -> None:
    response, body = ask(server, "/group/chunk", byte_range=byte_range)

    assert (response.status, body) == (200, DATA)


@pytest.mark.parametrize("target", ["/absent", "/group", "/", "/group/chunk/below"])
def test_what_is_not_a_file_is_absent(server: DemoServer, target: str) -> None:
    response, body = ask(server, target)

    assert (response.status, body) == (404, b"")


@pytest.mark.parametrize(
    "target",
    [
        "/../secret",
        "/group/../../secret",
        "/%2e%2e/secret",
        "/..%2fsecret",
        "//{outside}",
        "/%00",
        "/link",
    ],
)
def test_what_lies_outside_the_root_is_absent(root: Path, server: DemoServer, target: str) -> None:
    outside = root.parent / "secret"
    (root / "link").symlink_to(outside)

    response, body = ask(server, target.format(outside=outside))

    assert (response.status, body) == (404, b"")


def test_a_head_request_returns_the_size_and_sends_nothing(server: DemoServer) -> None:
    response, body = ask(server, "/group/chunk", method="HEAD")

    assert (response.status, body) == (200, b"")
    assert response.headers["Content-Length"] == "10"
    assert server.traffic() == Traffic(requests=1, nbytes=0)


def test_every_answer_is_counted_with_the_bytes_of_its_body(server: DemoServer) -> None:
    ask(server, "/group/chunk")
    ask(server, "/group/chunk", byte_range="bytes=2-4")
    ask(server, "/group/chunk", byte_range="bytes=10-")
    ask(server, "/absent")

    assert server.traffic() == Traffic(requests=4, nbytes=13)


def test_a_connection_stays_open_for_the_next_request(server: DemoServer) -> None:
    with contextlib.closing(HTTPConnection(urlsplit(server.url).netloc, timeout=10)) as connection:
        connection.connect()
        socket = connection.sock
        for target in ("/absent", "/group/chunk"):
            connection.request("GET", target)
            connection.getresponse().read()

        assert connection.sock is socket


def test_the_latency_is_slept_before_each_answer(root: Path) -> None:
    slept: list[float] = []
    with DemoServer(root, latency_seconds=0.05, sleep=slept.append) as server:
        ask(server, "/group/chunk")
        ask(server, "/absent")

    assert slept == [0.05, 0.05]


def test_requests_wait_out_their_latency_side_by_side(root: Path) -> None:
    both_wait = threading.Barrier(2)
    with DemoServer(root, sleep=lambda _: void(both_wait.wait(timeout=10))) as server:
        threads = [threading.Thread(target=ask, args=(server, "/absent")) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert server.traffic().requests == 2


def void(_: object) -> None:
    """Drop a value where a function that returns nothing is called for."""


def test_the_port_is_closed_after_the_block(root: Path) -> None:
    with DemoServer(root) as server:
        pass

    with pytest.raises(ConnectionRefusedError):
        ask(server, "/group/chunk")


def test_a_connection_that_is_kept_open_is_answered_no_more_after_the_block(root: Path) -> None:
    def ask_over(connection: HTTPConnection) -> bytes:
        connection.request("GET", "/group/chunk")
        return connection.getresponse().read()

    with DemoServer(root) as server:
        connection = HTTPConnection(urlsplit(server.url).netloc, timeout=10)
        answered = ask_over(connection)

    assert answered == DATA
    with contextlib.closing(connection), pytest.raises(ConnectionError):
        ask_over(connection)
