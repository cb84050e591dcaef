"""What is to be cached: stored chunks, inner chunks of shards, and metadata."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple, Protocol, override

import numpy as np
from zarr.core.buffer import numpy_buffer_prototype

from zarr_cache.core.flow import in_thread, run, run_async
from zarr_cache.warming.cached_chunks import (
    ABSENT,
    CACHED,
    MISSING,
    PARTLY,
    States,
    find_inner,
    list_cached,
)
from zarr_cache.warming.chunk_grid import decoded_nbytes
from zarr_cache.warming.shard_index import EMPTY, Shards

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    import numpy.typing as npt
    from zarr.abc.store import Store

    from zarr_cache.flows.view import SourceView
    from zarr_cache.index.listing import Kept
    from zarr_cache.warming.chunk_grid import AnyArray, Selection
    from zarr_cache.warming.shard_index import Shard, Sharding


class Unit(NamedTuple):
    """A key whose value is fetched as a whole, and its number in its part."""

    key: str
    number: int


class Keys(Protocol):
    """Keys with numbers: as of `Grid`."""

    count: int

    def key_at(self, number: int) -> str:
        """The key of this number."""

    def find(self, keys: Collection[str]) -> list[tuple[int, str]]:
        """Those of the given keys that are among these, with their numbers, in order."""


class Documents(Keys):
    """Keys of metadata."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.count = len(keys)
        self._keys = keys

    @override
    def key_at(self, number: int) -> str:
        return self._keys[number]

    @override
    def find(self, keys: Collection[str]) -> list[tuple[int, str]]:
        return [(number, key) for number, key in enumerate(self._keys) if key in keys]


class Part(ABC):
    """Chunks of one array, or metadata, to be cached.

    What is known of them goes with those that are cached or were requested, not with their number.

    Attributes
    ----------
    size
        How many chunks there are, or keys of metadata.
    is_chunks
        Whether these are chunks.
    nbytes
        Bytes of each value before encoding; None if unknown.
    largest
        Bytes of the largest value so far; None before the first.
    """

    def __init__(self, size: int, *, nbytes: int | None, is_chunks: bool) -> None:
        self.size = size
        self.is_chunks = is_chunks
        self.nbytes = nbytes
        self.largest: int | None = None

    @abstractmethod
    async def find_cached(self, view: SourceView) -> list[Kept]:
        """Set the states to what is cached and fresh now; return the entries that have it."""

    @abstractmethod
    def missing(self) -> Iterator[Unit | Shard]:
        """The keys of which something is missing, in order."""

    @abstractmethod
    def count_keys(self) -> int:
        """How many keys `missing` has."""

    @abstractmethod
    def count(self, state: int) -> int:
        """How many of the chunks, or keys of metadata, have the state."""

    @abstractmethod
    def count_missing(self, unit: Unit | Shard) -> int:
        """How many are missing of this key."""

    @abstractmethod
    def record(self, unit: Unit | Shard, state: int) -> int:
        """Set the state of all of this key; return how many these are."""

    @abstractmethod
    async def count_left(self, view: SourceView) -> tuple[int, int]:
        """How many are not cached now, and how many of them were by the states before.

        What the source did not have is not left, whether or not the cache remembers that.
        """

    @property
    def expected(self) -> int | None:
        """Bytes that the next value is expected to have: those of the largest so far."""
        return self.nbytes if self.largest is None else self.largest

    def record_size(self, nbytes: int) -> None:
        """Record the bytes of a value; 0 if there is none."""
        self.largest = max(nbytes, self.largest or 0) or None


