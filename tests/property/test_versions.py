"""No read is a mixture of versions, nor older than its age allows, whatever others change.

Each version of a value is one byte, repeated, so that every part tells its version.
``ZARR_CACHE_STRESS=n`` tries n times as many sequences; on CI (``CI`` is set) they are the same
each time.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync

from tests.fakes import (
    PROTOTYPE,
    STRESS,
    HeldTime,
    assert_accounts,
    leave_process,
    read,
    read_ranges,
    restart,
)
from tests.freshness.origins import over_local_store
from tests.freshness.tasks import Task
from zarr_cache import CacheStore, SourceChangedError, SqliteStore
from zarr_cache.core import clock
from zarr_cache.warming.revalidate import check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest

MANY_OPERATIONS = settings(
    max_examples=10 * STRESS,
    stateful_step_count=40,
    derandomize="CI" in os.environ,
    database=None,
    print_blob=True,
    phases=[Phase.generate, *([Phase.shrink] if STRESS == 2 else [])],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

KEYS = ["a/c/0", "a/c/1", "a/zarr.json"]
SIZES = [120, 200]
MAX_SIZE = 500
AGE, METADATA_AGE, ABSENT_AGE = 100.0, 10.0, 60.0
WINDOW = 45.0
"""A reader asks for the next range of a value within so many seconds. Within 60 it may be late."""

FOR_EVER = 10.0**9


class Reader(NamedTuple):
    """A view of a CacheStore.

    Attributes
    ----------
    process
        Which of the two processes has it.
    age, metadata_age
        Its ages in seconds.
    """

    process: int
    persist: bool
    age: float
    metadata_age: float

    def age_of(self, key: str) -> float:
        return self.metadata_age if key.endswith("zarr.json") else self.age

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "persist_ranges": self.persist,
            "max_age_seconds": "infinity" if self.age == FOR_EVER else self.age,
            "max_age_metadata_seconds": self.metadata_age,
        }


READERS = {
    "in memory": Reader(0, False, FOR_EVER, METADATA_AGE),
    "persisted": Reader(0, True, FOR_EVER, METADATA_AGE),
    "stale soon": Reader(0, True, AGE, 0.0),
    "other process": Reader(1, True, FOR_EVER, METADATA_AGE),
    "other process, in memory": Reader(1, False, AGE, METADATA_AGE),
}

RANGES: list[ByteRequest] = [
    RangeByteRequest(0, 20),
    RangeByteRequest(5, 60),
    RangeByteRequest(40, 90),
    RangeByteRequest(100, 130),
    OffsetByteRequest(90),
    SuffixByteRequest(30),
]
ANY_KEY = st.sampled_from(KEYS)
ANY_READER = st.sampled_from(list(READERS))
SOME_RANGES = st.lists(st.sampled_from(RANGES), min_size=1, max_size=3)


class Place(NamedTuple):
    """A reader of a value: the thread of the test, or a task in one of the processes."""

    process: int
    is_thread: bool
    key: str


class Window(NamedTuple):
    """The version of which the reader has parts, since when, and with which it may have begun.

    If it asks for that once more, it begins anew.
    """

    number: int
    at: float
    firsts: frozenset[ByteRequest]


class Change(NamedTuple):
    """What the source has from this time on: the number and the size of a version, or nothing."""

    at: float
    number: int | None
    size: int = 0


class Outcome(NamedTuple):
    """What a read has brought: parts, or nothing of an absent value, or that it has changed."""

    parts: list[bytes]
    is_absent: bool = False
    is_changed: bool = False


class Versions(RuleBasedStateMachine):
    """Views in two processes over one file, and a folder in which others change values."""

    def __init__(self) -> None:
        super().__init__()
        self.cleanup = ExitStack()
        folder = Path(self.cleanup.enter_context(tempfile.TemporaryDirectory()))
        self.path = folder / "c.sqlite"
        self.held = HeldTime()
        patch = self.cleanup.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(clock, "wall_ns", lambda: self.held.wall_ns)
        patch.setattr(clock, "monotonic_ns", lambda: self.held.monotonic_ns)
        (folder / "source").mkdir()
        self.origin = self.cleanup.enter_context(over_local_store(folder / "source"))
        self.now = 0.0
        self.changes: dict[str, list[Change]] = {}
        self.number = 0
        self.windows: dict[Place, Window] = {}
        # Of how many changes the reader was told.
        self.told: Counter[Place] = Counter()
        self.tasks: dict[int, Task] = {}
        self.stores: dict[str, CacheStore] = {}
        for process in (0, 1):
            self.start(process)

    def start(self, process: int) -> None:
        """Open the stores of a process."""
        begun = {
            name: self.connect(each) for name, each in READERS.items() if each.process == process
        }
        self.stores |= begun
        for store in begun.values():
            leave_process(store)
        self.forget_windows(process)
        self.tasks[process] = Task()

    def forget_windows(self, process: int) -> None:
        """Let no reader of the process have a part of a value."""
        self.windows = {at: each for at, each in self.windows.items() if at.process != process}
        # What the other process puts into the file may be of an earlier version, and is news again.
        for place in [each for each in self.told if each.process == process]:
            del self.told[place]

    def connect(self, reader: Reader) -> CacheStore:
        return CacheStore(
            self.origin.source,
            cache_store=SqliteStore(self.path),
            max_size=MAX_SIZE,
            namespace="source",
            **reader.settings,
        )

    def teardown(self) -> None:
        for store in self.stores.values():
            sync(read(store, KEYS[0]))  # so that there is a file
        stats = [store.cache_stats() for store in self.stores.values()]
        restart(*self.stores.values())
        for task in self.tasks.values():
            task.end()
        with self.cleanup:
            assert_accounts(self.path)
        assert {(each["faults"], each["damaged"]) for each in stats} == {(0, 0)}

    # What others do

    @initialize()
    def put_all(self) -> None:
        for key in KEYS:
            self.change(key, SIZES[0])

    @rule(key=ANY_KEY, size=st.sampled_from(SIZES))
    def change(self, key: str, size: int) -> None:
        self.number += 1
        self.origin.put(key, bytes([self.number]) * size)
        self.changes.setdefault(key, []).append(Change(self.now, self.number, size))

    @rule(key=ANY_KEY)
    def remove(self, key: str) -> None:
        if self.changes[key][-1].number is not None:
            self.origin.delete(key)
            self.changes[key].append(Change(self.now, None))

    @rule(seconds=st.sampled_from([0.5, METADATA_AGE + 1, 44.0, 61.0, AGE + 1]))
    def let_time_pass(self, seconds: float) -> None:
        self.held.step(seconds)
        self.now += seconds

    # What is done to the cache

    @rule(name=ANY_READER)
    def flush(self, name: str) -> None:
        self.stores[name].flush()

    @rule(process=st.sampled_from([0, 1]))
    def restart(self, process: int) -> None:
        own = [self.stores[name] for name, each in READERS.items() if each.process == process]
        restart(*own)
        self.tasks[process].end()
        self.start(process)

    @rule(name=ANY_READER)
    def clear_cache(self, name: str) -> None:
        sync(self.stores[name].clear_cache())
        self.forget_windows(READERS[name].process)

    @rule(name=ANY_READER, dry_run=st.booleans())
    def revalidate(self, name: str, dry_run: bool) -> None:
        report = sync(check(self.stores[name]._view, "", dry_run=dry_run))

        assert report.without_validator == 0

    # What is read

    @rule(name=ANY_READER, key=ANY_KEY, is_sync=st.booleans())
    def read_value(self, name: str, key: str, is_sync: bool) -> None:
        store: Any = self.stores[name]
        found = store.get_sync(key) if is_sync else sync(read(store, key))
        data = as_bytes(found)
        age = READERS[name].age_of(key)
        if data is None:
            assert None in self.numbers_since(key, min(age, ABSENT_AGE))
        else:
            (number,) = set(data)
            assert len(data) == self.size_of(key, number)
            assert number in self.numbers_since(key, age)

    @rule(
        name=ANY_READER,
        key=ANY_KEY,
        requests=SOME_RANGES,
        method=st.sampled_from(["get", "get_sync", "get_ranges", "get_ranges_sync"]),
    )
    def read_ranges(
        self, name: str, key: str, requests: Sequence[ByteRequest], method: str
    ) -> None:
        if method.startswith("get_ranges"):
            self.compare(name, key, requests, method)
        else:
            for request in requests:
                self.compare(name, key, [request], method)

    @rule(name=ANY_READER, other=ANY_READER, key=ANY_KEY, requests=SOME_RANGES)
    def read_while_it_is_replaced_and_read(
        self, name: str, other: str, key: str, requests: Sequence[ByteRequest]
    ) -> None:
        """Another reader has the later version, and keeps it, before this one goes on."""
        first, *others = requests
        self.compare(name, key, [first], "get")
        self.change(key, SIZES[0])
        self.let_time_pass(METADATA_AGE + 1)
        for request in (first, *RANGES[:2]):
            self.compare(other, key, [request], "get_ranges")
        self.stores[other].flush()
        for request in (*others, RANGES[3]):
            self.compare(name, key, [request], "get")

    def compare(self, name: str, key: str, requests: Sequence[ByteRequest], method: str) -> None:
        reader = READERS[name]
        place = Place(reader.process, method.endswith("sync"), key)
        window = self.windows.get(place)
        if window is not None and (requests[0] in window.firsts or window.at < self.now - 60):
            # It begins anew, unless it had begun with another one of them.
            firsts = window.firsts if window.at >= self.now - 60 else frozenset()
            window = Window(0, -FOR_EVER, firsts if len(firsts) > 1 else frozenset())
            self.windows[place] = window
        outcome = self.ask(self.stores[name], self.tasks[reader.process], key, requests, method)
        if outcome.is_changed:
            self.told[place] += 1
            assert self.told[place] < len(self.changes[key]), "told more often than it has changed"
        if outcome.is_changed:
            self.windows.pop(place, None)
        if outcome.is_changed or outcome.is_absent:
            return
        numbers = {number for part in outcome.parts for number in part}
        if not numbers:
            return
        assert len(numbers) == 1, "a mixture"
        (number,) = numbers
        size = self.size_of(key, number)
        lengths = [len(part) for part in outcome.parts]
        assert lengths == [length_of(request, size) for request in requests]
        assert number in self.numbers_since(key, reader.age_of(key))
        is_open = window is not None and window.at >= self.now - WINDOW
        firsts = frozenset() if window is None else window.firsts
        if not is_open or not firsts:
            firsts |= {requests[0]}
        self.windows[place] = Window(number, self.now, firsts)
        assert window is None or not is_open or window.number == number, "parts of two versions"

    def ask(
        self, store: Any, task: Task, key: str, requests: Sequence[ByteRequest], method: str
    ) -> Outcome:
        try:
            match method:
                case "get":
                    found = [task(read(store, key, each)) for each in requests]
                case "get_sync":
                    found = [store.get_sync(key, byte_range=each) for each in requests]
                case "get_ranges":
                    found = task(read_ranges(store, key, requests))
                case _:
                    pieces = dict(store.get_ranges_sync(key, requests, prototype=PROTOTYPE))
                    found = [pieces[number] for number in range(len(requests))]
        except SourceChangedError:
            return Outcome([], is_changed=True)
        except ExceptionGroup as group:
            (kind,) = set(map(type, group.exceptions))
            assert kind in {SourceChangedError, FileNotFoundError}
            is_absent = kind is FileNotFoundError
            return Outcome([], is_absent=is_absent, is_changed=not is_absent)
        parts = [as_bytes(each) for each in found]
        if None in parts:
            return Outcome([], is_absent=True)
        return Outcome([part for part in parts if part is not None])

    def size_of(self, key: str, number: int) -> int:
        return next(each.size for each in self.changes[key] if each.number == number)

    def numbers_since(self, key: str, age: float) -> set[int | None]:
        """The versions that the source had within the last seconds; None if there was none."""
        begin = self.now - age
        numbers: set[int | None] = set()
        for index, each in enumerate(self.changes[key]):
            later = self.changes[key][index + 1 :]
            if not later or later[0].at >= begin:
                numbers.add(each.number)
        return numbers


def as_bytes(found: Any) -> bytes | None:
    """What a method of a store has returned, as bytes."""
    return found if found is None or isinstance(found, bytes) else found.to_bytes()


def length_of(request: ByteRequest, size: int) -> int:
    """How many bytes the request has of a value of so many."""
    match request:
        case RangeByteRequest(start, end):
            return max(0, min(end, size) - start)
        case OffsetByteRequest(offset):
            return max(0, size - offset)
        case SuffixByteRequest(suffix):
            return min(suffix, size)


def test_no_read_is_a_mixture_nor_older_than_its_age() -> None:
    run_state_machine_as_test(Versions, settings=MANY_OPERATIONS)
