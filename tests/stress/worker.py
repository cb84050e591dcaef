"""What each of many processes does with one cache file, and how it knows what it may read.

A value carries its key and its generation in every 16 bytes. A ledger, in memory that all processes
share, knows which generations were begun and which a write that has returned has overwritten.
"""

from __future__ import annotations

import asyncio
import random
import struct
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import BrokenBarrierError
from typing import TYPE_CHECKING, Any, NamedTuple

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import LocalStore

from tests.fakes import PROTOTYPE, CountingStore, buffer, read
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store

    from tests.fakes import Call

RECORD = struct.Struct(">QQ")
LEAST_RECORDS = 64
"""Every value has as many, so that a part of any value can be asked for."""

DELETED_AT = 4
"""Each so many generations, a key is deleted."""

FIRST = "first"
"""A key whose value is its name, and to which nobody writes."""

LATEST_SECONDS = 0.02
"""For so long at most is an answer of the source on its way."""

ROUNDS = 4
"""So many times nobody writes, and what is cached is compared with the source."""

WRITERS_EACH = 2
"""So many threads or tasks write in each process."""


@dataclass(frozen=True)
class Plan:
    """Who writes what, the same in every process.

    Attributes
    ----------
    workers
        Number of processes.
    operations
        Of each thread or task in each round.
    max_size
        Of every CacheStore.
    """

    workers: int
    operations: int
    max_size: int
    cache: Path
    source: Path

    @property
    def new(self) -> list[Path]:
        """Files that are opened and no more."""
        return [self.cache.with_name(f"new{number}.sqlite") for number in range(5)]

    @property
    def writers(self) -> int:
        """Number of threads and tasks in all processes."""
        return self.workers * WRITERS_EACH

    @property
    def keys(self) -> list[str]:
        """All keys: one of each writer, those that all write, and folders of three."""
        return [f"own{writer}" for writer in range(self.writers)] + self.wanted

    @property
    def wanted(self) -> list[str]:
        """Those that are read most, while others write or delete them."""
        return ["shared0", "shared1", "shared2", "large", *self.folder(0), *self.folder(1)]

    def folder(self, worker: int) -> list[str]:
        """The keys that one process writes and deletes together."""
        return [f"folder{worker}/{number}" for number in range(3)]

    def open(self, cache: Path, worker: int) -> CacheStore:
        """The store of a process; of two processes, one keeps what it writes."""
        return CacheStore(
            LateStore(LocalStore(self.source), seed=worker),
            cache_store=SqliteStore(cache),
            namespace="source",
            max_size=self.max_size,
            cache_set_data=worker % 2 == 0,
        )


class LateStore(CountingStore):
    """A source whose answers are on their way for a while, so that writes overtake them."""

    def __init__(self, store: Store, *, seed: int) -> None:
        super().__init__(store)
        self._random = random.Random(seed)  # noqa: S311 - to be the same each time

    async def _ask[T](self, method: str, key: str, call: Call[T]) -> T:
        response = await super()._ask(method, key, call)
        await asyncio.sleep(self._random.random() * LATEST_SECONDS)
        return response

    def _ask_sync[T](self, method: str, key: str, call: Callable[[], T]) -> T:
        response = super()._ask_sync(method, key, call)
        time.sleep(self._random.random() * LATEST_SECONDS)
        return response


def value(plan: Plan, key: str, generation: int) -> bytes | None:
    """What the key holds at that generation; None where it is deleted."""
    if generation % DELETED_AT == 0:
        return None
    number = plan.keys.index(key)
    # Most of 16 to 80 KiB; large ones of up to 1.2 MB, and so on both sides of every threshold.
    records = LEAST_RECORDS * (1 + generation % 5) * (240 if key.startswith("large") else 16)
    return RECORD.pack(number, generation) * records


class Window(NamedTuple):
    """The generations of a key that a read may see: `first` to `last`, both included."""

    first: int
    last: int


class Ledger:
    """Which generations of each key were begun, and which are overwritten, in all processes.

    Parameters
    ----------
    context
        Of multiprocessing, in which the processes are started.
    """

    def __init__(self, context: Any, plan: Plan) -> None:
        self._keys = {key: place for place, key in enumerate(plan.keys)}
        self._width = 2 + plan.writers
        self._numbers = context.Array("q", self._width * len(self._keys))

    def _begun_at(self, key: str) -> int:
        return self._keys[key] * self._width

    def begin(self, key: str, writer: int) -> tuple[int, int]:
        """Begin a write.

        Returns
        -------
        tuple of int
            Its generation, and the first one that it does not overwrite for sure: every write of
            an earlier one had ended.
        """
        place = self._begun_at(key)
        with self._numbers.get_lock():
            generation = self._numbers[place] + 1
            self._numbers[place] = generation
            self._numbers[place + 2 + writer] = generation
            under_way = self._numbers[place + 2 : place + self._width]
            return generation, min(each for each in under_way if each)

    def end(self, key: str, writer: int, first: int) -> None:
        """End a write: no read that begins from now on sees a generation before `first`."""
        place = self._begun_at(key)
        with self._numbers.get_lock():
            self._numbers[place + 1] = max(self._numbers[place + 1], first)
            self._numbers[place + 2 + writer] = 0

    def first(self, key: str) -> int:
        """The first generation that a read may see which begins now."""
        return int(self._numbers[self._begun_at(key) + 1])

    def last(self, key: str) -> int:
        """The last one that a read may have seen which has ended."""
        return int(self._numbers[self._begun_at(key)])


