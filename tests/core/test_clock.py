"""Time that measures ages within a process and across restarts alike."""

from __future__ import annotations

import os
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, buffer, leave_process, read, restart
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core import clock
from zarr_cache.core.clock import PersistentClock

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import HeldTime

MAX_AGE = 100


def started_at(held_time: HeldTime, wall_ns: int, *, floor_ns: int = 0) -> PersistentClock:
    """A clock that is started while the wall clock stands there."""
    held_time.wall_ns = wall_ns
    return PersistentClock(floor_ns=floor_ns)


def test_time_begins_at_the_wall_clock(held_time: HeldTime) -> None:
    started = started_at(held_time, 1_000)

    assert started.now_ns() == 1_000


def test_time_never_goes_back_when_the_wall_clock_was_set_back_between_two_sessions(
    held_time: HeldTime,
) -> None:
    timestamp_ns = started_at(held_time, 1_000).timestamp_ns()
    held_time.monotonic_ns = 0
    after = started_at(held_time, 200, floor_ns=timestamp_ns)

    assert after.now_ns() >= 1_000


def test_time_jumps_with_a_wall_clock_that_went_forward_between_two_sessions(
    held_time: HeldTime,
) -> None:
    after = started_at(held_time, 5_000, floor_ns=1_000)

    assert after.now_ns() == 5_000


def test_a_wall_clock_that_is_set_during_a_session_changes_nothing(held_time: HeldTime) -> None:
    session = PersistentClock(floor_ns=0)
    begun_at = session.now_ns()
    held_time.step(3)
    held_time.step_wall(-10_000)

    assert session.now_ns() == begun_at + 3 * 10**9


def test_now_is_the_same_while_no_time_passes(held_time: HeldTime) -> None:
    held = started_at(held_time, 1_000)

    assert held.now_ns() == held.now_ns()


def test_now_is_not_before_the_last_timestamp(held_time: HeldTime) -> None:
    held = started_at(held_time, 1_000)
    timestamps = [held.timestamp_ns() for _ in range(10)]

    assert held.now_ns() == timestamps[-1]


def test_the_first_timestamp_is_after_every_timestamp_in_the_file(held_time: HeldTime) -> None:
    resumed = started_at(held_time, 200, floor_ns=1_000)

    assert resumed.timestamp_ns() > 1_000


def test_timestamps_of_a_clock_that_stands_still_never_tie(held_time: HeldTime) -> None:
    held = started_at(held_time, 1_000)
    timestamps = [held.timestamp_ns() for _ in range(1_000)]

    assert all(one < other for one, other in pairwise(timestamps))


def test_timestamps_of_many_threads_never_tie() -> None:
    shared = PersistentClock(floor_ns=0)
    timestamps: list[list[int]] = [[] for _ in range(8)]
    start = threading.Barrier(len(timestamps))

    def take(own: list[int]) -> None:
        start.wait()
        own.extend(shared.timestamp_ns() for _ in range(2_000))

    threads = [threading.Thread(target=take, args=(own,)) for own in timestamps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({timestamp for own in timestamps for timestamp in own}) == 8 * 2_000
    assert all(own == sorted(own) for own in timestamps)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="the system has no such clock")
def test_time_asleep_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {time.CLOCK_MONOTONIC: 1, time.CLOCK_BOOTTIME: 28_800 * 10**9}
    monkeypatch.setattr(time, "clock_gettime_ns", told.__getitem__)

    assert clock.monotonic_ns() == 28_800 * 10**9


def test_time_asleep_counts_on_macos_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    monkeypatch.setattr(time, "CLOCK_UPTIME_RAW", 8, raising=False)
    monkeypatch.setattr(time, "CLOCK_MONOTONIC_RAW", 4, raising=False)
    monkeypatch.setattr(time, "clock_gettime_ns", {8: 1, 4: 28_800 * 10**9}.__getitem__)

    assert clock.monotonic_ns() == 28_800 * 10**9


def test_without_a_clock_that_counts_suspend_the_monotonic_one_keeps_pace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME", raising=False)
    monkeypatch.delattr(time, "CLOCK_UPTIME_RAW", raising=False)
    monkeypatch.setattr(time, "monotonic_ns", lambda: 42)

    assert clock.monotonic_ns() == 42


