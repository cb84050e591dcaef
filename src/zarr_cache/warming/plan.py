"""What warming would fetch: which chunks, and how many bytes."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from zarr.abc.store import Store
from zarr.storage import MemoryStore, WrapperStore

from zarr_cache.warming.cached_chunks import ABSENT, CACHED, MISSING
from zarr_cache.warming.parts import InnerChunksPart, Values
from zarr_cache.warming.report import WarmPlan

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from zarr_cache.cache.store import CacheStore
    from zarr_cache.flows.view import SourceView
    from zarr_cache.warming.parts import Part
    from zarr_cache.warming.report import Failures


MAX_SIZES = 32
"""A dry run estimates the bytes of an array from the sizes of this many values, or from the indexes
of this many shards."""

MAX_LOOKED_AT = 4096
"""Of so many missing shards it is looked at which are fetched as wholes; of more, of some."""


def count(parts: Sequence[Part], state: int) -> int:
    """How many chunks have the state."""
    return sum(part.count(state) for part in parts if part.is_chunks)


def count_all(parts: Sequence[Part]) -> int:
    """How many chunks there are."""
    return sum(part.size for part in parts if part.is_chunks)


def count_inner(parts: Sequence[Part]) -> int:
    """How many of the chunks are inner chunks of shards."""
    return sum(part.size for part in parts if isinstance(part, InnerChunksPart))


def count_whole_shards(parts: Sequence[Part]) -> int:
    """How many of the chunks are shards."""
    return sum(part.size for part in parts if isinstance(part, Values) and part.is_shards)


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
    store: CacheStore,
    cached: SourceView,
    parts: Sequence[Part],
    max_concurrency: int,
    failures: Failures,
) -> WarmPlan:
    """What is to be fetched, from the cache file and the sizes of a few chunks.

    A request that fails is recorded, and what it would have told is estimated.
    """
    asking = _Asking(store, cached, asyncio.Semaphore(max_concurrency), failures)
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
        elif isinstance(part, Values) and part.is_chunks:
            keys = [unit.key for unit in part.some_missing(MAX_SIZES)]
            needs.append(await asking.values(part.nbytes, keys, part.count(MISSING), 1))
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
        failed=failures.count,
        failures=tuple(failures.first),
    )


class _Asking(NamedTuple):
    """Requests for the sizes of a few values, and for the indexes of a few shards."""

    store: CacheStore
    cached: SourceView
    limit: asyncio.Semaphore
    failures: Failures

    async def values(
        self, decoded: int | None, keys: Sequence[str], count: int, chunks: int
    ) -> _Need:
        """The need of `count` missing values, each of so many chunks.

        Parameters
        ----------
        decoded
            Bytes of a value before encoding; None if unknown.
        keys
            Those whose sizes are requested.
        """
        sizes: list[int] = []
        if _has_cheap_getsize(self.cached.source):
            found = await asyncio.gather(
                *(self._request(key, partial(self._size_of, key)) for key in keys)
            )
            sizes = [size for size in found if size is not None]
        if sizes:
            nbytes: int | None = sum(sizes) * count // len(sizes)
        else:
            nbytes = decoded and decoded * count if count else 0
        return _Need(count, nbytes, len(sizes) * chunks, is_exact=len(sizes) == count)

    async def inner_chunks(self, part: InnerChunksPart) -> tuple[int, list[_Need]]:
        """The need of shards that are fetched as wholes, and of the other inner chunks.

        Also returns the bytes of the indexes that were read for it: these are cached now.
        """
        missing = part.some_missing(MAX_LOOKED_AT)
        whole = _some([shard.key for shard in missing if shard.is_whole])
        partly = [shard for shard in missing if not shard.is_whole and not part.is_located(shard)]
        indexes = await asyncio.gather(
            *(
                self._request(shard.key, partial(part.read_index, self.store, shard))
                for shard in _some(partly)
            )
        )
        chunks_in_each = math.prod(part.sharding.per_shard)
        located = [part.missing_in(shard)[1] for shard, _ in part.located()]
        located = [spans for spans in located if len(spans)]
        exact = _Need(
            requests=sum(map(part.sharding.count_requests, located)),
            nbytes=sum(int(np.sum(spans[:, 1] - spans[:, 0])) for spans in located),
            sizes=sum(map(len, located)),
            is_exact=True,
        )
        of_whole = await self.values(part.nbytes, whole, part.whole_missing, chunks_in_each)
        needs = [exact, of_whole]
        others = part.count_keys() - part.whole_missing - len(located)
        if others:
            chunks = part.count(MISSING) - part.whole_missing * chunks_in_each - exact.sizes
            needs.append(_estimate(part, others, chunks))
        return sum(nbytes or 0 for nbytes in indexes), needs

    async def _request(self, key: str, request: Callable[[], Awaitable[int]]) -> int | None:
        """The bytes that the request tells; None if it fails, which is recorded."""
        async with self.limit:
            try:
                nbytes = await request()
            except Exception as error:  # noqa: BLE001 - whatever the source raises of this key
                self.failures.record("sizes", key, error)
                return None
        self.failures.record("sizes", key, None)
        return nbytes

    async def _size_of(self, key: str) -> int:
        """The size of a missing value; 0 if it is absent.

        An absent chunk still takes a request later: see `existence.exists`.
        """
        try:
            return await self.store.getsize(key)
        except FileNotFoundError:
            return 0


def _estimate(part: InnerChunksPart, shards: int, chunks: int) -> _Need:
    """The need of so many shards and inner chunks, whose indexes have not been read.

    By the mean of those that have been read.
    """
    sizes = [np.sum(spans[..., 1] - spans[..., 0]) for _, spans in part.located()]
    numbers = [spans[..., 0].size for _, spans in part.located()]
    mean: float | None = sum(map(int, sizes)) / sum(numbers) if sizes else None
    if mean is None and part.nbytes is not None:
        mean = part.nbytes / math.prod(part.sharding.per_shard)
    nbytes = None if mean is None else round(mean * chunks) + part.sharding.index_nbytes * shards
    return _Need(requests=2 * shards, nbytes=nbytes, sizes=0, is_exact=False)


def _some[T](each: Sequence[T]) -> list[T]:
    """At most `MAX_SIZES` of them, spread evenly."""
    chosen = np.linspace(0, len(each) - 1, min(len(each), MAX_SIZES)).astype(int)
    return [each[place] for place in chosen.tolist()]


def _has_cheap_getsize(source: Store) -> bool:
    """Whether the source returns the size of a value without reading all of it."""
    while isinstance(source, WrapperStore):
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
    return type(source).getsize is not Store.getsize or isinstance(source, MemoryStore)
