"""Stores that count, wait and fail, a clock that stands still, and what is true of every file.

Every fake source wraps a real store, so that what it answers is what zarr's own store answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import weakref
from collections import Counter, deque
from concurrent.futures import Future
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from zarr.abc.store import Store
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.storage import WrapperStore

from zarr_cache import CacheStore, SqliteStore, register_namespace
from zarr_cache.backend import registry
from zarr_cache.backend.file_cache import FileCache
from zarr_cache.backend.store_cache import StoreCache
from zarr_cache.core import checksum
from zarr_cache.file.file_database import FileDatabase
from zarr_cache.flows import view
from zarr_cache.index import extents
from zarr_cache.index import values as values_module
from zarr_cache.sources.source_reader import ChangedError, Fetched, SourceReader

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Generator,
        Iterable,
        Mapping,
        Sequence,
    )
    from pathlib import Path
    from types import ModuleType

    import pytest
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

PROTOTYPE = default_buffer_prototype()

STRESS = int(os.environ.get("ZARR_CACHE_STRESS", "1"))
"""How many times as much a test tries that looks for what nobody thought of."""

IS_WINDOWS = not hasattr(os, "fork")
"""Whether the system has nothing of POSIX and no open file is removed; see tests/as_on_windows."""

type Call[T] = Callable[[], Awaitable[T]]


def buffer(data: bytes) -> Buffer:
    """`data` as zarr passes it to a store."""
    return cpu.Buffer.from_bytes(data)


def values(array: Any, where: Any = ...) -> Any:
    """What an array holds there, as numbers in lists."""
    return np.asarray(array[where]).tolist()


async def read(store: Store, key: str, byte_range: ByteRequest | None = None) -> bytes | None:
    """What ``store.get`` answers, as bytes."""
    found = await store.get(key, PROTOTYPE, byte_range)
    return None if found is None else found.to_bytes()


class CountingStore(WrapperStore[Store]):
    """A source that counts the requests that reach it, by the method they came through.

    ``get_ranges`` and ``get_ranges_sync`` count one request for each read of the source that
    remains after zarr has merged neighbouring ranges: what a remote store would see.
    ``get_partial_values``, ``_get_many`` and ``_set_many`` count one for each key. All other
    methods count one for each call. Views of other modes count together.

    Attributes
    ----------
    requests
        How many there were, by method; those that had none are not in it.
    keys
        The keys of the requests, in the order of their arrival.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.requests: Counter[str] = Counter()
        self.keys: list[str] = []
        self._counting = threading.Lock()

    def _with_store(self, store: Store) -> Self:
        view = type(self).__new__(type(self))
        vars(view).update(vars(self), _store=store)
        return view

    def reset(self) -> None:
        """Forget the requests so far."""
        with self._counting:
            self.requests.clear()
            self.keys.clear()

    def count(self, method: str, key: str = "") -> None:
        """Note one request."""
        with self._counting:
            self.requests[method] += 1
            self.keys.append(key)

    async def _ask[T](self, method: str, key: str, call: Call[T]) -> T:
        """Every request on the async surface comes through here."""
        self.count(method, key)
        return await call()

    def _ask_sync[T](self, method: str, key: str, call: Callable[[], T]) -> T:
        """Every request on the sync surface comes through here."""
        self.count(method, key)
        return call()

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await self._get("get", key, prototype, byte_range)

    async def _get(
        self, method: str, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None
    ) -> Buffer | None:
        return await self._ask(method, key, lambda: self._store.get(key, prototype, byte_range))

    async def get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        **settings: Any,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        # zarr merges the ranges and calls `get` of the store that it is given.
        reader = _Ranges(self)
        ranges = Store.get_ranges(reader, key, byte_ranges, prototype=prototype, **settings)
        async for batch in ranges:
            yield batch

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [
            await self._get("get_partial_values", key, prototype, byte_range)
            for key, byte_range in key_ranges
        ]

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for key, prototype, byte_range in requests:
            yield key, await self._get("_get_many", key, prototype, byte_range)

    async def exists(self, key: str) -> bool:
        return await self._ask("exists", key, lambda: self._store.exists(key))

    async def getsize(self, key: str) -> int:
        return await self._ask("getsize", key, lambda: self._store.getsize(key))

    async def getsize_prefix(self, prefix: str) -> int:
        return await self._ask("getsize_prefix", prefix, lambda: self._store.getsize_prefix(prefix))

    async def is_empty(self, prefix: str) -> bool:
        return await self._ask("is_empty", prefix, lambda: self._store.is_empty(prefix))

    def list(self) -> AsyncIterator[str]:
        self.count("list")
        return self._store.list()

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        self.count("list_prefix", prefix)
        return self._store.list_prefix(prefix)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        self.count("list_dir", prefix)
        return self._store.list_dir(prefix)

    async def set(self, key: str, value: Buffer) -> None:
        await self._ask("set", key, lambda: self._store.set(key, value))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        await self._ask("set_if_not_exists", key, lambda: self._store.set_if_not_exists(key, value))

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        for key, value in values:
            await self._ask("_set_many", key, partial(self._store.set, key, value))

    async def delete(self, key: str) -> None:
        await self._ask("delete", key, lambda: self._store.delete(key))

    async def delete_dir(self, prefix: str) -> None:
        await self._ask("delete_dir", prefix, lambda: self._store.delete_dir(prefix))

    async def clear(self) -> None:
        await self._ask("clear", "", self._store.clear)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        return self._get_sync("get_sync", key, prototype, byte_range)

    def _get_sync(
        self,
        method: str,
        key: str,
        prototype: BufferPrototype | None,
        byte_range: ByteRequest | None,
    ) -> Buffer | None:
        source: Any = self._store
        call: Callable[[], Buffer | None] = partial(
            source.get_sync, key, prototype=prototype, byte_range=byte_range
        )
        return self._ask_sync(method, key, call)

    def get_ranges_sync(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        **settings: Any,
    ) -> Sequence[tuple[int, Buffer | None]]:
        reader = _Ranges(self)
        return Store.get_ranges_sync(reader, key, byte_ranges, prototype=prototype, **settings)

    def set_sync(self, key: str, value: Buffer) -> None:
        source: Any = self._store
        self._ask_sync("set_sync", key, lambda: source.set_sync(key, value))

    def delete_sync(self, key: str) -> None:
        source: Any = self._store
        self._ask_sync("delete_sync", key, lambda: source.delete_sync(key))