def caching(path: Path, source: CountingStore, max_age_seconds: float = MAX_AGE) -> CacheStore:
    return CacheStore(
        source, cache_store=SqliteStore(path), max_age_seconds=max_age_seconds, namespace="source"
    )


async def begin(path: Path) -> CountingStore:
    """A source whose key ``k`` has been cached by a session that has ended."""
    source = CountingStore(MemoryStore({"k": buffer(b"value")}))
    store = caching(path, source)
    await read(store, "k")
    restart(store)
    source.reset()
    return source


@pytest.mark.parametrize(("seconds", "requests"), [(MAX_AGE - 1, 0), (MAX_AGE + 1, 1)])
async def test_an_age_counts_the_time_between_two_sessions(
    path: Path, held_time: HeldTime, seconds: int, requests: int
) -> None:
    source = await begin(path)
    held_time.reboot(seconds=seconds)
    await read(caching(path, source), "k")

    assert source.requests.total() == requests


async def test_a_wall_clock_set_back_makes_responses_younger_and_never_lasting(
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


async def test_a_response_is_fresh_while_less_than_its_age_has_passed(
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


async def test_time_passes_between_short_sessions_although_the_wall_clock_was_set_back(
    path: Path, held_time: HeldTime
) -> None:
    source = await begin(path)
    held_time.reboot(seconds=-1_000_000)
    for _ in range(3):
        store = caching(path, source)
        await read(store, "k")
        restart(store)
        # As the file system does it, whose clock is not held.
        os.utime(path, ns=(held_time.wall_ns, held_time.wall_ns))
        held_time.reboot(seconds=MAX_AGE / 2)

    assert source.requests.total() == 1


async def suspended(path: Path, source: CountingStore, held_time: HeldTime) -> None:
    """Let the virtual machine be suspended for a day, and another process read ``k`` after that."""
    held_time.step_wall(86_400)
    other = caching(path, source)
    await read(other, "k")
    restart(other)
    source.reset()


async def test_a_process_that_was_suspended_takes_the_time_from_entries_of_another(
    path: Path, held_time: HeldTime
) -> None:
    source = CountingStore(MemoryStore({"k": buffer(b"value"), "other": buffer(b"value")}))
    store = caching(path, source)
    await read(store, "other")
    leave_process(store)
    await suspended(path, source, held_time)
    await read(store, "k")
    await read(store, "other")
    keys_after_a_day = source.keys.copy()
    held_time.step(MAX_AGE)
    await read(store, "k")

    assert keys_after_a_day == ["other"]
    assert source.keys == ["other", "k"]


async def test_a_process_that_caches_nothing_ignores_clocks_that_are_ahead(
    path: Path, held_time: HeldTime
) -> None:
    source = CountingStore(MemoryStore({"k": buffer(b"value")}))
    store = caching(path, source, max_age_seconds=0)
    await read(store, "k")
    leave_process(store)
    await suspended(path, source, held_time)
    await read(store, "k")

    assert source.requests.total() == 1


async def test_a_process_that_opens_the_file_again_reads_the_clock_again(
    path: Path, held_time: HeldTime
) -> None:
    source = CountingStore(MemoryStore({"k": buffer(b"value")}))
    store = caching(path, source)
    await read(store, "k")
    store.close()
    held_time.step_wall(MAX_AGE)
    await read(store, "k")

    assert source.requests.total() == 2


def test_an_invalid_timestamp_does_not_set_the_clock(held_time: HeldTime) -> None:
    held = started_at(held_time, 1_000)

    assert not held.catch_up(2**63 - 1)
    assert held.now_ns() == 1_000


@pytest.mark.parametrize("wall_ns", [0, 10**9])
async def test_what_another_store_held_before_is_stale_also_where_time_begins_in_1970(
    held_time: HeldTime, wall_ns: int
) -> None:
    held_time.wall_ns = wall_ns
    kept = MemoryStore({"k": buffer(b"old")})
    store = CacheStore(
        MemoryStore({"k": buffer(b"new")}), cache_store=kept, max_age_seconds=MAX_AGE
    )

    assert await read(store, "k") == b"new"
