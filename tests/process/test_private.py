"""What is kept of a source that ends with its process goes with the process."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import buffer, open_file
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = """
import os, signal, sys
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore
from zarr_cache import CacheStore, SqliteStore

source = MemoryStore({f"k{n}": cpu.Buffer.from_bytes(b"x") for n in range(2500)})
store = CacheStore(source, cache_store=SqliteStore(sys.argv[1]))
for key in list(source._store_dict):
    assert store.get_sync(key).to_bytes() == b"x"
named = CacheStore(source, cache_store=SqliteStore(sys.argv[1]), namespace="named")
named.get_sync("k0")
"""


def run(path: Path, end: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT + end, str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def kept(path: Path) -> dict[str, int]:
    """Number of values by namespace, each private one under the same name."""
    count = (
        "SELECT name, count(entry.id) FROM namespace LEFT JOIN entry ON namespace = namespace.id"
    )
    with open_file(path) as db:
        rows = db.execute(f"{count} GROUP BY name").fetchall()
    return {name.partition(":")[0]: number for name, number in rows}


def test_it_goes_when_the_process_ends_and_what_is_named_stays(path: Path) -> None:
    ended = run(path)

    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "", 0)
    assert kept(path) == {"named": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="no process is killed by SIGKILL there")
def test_what_a_killed_process_has_left_goes_when_another_opens_the_file(path: Path) -> None:
    ended = run(path, "store.flush(); os.kill(os.getpid(), signal.SIGKILL)")
    left = kept(path)
    store = CacheStore(
        MemoryStore({"k": buffer(b"v")}), cache_store=SqliteStore(path), namespace="other"
    )
    store.get_sync("k")
    store.close()

    assert ended.returncode == -signal.SIGKILL
    assert left == {"named": 1, "private": 2500}
    assert kept(path) == {"named": 1, "other": 1}


def test_what_a_running_process_keeps_stays_when_another_opens_the_file(path: Path) -> None:
    mine = CacheStore(MemoryStore({"k": buffer(b"v")}), cache_store=SqliteStore(path))
    mine.get_sync("k")
    mine.flush()

    ended = run(path)

    assert ended.returncode == 0, ended.stderr
    assert kept(path) == {"named": 1, "private": 1}
