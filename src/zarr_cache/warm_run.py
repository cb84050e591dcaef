"""One run of warming: look what is at hand, fetch what is not, within the budget."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore, WrapperStore

from zarr_cache.chunk_coverage import at_hand
from zarr_cache.errors import CacheError
from zarr_cache.flow import run_async
from zarr_cache.warm_report import WarmPlan, WarmReport

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from zarr_cache.cache_store import CacheStore
    from zarr_cache.cached_source import CachedSource
    from zarr_cache.chunk_grid import StoredChunks
    from zarr_cache.listing import Kept
    from zarr_cache.warm_report import Stop

SIZES_ASKED = 32
"""The sizes of so many chunks tell those of all others, before they are fetched."""

MOST_OVERHEAD = 64 * 2**10
"""An encoded chunk has at most twice the bytes of the decoded one, and so many more: a wide margin
over what codecs add to data that they cannot compress, and over the index of a shard."""

METADATA_BYTES = 512 * 2**10
"""A document of metadata is taken to have as many."""

MISSING, KEPT, ABSENT = range(3)


class Part:
    """Keys that are to be at hand: of the stored chunks of one array, or of metadata.

    Parameters
    ----------
    keys
        The keys, or those of them for which an array of truth values says so, in order.
    count
        How many there are.
    prefixes
        How the keys begin: one query each.
    nbytes
        Bytes of each value before it is encoded, or None.
    is_chunks
        Whether these are chunks.

    Attributes
    ----------
    states
        Of each key `MISSING`, `KEPT` or `ABSENT`.
    """

    def __init__(
        self,
        keys: Callable[[npt.NDArray[np.bool_] | None], Iterator[str]],
        count: int,
        prefixes: Sequence[str],
        *,
        nbytes: int | None,
        is_chunks: bool,
    ) -> None:
        self._keys = keys
        self._count = count
        self._prefixes = prefixes
        self.nbytes = nbytes
        self.is_chunks = is_chunks
        self.states = np.zeros(count, np.uint8)

    @classmethod
    def of_chunks(cls, chunks: StoredChunks, nbytes: int | None) -> Part:
        """The stored chunks of an array."""
        return cls(chunks.keys, len(chunks), [chunks.prefix], nbytes=nbytes, is_chunks=True)

    @classmethod
    def of_metadata(cls, keys: Collection[str]) -> Part:
        """Documents of arrays and groups."""

        def compressed(which: npt.NDArray[np.bool_] | None) -> Iterator[str]:
            return iter(keys) if which is None else itertools.compress(keys, which)

        return cls(compressed, len(keys), list(keys), nbytes=METADATA_BYTES, is_chunks=False)

    @property
    def most(self) -> int | None:
        """Most bytes that one value has; None if nothing tells."""
        return None if self.nbytes is None else 2 * self.nbytes + MOST_OVERHEAD

    async def look(self, cached: CachedSource) -> dict[str, Kept]:
        """What the cache answers without a request, of these keys and of others beside them."""
        found: dict[str, Kept] = {}
        for prefix in self._prefixes:
            found |= await run_async(at_hand(cached, prefix))
        return found

    def states_of(self, kept: Mapping[str, Kept]) -> npt.NDArray[np.uint8]:
        """The state of each key."""

        def state(key: str) -> int:
            found = kept.get(key)
            if found is None:
                return MISSING
            return ABSENT if found[1] is None else KEPT

        return np.fromiter(map(state, self._keys(None)), np.uint8, count=self._count)

    def kept_of(self, kept: Mapping[str, Kept]) -> Iterator[tuple[int, int]]:
        """Number of the entry and bytes of each value that is at hand."""
        for key in self._keys(self.states == KEPT):
            entry, size = kept[key]
            yield entry, size or 0

    def missing(self) -> Iterator[tuple[int, str]]:
        """Place and key of each that is missing now."""
        which = self.states == MISSING
        return zip(np.flatnonzero(which).tolist(), self._keys(which), strict=True)

    def count(self, state: int) -> int:
        """How many keys have the state."""
        return int(np.count_nonzero(self.states == state))


class Room:
    """Bytes of the budget, and how many of them the selection has or may soon have.

    Parameters
    ----------
    max_size
        None for no limit.
    """

    def __init__(self, max_size: int | None) -> None:
        self._max_size = max_size
        self._used = 0
        self._reserved = 0
        self._changed = asyncio.Event()

    def use(self, nbytes: int) -> None:
        """Note bytes that are at hand."""
        self._used += nbytes

    def reserve(self, nbytes: int | None) -> bool:
        """Reserve the bytes if they are known and there is room; tell whether."""
        if self._max_size is None:
            return True
        if nbytes is None or self._used + self._reserved + nbytes > self._max_size:
            return False
        self._reserved += nbytes
        return True

    async def wait(self, nbytes: int) -> bool:
        """Reserve the bytes once there is room; False when there will be none."""
        while not self.reserve(nbytes):
            if not self._reserved:
                return False
            self._changed.clear()
            await self._changed.wait()
        return True

    def settle(self, reserved: int | None, used: int) -> None:
        """Give back what was reserved, and note what is at hand instead."""
        if self._max_size is not None:
            self._reserved -= reserved or 0
        self.use(used)
        self._changed.set()


class Progress(NamedTuple):
    """How far a run is.

    Attributes
    ----------
    done, chunks
        Chunks that are done with, of how many.
    nbytes
        Bytes that were fetched.
    """

    done: int
    chunks: int
    nbytes: int


class WarmRun:
    """One run over the parts, through one store.

    Parameters
    ----------
    tell
        Called with how far the run is, at its beginning and after each value.
    """

    def __init__(
        self,
        store: CacheStore,
        cached: CachedSource,
        parts: Sequence[Part],
        max_concurrency: int,
        tell: Callable[[Progress], None],
    ) -> None:
        self._store = store
        self._cached = cached
        self._parts = parts
        self._max_concurrency = max_concurrency
        self._tell = tell
        self._room = Room(store.max_size)
        self._faults = cached.statistics["faults"]
        self._stopped: Stop | None = None
        self._done = 0
        self._fetched = 0
        self._bytes_fetched = 0

    async def look(self, *, is_touching: bool) -> int:
        """Note what is at hand; return the bytes of its chunks.

        Parameters
        ----------
        is_touching
            Whether to make it the most recently used: what is fetched next would evict it first.
        """
        total = 0
        for part in self._parts:
            kept = await part.look(self._cached)
            part.states = part.states_of(kept)
            for entry, size in part.kept_of(kept):
                total += size if part.is_chunks else 0
                self._room.use(size)
                if is_touching:
                    await self._touch(entry)
        return total

    async def _touch(self, entry: int) -> None:
        values = self._cached.values
        if values.pending.touch(entry, values.clock().stamp_ns()):
            try:
                await run_async(values.write_pending())
            except CacheError as error:
                self._cached.faults.note(error)

    def _count(self, state: int) -> int:
        return sum(part.count(state) for part in self._parts if part.is_chunks)

    def _chunks(self) -> int:
        return sum(part.states.size for part in self._parts if part.is_chunks)

    async def plan(self) -> WarmPlan:
        """What is to be fetched, by a look at the cache and at the sizes of a few chunks."""
        bytes_at_hand = await self.look(is_touching=False)
        at_hand = self._count(KEPT)
        parts = [part for part in self._parts if part.is_chunks]
        nbytes: int | None = 0
        asked = 0
        is_exact = True
        for part in parts:
            count = part.count(MISSING)
            sizes = await self._some_sizes(part) if _tells_sizes(self._cached.source) else []
            told, is_told = _bytes_of(part, count, sizes)
            nbytes = None if nbytes is None or told is None else nbytes + told
            asked += len(sizes)
            is_exact = is_exact and is_told
        return WarmPlan(
            chunks=self._chunks(),
            at_hand=at_hand,
            bytes_at_hand=bytes_at_hand,
            absent=self._count(ABSENT),
            requests=sum(part.count(MISSING) for part in self._parts),
            nbytes=nbytes,
            sizes_asked=asked,
            is_exact=is_exact,
            max_size=self._store.max_size,
        )

    async def _some_sizes(self, part: Part) -> list[int]:
        """Sizes of missing chunks spread evenly over the part; 0 for those that seem to be absent.

        Each of those is a request later all the same: see `reading.exists`.
        """
        count = part.count(MISSING)
        chosen = set(np.linspace(0, count - 1, min(count, SIZES_ASKED)).astype(int).tolist())
        missing = (key for place, (_, key) in enumerate(part.missing()) if place in chosen)

        async def ask(key: str) -> int:
            async with turns:
                return await self._size(key)

        turns = asyncio.Semaphore(self._max_concurrency)
        return await asyncio.gather(*(ask(key) for key in missing))

    async def _size(self, key: str) -> int:
        """Size of a value; 0 if it seems to be absent, which only ``get`` tells for sure."""
        try:
            return await self._store.getsize(key)
        except FileNotFoundError:
            return 0

    async def fetch(self) -> WarmReport:
        """Bring to hand what is not, as far as the budget goes."""
        await self.look(is_touching=self._store.max_size is not None)
        at_hand = self._count(KEPT)
        self._done = at_hand + self._count(ABSENT)
        self._tell(self._progress())
        missing = ((part, *each) for part in self._parts for each in part.missing())
        count = sum(part.count(MISSING) for part in self._parts)
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(count, self._max_concurrency)):
                    workers.create_task(self._work(missing))
        except BaseExceptionGroup as group:
            error = group.exceptions[0]
            error.add_note(
                f"{self._fetched} chunks were fetched before this; warming again goes on from there"
            )
            raise error from None
        left, gone = await self._left()
        self._cached.faults.tell()
        return WarmReport(
            chunks=self._chunks(),
            at_hand=at_hand,
            fetched=self._fetched,
            absent=self._count(ABSENT),
            left=left,
            bytes_fetched=self._bytes_fetched,
            stopped=self._why(gone) if left else None,
        )

    def _why(self, gone: int) -> Stop | None:
        """Why chunks are left. The cache may have failed to keep the last ones only just now."""
        if self._has_failed():
            return "fault"
        return self._stopped or ("gone" if gone else None)

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
            self._tell(self._progress())

    async def _fetch(self, part: Part, place: int, key: str) -> None:
        """Fetch one value, once it is sure to evict nothing of the selection."""
        reserved = part.most
        if not self._room.reserve(reserved):
            # Near the end of the budget: exactly.
            reserved = await self._size(key)
            if not await self._room.wait(reserved):
                self._stopped = self._stopped or "budget"
                return
        used = 0
        try:
            if self._stopped is None:
                buffer = await self._store.get(key, default_buffer_prototype())
                part.states[place] = ABSENT if buffer is None else KEPT
                used = 0 if buffer is None else len(buffer)
                self._fetched += part.is_chunks and buffer is not None
                self._bytes_fetched += used
        finally:
            self._room.settle(reserved, used)

    def _progress(self) -> Progress:
        return Progress(self._done, self._chunks(), self._bytes_fetched)

    async def _left(self) -> tuple[int, int]:
        """How many chunks are not at hand, and how many of them were: what the file says counts."""
        left = gone = 0
        for part in self._parts:
            if part.is_chunks:
                now = part.states_of(await part.look(self._cached))
                left += int(np.count_nonzero((now == MISSING) & (part.states != ABSENT)))
                gone += int(np.count_nonzero((now == MISSING) & (part.states == KEPT)))
        return left, gone


def _bytes_of(part: Part, count: int, sizes: Sequence[int]) -> tuple[int | None, bool]:
    """Bytes of so many chunks of the part, some of which have these sizes; whether it is exact."""
    if len(sizes) == count:
        return sum(sizes), True
    if sizes:
        return round(sum(sizes) / len(sizes) * count), False
    return None if part.nbytes is None else part.nbytes * count, False


def _tells_sizes(source: Store) -> bool:
    """Whether the source tells the size of a value without a read of all of it over a network."""
    while isinstance(source, WrapperStore):
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
    return type(source).getsize is not Store.getsize or isinstance(source, MemoryStore)
