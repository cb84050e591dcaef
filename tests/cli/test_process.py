"""``zarr-cache`` as a process of its own, beside others and in a pipe."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import zarr

import zarr_cache
from tests.cli.conftest import caching
from tests.fakes import buffer
from zarr_cache import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

ZARR_CACHE = [sys.executable, "-m", "zarr_cache"]


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ZARR_CACHE, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | variables,
    )


def test_what_the_terminal_has_no_bytes_for_is_printed_as_an_escape(path: Path) -> None:
    store = caching(path, "東京", read_only=True)
    store.get_sync("zarr.json")
    store.close()
    reported = run("info", ZARR_CACHE_PATH=str(path), PYTHONIOENCODING="latin-1")

    assert (reported.returncode, reported.stderr) == (0, "")
    assert r"\u6771\u4eac" in reported.stdout


def test_a_process_beside_a_store_sees_and_evicts_what_is_there(path: Path) -> None:
    store = caching(path, "era5", read_only=True)
    for key in ("t/c/0", "t/c/1", "zarr.json"):
        store.get_sync(key)
    store.flush()
    reported = json.loads(run("ls", "--json", ZARR_CACHE_PATH=str(path)).stdout)
    evicted = run("evict", "--prefix", "t/", "--cache-file", str(path))
    info = store.cache_info()

    assert [each["key"] for each in reported] == ["t/c/0", "t/c/1", "zarr.json"]
    assert (evicted.returncode, evicted.stderr) == (0, "")
    assert evicted.stdout.startswith("removed 2 entries (2.9 KiB); 100 B are still cached")
    assert info["current_size"] == 100


def test_a_pipe_that_is_closed_early_ends_it_quietly(path: Path) -> None:
    store = SqliteStore(path)
    for number in range(800):
        store.set_sync(f"{number:03}/{'k' * 200}", buffer(b"x"))
    store.close()
    with subprocess.Popen(
        [*ZARR_CACHE, "ls", "-f", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()

    assert said == ""


def test_a_shell_completes_commands_and_options() -> None:
    commands = run(_ZARR_CACHE_COMPLETE="complete_bash", COMP_WORDS="zarr-cache e", COMP_CWORD="1")
    options = run(
        _ZARR_CACHE_COMPLETE="complete_bash", COMP_WORDS="zarr-cache ls --pre", COMP_CWORD="2"
    )

    assert commands.stdout.split() == ["explain", "evict", "export"]
    assert options.stdout.split() == ["--prefix"]


def test_the_version_is_printed_with_those_of_what_it_stands_on() -> None:
    reported = run("--version")

    assert (reported.returncode, reported.stderr) == (0, "")
    assert reported.stdout == (
        f"zarr-cache {zarr_cache.__version__} (Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, zarr {zarr.__version__})\n"
    )
    assert zarr_cache.__version__ == importlib.metadata.version("zarr-cache")
