"""What is logged: one line for each event of a file, and none for a read."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, HeldTime, buffer, restart
from tests.systems import needs_removal_of_open_files
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import Store

KEYS = ["a", "b", "c", "d", "e"]

pytestmark = pytest.mark.filterwarnings("ignore::zarr_cache.CacheWarning")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log from INFO on."""
    caplog.set_level(logging.INFO, "zarr_cache")
    return caplog


def lines(log: pytest.LogCaptureFixture) -> list[str]:
    """What was said so far. Forgets it."""
    found = [
        f"{record.levelname} {record.getMessage()}"
        for record in log.records
        if record.name.split(".")[0] == "zarr_cache"
    ]
    log.clear()
    return found


def source() -> CountingStore:
    store = CountingStore(MemoryStore())
    for key in KEYS:
        store.set_sync(key, buffer(bytes(1000)))
    return store


def cached(path: Path, *, max_size: int | None = None) -> CacheStore:
    return CacheStore(source(), cache_store=SqliteStore(path), max_size=max_size)


def read_all(store: CacheStore) -> None:
    for key in KEYS:
        assert store.get_sync(key) is not None
    store.flush()


def test_opening_a_file_is_logged_once(path: Path, log: pytest.LogCaptureFixture) -> None:
    store = cached(path)
    read_all(store)
    read_all(store)

    assert lines(log) == [f"INFO {path}: opened"]


def test_the_first_eviction_of_a_file_is_logged_and_no_other(
    path: Path, log: pytest.LogCaptureFixture
) -> None:
    store = cached(path, max_size=2048)
    other = cached(path, max_size=2048)
    read_all(store)
    read_all(other)
    read_all(store)

    assert store.cache_stats()["evictions"] > 1
    assert lines(log) == [
        f"INFO {path}: opened",
        f"INFO {path}: max_size of 2.0 KiB is used up; the least recently used is evicted",
    ]


def test_the_first_eviction_of_a_cache_in_another_store_is_logged(
    log: pytest.LogCaptureFixture,
) -> None:
    kept: Store = MemoryStore()
    read_all(CacheStore(source(), cache_store=kept, max_size=2048))

    assert lines(log) == [
        "INFO in memory: max_size of 2.0 KiB is used up; the least recently used is evicted"
    ]


@pytest.mark.leaves_damage
def test_a_damaged_file_that_is_quarantined_is_logged_with_both_names(
    path: Path, log: pytest.LogCaptureFixture
) -> None:
    store = cached(path)
    read_all(store)
    restart(store)
    lines(log)
    path.write_bytes(path.read_bytes()[:3000])
    read_all(store)

    (aside,) = path.parent.glob("*.damaged-*[0-9Z]")
    lines_logged = lines(log)
    assert [line for line in lines_logged if line.startswith("WARNING")] == [lines_logged[0]]
    assert lines_logged[0].startswith(f"WARNING {path}: ")
    assert lines_logged[0].endswith(f"; it is now {aside}, and another is begun")
    assert lines_logged[1:] == [f"INFO {path}: opened"]


def test_a_fault_is_logged_once_and_so_is_its_end(
    path: Path, held_time: HeldTime, log: pytest.LogCaptureFixture
) -> None:
    path.write_text("a shopping list")
    store = cached(path)
    for key in KEYS * 3:
        assert store.get_sync(key) is not None
    begun = lines(log)
    path.unlink()
    held_time.step(60)
    read_all(store)
    ended = lines(log)

    assert len(begun) == 1
    assert begun[0].startswith(f"WARNING {path}: ")
    assert begun[0].endswith("; circuit open: retried with back-off")
    why = begun[0].removeprefix("WARNING ").removesuffix("; circuit open: retried with back-off")
    assert ended == [f"INFO {path}: opened", f"WARNING works again after: {why}"]


@needs_removal_of_open_files
def test_a_file_that_was_deleted_is_logged(path: Path, log: pytest.LogCaptureFixture) -> None:
    store = cached(path)
    read_all(store)
    lines(log)
    path.unlink()
    read_all(store)

    assert lines(log) == [
        f"WARNING {path}: it was deleted while it was open; it is opened again",
        f"INFO {path}: opened",
    ]


def test_a_run_without_faults_gives_no_warning(path: Path, log: pytest.LogCaptureFixture) -> None:
    store = cached(path, max_size=2048)
    read_all(store)
    store.close()

    assert [line for line in lines(log) if not line.startswith("INFO")] == []
