"""What is to be cached: stored chunks, inner chunks of shards, and metadata."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, NamedTuple, override

import numpy as np
from zarr.core.buffer import numpy_buffer_prototype

from zarr_cache.core.flow import in_thread, run, run_async
from zarr_cache.warming.cached_chunks import (
    ABSENT,
    CACHED,
    MISSING,
    UNKNOWN,
    find_inner,
    list_cached,
)
from zarr_cache.warming.chunk_grid import Shards, decoded_nbytes
from zarr_cache.warming.shard_index import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from zarr.abc.store import Store

    from zarr_cache.flows.view import SourceView
    from zarr_cache.index.listing import Kept
    from zarr_cache.warming.chunk_grid import AnyArray, Selection, Shard, StoredChunks
    from zarr_cache.warming.shard_index import Sharding


class Unit(NamedTuple):
    """A key whose value is fetched as a whole, and which of the states of its part it has."""

    key: str
    where: int


class Part(ABC):
    """Chunks of one array, or metadata, to be cached.

    Attributes
    ----------
    states
        `MISSING`, `CACHED` or `ABSENT` for each chunk, or for each key of metadata.
    is_chunks
        Whether these are chunks.
    nbytes
        Bytes of each value before encoding; None if unknown.
    largest
        Bytes of the largest value so far; None before the first.
    """

    def __init__(self, shape: tuple[int, ...], *, nbytes: int | None, is_chunks: bool) -> None:
        self.states: npt.NDArray[np.uint8] = np.full(shape, MISSING, np.uint8)
        self.is_chunks = is_chunks
        self.nbytes = nbytes
        self.largest: int | None = None

    @abstractmethod
    async def find_cached(self, view: SourceView) -> list[Kept]:
        """Set the states to what is cached and fresh now; return the entries that have it."""

    @abstractmethod
    def missing(self) -> Iterator[Unit | Shard]:
        """The keys of which something is missing."""

    @abstractmethod
    def count_keys(self) -> int:
        """How many keys `missing` has."""

    @property
    def expected(self) -> int | None:
        """Bytes that the next value is expected to have: those of the largest so far."""
        return self.nbytes if self.largest is None else self.largest

    def record_size(self, nbytes: int) -> None:
        """Record the bytes of a value; 0 if there is none."""
        self.largest = max(nbytes, self.largest or 0) or None

    def count(self, state: int) -> int:
        """How many of the states are this one."""
        return int(np.count_nonzero(self.states == state))


class Values(Part):
    """Keys whose values are fetched as wholes: stored chunks of one array, or metadata.

    Parameters
    ----------
    keys
        The keys, in order.
    prefixes
        Prefixes of the keys: one query each.
    is_shards
        Whether the chunks are shards.
    """

    def __init__(
        self,
        keys: StoredChunks | Sequence[str],
        prefixes: Sequence[str],
        *,
        nbytes: int | None,
        is_chunks: bool,
        is_shards: bool = False,
    ) -> None:
        super().__init__((len(keys),), nbytes=nbytes, is_chunks=is_chunks)
        self._keys = keys
        self._prefixes = prefixes
        self.is_shards = is_shards

    @override
    async def find_cached(self, view: SourceView) -> list[Kept]:
        kept: dict[str, Kept] = {}
        for prefix in self._prefixes:
            kept |= await run_async(list_cached(view, prefix))

        def state(key: str) -> int:
            found = kept.get(key)
            if found is None:
                return MISSING
            return ABSENT if found[1] is None else CACHED

        self.states = np.fromiter(map(state, self._keys), np.uint8, count=self.states.size)
        found = [kept[key] for key in itertools.compress(self._keys, self.states == CACHED)]
        self.record_size(max((size or 0 for _, size in found), default=0))
        return found

    @override
    def missing(self) -> Iterator[Unit]:
        is_missing = self.states == MISSING
        keys = itertools.compress(self._keys, is_missing)
        return itertools.starmap(Unit, zip(keys, np.flatnonzero(is_missing).tolist(), strict=True))

    @override
    def count_keys(self) -> int:
        return self.count(MISSING)


class InnerChunksPart(Part):
    """The inner chunks of one sharded array that a selection touches.

    A shard of which all are touched is fetched as a whole, as zarr reads it.

    Attributes
    ----------
    sharding
        How zarr reads the array.
    spans
        The interval of each inner chunk in its shard: see `InnerChunks`.
    """

    def __init__(self, array: AnyArray, sharding: Sharding, selection: Selection) -> None:
        self.sharding = sharding
        self._shards = Shards(array, sharding.per_shard, selection)
        super().__init__(self._shards.shape, nbytes=decoded_nbytes(array), is_chunks=True)
        self.spans = np.full((*self._shards.shape, 2), UNKNOWN, np.int64)

    @override
    async def find_cached(self, view: SourceView) -> list[Kept]:
        """As of `Part`. Ranges in memory are missing: fetching them moves them to the file."""
        flow = find_inner(view, self._shards, self.sharding, is_together=True, in_memory=False)
        # It reads an index for each shard, which would hold up the event loop.
        found = await in_thread(lambda: run(flow))
        self.states, self.spans = found.states, found.spans
        self.record_size(found.largest)
        return found.entries

    @override
    def missing(self) -> Iterator[Shard]:
        for shard in self._shards:
            if np.any(self.states[shard.where] == MISSING):
                yield shard

    @override
    def count_keys(self) -> int:
        return sum(1 for _ in self.missing())

    async def read_index(self, store: Store, shard: Shard) -> int:
        """Read the index of a shard, record where the inner chunks are, and return its bytes.

        0 if there is no such shard: then all are absent.
        """
        prototype = numpy_buffer_prototype()
        buffer = await store.get(shard.key, prototype, self.sharding.index_request)
        spans = self.spans[shard.where]
        if buffer is None:
            spans[...] = EMPTY
        else:
            index = buffer.as_numpy_array().view(np.uint8)
            spans[...] = self.sharding.locate(index)[shard.inside]
        self.states[shard.where][spans[..., 0] == EMPTY] = ABSENT
        return 0 if buffer is None else len(buffer)

    def is_located(self, shard: Shard) -> bool:
        """Whether the index of the shard has been read."""
        return not np.any(self.spans[shard.where] == UNKNOWN)

    def missing_in(self, shard: Shard) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """The missing inner chunks of a located shard, in the order of their first byte.

        Returns
        -------
        tuple of ndarray
            A row for each: its indices in ``states[shard.where]``, and its interval.
        """
        places = np.argwhere(self.states[shard.where] == MISSING)
        spans = self.spans[shard.where][tuple(places.T)]
        order = np.argsort(spans[:, 0], kind="stable")
        return places[order], spans[order]
