"""What any reader sees is what the source holds, whatever was written, forgotten or failed before.

zarr's state machine of a store, on budgets so small that eviction never stops, with what it does
not do: a second store on the same file, a restart, a source that fails, and what happens to the
source while an answer of it is on its way. ``ZARR_CACHE_STRESS=n`` tries n times as many sequences;
on CI (``CI`` is set) they are the same each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import tempfile
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule, run_state_machine_as_test
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import MemoryStore
from zarr.testing.stateful import SyncStoreWrapper, ZarrStoreStateMachine

from tests.arrays.hierarchies import consolidated
from tests.fakes import (
    PROTOTYPE,
    STRESS,
    FailingStore,
    assert_accounts,
    buffer,
    cached_bytes,
    leave_process,
    read,
    restart,
    take_for_large,
    versioned,
)
from zarr_cache import CacheStore, SourceChangedError, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer

    from tests.fakes import Call

MANY_OPERATIONS = settings(
    max_examples=4 * STRESS,
    stateful_step_count=25,
    derandomize="CI" in os.environ,
    database=None,
    print_blob=True,
    # To shrink a failure takes longer than a test may before it counts as hung. For a short one:
    # CI=1 ZARR_CACHE_STRESS=2 python -m pytest -o faulthandler_timeout=0
    phases=[Phase.generate, *([Phase.shrink] if STRESS > 1 else [])],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

NAMESPACE = "source"

# "0" follows "/", so that "a0" is the first key that does not begin with "a/".
KEYS = ["a", "a/b", "a/b/c", "a/c", "a0", "ab/c"]
PREFIXES = ["", "a", "a/", "a/b", "ab", "b"]
# None of the last fits into a budget: only parts of it are kept.
SIZES = [0, 5, 30, 70, 1100]
MAX_SIZES = [64, 1000]

# What is read of every key after every rule. The parts are first: a whole value that is kept
# answers for them.
EVERY_RANGE: list[ByteRequest | None] = [
    RangeByteRequest(1, 5),
    OffsetByteRequest(1095),
    SuffixByteRequest(6),
    None,
]

type ByteRanges = Sequence[ByteRequest | None]
type Items = Sequence[tuple[str, bytes]]


# What is asked of a store: `ask(store, key, byte_ranges)`. Each is asked of the source as well.


async def ask_parts(store: Store, key: str, byte_ranges: ByteRanges) -> object:
    return [await read(store, key, each) for each in byte_ranges]


async def ask_partial_values(store: Store, key: str, byte_ranges: ByteRanges) -> object:
    requests = [(key, each) for each in byte_ranges]
    return [as_bytes(each) for each in await store.get_partial_values(PROTOTYPE, requests)]


async def ask_ranges(store: Store, key: str, byte_ranges: ByteRanges) -> object:
    batches = store.get_ranges(key, byte_ranges, prototype=PROTOTYPE)
    return {place: as_bytes(each) async for batch in batches for place, each in batch}


async def ask_existence(store: Store, key: str, _: ByteRanges) -> object:
    return await store.exists(key)


async def ask_size(store: Store, key: str, _: ByteRanges) -> object:
    return await store.getsize(key)


def ask_parts_sync(store: Any, key: str, byte_ranges: ByteRanges) -> object:
    return [as_bytes(store.get_sync(key, byte_range=each)) for each in byte_ranges]


def ask_ranges_sync(store: Store, key: str, byte_ranges: ByteRanges) -> object:
    pieces = store.get_ranges_sync(key, byte_ranges, prototype=PROTOTYPE)
    return {place: as_bytes(each) for place, each in pieces}


ASYNC_READS = [ask_parts, ask_partial_values, ask_ranges, ask_existence, ask_size]
READS = [*ASYNC_READS, ask_parts_sync, ask_ranges_sync]


def as_bytes(response: Buffer | None) -> bytes | None:
    return None if response is None else response.to_bytes()


class Raised(NamedTuple):
    """What was raised in place of an answer."""

    in_group: bool
    kinds: frozenset[type[BaseException]]


def outcome(ask: Callable[..., Any], *args: object) -> Any:
    """What comes back, or what is raised."""
    try:
        response = ask(*args)
        return sync(response) if inspect.isawaitable(response) else response  # type: ignore[arg-type]
    except OSError as error:
        return Raised(in_group=False, kinds=frozenset([type(error)]))
    except BaseExceptionGroup as group:
        return Raised(in_group=True, kinds=frozenset(type(each) for each in group.exceptions))


def outcome_after_change(ask: Callable[..., Any], *args: object) -> Any:
    """The same, asked again if a reader is told that another process has written to the source.

    Of what it was served itself, and then of what was last served to another reader.
    """
    for _ in range(2):
        with contextlib.suppress(SourceChangedError):
            found = outcome(ask, *args)
            if not (isinstance(found, Raised) and found.kinds == {SourceChangedError}):
                return found
    return outcome(ask, *args)


# What is done to a store, and to a dict in its place: `write(store, items, prefix)`.


async def set_(store: Store, items: Items, _: str) -> None:
    for key, value in items:
        await store.set(key, buffer(value))


def set_sync(store: Any, items: Items, _: str) -> None:
    for key, value in items:
        store.set_sync(key, buffer(value))


async def set_many(store: Store, items: Items, _: str) -> None:
    await store._set_many((key, buffer(value)) for key, value in items)


async def set_if_not_exists(store: Store, items: Items, _: str) -> None:
    for key, value in items:
        await store.set_if_not_exists(key, buffer(value))


async def delete(store: Store, items: Items, _: str) -> None:
    for key, _value in items:
        await store.delete(key)


def delete_sync(store: Any, items: Items, _: str) -> None:
    for key, _value in items:
        store.delete_sync(key)


async def delete_dir(store: Store, _: Items, prefix: str) -> None:
    await store.delete_dir(prefix)


async def clear(store: Store, _items: Items, _prefix: str) -> None:
    await store.clear()


type Model = dict[str, Buffer]


def set_in(model: Model, items: Items, _: str) -> None:
    model.update((key, buffer(value)) for key, value in items)


def set_new_in(model: Model, items: Items, _: str) -> None:
    for key, value in items:
        model.setdefault(key, buffer(value))


def delete_in(model: Model, items: Items, _: str) -> None:
    for key, _value in items:
        model.pop(key, None)


def delete_dir_in(model: Model, _: Items, prefix: str) -> None:
    folder = f"{prefix.rstrip('/')}/" if prefix else ""
    for key in [key for key in model if key.startswith(folder)]:
        del model[key]


def clear_in(model: Model, _items: Items, _prefix: str) -> None:
    model.clear()


ASYNC_WRITES: dict[Callable[..., Any], Callable[[Model, Items, str], None]] = {
    set_: set_in,
    set_many: set_in,
    set_if_not_exists: set_new_in,
    delete: delete_in,
    delete_dir: delete_dir_in,
    clear: clear_in,
}
WRITES = {**ASYNC_WRITES, set_sync: set_in, delete_sync: delete_in}


class BusySource(FailingStore):
    """A failing source that lets the test do something while it is asked for something else.

    ``delete_dir`` deletes one key after the other, so that it may fail in between.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._before: deque[Callable[[], Coroutine[Any, Any, None]]] = deque()
        self._after: deque[Callable[[], Coroutine[Any, Any, None]]] = deque()
        self._under_way: list[asyncio.Task[None]] = []

    def meanwhile(self, do: Callable[[], Coroutine[Any, Any, None]], *, is_answered: bool) -> None:
        """Before the next async request is answered, or once it is, `do` this."""
        (self._after if is_answered else self._before).append(do)

    def calm(self) -> None:
        """Wait for what is happening, and forget what was to fail or to happen and has not."""
        sync(self._settle())
        self._failures.clear()
        self._before.clear()
        self._after.clear()

    async def _settle(self) -> None:
        await asyncio.gather(*self._under_way)
        self._under_way.clear()

    async def _meet(self, happening: deque[Callable[[], Coroutine[Any, Any, None]]]) -> None:
        """Let the next thing happen, to its end, also if the request is cancelled meanwhile."""
        if happening:
            task = asyncio.create_task(happening.popleft()())
            self._under_way.append(task)
            await asyncio.shield(task)

    async def _ask[T](self, method: str, key: str, call: Call[T]) -> T:
        await self._meet(self._before)
        try:
            return await super()._ask(method, key, call)
        finally:
            await self._meet(self._after)

    async def delete_dir(self, prefix: str) -> None:
        await Store.delete_dir(self, prefix)


