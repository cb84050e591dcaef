"""Between two parts of a large value the process is killed, or the disk becomes full."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import (
    BetweenParts,
    CountingStore,
    assert_accounts,
    buffer,
    cached_bytes,
    cached_keys,
    close_everything,
    open_file,
    read,
)
from tests.fault.children import run_child
from tests.fault.real import filled, mounted
from tests.fault.sources import LONGEST_SECONDS, new_cache, settle, told
from zarr_cache import staging

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fakes import HeldTime

MIB = 2**20

LARGE = bytes(range(256)) * (10 * MIB // 256)
SMALL = bytes(300_000)

PARTS = 3

KILLED = """
import signal
from tests.fault.test_large_values import new_source

between = BetweenParts(int(arguments[0]))
sqlite3.connect = between.connect
store = new_cache(new_source(), path, max_size=20_000_000)
store.get_sync("small")
store.flush()
between.texts.clear()
between.happens = lambda: os.kill(os.getpid(), signal.SIGKILL)
store.get_sync("large")
store.flush()
"""


def new_source() -> CountingStore:
    kept = {"large": LARGE, "small": SMALL, "other": SMALL}
    return CountingStore(MemoryStore({key: buffer(data) for key, data in kept.items()}))


def staged(path: Path) -> list[int]:
    """Bytes of the values that were being written, as far as they are in the file."""
    query = "SELECT name, size FROM entry JOIN namespace ON namespace = namespace.id"
    with open_file(path) as db:
        return [size for name, size in db.execute(query) if staging.is_staged(name)]


@pytest.mark.skipif(sys.platform == "win32", reason="no process is killed by SIGKILL there")
@pytest.mark.parametrize("parts", range(PARTS + 1))
async def test_what_a_killed_process_has_written_of_it_goes_when_another_writes(
    path: Path, parts: int
) -> None:
    ended = run_child(path, KILLED, str(parts))
    left = staged(path)
    assert_accounts(path)
    source = new_source()
    store = new_cache(source, path, max_size=20_000_000)
    found = [await read(store, key) for key in ("small", "large", "other")]
    settle(store)

    assert ended.code == -signal.SIGKILL, ended.errors
    assert sum(left) == min(parts * 4 * MIB, len(LARGE))
    assert found == [SMALL, LARGE, SMALL]
    assert source.keys == ["large", "other"]
    assert staged(path) == []
    assert cached_keys(path) == {"small", "large", "other"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Where a file has room for the large value."""
    with mounted(tmp_path, nbytes=24 * MIB):
        yield tmp_path / "cache.sqlite"
        close_everything()
        assert_accounts(tmp_path / "cache.sqlite")


async def test_when_the_disk_is_full_all_else_stays_and_what_is_left_of_it_goes_when_there_is_room(
    small_disk: Path,
    short_waits: HeldTime,
    warned: list[WarningMessage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    between = BetweenParts()
    between.install(monkeypatch)
    source = new_source()
    store = new_cache(source, small_disk, max_size=20_000_000)
    await read(store, "small")
    settle(store)
    between.texts.clear()
    full = filled(small_disk.parent)
    between.happens = full.__enter__
    found = [await read(store, "large")]
    settle(store)
    found += [await read(store, "small")]
    settle(store)
    kept = cached_keys(small_disk)
    full.__exit__(None, None, None)
    short_waits.step(LONGEST_SECONDS)
    for _ in range(2):
        # One read finds that the fault is over, and what comes next is kept.
        found += [await read(store, "large")]
        settle(store)
    source.reset()
    again = await read(store, "large")

    assert found == [LARGE, SMALL, LARGE, LARGE]
    assert "small" in kept
    assert staged(small_disk) == []
    assert "full" in "".join(told(warned))
    assert again == LARGE
    assert source.requests.total() == 0
    assert cached_bytes(small_disk) == len(LARGE) + len(SMALL)
    assert store.cache_stats()["evictions"] == 0