class _Ranges(WrapperStore[CountingStore]):
    """Gives zarr's merging of ranges a source whose reads count as ``get_ranges``."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return await self._store._get("get_ranges", key, prototype, byte_range)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        return self._store._get_sync("get_ranges_sync", key, prototype, byte_range)


register_namespace(CountingStore, lambda store: store._store)


class AsyncOnlyStore(CountingStore):
    """A counting source without a sync surface, as every remote one is."""

    @property
    def _supports_sync_io(self) -> bool:
        return False

    def _ask_sync[T](self, method: str, key: str, call: Callable[[], T]) -> T:  # noqa: ARG002
        msg = f"{method}({key!r}): this source has async methods only"
        raise AssertionError(msg)


class VersionedReader(SourceReader):
    """Reads a source on both surfaces, and tells a validator of each value: a checksum of it.

    Parameters
    ----------
    validators
        Those of the keys, in place of checksums; a key that is not in it has none.
    """

    is_sync = True
    can_match = True
    asks_more = False

    def __init__(self, source: Any, validators: Mapping[str, str] | None = None) -> None:
        self._source = source
        self._validators = validators

    def fetch_sync(
        self,
        key: str,
        request: ByteRequest | None = None,
        *,
        unless: str | None = None,
        only: str | None = None,
        with_version: bool = True,  # noqa: ARG002 - it costs nothing
    ) -> Fetched:
        before = self._before(key, unless, only)
        if before is not None and before == unless:
            return Fetched(None, unless, is_unchanged=True)
        found = self._source.get_sync(key, prototype=cpu.buffer_prototype, byte_range=request)
        return self._after(key, found, before, only)

    async def fetch(
        self,
        key: str,
        request: ByteRequest | None = None,
        *,
        unless: str | None = None,
        only: str | None = None,
        with_version: bool = True,  # noqa: ARG002 - the same
    ) -> Fetched:
        before = self._before(key, unless, only)
        if before is not None and before == unless:
            return Fetched(None, unless, is_unchanged=True)
        found = await self._source.get(key, cpu.buffer_prototype, request)
        return self._after(key, found, before, only)

    def _before(self, key: str, unless: str | None, only: str | None) -> str | None:
        assert unless is None or only is None
        validator = self.version_sync(key)
        if only is not None and validator != only:
            raise ChangedError(key, only)
        return validator

    def _after(
        self, key: str, found: Buffer | None, before: str | None, only: str | None
    ) -> Fetched:
        """The response, unless the value was written to while it was read."""
        is_same = self.version_sync(key) == before
        if only is not None and not is_same:
            raise ChangedError(key, only)
        is_torn = found is not None and not is_same
        return Fetched(found, before if found is not None and is_same else None, is_torn=is_torn)

    def version_sync(self, key: str) -> str | None:
        if self._validators is not None:
            return self._validators.get(key)
        # Past the wrapper that counts.
        source: Any = self._source
        if isinstance(source, CountingStore):
            source = source._store
        found = source.get_sync(key, prototype=cpu.buffer_prototype)
        return None if found is None else hashlib.sha256(found.to_bytes()).hexdigest()[:16]

    async def version(self, key: str) -> str | None:
        return self.version_sync(key)

    def list_versions(self, prefix: str) -> None:  # noqa: ARG002 - there are none
        return None


def versioned(store: CacheStore, validators: Mapping[str, str] | None = None) -> CacheStore:
    """The CacheStore, which reads its source by a `VersionedReader` from now on."""
    store._view.reader = VersionedReader(store._store, validators)
    return store


def tell_versions(patch: pytest.MonkeyPatch) -> None:
    """Let every CacheStore that is made from now on read its source by a `VersionedReader`."""
    patch.setattr(view, "reader_of", VersionedReader)


class Gate:
    """Where a request waits until the test lets it go on.

    Tasks of any event loop and any thread may wait on either side.
    """

    def __init__(self) -> None:
        self._arrived: Future[None] = Future()
        self._opened: Future[None] = Future()

    def open(self) -> None:
        """Let the request go on."""
        self._opened.set_result(None)

    async def reached(self) -> None:
        """Wait until the request has arrived."""
        await asyncio.shield(asyncio.wrap_future(self._arrived))

    def wait_until_reached(self) -> None:
        """As `reached`, for a thread."""
        self._arrived.result()

    async def wait(self) -> None:
        """Arrive, and wait until the gate is open. A cancelled request leaves the gate as it is."""
        self._arrived.set_result(None)
        await asyncio.shield(asyncio.wrap_future(self._opened))

    def wait_sync(self) -> None:
        """As `wait`, for a thread."""
        self._arrived.set_result(None)
        self._opened.result()


@asynccontextmanager
async def stopped_at[T](gate: Gate, call: Awaitable[T]) -> AsyncIterator[asyncio.Future[T]]:
    """Let the call stop at the gate while the block runs, and end after it."""
    task = asyncio.ensure_future(call)
    await gate.reached()
    try:
        yield task
    finally:
        gate.open()
    await task


class HeldStore(CountingStore):
    """A counting source that stops at gates that the test holds."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._before: dict[str, deque[Gate]] = {}
        self._after: dict[str, deque[Gate]] = {}

    def hold_before(self, method: str) -> Gate:
        """A gate at which the next such request stops before the source has seen it."""
        gate = Gate()
        self._before.setdefault(method, deque()).append(gate)
        return gate

    def hold_after(self, method: str) -> Gate:
        """A gate at which the next such request stops after the source has done with it."""
        gate = Gate()
        self._after.setdefault(method, deque()).append(gate)
        return gate

    def _gates(self, method: str) -> tuple[Gate | None, Gate | None]:
        with self._counting:
            before, after = self._before.get(method), self._after.get(method)
            return before.popleft() if before else None, after.popleft() if after else None

    async def _ask[T](self, method: str, key: str, call: Call[T]) -> T:
        before, after = self._gates(method)
        self.count(method, key)
        if before:
            await before.wait()
        try:
            return await call()
        finally:
            if after:
                await after.wait()

    def _ask_sync[T](self, method: str, key: str, call: Callable[[], T]) -> T:
        before, after = self._gates(method)
        self.count(method, key)
        if before:
            before.wait_sync()
        try:
            return call()
        finally:
            if after:
                after.wait_sync()