BYTE_RANGES = st.lists(
    st.one_of(
        st.none(),
        st.builds(
            lambda start, length: RangeByteRequest(start, start + length),
            st.sampled_from([0, 1, 4, 29, 69, 1090]),
            st.integers(0, 8) | st.just(2000),
        ),
        st.builds(OffsetByteRequest, st.sampled_from([0, 2, 28, 66, 1095, 2000])),
        st.builds(SuffixByteRequest, st.sampled_from([0, 1, 6, 31, 2000])),
    ),
    max_size=4,
)
ANY_KEY = st.sampled_from(KEYS)
READERS = st.sampled_from(["writable", "read_only", "second"])
WRITERS = st.sampled_from(["writable", "second"])
SIZES_BY_KEY = st.dictionaries(ANY_KEY, st.sampled_from(SIZES), min_size=1, max_size=3)
ANY_PREFIX = st.sampled_from(PREFIXES)
NTH = st.integers(1, 3)


class Truth(ZarrStoreStateMachine):
    """zarr's machine over a CacheStore, its read-only view, and a second one on the same file.

    The second is of the same process, and shares the parts of values in memory, or of another.

    Parameters
    ----------
    persist
        Whether the first and the second keep the parts of values in the file.
    has_versions
        Whether the source tells which version of a value it sends.
    """

    def __init__(
        self,
        max_size: int,
        *,
        is_other_process: bool,
        persist: tuple[bool, bool] = (False, False),
        has_versions: bool = False,
    ) -> None:
        self.max_size = max_size
        self.has_versions = has_versions
        self.is_other_process = is_other_process
        self.persist = persist
        self.cleanup = ExitStack()
        self.path = Path(self.cleanup.enter_context(tempfile.TemporaryDirectory())) / "c.sqlite"
        self.memory = MemoryStore()
        self.source = BusySource(self.memory)
        self.written = 0
        self.writable = self.connect()
        super().__init__(self.writable)
        self.read_only = self.view_of(self.writable)
        self.second = self.connect_second()

    def teardown(self) -> None:
        super().teardown()
        stats = [store.cache_stats() for store in (self.writable, self.second)]
        restart(self.writable, self.second)
        with self.cleanup:
            assert_accounts(self.path)
        assert [(each["faults"], each["damaged"]) for each in stats] == [(0, 0), (0, 0)]

    def connect_second(self) -> CacheStore:
        return self.connect(persist_ranges=self.persist[1])

    def connect(self, *, persist_ranges: bool | None = None) -> CacheStore:
        store = CacheStore(
            self.source,
            cache_store=SqliteStore(self.path),
            max_size=self.max_size,
            namespace=NAMESPACE,
            max_age_metadata_seconds="infinity",
            persist_ranges=self.persist[0] if persist_ranges is None else persist_ranges,
        )
        if self.is_other_process:
            leave_process(store)
        return versioned(store) if self.has_versions else store

    def view_of(self, store: CacheStore) -> CacheStore:
        view = store.with_read_only(read_only=True)
        return versioned(view) if self.has_versions else view

    def reconnect(self) -> None:
        self.writable = self.connect()
        self.store = SyncStoreWrapper(self.writable)
        self.read_only = self.view_of(self.writable)

    def new_values(self, sizes: dict[str, int]) -> Items:
        """Bytes that no value before had, and no other place of the same value."""
        items = []
        for key, size in sizes.items():
            self.written += 1
            first = 31 * self.written
            items.append((key, bytes((first + place) % 256 for place in range(size))))
        return items

    # What is done

    @rule(ask=st.sampled_from(READS), reader=READERS, key=ANY_KEY, byte_ranges=BYTE_RANGES)
    def read(self, ask: Any, reader: str, key: str, byte_ranges: ByteRanges) -> None:
        truth = outcome(ask, self.memory, key, byte_ranges)

        assert self.asked(ask, getattr(self, reader), key, byte_ranges) == truth
        assert self.asked(ask, getattr(self, reader), key, byte_ranges) == truth

    @rule(
        write=st.sampled_from(list(WRITES)), writer=WRITERS, sizes=SIZES_BY_KEY, prefix=ANY_PREFIX
    )
    def write(self, write: Any, writer: str, sizes: dict[str, int], prefix: str) -> None:
        items = self.new_values(sizes)
        WRITES[write](self.model, items, prefix)

        assert outcome(write, getattr(self, writer), items, prefix) is None

    @rule(cleared=WRITERS)
    def clear_cache(self, cleared: str) -> None:
        sync(getattr(self, cleared).clear_cache())

    @rule(closed=READERS)
    def close(self, closed: str) -> None:
        getattr(self, closed).close()

    @rule()
    def restart(self) -> None:
        restart(self.writable, self.second)
        self.reconnect()
        self.second = self.connect_second()

    @precondition(lambda self: self.is_other_process)
    @rule()
    def restart_while_the_second_goes_on(self) -> None:
        restart(self.writable)
        self.reconnect()

    @precondition(lambda self: self.is_other_process)
    @rule()
    def restart_the_second(self) -> None:
        restart(self.second)
        self.second = self.connect_second()

    # What goes wrong

    @rule(
        ask=st.sampled_from(READS),
        reader=READERS,
        key=ANY_KEY,
        byte_ranges=BYTE_RANGES,
        nth=NTH,
        is_done_first=st.booleans(),
    )
    def fail_to_read(
        self,
        ask: Any,
        reader: str,
        key: str,
        byte_ranges: ByteRanges,
        nth: int,
        is_done_first: bool,
    ) -> None:
        truth = outcome(ask, self.memory, key, byte_ranges)
        self.source.fail(at=nth, is_done_first=is_done_first)
        found, is_failed = self.watched(nth, ask, getattr(self, reader), key, byte_ranges)

        assert isinstance(found, Raised) if is_failed else found == truth
        assert self.asked(ask, getattr(self, reader), key, byte_ranges) == truth

    @rule(
        write=st.sampled_from(list(WRITES)),
        writer=WRITERS,
        sizes=SIZES_BY_KEY,
        prefix=ANY_PREFIX,
        nth=NTH,
        is_done_first=st.booleans(),
    )
    def fail_to_write(
        self,
        write: Any,
        writer: str,
        sizes: dict[str, int],
        prefix: str,
        nth: int,
        is_done_first: bool,
    ) -> None:
        items = self.new_values(sizes)
        self.source.fail(at=nth, is_done_first=is_done_first)
        found, is_failed = self.watched(nth, write, getattr(self, writer), items, prefix)
        # Only the source knows how far it came.
        self.model = dict(self.memory._store_dict)

        assert isinstance(found, Raised) == is_failed

    def watched(self, nth: int, do: Callable[..., Any], *args: object) -> tuple[Any, bool]:
        """The outcome, and whether the source was asked for the n-th time meanwhile."""
        self.source.reset()
        found = outcome(do, *args)
        self.source.calm()
        return found, self.source.requests.total() - self.source.requests["list_prefix"] >= nth

    # What happens at once

    @rule(
        write=st.sampled_from(list(ASYNC_WRITES)),
        writer=WRITERS,
        sizes=SIZES_BY_KEY,
        prefix=ANY_PREFIX,
        reader=READERS,
        ask=st.sampled_from(ASYNC_READS),
        byte_ranges=BYTE_RANGES,
        is_answered=st.booleans(),
    )
    def read_while_it_is_written(
        self,
        write: Any,
        writer: str,
        sizes: dict[str, int],
        prefix: str,
        reader: str,
        ask: Any,
        byte_ranges: ByteRanges,
        is_answered: bool,
    ) -> None:
        items = self.new_values(sizes)
        WRITES[write](self.model, items, prefix)

        async def read_all() -> None:
            for key in KEYS:
                # It may be in a group. And a reader may be told that another process has written.
                with contextlib.suppress(FileNotFoundError, SourceChangedError):
                    await ask(getattr(self, reader), key, byte_ranges)

        self.source.meanwhile(read_all, is_answered=is_answered)
        found = outcome(write, getattr(self, writer), items, prefix)
        self.source.calm()

        assert found is None

    @rule(
        ask=st.sampled_from(ASYNC_READS),
        reader=READERS,
        key=ANY_KEY,
        byte_ranges=BYTE_RANGES,
        write=st.sampled_from(list(ASYNC_WRITES)),
        writer=WRITERS,
        sizes=SIZES_BY_KEY,
        prefix=ANY_PREFIX,
        is_answered=st.booleans(),
    )
    def write_while_it_is_read(
        self,
        ask: Any,
        reader: str,
        key: str,
        byte_ranges: ByteRanges,
        write: Any,
        writer: str,
        sizes: dict[str, int],
        prefix: str,
        is_answered: bool,
    ) -> None:
        items = self.new_values(sizes)

        async def write_all() -> None:
            WRITES[write](self.model, items, prefix)
            await write(getattr(self, writer), items, prefix)

        self.source.meanwhile(write_all, is_answered=is_answered)
        self.asked(ask, getattr(self, reader), key, byte_ranges)
        self.source.calm()

    # What is true then. Called by name, in alphabetical order: before zarr's own invariants, whose
    # reads would change what is in memory.

    @invariant()
    def a_budget_holds(self) -> None:
        # What waits in the other process is written now, and not between two looks.
        for store in (self.second, self.writable):
            store.flush()
        for store in (self.second, self.writable):
            if self.is_other_process:
                # The first look-up after another process has written makes room.
                sync(store.exists("a"))
            self.assert_within_budget(store)

    @invariant()
    def any_reader_sees_the_source(self) -> None:
        held = {key: value.to_bytes() for key, value in self.memory._store_dict.items()}
        assert held == {key: value.to_bytes() for key, value in self.model.items()}
        keys = sorted({*KEYS, *held})
        truth = {key: ask_parts_sync(self.memory, key, EVERY_RANGE) for key in keys}

        for store, ask in (
            (self.second, ask_parts_sync),
            (self.read_only, ask_parts),
            (self.writable, ask_parts_sync),
        ):
            assert {key: self.asked(ask, store, key, EVERY_RANGE) for key in keys} == truth
            store.flush()
            self.assert_within_budget(store)

    def asked(self, ask: Callable[..., Any], *args: object) -> Any:
        """What a reader is answered in the end: it may be told once that a value has changed."""
        return (outcome_after_change if self.is_other_process else outcome)(ask, *args)

    def assert_within_budget(self, store: CacheStore) -> None:
        # In this order: what waits is written first, and may take the place of what is in memory.
        in_file = cached_bytes(self.path)
        in_memory = store._view.values.ranges.nbytes

        assert in_file + in_memory <= self.max_size