REQUESTS: list[ByteRequest | None] = [
    None,
    None,
    RangeByteRequest(0, 16),
    RangeByteRequest(160, 16 * LEAST_RECORDS),
    SuffixByteRequest(160),
    OffsetByteRequest(16 * (LEAST_RECORDS - 1)),
]


def part(whole: bytes, request: ByteRequest | None) -> bytes:
    """The bytes that are asked for."""
    match request:
        case RangeByteRequest(start, end):
            return whole[start:end]
        case SuffixByteRequest(suffix):
            return whole[-suffix:]
        case OffsetByteRequest(offset):
            return whole[offset:]
    return whole


def check(
    plan: Plan, key: str, request: ByteRequest | None, data: bytes | None, window: Window
) -> None:
    """The data are what the key held, whole, at a generation in the window."""
    if data is None:
        assert any(n % DELETED_AT == 0 for n in range(window.first, window.last + 1)), (
            f"{key} is absent, in {window}"
        )
        return
    number, generation = RECORD.unpack_from(data)
    whole = value(plan, key, generation)

    assert number == plan.keys.index(key), f"{key} reads as {plan.keys[number]}"
    assert window.first <= generation <= window.last, f"{key} at {generation}, not in {window}"
    assert whole is not None
    assert data == part(whole, request), f"{key} at {generation}: torn, {request}"


class BackgroundWorker:
    """One thread or task: what it does next, and what must be true of what it read.

    Parameters
    ----------
    number
        Of all writers in all processes.
    """

    def __init__(self, plan: Plan, ledger: Ledger, store: CacheStore, number: int) -> None:
        self._plan = plan
        self._ledger = ledger
        self._store = store
        self._number = number
        self.worker = number // WRITERS_EACH
        self._random = random.Random(number)  # noqa: S311 - to be the same each time
        self._view = store.with_read_only(read_only=True)

    @contextmanager
    def _writing(self, *keys: str) -> Iterator[dict[str, int]]:
        """The generations that the block writes."""
        begun = {key: self._ledger.begin(key, self._number) for key in keys}
        yield {key: generation for key, (generation, _) in begun.items()}
        for key, (_, first) in begun.items():
            self._ledger.end(key, self._number, first)

    async def run(self) -> None:
        """Read and write for a round, on the async surface."""
        for _ in range(self._plan.operations):
            match self._random.randrange(12):
                case 0:
                    await self._write_folder()
                case 1 | 2:
                    await self._write(self._shared())
                case 3:
                    await self._write(f"own{self._number}")
                case 4:
                    await self._ask_for_ranges(self._any())
                case 5:
                    await self._ask(self._any())
                case _:
                    await self._read(self._any())

    def run_sync(self) -> None:
        """As `run`, on the sync surface."""
        for _ in range(self._plan.operations):
            match self._random.randrange(12):
                case 0:
                    sync(self._write_folder())
                case 1 | 2:
                    self._write_sync(self._shared())
                case 3:
                    self._write_sync(f"own{self._number}")
                case 4:
                    sync(self._ask_for_ranges(self._any()))
                case _:
                    self._read_sync(self._any())

    def _shared(self) -> str:
        """A key that every writer writes, seldom the large one."""
        return self._random.choice([*self._plan.wanted[:3], *self._plan.wanted[:4]])

    def _any(self) -> str:
        """Any key, but mostly one that others are writing."""
        return self._random.choice(self._plan.wanted * 3 + self._plan.keys)

    def _reader(self) -> CacheStore:
        """The store, or its view, which also believes absences."""
        return self._random.choice([self._store, self._view])

    async def _read(self, key: str) -> None:
        request = self._random.choice(REQUESTS)
        first = self._ledger.first(key)
        data = await read(self._reader(), key, request)
        check(self._plan, key, request, data, Window(first, self._ledger.last(key)))

    def _read_sync(self, key: str) -> None:
        request = self._random.choice(REQUESTS)
        first = self._ledger.first(key)
        found = self._reader().get_sync(key, byte_range=request)
        data = None if found is None else found.to_bytes()
        check(self._plan, key, request, data, Window(first, self._ledger.last(key)))

    async def _ask_for_ranges(self, key: str) -> None:
        requests = self._random.sample(REQUESTS[2:], 2)
        first = self._ledger.first(key)
        found: list[tuple[ByteRequest | None, bytes | None]] = []
        try:
            ranges = self._reader().get_ranges(key, requests, prototype=PROTOTYPE)
            async for batch in ranges:
                found += [(requests[n], each.to_bytes()) for n, each in batch if each is not None]
        except* FileNotFoundError:
            found = [(None, None)]
        for request, data in found:
            check(self._plan, key, request, data, Window(first, self._ledger.last(key)))

    async def _ask(self, key: str) -> None:
        first = self._ledger.first(key)
        exists = await self._reader().exists(key)
        generations = range(first, self._ledger.last(key) + 1)
        assert exists in {each % DELETED_AT != 0 for each in generations}, key
        first = self._ledger.first(key)
        try:
            size = await self._reader().getsize(key)
        except FileNotFoundError:
            size = 0
        generations = range(first, self._ledger.last(key) + 1)
        assert size in {len(value(self._plan, key, each) or b"") for each in generations}, key

    async def _write(self, key: str) -> None:
        with self._writing(key) as generations:
            data = value(self._plan, key, generations[key])
            if data is None:
                await self._store.delete(key)
            elif key.startswith("own") and generations[key] % DELETED_AT == 1:
                # Nobody else writes it, so that it is known to be absent.
                await self._store.set_if_not_exists(key, buffer(data))
            else:
                await self._store.set(key, buffer(data))

    def _write_sync(self, key: str) -> None:
        with self._writing(key) as generations:
            data = value(self._plan, key, generations[key])
            if data is None:
                self._store.delete_sync(key)
            else:
                self._store.set_sync(key, buffer(data))

    async def _write_folder(self) -> None:
        if self._number not in {0, WRITERS_EACH}:
            return
        with self._writing(*self._plan.folder(self.worker)) as generations:
            data = {key: value(self._plan, key, each) for key, each in generations.items()}
            # All of a folder are at the same generation.
            if None in data.values():
                await self._store.delete_dir(f"folder{self.worker}")
            else:
                items = [(key, buffer(each)) for key, each in data.items() if each is not None]
                await self._store._set_many(items)