class DetachedStore(HeldStore):
    """A source that goes on with what it was asked for when nobody waits for it any more.

    As one does that writes in threads, which no cancellation ends, and a server.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._under_way: set[asyncio.Task[Any]] = set()

    async def _ask[T](self, method: str, key: str, call: Call[T]) -> T:
        task = asyncio.ensure_future(super()._ask(method, key, call))
        self._under_way.add(task)
        return await asyncio.shield(task)

    async def settled(self) -> None:
        """Wait until it has done all that it was asked for."""
        await asyncio.wait(self._under_way)


class FailingStore(CountingStore):
    """A counting source whose requests fail at the calls that the test names."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._failures: list[_Failure] = []

    def fail(self, *methods: str, at: int = 1, times: int = 1, is_done_first: bool = False) -> None:
        """Let requests fail with `OSError`.

        Parameters
        ----------
        methods
            By which they come; none: by any.
        at
            The first that fails, counted from 1 and from now on.
        times
            How many fail, one after the other.
        is_done_first
            Whether the source does what it was asked for before it fails, as when an answer is
            lost on its way.
        """
        self._failures.append(_Failure(frozenset(methods), at, at + times, is_done_first))

    def _failing(self, method: str) -> _Failure | None:
        with self._counting:
            return next((each for each in self._failures if each.is_due(method)), None)

    async def _ask[T](self, method: str, key: str, call: Call[T]) -> T:
        self.count(method, key)
        failure = self._failing(method)
        response = await call() if failure is None or failure.is_done_first else None
        if failure:
            raise _source_error(method, key)
        return response  # type: ignore[return-value] # None only where it has raised

    def _ask_sync[T](self, method: str, key: str, call: Callable[[], T]) -> T:
        self.count(method, key)
        failure = self._failing(method)
        response = call() if failure is None or failure.is_done_first else None
        if failure:
            raise _source_error(method, key)
        return response  # type: ignore[return-value] # None only where it has raised


