"""One run of warming: fetch what is not cached, until the budget has no room for more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from zarr.core.buffer import default_buffer_prototype

from zarr_cache.core.errors import CacheError, first_of
from zarr_cache.core.flow import run_async
from zarr_cache.warming.cached_chunks import ABSENT, CACHED, MISSING
from zarr_cache.warming.parts import InnerChunksPart
from zarr_cache.warming.plan import count, count_all, count_inner, count_whole_shards
from zarr_cache.warming.report import WarmReport
from zarr_cache.warming.shard_index import Shard, requests_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy.typing as npt

    from zarr_cache.cache.store import CacheStore
    from zarr_cache.flows.view import SourceView
    from zarr_cache.warming.parts import Part, Unit
    from zarr_cache.warming.report import Failures, Stop


class Budget:
    """The budget, and how much of it the selection uses."""

    def __init__(self, max_size: int | None) -> None:
        self._max_size = max_size
        self._used = 0
        self._under_way = 0
        self._has_values = False
        self._changed = asyncio.Event()

    @property
    def is_exceeded(self) -> bool:
        """Whether the selection uses more than the budget: a value was larger than expected."""
        return self._max_size is not None and self._used > self._max_size

    def leave(self, cached_bytes: int) -> None:
        """Leave their room to entries that are not of the selection, for they are not evicted.

        Parameters
        ----------
        cached_bytes
            Bytes of all entries, with those of the selection that `use` has counted.
        """
        if self._max_size is not None:
            self._max_size -= max(0, cached_bytes - self._used)

    def use(self, nbytes: int, *, is_value: bool) -> None:
        """Count the bytes of what is cached; `is_value` says whether it is a whole stored chunk."""
        self._has_values = self._has_values or is_value
        self._used += nbytes

    async def reserve(self, expected: int | None) -> int | None:
        """Reserve bytes for a value of about this size; None if the budget has no room for it.

        Waits for values under way. A value of unknown size gets all the room that is left, and so
        does the first chunk of all: it may be much smaller than before encoding.
        """
        if self._max_size is None:
            return 0
        while True:
            left = max(0, self._max_size - self._used)
            nbytes = expected
            if nbytes is None or (nbytes > left and not self._has_values):
                nbytes = left
            if self._used + self._under_way + nbytes <= self._max_size:
                self._under_way += nbytes
                return nbytes
            if not self._under_way:
                return None
            await self._wait()

    async def reserve_first(self, sizes: npt.NDArray[np.int64]) -> tuple[int, int]:
        """Reserve bytes for ranges of these sizes: how many of the first have room, and the bytes.

        Waits for values under way, unless all have room.
        """
        ends = np.cumsum(sizes, dtype=np.int64)
        while True:
            number = len(ends)
            if self._max_size is not None:
                left = self._max_size - self._used - self._under_way
                number = int(np.searchsorted(ends, left, side="right"))
            if number == len(ends) or not self._under_way:
                nbytes = int(ends[number - 1]) if number else 0
                self._under_way += nbytes
                return number, nbytes
            await self._wait()

    async def _wait(self) -> None:
        """Wait until a value is no longer under way: it may be smaller than reserved, or absent."""
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
    """One run over the parts, through one store; `report` is called after each request."""

    def __init__(
        self,
        store: CacheStore,
        cached: SourceView,
        parts: Sequence[Part],
        max_concurrency: int,
        report: Callable[[Progress], None],
        failures: Failures,
    ) -> None:
        self._store = store
        self._cached = cached
        self._parts = parts
        self._max_concurrency = max_concurrency
        self._report = report
        self._budget = Budget(store.max_size)
        self._faults = cached.statistics["faults"]
        self._requests_at_once = 1
        self._stopped: Stop | None = None
        self._failures = failures
        self._done = 0
        self._fetched = 0
        self._bytes_fetched = 0

    async def _touch_cached(self) -> None:
        """Record what is cached, and make it the most recently used, to be evicted last."""
        values = self._cached.values
        for part in self._parts:
            for entry, size in await part.find_cached(self._cached):
                self._budget.use(size or 0, is_value=part.is_chunks and part.largest is not None)
                is_full = self._store.max_size is not None and values.pending.touch(
                    entry, values.clock().timestamp_ns()
                )
                if is_full:
                    try:
                        await run_async(values.write_pending())
                    except CacheError as error:
                        self._cached.faults.note(error)

    async def _leave_others(self) -> None:
        """Leave their room to other entries, if nothing is evicted and they are not stale."""
        view = self._cached
        limits = view.limits()
        if limits.may_evict:
            return
        cached = await run_async(view.values.lookup_metadata(view.namespace, ""))
        room = view.values.room
        stale = await run_async(room.stale_bytes(limits))
        nbytes = cached.cached_bytes + view.values.ranges.nbytes + room.queued_bytes
        self._budget.leave(nbytes - stale)

    async def fetch(self) -> WarmReport:
        """Fetch what is not cached, as far as the budget allows."""
        await self._touch_cached()
        await self._leave_others()
        cached = count(self._parts, CACHED)
        self._done = cached + count(self._parts, ABSENT)
        self._report(self._progress())
        wanted = sum(part.count_keys() for part in self._parts)
        missing = ((part, unit) for part in self._parts for unit in part.missing())
        number = min(wanted, self._max_concurrency)
        # One worker reads a shard by several requests; together they keep to the maximum.
        self._requests_at_once = self._max_concurrency // max(1, number)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(number):
                    workers.create_task(self._work(missing))
        except BaseExceptionGroup as group:
            error = _first_of(group)
            error.add_note(
                f"{self._fetched} chunks were fetched before this; warming again continues there"
            )
            raise error from None
        absent = count(self._parts, ABSENT)
        left, gone = await self._count_left()
        if self._has_failed():
            # At the last ones, or while those left were counted.
            self._stopped = "fault"
        self._cached.faults.report()
        return WarmReport(
            chunks=count_all(self._parts),
            cached=cached,
            fetched=self._fetched,
            absent=absent,
            left=left,
            bytes_fetched=self._bytes_fetched,
            stopped=self._why_left(gone) if left else None,
            whole_shards=count_whole_shards(self._parts),
            inner_chunks=count_inner(self._parts),
            failed=self._failures.count,
            failures=tuple(self._failures.first),
        )

    def _has_failed(self) -> bool:
        return self._cached.statistics["faults"] > self._faults

    def _why_left(self, gone: int) -> Stop | None:
        if self._stopped is not None:
            return self._stopped
        if gone:
            return "gone"
        return "failed" if self._failures.count else None

    async def _work(self, missing: Iterator[tuple[Part, Unit | Shard]]) -> None:
        for part, unit in missing:
            if self._stopped is not None:
                return
            before = part.count_missing(unit)
            try:
                if isinstance(part, InnerChunksPart) and isinstance(unit, Shard):
                    await self._fetch_shard(part, unit)
                else:
                    await self._fetch(part, unit)
            except Exception as error:  # noqa: BLE001 - whatever the source raises of this key
                self._failures.record(_kind_of(part), unit.key, _first_error(error))
            if part.is_chunks:
                self._done += before - part.count_missing(unit)
            if self._has_failed():
                self._stopped = "fault"
            self._report(self._progress())

    async def _fetch(self, part: Part, unit: Unit | Shard) -> None:
        """Fetch one value, if the budget has room for one as large as the largest so far."""
        reserved = await self._budget.reserve(part.expected)
        if reserved is None:
            self._stopped = self._stopped or "budget"
            return
        try:
            if self._stopped is None:
                buffer = await self._store.get(unit.key, default_buffer_prototype())
                self._failures.record(_kind_of(part), unit.key, None)
                chunks = part.record(unit, ABSENT if buffer is None else CACHED)
                if buffer is not None:
                    part.record_size(len(buffer))
                    counted = chunks if part.is_chunks else 0
                    self._count_fetched(counted, len(buffer), is_value=part.is_chunks)
        finally:
            self._budget.release(reserved)
        if self._budget.is_exceeded:
            self._stopped = self._stopped or "budget"

    async def _fetch_shard(self, part: InnerChunksPart, shard: Shard) -> None:
        """Fetch a shard, or the missing inner chunks of it if only some of all are selected."""
        if shard.is_whole:
            await self._fetch(part, shard)
            return
        try:
            await self._fetch_inner(part, shard)
        finally:
            part.forget_index(shard)

    async def _fetch_inner(self, part: InnerChunksPart, shard: Shard) -> None:
        """Fetch the missing inner chunks of a shard, as many as the budget has room for."""
        if not part.is_located(shard) and not await self._fetch_index(part, shard):
            return
        places, spans = part.missing_in(shard)
        number, reserved = await self._budget.reserve_first(spans[:, 1] - spans[:, 0])
        try:
            if self._stopped is None and number:
                await self._fetch_spans(part, shard, places[:number], spans[:number])
        finally:
            self._budget.release(reserved)
        if number < len(spans):
            self._stopped = self._stopped or "budget"

    async def _fetch_index(self, part: InnerChunksPart, shard: Shard) -> bool:
        """Fetch the index of a shard; False if the budget has no room for it."""
        number, reserved = await self._budget.reserve_first(np.array([part.sharding.index_nbytes]))
        try:
            if self._stopped is None and number:
                nbytes = await part.read_index(self._store, shard)
                self._failures.record(_kind_of(part), shard.key, None)
                self._count_fetched(0, nbytes, is_value=False)
        finally:
            self._budget.release(reserved)
        if not number:
            self._stopped = self._stopped or "budget"
        return part.is_located(shard)

    async def _fetch_spans(
        self,
        part: InnerChunksPart,
        shard: Shard,
        places: npt.NDArray[np.intp],
        spans: npt.NDArray[np.int64],
    ) -> None:
        """Fetch inner chunks of a shard, by the requests that zarr makes for them."""
        batches = self._store.get_ranges(
            shard.key,
            requests_for(spans),
            prototype=default_buffer_prototype(),
            max_concurrency=self._requests_at_once,
            **part.sharding.coalescing,
        )
        states = part.states_of(shard)
        try:
            async for batch in batches:
                self._failures.record(_kind_of(part), shard.key, None)
                for index, buffer in batch:
                    if buffer is not None:
                        states[tuple(places[index])] = CACHED
                        self._count_fetched(1, len(buffer), is_value=False)
        except BaseExceptionGroup as group:
            others = group.split(FileNotFoundError)[1]
            if others is not None:
                raise others from None
            # The shard was deleted from the source since its index was read.
            states[states == MISSING] = ABSENT
        finally:
            part.set_states(shard, states)

    def _count_fetched(self, chunks: int, nbytes: int, *, is_value: bool) -> None:
        self._budget.use(nbytes, is_value=is_value)
        self._fetched += chunks
        self._bytes_fetched += nbytes

    def _progress(self) -> Progress:
        return Progress(self._done, count_all(self._parts), self._bytes_fetched)

    async def _count_left(self) -> tuple[int, int]:
        """How many chunks are not cached at the end, and how many of them were during the run."""
        left = gone = 0
        for part in self._parts:
            if part.is_chunks:
                more_left, more_gone = await part.count_left(self._cached)
                left += more_left
                gone += more_gone
        return left, gone


def _kind_of(part: Part) -> str:
    """What the requests of a part are for: metadata may be sent where chunks are not."""
    return "chunks" if part.is_chunks else "metadata"


def _first_error(error: Exception) -> Exception:
    """The error itself or, of a group such as that of zarr's ``get_ranges``, its first."""
    return first_of(error) if isinstance(error, ExceptionGroup) else error


def _first_of(group: BaseExceptionGroup) -> BaseException:
    """The first error of a group that may have one that is no `Exception`, at any depth."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
