"""Order, sizes, ages and totals equal those of a plain ordered dict, restarts included."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from tests.fakes import (
    STRESS,
    CountingStore,
    HeldTime,
    assert_accounts,
    buffer,
    flush_everything,
    open_file,
    restart,
    take_for_large,
)
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.backend.ranges import RangeCache
from zarr_cache.core import clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer

    from zarr_cache.flows.settings import WhenFull

SECOND_NS = 10**9

KEYS = st.sampled_from(["a", "b", "c"])
SIZES = st.sampled_from([0, 4, 9, 14, 40])
BUDGETS = st.sampled_from([0, 10, 24, 33])
STEPS = st.sampled_from([1, 4, 8])  # seconds; no sum of them is MAX_AGE
MAX_AGE = 10.5
AT_FIRST = {"a": b"0123456789abcd", "b": b"ABCDEFGHI", "c": b"uvwxyz"}

Span = tuple[int, int]
FileId = tuple[str, Span | None]
"""A key, and the bytes ``[start, stop)`` of a range entry or None for a full value."""

FileEntry = tuple[str, int, int, int]
"""Key, first byte (-1 for a full value), size and second."""


class Kept(NamedTuple):
    """One entry of the model: bytes, second and revision at which the source was asked."""

    size: int
    stored_at: int
    revision: int


class Model:
    """What a CacheStore keeps, in plain Python. Least recently used first."""

    def __init__(self, max_size: int, max_age: float) -> None:
        self.max_size = max_size
        self.max_age = max_age
        self.now = 0
        self.source = dict(AT_FIRST)
        self.kept: OrderedDict[FileId, Kept] = OrderedDict()
        # What is known of writes: by key, as long as its row stands, and of all keys.
        self.fences: dict[str, int] = {}
        self.fence = 0
        self.revision = 0

    @property
    def values(self) -> list[FileEntry]:
        """The full values, least recently used first."""
        return [
            (key, -1, each.size, each.stored_at)
            for (key, span), each in self.kept.items()
            if not span
        ]

    @property
    def in_file(self) -> list[FileEntry]:
        """What is in the file, least recently used first."""
        return self.values

    @property
    def size(self) -> int:
        return sum(kept.size for kept in self.kept.values())

    @property
    def size_in_file(self) -> int:
        return sum(size for _, _, size, _ in self.in_file)

    # What leaves

    def drop(self, place: FileId) -> None:
        """A row that goes leaves what it knew of writes to its namespace."""
        kept = self.kept.pop(place)
        if place[1] is None:
            self.fence = max(self.fence, kept.revision)

    def drop_row(self, key: str) -> None:
        if (key, None) in self.kept:
            self.drop((key, None))
        self.fence = max(self.fence, self.fences.pop(key, 0))

    def is_fresh(self, kept: Kept) -> bool:
        return self.now - kept.stored_at < self.max_age

    def expire(self) -> None:
        for place in [place for place, kept in self.kept.items() if not self.is_fresh(kept)]:
            self.drop(place)

    def evict(self) -> None:
        while self.size > self.max_size:
            self.drop(next(iter(self.kept)))

    def enforce(self) -> None:
        self.expire()
        self.evict()

    def come_under_budget(self) -> None:
        if self.size > self.max_size:
            self.enforce()

    # Reading: what comes back, and whether it was a hit

    def get(self, key: str) -> tuple[bytes | None, bool]:
        if self.is_hit(key):
            return self.source[key], True
        value = self.source.get(key)
        if value is not None and len(value) <= self.max_size:
            self.admit_value(key)
        elif (key, None) in self.kept:
            self.drop((key, None))
        return value, False

    def get_range(self, key: str, start: int, stop: int) -> tuple[bytes | None, bool]:
        value = self.source.get(key)
        part = None if value is None else value[start:stop]
        if self.is_hit(key):
            return part, True
        spans = self.spans(key)
        for span in spans:
            if self.kept[key, span].revision < max(self.fence, self.row_revision(key)):
                self.drop((key, span))
        # None lies inside another: the one that begins last reaches furthest.
        around = [
            span for span in self.spans(key) if span[0] <= start < span[1] and stop <= span[1]
        ]
        for span in reversed(around):
            if self.is_fresh(self.kept[key, span]):
                self.kept.move_to_end((key, span))
                return part, True
            self.drop((key, span))
        if part is None and (key, None) in self.kept:
            self.drop((key, None))
        if part and len(part) <= self.max_size:
            self.admit_range(key, start, start + len(part))
        return part, False

    def admit_value(self, key: str) -> None:
        self.expire()
        self.keep_value(key, self.row_revision(key))
        self.evict()

    def admit_range(self, key: str, start: int, stop: int) -> None:
        self.keep_range(key, start, stop)

    def is_hit(self, key: str) -> bool:
        kept = self.kept.get((key, None))
        is_hit = kept is not None and self.is_fresh(kept)
        self.come_under_budget()
        if is_hit and (key, None) in self.kept:
            self.kept.move_to_end((key, None))
        return is_hit

    def row_revision(self, key: str) -> int:
        kept = self.kept.get((key, None))
        return kept.revision if kept else self.fences.get(key, 0)

    def spans(self, key: str) -> list[Span]:
        return sorted(span for other, span in self.kept if span and other == key)

    def keep_value(self, key: str, revision: int) -> None:
        self.fences.pop(key, None)
        self.kept[key, None] = Kept(len(self.source[key]), self.now, revision)
        self.kept.move_to_end((key, None))

    def keep_range(self, key: str, start: int, stop: int) -> None:
        for span in self.spans(key):
            if start <= span[0] and span[1] <= stop:
                self.drop((key, span))
        self.kept[key, (start, stop)] = Kept(stop - start, self.now, self.revision)
        self.come_under_budget()

    # Writing

    def write(self, key: str, value: bytes | None, *, is_known: bool) -> None:
        """The source holds `value` now, and the cache keeps it if `is_known`."""
        for span in self.spans(key):
            self.drop((key, span))
        self.kept.pop((key, None), None)
        self.revision += 1
        self.fences[key] = self.revision
        self.source.pop(key, None)
        if value is not None:
            self.source[key] = value
        self.expire()
        self.revision += 1
        self.fences[key] = self.revision
        if is_known and value is not None and len(value) <= self.max_size:
            self.admit_written(key)
        self.evict()

    def admit_written(self, key: str) -> None:
        self.keep_value(key, self.revision)

    def restart(self) -> None:
        for place in [place for place in self.kept if place[1]]:
            self.drop(place)


class ModelOfRangesInFile(Model):
    """What a CacheStore keeps that persists ranges."""

    @property
    def in_file(self) -> list[FileEntry]:
        return [
            (key, span[0] if span else -1, each.size, each.stored_at)
            for (key, span), each in self.kept.items()
        ]

    def get_range(self, key: str, start: int, stop: int) -> tuple[bytes | None, bool]:
        value = self.source.get(key)
        part = None if value is None else value[start:stop]
        if self.is_hit(key):
            return part, True
        for span in reversed(self.spans(key)):
            if (
                span[0] <= start < span[1]
                and stop <= span[1]
                and self.is_fresh(self.kept[key, span])
            ):
                self.kept.move_to_end((key, span))
                return part, True
        if part is None and (key, None) in self.kept:
            self.drop((key, None))
        if part and len(part) <= self.max_size:
            self.admit_range(key, start, start + len(part))
        return part, False

    def admit_range(self, key: str, start: int, stop: int) -> None:
        self.expire()
        self.keep_range(key, start, stop)
        self.evict()

    def keep_range(self, key: str, start: int, stop: int) -> None:
        for span in self.spans(key):
            if start <= span[0] and span[1] <= stop:
                self.drop((key, span))
        self.kept[key, (start, stop)] = Kept(stop - start, self.now, 0)

    def keep_value(self, key: str, revision: int) -> None:
        for span in self.spans(key):
            self.drop((key, span))
        super().keep_value(key, revision)

    def drop_row(self, key: str) -> None:
        for span in self.spans(key):
            self.drop((key, span))
        super().drop_row(key)

    def restart(self) -> None:
        """All is in the file."""


def get(store: CacheStore, key: str, request: ByteRequest | None = None) -> Buffer | None:
    return sync(store.get(key, default_buffer_prototype(), request))


def get_sync(store: CacheStore, key: str, request: ByteRequest | None = None) -> Buffer | None:
    return store.get_sync(key, byte_range=request)


def set_async(store: CacheStore, key: str, value: Buffer) -> None:
    sync(store.set(key, value))


def delete_async(store: CacheStore, key: str) -> None:
    sync(store.delete(key))


def recorded(initialize: Any, made: list[RangeCache]) -> Any:
    """`initialize`, which also puts each one that is made into a list."""

    def initialize_and_record(ranges: RangeCache) -> None:
        initialize(ranges)
        made.append(ranges)

    return initialize_and_record


GETS = st.sampled_from([get, get_sync])
SETS = st.sampled_from([set_async, CacheStore.set_sync])
DELETES = st.sampled_from([delete_async, CacheStore.delete_sync])


class Order(RuleBasedStateMachine):
    """The rules for every cache store."""

    max_age_seconds: float | str = "infinity"
    persist_ranges = False
    when_full: WhenFull = "evict"
    models: tuple[type[Model], type[Model]] = (Model, ModelOfRangesInFile)

    def __init__(self) -> None:
        super().__init__()
        self.cleanup = ExitStack()
        self.patch = self.cleanup.enter_context(pytest.MonkeyPatch.context())
        self.time = HeldTime()
        self.patch.setattr(clock, "wall_ns", lambda: self.time.wall_ns)
        self.patch.setattr(clock, "monotonic_ns", lambda: self.time.monotonic_ns)
        self.ranges: list[RangeCache] = []
        self.patch.setattr(RangeCache, "__init__", recorded(RangeCache.__init__, self.ranges))
        self.started_at = self.time.wall_ns // SECOND_NS
        self.values = MemoryStore({key: buffer(value) for key, value in AT_FIRST.items()})
        self.written = 0
        self.source = CountingStore(self.values)
        self.cache_store: Any = None
        self.store: Any = None

    def teardown(self) -> None:
        self.cleanup.close()

    def open(self, max_size: int) -> None:
        raise NotImplementedError

    def connect(self, max_size: int) -> CacheStore:
        return CacheStore(
            self.source,
            cache_store=self.cache_store,
            max_age_seconds=self.max_age_seconds,  # type: ignore[arg-type]
            max_size=max_size,
            namespace="source",
            persist_ranges=self.persist_ranges,
            when_full=self.when_full,
        )

    @initialize(max_size=BUDGETS)
    def start(self, max_size: int) -> None:
        kind = self.models[self.persist_ranges]
        self.model = kind(max_size, float(self.max_age_seconds))
        self.open(max_size)

    def assert_read(self, expected: tuple[bytes | None, bool], read: Callable[[], Any]) -> None:
        self.source.reset()
        found = read()
        data = None if found is None else found.to_bytes()

        assert (data, self.source.requests.total() == 0) == expected

    @rule(key=KEYS, get=GETS)
    def get(self, key: str, get: Any) -> None:
        self.assert_read(self.model.get(key), lambda: get(self.store, key))

    @rule(key=KEYS, get=GETS, start=st.integers(0, 12), length=st.integers(1, 14))
    def get_range(self, key: str, get: Any, start: int, length: int) -> None:
        size = len(self.model.source.get(key, b""))
        # Inside the value: what a range past its end tells is in test_range_cache.py.
        start, stop = min(start, size), min(start + length, size)
        request = RangeByteRequest(start, stop)
        self.assert_read(
            self.model.get_range(key, start, stop), lambda: get(self.store, key, request)
        )

    @rule(
        key=KEYS,
        get=GETS,
        start=st.integers(0, 6),
        length=st.integers(1, 3),
        before=st.integers(0, 3),
        after=st.integers(0, 3) | st.none(),
    )
    def get_a_range_and_what_is_around_it(
        self, key: str, get: Any, start: int, length: int, before: int, after: int | None
    ) -> None:
        """Which rarely happens by chance: a larger range, or the whole value, replaces it."""
        self.get_range(key, get, start, length)
        self.flush()
        if after is None:
            self.get(key, get)
        else:
            first = max(0, start - before)
            self.get_range(key, get, first, start + length + after - first)

    def flush(self) -> None:
        """Where it can wait: write what waits."""

    def new_value(self, size: int) -> bytes:
        """Bytes that no value before had."""
        self.written += 1
        return bytes([self.written]) * size

    @rule(key=KEYS, size=SIZES, set_=SETS)
    def set(self, key: str, size: int, set_: Any) -> None:
        value = self.new_value(size)
        set_(self.store, key, buffer(value))
        self.model.write(key, value, is_known=True)

    @rule(key=KEYS, size=SIZES)
    def set_if_not_exists(self, key: str, size: int) -> None:
        value = self.new_value(size)
        sync(self.store.set_if_not_exists(key, buffer(value)))
        self.model.write(key, self.model.source.get(key, value), is_known=False)

    @rule(key=KEYS, delete=DELETES)
    def delete(self, key: str, delete: Any) -> None:
        delete(self.store, key)
        self.model.write(key, None, is_known=False)

    @rule(seconds=STEPS)
    def wait(self, seconds: int) -> None:
        self.time.step(seconds)
        self.model.now += seconds

    @rule()
    def ask_for_info(self) -> None:
        self.model.enforce()
        info = self.store.cache_info()

        assert info["file_size"] == self.model.size_in_file
        assert info["range_size"] == self.model.size - self.model.size_in_file
        assert info["current_size"] == self.model.size
        assert info["cached_keys"] == len(self.model.kept)
        self.check_order()

    def check_order(self) -> None:
        """Where the order can be seen: once the last uses are in the file."""

    def is_started(self) -> bool:
        return self.store is not None

    @precondition(is_started)
    @invariant()
    def source_holds_what_was_written(self) -> None:
        held = {key: value.to_bytes() for key, value in self.values._store_dict.items()}

        assert held == self.model.source


class OrderInFile(Order):
    """With a SqliteStore: order, sizes and ages are in the file."""

    def open(self, max_size: int) -> None:
        folder = self.cleanup.enter_context(tempfile.TemporaryDirectory())
        self.path = Path(folder) / "cache.sqlite"
        self.cache_store = SqliteStore(self.path)
        self.store = self.connect(max_size)
        self.store.cache_info()
        self.shell = self.cleanup.enter_context(open_file(self.path))

    def teardown(self) -> None:
        if self.is_started():
            restart(self.store)
            self.check_order()
            assert_accounts(self.path)
        super().teardown()

    def flush(self) -> None:
        flush_everything()

    def query(self, statement: str, *parameters: str) -> list[tuple[Any, ...]]:
        """Ask the file as another program would."""
        flush_everything()
        with self.shell:
            return self.shell.execute(statement, parameters).fetchall()

    @rule()
    def close(self) -> None:
        self.store.close()
        self.check_order()

    @rule(uptime=STEPS, key=KEYS, max_size=BUDGETS, seconds=st.integers(-20, 20))
    def restart(self, uptime: int, key: str, max_size: int, seconds: int) -> None:
        """A new process with another budget; the wall clock may have been set back before."""
        restart(self.store)
        self.check_order()
        ((newest,),) = self.query("SELECT coalesce(max(used_at), 0) FROM entry")
        self.time.step_wall(seconds)
        self.time.monotonic_ns = uptime * SECOND_NS
        self.model.now = max(self.time.wall_ns, newest) // SECOND_NS - self.started_at
        self.model.max_size = max_size
        self.model.restart()
        self.cache_store = SqliteStore(self.path)
        self.store = self.connect(max_size)
        self.assert_read(self.model.get(key), lambda: self.store.get_sync(key))

    @rule(key=KEYS)
    def delete_row_in_the_shell(self, key: str) -> None:
        self.query("DELETE FROM entry WHERE key = ?", key)
        self.model.drop_row(key)

    def check_order(self) -> None:
        rows = self.query(
            "SELECT key, start FROM entry WHERE kind IN ('value', 'range') ORDER BY used_at, id"
        )

        assert rows == [(key, start) for key, start, _, _ in self.model.in_file]

    @precondition(Order.is_started)
    @invariant()
    def sizes_and_ages_are_those_of_the_model(self) -> None:
        rows = self.query(
            "SELECT key, start, size, stored_at FROM entry WHERE kind IN ('value', 'range')"
        )
        kept = [(*of, at // SECOND_NS - self.started_at) for *of, at in rows]

        assert sorted(kept) == sorted(self.model.in_file)

    @precondition(Order.is_started)
    @invariant()
    def totals_are_the_sums(self) -> None:
        summed = self.query(
            "SELECT kind, count(*), sum(size) FROM entry GROUP BY kind ORDER BY kind"
        )

        for table in ("usage", "total"):
            rows = self.query(
                f"SELECT kind, entries, bytes FROM {table} WHERE entries > 0 ORDER BY kind"  # noqa: S608
            )
            assert rows == summed

    @precondition(Order.is_started)
    @invariant()
    def budget_holds(self) -> None:
        ((in_file,),) = self.query("SELECT sum(bytes) FROM total WHERE kind IN ('value', 'range')")

        assert in_file + self.ranges[-1].nbytes <= self.model.max_size


class OrderOfWhatAges(OrderInFile):
    max_age_seconds = MAX_AGE


class OrderOfLargeValues(OrderInFile):
    """As if values of 9 bytes were large, so that they are in the data file."""

    def __init__(self) -> None:
        super().__init__()
        take_for_large(self.patch, 9)


class OrderOfRangesInFile(OrderInFile):
    persist_ranges = True


class OrderOfRangesThatAge(OrderOfWhatAges):
    persist_ranges = True


class OrderOfLargeRanges(OrderOfLargeValues):
    persist_ranges = True
    max_age_seconds = MAX_AGE


class OrderInMemory(Order):
    """With another Store: no restarts, and the order shows in who has left."""

    max_age_seconds = MAX_AGE

    def open(self, max_size: int) -> None:
        self.cache_store = MemoryStore()
        self.store = self.connect(max_size)

    @precondition(Order.is_started)
    @invariant()
    def values_are_those_of_the_model(self) -> None:
        held = {key: value.to_bytes() for key, value in self.cache_store._store_dict.items()}

        assert held == {key: self.model.source[key] for key, *_ in self.model.values}

    @precondition(Order.is_started)
    @invariant()
    def budget_holds(self) -> None:
        in_store = sum(len(value) for value in self.cache_store._store_dict.values())

        assert in_store + self.ranges[-1].nbytes <= self.model.max_size


SETTINGS = settings(
    max_examples=30 * STRESS,
    stateful_step_count=50,
    print_blob=True,
)

TestOrderInFile = OrderInFile.TestCase
TestOrderInFile.settings = SETTINGS
TestOrderOfLargeValues = OrderOfLargeValues.TestCase
TestOrderOfLargeValues.settings = settings(SETTINGS, max_examples=8 * STRESS)
TestOrderOfWhatAges = OrderOfWhatAges.TestCase
TestOrderOfWhatAges.settings = settings(SETTINGS, max_examples=15 * STRESS)
TestOrderOfRangesInFile = OrderOfRangesInFile.TestCase
TestOrderOfRangesInFile.settings = settings(SETTINGS, max_examples=20 * STRESS)
TestOrderOfRangesThatAge = OrderOfRangesThatAge.TestCase
TestOrderOfRangesThatAge.settings = settings(SETTINGS, max_examples=15 * STRESS)
TestOrderOfLargeRanges = OrderOfLargeRanges.TestCase
TestOrderOfLargeRanges.settings = settings(SETTINGS, max_examples=8 * STRESS)
TestOrderInMemory = OrderInMemory.TestCase
TestOrderInMemory.settings = SETTINGS