class _Failure:
    def __init__(self, methods: frozenset[str], first: int, end: int, is_done_first: bool) -> None:
        self._methods = methods
        self._first = first
        self._end = end
        self._calls = 0
        self.is_done_first = is_done_first

    def is_due(self, method: str) -> bool:
        """Count this call if it is one of those; tell whether it fails."""
        if self._methods and method not in self._methods:
            return False
        self._calls += 1
        return self._first <= self._calls < self._end


def _source_error(method: str, key: str) -> OSError:
    return OSError(f"{method}({key!r}): failed, as the test asked")


class YieldingStore(CountingStore):
    """A counting source that gives other tasks a turn before and after each request."""

    async def _ask[T](self, method: str, key: str, call: Call[T]) -> T:
        await asyncio.sleep(0)
        response = await super()._ask(method, key, call)
        await asyncio.sleep(0)
        return response


class CancelledAt[T]:
    """Awaits what it is given, and is cancelled where that waits for the n-th time.

    It is the task that is cancelled: what it awaits is cancelled by asyncio as for
    ``task.cancel()``. What waits fewer times ends as it would.

    Parameters
    ----------
    turn
        The n, counted from 0.
    """

    def __init__(self, turn: int, coroutine: Awaitable[T]) -> None:
        self._turn = turn
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, T]:
        inner = self._coroutine.__await__()
        go_on: Callable[[], Any] = partial(next, inner)
        turn = 0
        while True:
            try:
                waits_for = go_on()
            except StopIteration as stop:
                value: T = stop.value
                return value
            if turn == self._turn:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            turn += 1
            try:
                yield waits_for
                go_on = partial(next, inner)
            except BaseException as error:  # noqa: BLE001 - it is for what is awaited
                go_on = partial(inner.throw, error)