PROCESSES = pytest.mark.parametrize(
    "is_other_process", [False, True], ids=["one process", "two processes"]
)


@PROCESSES
@pytest.mark.parametrize("max_size", MAX_SIZES)
def test_any_reader_sees_what_the_source_holds(max_size: int, is_other_process: bool) -> None:
    run_state_machine_as_test(
        lambda: Truth(max_size, is_other_process=is_other_process),  # type: ignore[arg-type] # any callable
        settings=MANY_OPERATIONS,
    )


@PROCESSES
@pytest.mark.parametrize("persist", [(True, True), (True, False)], ids=["both persist", "one does"])
@pytest.mark.parametrize("max_size", MAX_SIZES)
def test_any_reader_sees_what_the_source_holds_with_ranges_in_the_file(
    max_size: int, persist: tuple[bool, bool], is_other_process: bool
) -> None:
    run_state_machine_as_test(
        lambda: Truth(  # type: ignore[arg-type] # any callable
            max_size, is_other_process=is_other_process, persist=persist
        ),
        settings=MANY_OPERATIONS,
    )


@PROCESSES
@pytest.mark.parametrize("persist", [(False, False), (True, True), (True, False)])
def test_any_reader_sees_what_a_source_with_versions_holds(
    persist: tuple[bool, bool], is_other_process: bool
) -> None:
    run_state_machine_as_test(
        lambda: Truth(  # type: ignore[arg-type] # any callable
            1000, is_other_process=is_other_process, persist=persist, has_versions=True
        ),
        settings=MANY_OPERATIONS,
    )


