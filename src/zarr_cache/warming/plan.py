"""What warming would fetch: which chunks, and how many bytes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from zarr.abc.store import Store
from zarr.storage import MemoryStore, WrapperStore

from zarr_cache.warming.cached_chunks import ABSENT, CACHED, MISSING, UNKNOWN
from zarr_cache.warming.parts import InnerChunksPart, Values
from zarr_cache.warming.report import WarmPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr_cache.cache.store import CacheStore
    from zarr_cache.flows.view import SourceView
    from zarr_cache.warming.chunk_grid import Shard
    from zarr_cache.warming.parts import Part


MAX_SIZES = 32
"""A dry run estimates the bytes of an array from the sizes of this many values, or from the indexes
of this many shards."""


def count(parts: Sequence[Part], state: int) -> int:
    """How many chunks have the state."""
    return sum(part.count(state) for part in parts if part.is_chunks)


def count_all(parts: Sequence[Part]) -> int:
    """How many chunks there are."""
    return sum(part.states.size for part in parts if part.is_chunks)


def count_inner(parts: Sequence[Part]) -> int:
    """How many of the chunks are inner chunks of shards."""
    return sum(part.states.size for part in parts if isinstance(part, InnerChunksPart))


def count_whole_shards(parts: Sequence[Part]) -> int:
    """How many of the chunks are shards."""
    return sum(part.states.size for part in parts if isinstance(part, Values) and part.is_shards)


class _Need(NamedTuple):
    """What is to be fetched of a part, or of some of it.

    Attributes
    ----------
    requests
        Number of requests.
    nbytes
        Bytes of the chunks, and of the indexes of their shards; None if unknown.
    sizes
        Number of chunks whose size is known.
    is_exact
        Whether these are all.
    """

    requests: int
    nbytes: int | None
    sizes: int
    is_exact: bool


async def plan(
    store: CacheStore, cached: SourceView, parts: Sequence[Part], max_concurrency: int
) -> WarmPlan:
    """What is to be fetched, from the cache file and the sizes of a few chunks."""
    asking = _Asking(store, cached, asyncio.Semaphore(max_concurrency))
    cached_bytes = 0
    needs = []
    for part in parts:
        entries = await part.find_cached(cached)
        if part.is_chunks:
            cached_bytes += sum(size or 0 for _, size in entries)
        if isinstance(part, InnerChunksPart):
            nbytes, needs_of_part = await asking.inner_chunks(part)
            cached_bytes += nbytes
            needs += needs_of_part
        elif part.is_chunks:
            needs.append(await asking.values(part, [unit.key for unit in part.missing()], 1))
        else:
            needs.append(_Need(part.count(MISSING), 0, 0, is_exact=True))
    known = [need.nbytes for need in needs if need.nbytes is not None]
    return WarmPlan(
        chunks=count_all(parts),
        cached=count(parts, CACHED),
        cached_bytes=cached_bytes,
        absent=count(parts, ABSENT),
        requests=sum(need.requests for need in needs),
        nbytes=sum(known) if len(known) == len(needs) else None,
        sizes_asked=sum(need.sizes for need in needs),
        is_exact=all(need.is_exact for need in needs),
        max_size=store.max_size,
        whole_shards=count_whole_shards(parts),
        inner_chunks=count_inner(parts),
    )


class _Asking(NamedTuple):
    """Requests for the sizes of a few values, and for the indexes of a few shards."""

    store: CacheStore
    cached: SourceView
    limit: asyncio.Semaphore

    async def values(self, part: Part, keys: Sequence[str], chunks: int) -> _Need:
        """The need of missing values, each of so many chunks."""
        sizes: list[int] = []
        if _has_cheap_getsize(self.cached.source):
            sizes = await asyncio.gather(*(self._size_of(key) for key in _some(keys)))
        if sizes:
            nbytes: int | None = sum(sizes) * len(keys) // len(sizes)
        else:
            nbytes = part.nbytes and part.nbytes * len(keys) if keys else 0
        return _Need(len(keys), nbytes, len(sizes) * chunks, is_exact=len(sizes) == len(keys))

    async def inner_chunks(self, part: InnerChunksPart) -> tuple[int, list[_Need]]:
        """The need of shards that are fetched as wholes, and of the other inner chunks.

        Also returns the bytes of the indexes that were read for it: these are cached now.
        """
        missing = list(part.missing())
        whole = [shard for shard in missing if shard.is_whole]
        partly = [shard for shard in missing if not shard.is_whole]
        chosen = _some([shard for shard in partly if not part.is_located(shard)])
        indexes = await asyncio.gather(*(self._read_index(part, shard) for shard in chosen))
        located = [part.missing_in(shard)[1] for shard in partly if part.is_located(shard)]
        exact = _Need(
            requests=sum(map(part.sharding.count_requests, located)),
            nbytes=sum(int(np.sum(spans[:, 1] - spans[:, 0])) for spans in located),
            sizes=sum(map(len, located)),
            is_exact=True,
        )
        keys = [shard.key for shard in whole]
        chunks_in_each = int(np.prod(part.sharding.per_shard))
        needs = [exact, await self.values(part, keys, chunks_in_each)]
        others = [shard for shard in partly if not part.is_located(shard)]
        if others:
            needs.append(_estimate(part, others))
        return sum(indexes), needs

    async def _size_of(self, key: str) -> int:
        """The size of a missing value; 0 if it is absent.

        An absent chunk still takes a request later: see `existence.exists`.
        """
        async with self.limit:
            try:
                return await self.store.getsize(key)
            except FileNotFoundError:
                return 0

    async def _read_index(self, part: InnerChunksPart, shard: Shard) -> int:
        async with self.limit:
            return await part.read_index(self.store, shard)


def _estimate(part: InnerChunksPart, shards: Sequence[Shard]) -> _Need:
    """The need of shards whose indexes have not been read, by the mean of those that have."""
    is_known = part.spans[..., 0] != UNKNOWN
    mean = np.mean(part.spans[is_known, 1] - part.spans[is_known, 0])
    chunks = sum(part.states[shard.where].size for shard in shards)
    return _Need(
        requests=2 * len(shards),
        nbytes=round(mean * chunks) + part.sharding.index_nbytes * len(shards),
        sizes=0,
        is_exact=False,
    )


def _some[T](each: Sequence[T]) -> list[T]:
    """At most `MAX_SIZES` of them, spread evenly."""
    chosen = np.linspace(0, len(each) - 1, min(len(each), MAX_SIZES)).astype(int)
    return [each[place] for place in chosen.tolist()]


def _has_cheap_getsize(source: Store) -> bool:
    """Whether the source returns the size of a value without reading all of it."""
    while isinstance(source, WrapperStore):
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
    return type(source).getsize is not Store.getsize or isinstance(source, MemoryStore)