class HeldTime:
    """The wall clock and the monotonic clock of `zarr_cache.clock`, which stand still.

    Attributes
    ----------
    wall_ns, monotonic_ns
        What they tell.
    """

    def __init__(self) -> None:
        self.wall_ns = 1_700_000_000 * 10**9
        self.monotonic_ns = 1_130 * 10**9

    def step(self, seconds: float) -> None:
        """Let time pass."""
        self.step_wall(seconds)
        self.monotonic_ns += int(seconds * 10**9)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or, with a negative number, back."""
        self.wall_ns += int(seconds * 10**9)

    def reboot(self, *, seconds: float = 60.0) -> None:
        """Let the machine be off for a while, and its monotonic clock begin again."""
        self.step_wall(seconds)
        self.monotonic_ns = 5 * 10**9


class Statements:
    """What this process asks of SQLite, written down, and failing where the test says.

    Every connection made from its installation on takes part, those of this package and any other.

    Attributes
    ----------
    texts
        The statements in their order, and "connect" and "blobopen".
    connections
        Those that are open.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.connections: weakref.WeakSet[sqlite3.Connection] = weakref.WeakSet()
        self._connect = sqlite3.connect  # noqa: TID251 - to pass on what is asked of it
        self._writing = threading.Lock()
        self._failure: tuple[int, int, int] | None = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand between this process and SQLite, as long as the test runs."""
        monkeypatch.setattr(sqlite3, "connect", self.connect)

    def number(self, text: str = "") -> int:
        """How many begin with `text`."""
        return sum(each.startswith(text) for each in self.texts)

    def fail(self, code: int, *, at: int, times: int = 1) -> None:
        """Let statements fail with this result code.

        Parameters
        ----------
        at
            The first that fails, counted from 1 and from now on.
        times
            How many fail, one after the other.
        """
        first = len(self.texts) + at
        self._failure = (code, first, first + times)

    def connect(
        self,
        *args: Any,
        factory: type[sqlite3.Connection] = sqlite3.Connection,
        **kwargs: Any,
    ) -> sqlite3.Connection:
        """As ``sqlite3.connect``."""
        self.run("connect", None)
        connection = self._connect(*args, factory=_written_down(factory, self), **kwargs)
        self.connections.add(connection)
        return connection

    def run(self, text: str, connection: sqlite3.Connection | None) -> None:
        """Write the statement down, and raise if it is one that fails."""
        with self._writing:
            self.texts.append(text.strip())
            number = len(self.texts)
        if self._failure is None:
            return
        code, first, end = self._failure
        if first <= number < end:
            _fail(code, connection)


def _fail(code: int, connection: sqlite3.Connection | None) -> None:
    # After these SQLite itself has rolled back (https://www.sqlite.org/lang_transaction.html).
    rolls_back = code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM}
    if rolls_back and connection is not None and connection.in_transaction:
        sqlite3.Connection.execute(connection, "ROLLBACK")
    if code == sqlite3.SQLITE_NOMEM:
        raise MemoryError
    is_damage = code in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
    kind = sqlite3.DatabaseError if is_damage else sqlite3.OperationalError
    error = kind(f"result code {code}, as the test asked")
    error.sqlite_errorcode = code
    raise error


def _written_down(
    factory: type[sqlite3.Connection], statements: Statements
) -> type[sqlite3.Connection]:
    """A class of connections that tell `statements` what they run."""

    class WrittenDown(factory):  # type: ignore[misc, valid-type] # a class by parameter
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            statements.run(sql, self)
            return super().execute(sql, *args)  # type: ignore[no-any-return] # the same

        def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
            statements.run(sql, self)
            return super().executemany(sql, *args)  # type: ignore[no-any-return] # the same

        def executescript(self, sql: str) -> sqlite3.Cursor:
            statements.run(sql, self)
            return super().executescript(sql)  # type: ignore[no-any-return] # the same

        def blobopen(self, *args: Any, **kwargs: Any) -> sqlite3.Blob:
            statements.run("blobopen", self)
            return super().blobopen(*args, **kwargs)  # type: ignore[no-any-return] # the same

    return WrittenDown


class NotedLock:
    """A lock that says when a thread waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_waited_for = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.is_waited_for.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class WhileWriting:
    """Lets something happen once, while a large value is on its way into the data file.

    It happens in the thread that writes, which holds no lock of the database then.

    Attributes
    ----------
    happens
        What is to happen.
    is_written
        Whether that is after the bytes have been written, and not before.
    """

    def __init__(self, patch: pytest.MonkeyPatch, *, is_written: bool = False) -> None:
        self.happens: Callable[[], object] | None = None
        self.is_written = is_written
        self._write = extents.write
        patch.setattr(extents, "write", self._write_and_happen)

    def _write_and_happen(self, *arguments: Any) -> Any:
        happens, self.happens = self.happens, None
        if happens and not self.is_written:
            happens()
        written = self._write(*arguments)
        if happens and self.is_written:
            happens()
        return written