@pytest.mark.parametrize("persist", [False, True], ids=["ranges in memory", "ranges in the file"])
def test_any_reader_sees_what_the_source_holds_of_large_values(
    persist: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if values of 20 bytes were large, so that they are in the data file.
    take_for_large(monkeypatch, 4 if persist else 20)
    run_state_machine_as_test(
        lambda: Truth(  # type: ignore[arg-type] # any callable
            1000, is_other_process=True, persist=(persist, persist)
        ),
        settings=MANY_OPERATIONS,
    )


# A hierarchy that zarr changes: every key, of before and of after, through every reader


def create_anew(store: Store) -> None:
    zarr.create_array(store, name="a_b", shape=4, chunks=2, dtype="i4", overwrite=True)


def save_where_there_was_none(store: Store) -> None:
    zarr.save(store, np.arange(300), path="a/new")


def delete_group(store: Store) -> None:
    del zarr.open_group(store)["a"]


def create_group_anew(store: Store) -> None:
    zarr.create_group(store, path="a", overwrite=True)


def consolidate(store: Store) -> None:
    zarr.open_group(store).create_array("new", shape=3, dtype="u1")[:] = 1
    zarr.consolidate_metadata(store)


CHANGES = [create_anew, save_where_there_was_none, delete_group, create_group_anew, consolidate]
SIZES_OF_CACHES = pytest.mark.parametrize("max_size", [None, 1000])


class Readers:
    """A CacheStore, its read-only view and a second CacheStore on the same file."""

    def __init__(self, source: Store, path: Path, max_size: int | None) -> None:
        self.writable, self.second = (
            CacheStore(
                source,
                cache_store=SqliteStore(path),
                max_size=max_size,
                namespace=NAMESPACE,
                max_age_metadata_seconds="infinity",
            )
            for _ in range(2)
        )
        self.read_only = self.writable.with_read_only(read_only=True)

    async def everything(self, keys: Iterable[str]) -> list[dict[str, object]]:
        """What each of them answers by key, on the sync surface and on the async one."""
        readers = [self.read_only, self.writable, self.second]
        return [
            responses
            for reader in readers
            for responses in (
                {key: await ask_parts(reader, key, EVERY_RANGE) for key in keys},
                {key: ask_parts_sync(reader, key, EVERY_RANGE) for key in keys},
            )
        ]


def held_by(memory: MemoryStore, keys: Iterable[str]) -> dict[str, object]:
    return {key: ask_parts_sync(memory, key, EVERY_RANGE) for key in keys}


@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@SIZES_OF_CACHES
@pytest.mark.parametrize("change", CHANGES)
async def test_every_key_of_a_changed_hierarchy_is_read_as_the_source_holds_it(
    change: Callable[[Store], None], max_size: int | None, path: Path
) -> None:
    memory = MemoryStore()
    consolidated(memory)
    changed = MemoryStore(dict(memory._store_dict))
    change(changed)
    keys = {*memory._store_dict, *changed._store_dict}
    readers = Readers(memory, path, max_size)
    before, seen_before = held_by(memory, keys), await readers.everything(keys)

    change(readers.writable)

    after = held_by(changed, keys)
    assert before != after
    assert seen_before == [before] * 6
    assert await readers.everything(keys) == [after] * 6


@SIZES_OF_CACHES
async def test_after_set_many_that_failed_in_part_every_reader_sees_the_source(
    max_size: int | None, path: Path
) -> None:
    memory = MemoryStore({key: buffer(b"old value") for key in "ab"})
    source = FailingStore(memory)
    readers = Readers(source, path, max_size)
    before, seen_before = held_by(memory, "abcd"), await readers.everything("abcd")
    source.fail("_set_many", at=4)

    with pytest.raises(OSError, match="failed, as the test asked"):
        await readers.second._set_many((key, buffer(b"new value")) for key in "acbd")

    after = held_by(memory, "abcd")
    assert [key for key in "abcd" if before[key] != after[key]] == ["a", "b", "c"]
    assert seen_before == [before] * 6
    assert await readers.everything("abcd") == [after] * 6
