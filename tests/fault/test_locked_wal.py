"""Another process keeps the WAL locked, suspended while it writes to the file."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import buffer
from tests.fault.real import HANG_SECONDS
from tests.fault.sources import (
    KEYS,
    LONGEST_SECONDS,
    VALUES,
    drain,
    each_surface,
    filled_cache,
    read_all,
    read_until_kept,
    told,
)
from zarr_cache import FileLockedError, SqliteStore
from zarr_cache.disk.paths import HAS_LOCKS, locked_wal, wal_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fakes import HeldTime
    from tests.fault.sources import Read

pytestmark = pytest.mark.skipif(not HAS_LOCKS, reason="the system has no flock: see docs/sqlite.md")

WRITE = """
import sys
from pathlib import Path
from zarr_cache.file.file_database import FileDatabase

def hold(connection):
    with connection.as_only_writer():
        print("held", flush=True)
        sys.stdin.readline()

FileDatabase.of(Path(sys.argv[1])).run(hold)
"""


@contextlib.contextmanager
def writer(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has begun to write to the file, between two of its statements."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.communicate("\n", timeout=HANG_SECONDS)


@each_surface
async def test_reads_go_on_while_another_process_writes_and_misses_are_cached_later(
    path: Path, surface: Read, short_waits: HeldTime, warned: list[WarningMessage]
) -> None:
    source, store = await filled_cache(path, surface, KEYS[:2])
    source.reset()
    with writer(path):
        found = await read_all(surface, store)
        asked = source.requests.total()
        drain(store)
        with pytest.raises(FileLockedError, match="another process keeps it locked"):
            SqliteStore(path).set_sync("stored", buffer(b"value"))
    short_waits.step(LONGEST_SECONDS)
    await read_until_kept(surface, store)
    source.reset()
    after = await read_all(surface, store)

    assert found == after == VALUES
    assert asked == len(KEYS) - 2
    assert source.requests.total() == 0
    assert "another process keeps it locked" in told(warned)[0]


@pytest.mark.usefixtures("short_waits")
def test_the_lock_of_a_killed_process_is_gone_with_it(path: Path) -> None:
    store = SqliteStore(path)
    store.set_sync("a", buffer(b"1"))
    with writer(path) as process:
        process.kill()
        process.wait(HANG_SECONDS)
        store.set_sync("a", buffer(b"2"))
        value = store.get_sync("a")

    assert value is not None
    assert value.to_bytes() == b"2"


@pytest.mark.usefixtures("short_waits")
def test_the_lock_ends_with_the_block_also_if_a_program_that_is_being_started_has_the_wal_open(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SqliteStore(path).set_sync("a", buffer(b"1"))
    wal, opened, open_as_ever = wal_of(path), [], os.open

    def noted(*args: Any, **kwargs: Any) -> int:
        opened.append(open_as_ever(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(os, "open", noted)
    with locked_wal(wal):
        # Between fork and exec a program has every descriptor of the process that starts it.
        (inherited,) = map(os.dup, opened)
    with contextlib.ExitStack() as at_end:
        at_end.callback(os.close, inherited)
        is_locked_again = False
        with locked_wal(wal):
            is_locked_again = True

    assert is_locked_again