async def _run_all(writers: list[BackgroundWorker]) -> None:
    await asyncio.gather(*(writer.run() for writer in writers))


async def _read_all(store: Store, keys: list[str]) -> dict[str, bytes | None]:
    return {key: await read(store, key) for key in keys}


def work(plan: Plan, ledger: Ledger, opening: Any, ending: Any, worker: int) -> None:
    """Open files with the others, read, write and evict, and find at the end what they find.

    What is wrong, and any warning, ends the process with exit code 1 and its traceback.

    Parameters
    ----------
    opening, ending
        Barriers: before each file is opened and when all are open; before and after all compare.
    """
    warnings.simplefilter("error")
    try:
        for cache in plan.new:
            _open(plan, cache, opening, worker).close()
        store = _open(plan, plan.cache, opening, worker)
        opening.wait()
        numbers = range(worker * WRITERS_EACH, (worker + 1) * WRITERS_EACH)
        writers = [BackgroundWorker(plan, ledger, store, number) for number in numbers]
        for _ in range(ROUNDS):
            _read_and_write(writers)
            ending.wait()
            _compare(plan, store)
            ending.wait()
    except BrokenBarrierError:
        sys.exit("another has failed")
    except BaseException:
        # The others wait no longer.
        opening.abort()
        ending.abort()
        raise


def _open(plan: Plan, cache: Path, opening: Any, worker: int) -> CacheStore:
    """Open a file that does not exist, at once with the others."""
    store = plan.open(cache, worker)
    opening.wait()
    found = store.get_sync(FIRST) if worker % 2 else sync(store.get(FIRST, PROTOTYPE))

    assert found is not None
    assert found.to_bytes() == FIRST.encode()
    return store


def _read_and_write(writers: list[BackgroundWorker]) -> None:
    """One process reads and writes in tasks, and the next in threads."""
    if writers[0].worker % 2:
        with ThreadPoolExecutor(WRITERS_EACH) as threads:
            list(threads.map(BackgroundWorker.run_sync, writers))
    else:
        asyncio.run(_run_all(writers))


def _compare(plan: Plan, store: CacheStore) -> None:
    """While nobody writes, all is as in the source, and within the budget."""
    info = store.cache_info()
    told = sync(_read_all(store, plan.keys))
    stats = store.cache_stats()
    store.close()

    assert info["file_size"] + info["range_size"] <= plan.max_size
    assert told == sync(_read_all(LocalStore(plan.source), plan.keys))
    assert (stats["faults"], stats["damaged"]) == (0, 0)