def take_for_large(patch: pytest.MonkeyPatch, nbytes: int) -> None:
    """Let values of so many bytes be in the data file, in parts of two blocks each."""
    patch.setattr(checksum, "BLOCK", 4)
    patch.setattr(values_module, "PART", 8)
    patch.setattr(extents, "MIN_BYTES", nbytes)


def restart(*stores: Store) -> None:
    """End this process and begin another, as far as a cache file can tell.

    The stores are closed. A `SqliteStore` made from here on on the same file shares nothing with
    them but the file.
    """
    for store in stores:
        store.close()
        leave_process(store)


def leave_process(store: Store) -> None:
    """Go on in another process, as far as a cache file can tell, while `store` stays open.

    A `SqliteStore` made from here on on the same file shares nothing with `store` but the file, and
    a CacheStore over the same other store nothing but that.
    """
    cache = store._cache if isinstance(store, CacheStore) else store
    if isinstance(store, CacheStore) and isinstance(store._view.values, StoreCache):
        registry._of_stores.discard(store._view.values)
    if isinstance(cache, SqliteStore):
        FileDatabase.registry.by_path.pop(cache.path, None)


def file_cache(store: CacheStore) -> FileCache:
    """What this process has over the cache file of `store`."""
    cache = store._view.values
    assert isinstance(cache, FileCache)
    return cache


_preloaded: list[str] = []


def preload(module: ModuleType) -> None:
    """Let the fork server import the module once, and not each child; where there is one."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        # With those of other tests: the last list counts.
        _preloaded.append(module.__name__)
        multiprocessing.set_forkserver_preload(_preloaded)


def outputs_at_once(script: str, *arguments: tuple[str, ...]) -> list[tuple[str, str]]:
    """Output and errors of processes that run the script, each from its first line on stdin."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, *each],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for each in arguments
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    outputs = [process.communicate() for process in processes]

    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return outputs


@contextmanager
def open_file(path: Path) -> Generator[sqlite3.Connection]:
    """The file as SQLite's own shell has it: none of this package's code between."""
    flush_everything()
    with closing(sqlite3.connect(path)) as db:  # noqa: TID251 - not through what is tested
        # As the cache in tests: nothing waits for the disk.
        db.execute("PRAGMA synchronous = OFF")
        yield db


