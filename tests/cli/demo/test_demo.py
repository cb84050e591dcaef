"""``zarr-cache demo``, run in this process and as a command."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from rich.console import Console
from typer.testing import CliRunner

from tests.fakes import IS_WINDOWS
from zarr_cache.cli import app
from zarr_cache.cli.demo import run as demo
from zarr_cache.cli.demo.reading import Reading, leading_part, read
from zarr_cache.cli.demo.sample import ARRAY, write_sample
from zarr_cache.cli.demo.server import DemoServer, Traffic

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result

COLD = ["no cache", "cold cache"]
WARM = ["warm cache", "warm cache, new process"]


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the demo makes its temporary folder."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DemoServer]:
    """A server of our own for ``--url``, with the scan as the array of a group."""
    write_sample(tmp_path / "served" / "mri.zarr")
    with DemoServer(tmp_path / "served") as server:
        yield server


@pytest.fixture(scope="module")
def readings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Reading]:
    """What the demo reads when nothing is asked of it, after which nothing is left behind."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder))
        readings = run()
    assert list(folder.iterdir()) == []
    return readings


def run(**options: Any) -> dict[str, Reading]:
    return dict(asyncio.run(demo.run(Console(file=io.StringIO()), latency_seconds=0, **options)))


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["demo", *arguments])


def test_a_warm_cache_makes_no_request_and_neither_does_a_new_process(
    readings: dict[str, Reading],
) -> None:
    assert list(readings) == COLD + WARM
    assert [readings[name].traffic for name in WARM] == [Traffic(), Traffic()]
    assert [readings[name].misses for name in WARM] == [0, 0]
    assert all(readings[name].hits > 0 for name in WARM)


def test_a_cold_cache_fetches_what_no_cache_does_and_asks_for_the_versions_of_metadata(
    readings: dict[str, Reading],
) -> None:
    cold, plain = readings["cold cache"].traffic, readings["no cache"].traffic
    assert cold is not None
    assert plain is not None

    assert plain != Traffic()
    # A HEAD for each of zarr.json, .zarray and .zattrs.
    assert cold - plain == Traffic(requests=3)


def test_every_reading_returns_the_scan(tmp_path: Path, readings: dict[str, Reading]) -> None:
    scan = write_sample(tmp_path / "mri.zarr")

    for reading in readings.values():
        np.testing.assert_array_equal(reading.data, scan)


def test_a_reading_of_other_data_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read_wrongly(
        url: str, array: str, cache_file: Path | None = None, namespace: str | None = None
    ) -> Reading:
        reading = await read(url, array, cache_file, namespace)
        return replace(reading, data=reading.data + 1) if cache_file else reading

    monkeypatch.setattr(demo, "read", read_wrongly)

    with pytest.raises(demo.DemoError, match="cold cache: the data read differ"):
        run()


def test_a_named_cache_file_is_kept_and_nothing_else_and_each_query_finds_something_in_it(
    tmp_path: Path, temporary_folder: Path
) -> None:
    file = tmp_path / "kept.sqlite"
    run(cache_file=file)

    assert [path.name for path in tmp_path.glob("kept*")] == ["kept.sqlite"]
    assert list(temporary_folder.iterdir()) == []
    for query in demo.QUERIES:
        shell = subprocess.run(
            [sys.executable, "-m", "sqlite3", file, query],
            capture_output=True,
            text=True,
            check=True,
        )

        assert shell.stdout.strip()


def test_the_next_demo_finds_the_scan_in_a_kept_file_whatever_the_port_of_its_server_is(
    tmp_path: Path,
) -> None:
    file = tmp_path / "kept.sqlite"
    run(cache_file=file)

    assert run(cache_file=file)["existing cache"].traffic == Traffic()


def test_keep_leaves_the_cache_file_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = command("--keep", "--latency-ms", "0")

    assert result.exit_code == 0
    assert demo.KEPT_FILE.exists()
    assert f"sqlite3 -box {demo.KEPT_FILE}" in result.stdout


def test_the_http_client_counts_what_the_server_counts_and_a_later_run_asks_for_nothing_more(
    tmp_path: Path, server: DemoServer
) -> None:
    options = {
        "url": f"{server.url}/mri.zarr",
        "array": ARRAY,
        "cache_file": tmp_path / "f",
        "namespace": "scan",
    }
    first = run(**options)
    served = server.traffic()
    later = run(**options)

    counted = [reading.traffic for reading in first.values() if reading.traffic is not None]
    assert sum(counted, Traffic()) == served
    assert [first[name].traffic for name in WARM] == [Traffic(), Traffic()]
    assert later["existing cache"].traffic == Traffic()


def test_the_array_may_be_at_the_root_of_the_url(server: DemoServer) -> None:
    result = command("--url", f"{server.url}/mri.zarr/{ARRAY}")

    assert result.exit_code == 0
    assert "as the HTTP client of each reading counted them" in result.stdout