class Values(Part):
    """Keys whose values are fetched as wholes: stored chunks of one array, or metadata.

    Parameters
    ----------
    prefixes
        Prefixes of the keys: one query each.
    is_shards
        Whether the chunks are shards.
    """

    def __init__(
        self,
        keys: Keys,
        prefixes: Sequence[str],
        *,
        nbytes: int | None,
        is_chunks: bool,
        is_shards: bool = False,
    ) -> None:
        super().__init__(keys.count, nbytes=nbytes, is_chunks=is_chunks)
        self._keys = keys
        self._prefixes = prefixes
        self._states = States(keys.count)
        self.is_shards = is_shards

    @override
    async def find_cached(self, view: SourceView) -> list[Kept]:
        kept: dict[str, Kept] = {}
        for prefix in self._prefixes:
            kept |= await run_async(list_cached(view, prefix))
        self._states = States(self.size)
        entries = []
        for number, key in self._keys.find(kept):
            entry, size = kept[key]
            self._states[number] = ABSENT if size is None else CACHED
            if size is not None:
                entries.append((entry, size))
        self.record_size(max((size for _, size in entries), default=0))
        return list(entries)

    @override
    def missing(self) -> Iterator[Unit]:
        return self._units(self._states.missing())

    def some_missing(self, most: int) -> list[Unit]:
        """At most so many of those that are missing, spread evenly."""
        return list(self._units(self._states.some_missing(most)))

    def _units(self, numbers: Iterable[int]) -> Iterator[Unit]:
        return (Unit(self._keys.key_at(number), number) for number in numbers)

    @override
    def count_keys(self) -> int:
        return self.count(MISSING)

    @override
    def count(self, state: int) -> int:
        return self._states.count(state)

    @override
    def count_missing(self, unit: Unit | Shard) -> int:
        return int(self._states[unit.number] == MISSING)

    @override
    def record(self, unit: Unit | Shard, state: int) -> int:
        self._states[unit.number] = state
        return 1

    @override
    async def count_left(self, view: SourceView) -> tuple[int, int]:
        before = self._states
        await self.find_cached(view)
        lost = [state for number, state in before.known() if self._states[number] == MISSING]
        return self.count(MISSING) - lost.count(ABSENT), lost.count(CACHED)


