"""One run of warming: fetch what is not cached, until the budget has no room for more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from zarr.core.buffer import default_buffer_prototype

from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import run_async
from zarr_cache.warming.plan import ABSENT, CACHED, MISSING, count, count_all
from zarr_cache.warming.report import WarmReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from zarr_cache.cache.store import CacheStore
    from zarr_cache.cache.view import SourceView
    from zarr_cache.warming.plan import Part
    from zarr_cache.warming.report import Stop


class Budget:
    """The budget, and how much of it the selection uses."""

    def __init__(self, max_size: int | None) -> None:
        self._max_size = max_size
        self._used = 0
        self._under_way = 0
        self._has_chunks = False
        self._changed = asyncio.Event()

    @property
    def is_exceeded(self) -> bool:
        """Whether the selection uses more than the budget: a value was larger than expected."""
        return self._max_size is not None and self._used > self._max_size

    def use(self, part: Part, nbytes: int) -> None:
        """Count the bytes of a cached value."""
        part.record_size(nbytes)
        self._has_chunks = self._has_chunks or part.is_chunks
        self._used += nbytes

    async def reserve(self, part: Part) -> int | None:
        """Reserve bytes for the next value of the part; None if the budget has no room for it.

        Waits for values under way. A value of unknown size gets all the room that is left, and so
        does the first chunk of all: it may be much smaller than before encoding.
        """
        if self._max_size is None:
            return 0
        while True:
            left = max(0, self._max_size - self._used)
            nbytes = part.expected
            if nbytes is None or (nbytes > left and not self._has_chunks):
                nbytes = left
            if self._used + self._under_way + nbytes <= self._max_size:
                self._under_way += nbytes
                return nbytes
            if not self._under_way:
                return None
            # Values under way may turn out smaller than reserved, or absent.
            self._changed.clear()
            await self._changed.wait()

    def release(self, reserved: int) -> None:
        """Give a reservation back, when the value is cached, absent, or has failed."""
        self._under_way -= reserved
        self._changed.set()


class Progress(NamedTuple):
    """Progress of a run.

    Attributes
    ----------
    done, chunks
        Chunks that are done, and chunks in total.
    nbytes
        Bytes fetched so far.
    """

    done: int
    chunks: int
    nbytes: int


class WarmRun:
    """One run over the parts, through one store; `report` is called after each value."""

    def __init__(
        self,
        store: CacheStore,
        cached: SourceView,
        parts: Sequence[Part],
        max_concurrency: int,
        report: Callable[[Progress], None],
    ) -> None:
        self._store = store
        self._cached = cached
        self._parts = parts
        self._max_concurrency = max_concurrency
        self._report = report
        self._budget = Budget(store.max_size)
        self._faults = cached.statistics["faults"]
        self._stopped: Stop | None = None
        self._done = 0
        self._fetched = 0
        self._bytes_fetched = 0

    async def _touch_cached(self) -> None:
        """Record what is cached, and make it the most recently used, to be evicted last."""
        values = self._cached.values
        for part in self._parts:
            kept = await part.list_cached(self._cached)
            part.states = part.states_of(kept)
            for entry, size in map(kept.__getitem__, part.keys(CACHED)):
                self._budget.use(part, size or 0)
                is_full = self._store.max_size is not None and values.pending.touch(
                    entry, values.clock().timestamp_ns()
                )
                if is_full:
                    try:
                        await run_async(values.write_pending())
                    except CacheError as error:
                        self._cached.faults.note(error)

    async def fetch(self) -> WarmReport:
        """Fetch what is not cached, as far as the budget allows."""
        await self._touch_cached()
        cached = count(self._parts, CACHED)
        self._done = cached + count(self._parts, ABSENT)
        self._report(self._progress())
        missing = ((part, *each) for part in self._parts for each in part.missing())
        wanted = sum(part.count(MISSING) for part in self._parts)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(wanted, self._max_concurrency)):
                    workers.create_task(self._work(missing))
        except BaseExceptionGroup as group:
            error = group.exceptions[0]
            error.add_note(
                f"{self._fetched} chunks were fetched before this; warming again continues there"
            )
            raise error from None
        left, gone = await self._count_left()
        if self._has_failed():
            # At the last ones, or while those left were counted.
            self._stopped = "fault"
        self._cached.faults.report()
        return WarmReport(
            chunks=count_all(self._parts),
            cached=cached,
            fetched=self._fetched,
            absent=count(self._parts, ABSENT),
            left=left,
            bytes_fetched=self._bytes_fetched,
            stopped=(self._stopped or ("gone" if gone else None)) if left else None,
        )

    def _has_failed(self) -> bool:
        return self._cached.statistics["faults"] > self._faults

    async def _work(self, missing: Iterator[tuple[Part, int, str]]) -> None:
        for part, place, key in missing:
            if self._stopped is not None:
                return
            await self._fetch(part, place, key)
            self._done += part.is_chunks and part.states[place] != MISSING
            if self._has_failed():
                self._stopped = "fault"
            self._report(self._progress())

    async def _fetch(self, part: Part, place: int, key: str) -> None:
        """Fetch one value, if the budget has room for one as large as the largest so far."""
        reserved = await self._budget.reserve(part)
        if reserved is None:
            self._stopped = self._stopped or "budget"
            return
        try:
            if self._stopped is None:
                buffer = await self._store.get(key, default_buffer_prototype())
                part.states[place] = ABSENT if buffer is None else CACHED
                if buffer is not None:
                    self._budget.use(part, len(buffer))
                    self._fetched += part.is_chunks
                    self._bytes_fetched += len(buffer)
        finally:
            self._budget.release(reserved)
        if self._budget.is_exceeded:
            self._stopped = self._stopped or "budget"

    def _progress(self) -> Progress:
        return Progress(self._done, count_all(self._parts), self._bytes_fetched)

    async def _count_left(self) -> tuple[int, int]:
        """How many chunks are not cached at the end, and how many of them were during the run."""
        left = gone = 0
        for part in self._parts:
            if part.is_chunks:
                now = part.states_of(await part.list_cached(self._cached))
                left += int(np.count_nonzero((now == MISSING) & (part.states != ABSENT)))
                gone += int(np.count_nonzero((now == MISSING) & (part.states == CACHED)))
        return left, gone