def test_requests_to_a_url_that_is_not_http_are_not_counted(tmp_path: Path) -> None:
    write_sample(tmp_path / "mri.zarr")

    readings = run(url=(tmp_path / "mri.zarr").as_uri(), array=ARRAY)

    assert [reading.traffic for reading in readings.values()] == [None] * 4


def test_nan_of_the_source_equals_nan_of_the_cache(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "nan.zarr", data=np.array([np.nan, 1.0]))

    assert len(run(url=(tmp_path / "nan.zarr").as_uri())) == 4


@pytest.mark.parametrize(
    ("url", "reported"),
    [
        ("http://127.0.0.1:9/mri.zarr", "Cannot connect"),
        ("http://", "http://"),
        ("nonsense://bucket/mri.zarr", "nonsense"),
        ("file:///no/such/folder", "no array at ''; name one with --array"),
    ],
)
def test_a_bad_url_is_reported_on_one_line(url: str, reported: str) -> None:
    result = command("--url", url)

    assert result.exit_code == 1
    assert result.stderr.startswith("zarr-cache: ")
    assert result.stderr.count("\n") == 1
    assert reported in result.stderr


def test_a_source_that_fails_halfway_is_reported_on_one_line(tmp_path: Path) -> None:
    write_sample(tmp_path / "served" / "mri.zarr")
    answers = itertools.count()

    def hang_up_after_20_answers(_: float) -> None:
        if next(answers) >= 20:
            raise ConnectionAbortedError

    with DemoServer(tmp_path / "served", sleep=hang_up_after_20_answers) as server:
        result = command("--url", f"{server.url}/mri.zarr", "--array", ARRAY)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"zarr-cache: {server.url}/mri.zarr: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("array", ["absent", ""])
def test_a_missing_array_is_reported_on_one_line(server: DemoServer, array: str) -> None:
    result = command("--url", f"{server.url}/mri.zarr", "--array", array)

    assert result.exit_code == 1
    assert result.stderr == (
        f"zarr-cache: {server.url}/mri.zarr: no array at {array!r}; name one with --array\n"
    )


@pytest.mark.parametrize("option", ["--array", "--namespace"])
def test_an_option_of_a_url_without_one_is_reported_on_one_line(option: str) -> None:
    result = command(option, "scan")

    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_a_file_that_is_not_a_cache_is_reported_on_one_line_and_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, and long enough to be taken for the header of one\n" * 10)
    before = file.read_bytes()

    result = command("--cache-file", str(file), "--latency-ms", "0")

    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert str(file) in result.stderr
    assert file.read_bytes() == before


def test_a_missing_extra_is_reported_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)

    result = command()

    assert result.exit_code == 1
    assert result.stderr == (
        "zarr-cache: fsspec, aiohttp, nibabel not installed: pip install 'zarr-cache[demo]'\n"
    )


@pytest.mark.parametrize(
    ("wanted", "wait_seconds", "stop"),
    [
        pytest.param("*/served/mri.zarr/zarr.json", 0, signal.SIGINT, id="writing the scan"),
        pytest.param("*/cache.sqlite", 0.4, signal.SIGTERM, id="reading chunks, SIGTERM"),
        pytest.param("*/result.zarr", 0, signal.SIGINT, id="the new process is writing"),
    ],
)
@pytest.mark.skipif(IS_WINDOWS, reason="no process is sent Ctrl-C there")
def test_a_signal_ends_it_on_one_line_with_nothing_left_behind(
    temporary_folder: Path, wanted: str, wait_seconds: float, stop: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "zarr_cache", "demo", "--latency-ms", "60"],
        env=os.environ | {"TMPDIR": str(temporary_folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not list(temporary_folder.glob(wanted)) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait_seconds)
        process.send_signal(stop)
        try:
            stdout, stderr = process.communicate(timeout=30)
        finally:
            process.kill()

    assert process.returncode == 128 + stop
    assert (stdout, stderr) == (
        "",
        "stopped: the server has ended and the temporary folder is removed\n",
    )
    assert list(temporary_folder.iterdir()) == []


def test_the_part_read_of_a_large_array_is_whole_chunks_within_the_limit() -> None:
    part = leading_part((1000, 900, 40), (10, 100, 40), itemsize=2, max_bytes=10**6)

    assert part == (slice(0, 40), slice(0, 300), slice(0, 40))


def test_an_array_within_the_limit_is_read_whole() -> None:
    assert leading_part((1000, 95), (10, 10), itemsize=2) == (slice(0, 1000), slice(0, 95))


def test_at_least_one_chunk_is_read() -> None:
    assert leading_part((5,), (3,), itemsize=8, max_bytes=1) == (slice(0, 3),)


def test_an_array_without_dimensions_is_read() -> None:
    assert leading_part((), (), itemsize=8, max_bytes=1) == ()