class InnerChunksPart(Part):
    """The inner chunks of one sharded array that a selection touches.

    A shard of which all are touched is fetched as a whole, as zarr reads it.

    Attributes
    ----------
    sharding
        How zarr reads the array.
    shards
        The shards that have the inner chunks.
    whole_missing
        How many of these are fetched as wholes, and are missing.
    """

    def __init__(self, array: AnyArray, sharding: Sharding, selection: Selection) -> None:
        self.sharding = sharding
        self.shards = Shards(array, sharding.per_shard, selection)
        size = math.prod(self.shards.shape)
        super().__init__(size, nbytes=decoded_nbytes(array), is_chunks=True)
        self._forget()

    def _forget(self) -> None:
        self._states = States(self.shards.count)
        # Those of the shards whose inner chunks have several.
        self._partly: dict[int, npt.NDArray[np.uint8]] = {}
        self._spans: dict[int, npt.NDArray[np.int64]] = {}
        self._counts = [self.size, 0, 0]
        self._keys_missing = self.shards.count
        self.whole_missing = self.shards.count_whole()

    @override
    async def find_cached(self, view: SourceView) -> list[Kept]:
        """As of `Part`. Ranges in memory are missing: fetching them moves them to the file."""
        flow = find_inner(view, self.shards, self.sharding, is_together=True, in_memory=False)
        # It reads an index for each shard, which would hold up the event loop.
        every = await in_thread(lambda: run(flow))
        self._forget()
        for shard, found in every:
            if found.spans is not None:
                self._spans[shard.number] = found.spans
            states = np.broadcast_to(np.uint8(found.states), shard.shape)
            self.set_states(shard, states)
        self.record_size(max((found.whole or 0 for _, found in every), default=0))
        return [entry for _, found in every for entry in found.entries]

    @override
    def missing(self) -> Iterator[Shard]:
        for number in range(self.shards.count):
            if self._has_missing(number):
                yield self.shards.at(number)

    def _has_missing(self, number: int) -> bool:
        state = self._states[number]
        if state == PARTLY:
            return bool(np.any(self._partly[number] == MISSING))
        return state == MISSING

    @override
    def count_keys(self) -> int:
        return self._keys_missing

    @override
    def count(self, state: int) -> int:
        return self._counts[state]

    @override
    def count_missing(self, unit: Unit | Shard) -> int:
        shard = self.shards.at(unit.number)
        return int(np.count_nonzero(self.states_of(shard) == MISSING))

    @override
    def record(self, unit: Unit | Shard, state: int) -> int:
        shard = self.shards.at(unit.number)
        self.set_states(shard, np.full(shard.shape, state, np.uint8))
        return shard.size

    @override
    async def count_left(self, view: SourceView) -> tuple[int, int]:
        states, partly = self._states, self._partly
        await self.find_cached(view)
        absent = gone = 0
        for number, state in states.known():
            if self._has_missing(number):
                shard = self.shards.at(number)
                before = partly[number] if state == PARTLY else np.uint8(state)
                lost = np.broadcast_to(before, shard.shape)[self.states_of(shard) == MISSING]
                absent += int(np.count_nonzero(lost == ABSENT))
                gone += int(np.count_nonzero(lost == CACHED))
        return self.count(MISSING) - absent, gone

    def states_of(self, shard: Shard) -> npt.NDArray[np.uint8]:
        """A copy of the states of its inner chunks."""
        state = self._states[shard.number]
        if state == PARTLY:
            return self._partly[shard.number].copy()
        return np.full(shard.shape, state, np.uint8)

    def set_states(self, shard: Shard, states: npt.NDArray[np.uint8]) -> None:
        """Set the states of its inner chunks."""
        before = self.states_of(shard)
        for state in range(PARTLY):
            self._counts[state] += int(np.count_nonzero(states == state))
            self._counts[state] -= int(np.count_nonzero(before == state))
        left = int(np.any(before == MISSING)) - int(np.any(states == MISSING))
        self._keys_missing -= left
        self.whole_missing -= left if shard.is_whole else 0
        self._partly.pop(shard.number, None)
        first = int(states.flat[0])
        if np.all(states == first):
            self._states[shard.number] = first
        else:
            self._states[shard.number] = PARTLY
            self._partly[shard.number] = np.array(states)

    async def read_index(self, store: Store, shard: Shard) -> int:
        """Read the index of a shard, record where the inner chunks are, and return its bytes.

        0 if there is no such shard: then all are absent.
        """
        prototype = numpy_buffer_prototype()
        buffer = await store.get(shard.key, prototype, self.sharding.index_request)
        if buffer is None:
            spans = np.full((*shard.shape, 2), EMPTY, np.int64)
        else:
            index = buffer.as_numpy_array().view(np.uint8)
            spans = self.sharding.locate(index)[shard.inside]
        self._spans[shard.number] = spans
        states = self.states_of(shard)
        states[spans[..., 0] == EMPTY] = ABSENT
        self.set_states(shard, states)
        return 0 if buffer is None else len(buffer)

    def is_located(self, shard: Shard) -> bool:
        """Whether the index of the shard has been read, and not forgotten."""
        return shard.number in self._spans

    def forget_index(self, shard: Shard) -> None:
        """Forget the index of a shard that is done, which has more bytes than the states."""
        self._spans.pop(shard.number, None)

    def located(self) -> Iterator[tuple[Shard, npt.NDArray[np.int64]]]:
        """The shards of which the index has been read, and the intervals of their inner chunks."""
        return ((self.shards.at(number), spans) for number, spans in sorted(self._spans.items()))

    def missing_in(self, shard: Shard) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """The missing inner chunks of a located shard, in the order of their first byte.

        Returns
        -------
        tuple of ndarray
            A row for each: its indices in the states of the shard, and its interval.
        """
        places = np.argwhere(self.states_of(shard) == MISSING)
        spans = self._spans[shard.number][tuple(places.T)]
        order = np.argsort(spans[:, 0], kind="stable")
        return places[order], spans[order]

    def some_missing(self, most: int) -> list[Shard]:
        """Shards of which nothing is known: all, if there are no more than `most` of them.

        Otherwise so many that are spread evenly, and those at the corners and edges of the
        selection, which may be touched in part where all others are whole.
        """
        numbers = set(self._states.some_missing(most))
        if self._states.count(MISSING) > most:
            numbers |= {each for each in self._edges(most) if self._states[each] == MISSING}
        return [self.shards.at(number) for number in sorted(numbers)]

    def _edges(self, most: int) -> Iterator[int]:
        """The first, the middle and the last along each dimension, combined."""
        counts = [axis.size for axis in self.shards.axes]
        along = [sorted({0, count // 2, count - 1}) for count in counts]
        for places in itertools.islice(itertools.product(*along), most):
            number = 0
            for count, place in zip(counts, places, strict=True):
                number = number * count + place
            yield number