def forge(path: Path, *statements: str) -> None:
    """Change the file past its own checks and triggers; ``facts`` is the checksum of an entry."""
    with open_file(path) as db:
        db.create_function("facts", 4, lambda *facts: checksum.of_facts("source", *facts))
        db.execute("PRAGMA ignore_check_constraints = ON")
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
        dropped = triggers.fetchall()
        for name, _ in dropped:
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement)
        for _, sql in dropped:
            db.execute(sql)
        db.commit()


CACHED_BYTES = """
SELECT TOTAL(size)
FROM entry
WHERE kind IN ('value', 'range')
"""


def cached_bytes(path: Path) -> int:
    """Bytes of the values and ranges in the file, counted."""
    with open_file(path) as db:
        (total,) = db.execute(CACHED_BYTES).fetchone()
    return int(total)


def cached_keys(path: Path) -> set[str]:
    """Keys of the value entries in the file."""
    with open_file(path) as db:
        return {key for (key,) in db.execute("SELECT key FROM entry WHERE kind = 'value'")}


class CachedRange(NamedTuple):
    """A range in the file, as the view ``cache_entries`` shows it."""

    key: str
    start: int
    stop: int | None


CACHED_RANGES = """
SELECT key, start, stop
FROM cache_entries
WHERE kind = 'range'
ORDER BY namespace, key, start
"""


def cached_ranges(path: Path) -> list[CachedRange]:
    """The ranges in the file, by key and start. That of a suffix is negative, and has no stop."""
    with open_file(path) as db:
        return [CachedRange(*row) for row in db.execute(CACHED_RANGES)]


async def read_ranges(
    store: Store, key: str, byte_ranges: Sequence[ByteRequest | None]
) -> list[bytes | None]:
    """What ``store.get_ranges`` returns, as bytes, in the order of the ranges."""
    found: dict[int, Buffer | None] = {}
    async for batch in store.get_ranges(key, byte_ranges, prototype=PROTOTYPE):
        found.update(batch)
    parts = [found[number] for number in range(len(byte_ranges))]
    return [None if each is None else each.to_bytes() for each in parts]


def writers(path: Path) -> int:
    """Writes that the file believes to be under way."""
    with open_file(path) as db:
        (writes,) = db.execute("SELECT TOTAL(writes_in_flight) FROM entry").fetchone()
        (removals,) = db.execute("SELECT TOTAL(removals) FROM namespace").fetchone()
    return int(writes + removals)


class Accounts(NamedTuple):
    """What a cache file says about itself, beside what it should say."""

    usage: list[tuple[object, ...]]
    total: list[tuple[object, ...]]
    orphans: list[tuple[object, ...]]
    incomplete: list[tuple[object, ...]]
    space: list[tuple[object, ...]]
    versions: list[tuple[object, ...]]
    integrity: list[tuple[object, ...]]


USAGE = """
SELECT namespace, kind, entries, bytes
FROM usage
WHERE entries <> 0 OR bytes <> 0
ORDER BY namespace, kind
"""

USAGE_COUNTED = """
SELECT namespace, kind, COUNT(*), SUM(size)
FROM entry
GROUP BY namespace, kind
ORDER BY namespace, kind
"""

TOTAL = """
SELECT kind, entries, bytes
FROM total
WHERE entries <> 0 OR bytes <> 0
ORDER BY kind
"""

TOTAL_COUNTED = """
SELECT kind, COUNT(*), SUM(size)
FROM entry
GROUP BY kind
ORDER BY kind
"""

ORPHANS = """
SELECT entry, part
FROM value
WHERE entry NOT IN (SELECT id FROM entry)
"""

