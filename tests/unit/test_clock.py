"""Time that measures ages within a process and across restarts alike."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, buffer, read, restart
from zarr_cache import CacheStore, SqliteStore, clock
from zarr_cache.clock import PersistentClock

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fakes import HeldTime

MAX_AGE = 100


def standing_at(ns: int) -> Callable[[], int]:
    return lambda: ns


def test_time_begins_at_the_wall_clock() -> None:
    started = PersistentClock(floor_ns=0, wall=standing_at(1_000), monotonic=standing_at(7))

    assert started.now_ns() == 1_000


def test_time_goes_on_when_the_wall_clock_was_set_back_between_two_sessions() -> None:
    before = PersistentClock(floor_ns=0, wall=standing_at(1_000), monotonic=standing_at(7))
    after = PersistentClock(
        floor_ns=before.stamp_ns(), wall=standing_at(200), monotonic=standing_at(0)
    )

    assert after.now_ns() >= before.now_ns() == 1_000


def test_time_jumps_with_a_wall_clock_that_went_forward_between_two_sessions() -> None:
    after = PersistentClock(floor_ns=1_000, wall=standing_at(5_000), monotonic=standing_at(0))

    assert after.now_ns() == 5_000


def test_a_wall_clock_that_is_set_during_a_session_changes_nothing(held_time: HeldTime) -> None:
    session = PersistentClock(floor_ns=0)
    begun_at = session.now_ns()
    held_time.step(3)
    held_time.step_wall(-10_000)

    assert session.now_ns() == begun_at + 3 * 10**9


def test_now_is_the_same_while_no_time_passes() -> None:
    held = PersistentClock(floor_ns=0, wall=standing_at(1_000), monotonic=standing_at(7))

    assert held.now_ns() == held.now_ns()


def test_now_is_not_before_the_last_stamp() -> None:
    held = PersistentClock(floor_ns=0, wall=standing_at(1_000), monotonic=standing_at(7))
    stamps = [held.stamp_ns() for _ in range(10)]

    assert held.now_ns() == stamps[-1]


def test_the_first_stamp_is_after_every_stamp_in_the_file() -> None:
    resumed = PersistentClock(floor_ns=1_000, wall=standing_at(200), monotonic=standing_at(7))

    assert resumed.stamp_ns() > 1_000


def test_stamps_of_a_clock_that_stands_still_never_tie() -> None:
    held = PersistentClock(floor_ns=0, wall=standing_at(1_000), monotonic=standing_at(7))
    stamps = [held.stamp_ns() for _ in range(1_000)]

    assert all(one < other for one, other in pairwise(stamps))


def test_stamps_of_many_threads_never_tie() -> None:
    shared = PersistentClock(floor_ns=0)
    stamps: list[list[int]] = [[] for _ in range(8)]
    start = threading.Barrier(len(stamps))

    def take(own: list[int]) -> None:
        start.wait()
        own.extend(shared.stamp_ns() for _ in range(2_000))

    threads = [threading.Thread(target=take, args=(own,)) for own in stamps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({stamp for own in stamps for stamp in own}) == 8 * 2_000
    assert all(own == sorted(own) for own in stamps)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="the system has no such clock")
def test_time_asleep_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {time.CLOCK_MONOTONIC: 1, time.CLOCK_BOOTTIME: 28_800 * 10**9}
    monkeypatch.setattr(time, "clock_gettime_ns", told.__getitem__)

    assert clock.monotonic_ns() == 28_800 * 10**9


def test_without_a_clock_that_counts_suspend_the_monotonic_one_keeps_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    monkeypatch.setattr(time, "monotonic_ns", standing_at(42))

    assert clock.monotonic_ns() == 42


def caching(path: Path, source: CountingStore) -> CacheStore:
    return CacheStore(
        source, cache_store=SqliteStore(path), max_age_seconds=MAX_AGE, namespace="source"
    )


async def begin(path: Path) -> CountingStore:
    """A source whose key ``k`` has been cached by a session that has ended."""
    source = CountingStore(MemoryStore({"k": buffer(b"value")}))
    store = caching(path, source)
    await read(store, "k")
    restart(store)
    source.reset()
    return source


async def test_an_age_counts_the_time_between_two_sessions(path: Path, held_time: HeldTime) -> None:
    source = await begin(path)
    held_time.reboot(seconds=MAX_AGE + 1)
    await read(caching(path, source), "k")

    assert source.requests.total() == 1


async def test_an_answer_is_still_fresh_after_a_reboot_within_its_age(
    path: Path, held_time: HeldTime
) -> None:
    source = await begin(path)
    held_time.reboot(seconds=MAX_AGE - 1)
    await read(caching(path, source), "k")

    assert source.requests.total() == 0


async def test_a_wall_clock_set_back_makes_answers_younger_and_never_lasting(
    path: Path, held_time: HeldTime
) -> None:
    source = await begin(path)
    held_time.reboot(seconds=-1_000_000)
    store = caching(path, source)
    await read(store, "k")
    requests_at_first = source.requests.total()
    held_time.step(MAX_AGE + 1)
    await read(store, "k")

    assert (requests_at_first, source.requests.total()) == (0, 1)


async def test_an_answer_is_fresh_while_less_than_its_age_has_passed(
    path: Path, held_time: HeldTime
) -> None:
    source = CountingStore(MemoryStore({"k": buffer(b"value")}))
    store = caching(path, source)
    held_time.step(1)
    await read(store, "k")
    held_time.step(MAX_AGE - 0.000_001)
    await read(store, "k")
    requests_before = source.requests.total()
    held_time.step(0.000_001)
    await read(store, "k")

    assert (requests_before, source.requests.total()) == (1, 2)
