"""What is kept of a source that ends with its process goes with the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import buffer, open_file
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import HeldTime

DAY_NS = 24 * 3600 * 10**9

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


def test_private_entries_are_removed_when_the_process_ends_and_named_ones_stay(path: Path) -> None:
    ended = run(path)

    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "", 0)
    assert kept(path) == {"named": 1}


@pytest.mark.skipif(sys.platform == "win32", reason="no process is killed by SIGKILL there")
@pytest.mark.parametrize(("days", "is_left"), [(6, True), (8, False)])
def test_private_entries_of_a_killed_process_are_removed_a_week_after_their_last_use(
    path: Path, held_time: HeldTime, days: int, is_left: bool
) -> None:
    ended = run(path, "store.flush(); os.kill(os.getpid(), signal.SIGKILL)")
    left = kept(path)
    held_time.wall_ns = time.time_ns() + days * DAY_NS
    store = CacheStore(
        MemoryStore({"k": buffer(b"v")}), cache_store=SqliteStore(path), namespace="other"
    )
    store.get_sync("k")
    store.close()

    assert ended.returncode == -signal.SIGKILL
    assert left == {"named": 1, "private": 2500}
    assert kept(path) == {"named": 1, "other": 1} | ({"private": 2500} if is_left else {})


def test_what_is_kept_of_a_source_that_was_used_within_a_week_stays_whole(
    path: Path, held_time: HeldTime
) -> None:
    held_time.wall_ns = time.time_ns() - 8 * DAY_NS
    source = MemoryStore({"k": buffer(b"v"), "l": buffer(b"v")})
    mine = CacheStore(source, cache_store=SqliteStore(path))
    mine.get_sync("k")
    mine.flush()
    held_time.step(8 * 24 * 3600)
    mine.get_sync("l")
    mine.flush()

    ended = run(path)

    assert ended.returncode == 0, ended.stderr
    assert kept(path) == {"named": 1, "private": 2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_removes_its_own_when_it_ends_and_leaves_the_parents(path: Path) -> None:
    end = """
store.flush()
child = os.fork()
store.get_sync("k1")
if child:
    assert os.waitpid(child, 0)[1] == 0
    print(store.cache_info()["cached_keys"])
"""
    ended = run(path, end)

    assert (ended.stdout, ended.returncode) == ("2500\n", 0), ended.stderr
    assert kept(path) == {"named": 1}


def test_what_a_running_process_keeps_stays_when_another_opens_the_file(path: Path) -> None:
    mine = CacheStore(MemoryStore({"k": buffer(b"v")}), cache_store=SqliteStore(path))
    mine.get_sync("k")
    mine.flush()

    ended = run(path)

    assert ended.returncode == 0, ended.stderr
    assert kept(path) == {"named": 1, "private": 1}