# An entry of kind 'absent' or 'tombstone' has size 0, and so no bytes. Those of a large value are
# in the data file, in whole blocks.
INCOMPLETE = """
SELECT entry.id, entry.key, entry.kind, entry.size
FROM entry
LEFT JOIN value ON value.entry = entry.id
GROUP BY entry.id
HAVING CASE
    WHEN EXISTS (SELECT 1 FROM extent WHERE extent.entry = entry.id)
    THEN (entry.size + 4095) / 4096 * 4096 <> (
        SELECT TOTAL(extent.length) FROM extent WHERE extent.entry = entry.id
    ) OR TOTAL(LENGTH(value.data)) <> 0 OR entry.kind NOT IN ('value', 'range')
    ELSE entry.size <> TOTAL(LENGTH(value.data))
END
"""

# Extents and free space, in the order of the data file, each with where the one before it ends.
LOST_OR_SHARED = """
SELECT *
FROM (
    SELECT offset, length, whose, LAG(offset + length, 1, 4096) OVER (ORDER BY offset) AS before
    FROM (
        SELECT offset, length, entry AS whose FROM extent
        UNION ALL SELECT offset, length, NULL FROM free_extent
    )
    UNION ALL
    SELECT length, 0, 'the end', (
        SELECT MAX(4096, COALESCE(MAX(offset + length), 0))
        FROM (SELECT offset, length FROM extent UNION ALL SELECT offset, length FROM free_extent)
    )
    FROM data_file
)
WHERE offset <> before
"""

# Of a value or of a reservation, each has its space.
OF_NOTHING = """
SELECT entry, offset
FROM extent
WHERE entry NOT IN (SELECT id FROM entry UNION ALL SELECT -id FROM reservation)
"""


# All ranges of a key are of one version, and only what has bytes of a source has a version.
MIXED_VERSIONS = """
SELECT namespace, key, kind
FROM entry
WHERE kind = 'range'
GROUP BY namespace, key
HAVING COUNT(DISTINCT validator) + MAX(validator IS NULL) > 1
UNION ALL
SELECT namespace, key, kind
FROM entry
WHERE kind IN ('absent', 'tombstone', 'stored') AND coalesce(validator, confirmed_at) IS NOT NULL
"""


def assert_accounts(path: Path) -> None:
    """The totals are those of the entries, every value is whole, and SQLite finds no damage.

    Counted here once more, and not by `verify` alone: so it is tested, too.
    """
    # First, since it brings a file of an earlier schema to that of today.
    store = SqliteStore(path)
    was_open = store.database.is_open
    problems = list(map(str, store.verify()))
    if not was_open:
        # Windows removes no file that is open.
        store.close()
    with open_file(path) as db:
        found = Accounts(
            usage=db.execute(USAGE).fetchall(),
            total=db.execute(TOTAL).fetchall(),
            orphans=db.execute(ORPHANS).fetchall(),
            incomplete=db.execute(INCOMPLETE).fetchall(),
            space=db.execute(LOST_OR_SHARED).fetchall() + db.execute(OF_NOTHING).fetchall(),
            versions=db.execute(MIXED_VERSIONS).fetchall(),
            integrity=db.execute("PRAGMA integrity_check").fetchall(),
        )
        counted = Accounts(
            usage=db.execute(USAGE_COUNTED).fetchall(),
            total=db.execute(TOTAL_COUNTED).fetchall(),
            orphans=[],
            incomplete=[],
            space=[],
            versions=[],
            integrity=[("ok",)],
        )

    assert found == counted, path
    assert problems == [], path


def is_cache_file(path: Path) -> bool:
    """Whether SQLite can read the file and finds our mark in it."""
    try:
        with open_file(path) as db:
            (mark,) = db.execute("PRAGMA application_id").fetchone()
    except sqlite3.DatabaseError:
        return False
    return bool(mark == int.from_bytes(b"ZCA1"))


def flush_everything() -> None:
    """Wait until every answer of this process that waits is in its file."""
    for database in list(FileDatabase.registry.opened):
        registry.file_cache_of(database).flush()


def close_everything() -> None:
    """Close every cache file that is open in this process."""
    for database in list(FileDatabase.registry.opened):
        database.close()


def end_everything() -> None:
    """Close every cache file as the end of the process does: what waits is written now or never."""
    for database in list(FileDatabase.registry.opened):
        database.end()
