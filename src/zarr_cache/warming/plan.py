"""The keys that a selection needs, which of them are cached, and how much is to be fetched."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

import numpy as np
from zarr.abc.store import Store
from zarr.storage import MemoryStore, WrapperStore

from zarr_cache.core.flow import run_async
from zarr_cache.warming.coverage import list_cached
from zarr_cache.warming.report import WarmPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from zarr_cache.cache.store import CacheStore
    from zarr_cache.cache.view import SourceView
    from zarr_cache.index.lookup import Kept
    from zarr_cache.warming.chunk_grid import StoredChunks


MAX_SIZES = 32
"""A dry run estimates the bytes of an array from the sizes of this many chunks."""

MISSING, CACHED, ABSENT = range(3)


class Part:
    """Keys to be cached: of the stored chunks of one array, or of metadata.

    Parameters
    ----------
    keys
        The keys, in order.
    prefixes
        Prefixes of the keys: one query each.
    nbytes
        Bytes of each value before encoding; None if unknown.
    is_chunks
        Whether these are keys of chunks.

    Attributes
    ----------
    states
        `MISSING`, `CACHED` or `ABSENT` for each key.
    largest
        Bytes of the largest value so far; None before the first.
    """

    def __init__(
        self,
        keys: StoredChunks | Sequence[str],
        prefixes: Sequence[str],
        *,
        nbytes: int | None,
        is_chunks: bool,
    ) -> None:
        self._keys = keys
        self._prefixes = prefixes
        self.nbytes = nbytes
        self.is_chunks = is_chunks
        self.states = np.zeros(len(keys), np.uint8)
        self.largest: int | None = None

    @property
    def expected(self) -> int | None:
        """Bytes that the next value is expected to have: those of the largest so far."""
        return self.nbytes if self.largest is None else self.largest

    async def list_cached(self, cached: SourceView) -> dict[str, Kept]:
        """The cached and fresh entries with the prefixes: of these keys and of others."""
        found: dict[str, Kept] = {}
        for prefix in self._prefixes:
            found |= await run_async(list_cached(cached, prefix))
        return found

    def states_of(self, kept: Mapping[str, Kept]) -> npt.NDArray[np.uint8]:
        """The state of each key."""

        def state(key: str) -> int:
            found = kept.get(key)
            if found is None:
                return MISSING
            return ABSENT if found[1] is None else CACHED

        return np.fromiter(map(state, self._keys), np.uint8, count=self.states.size)

    def keys(self, state: int) -> Iterator[str]:
        """The keys that have the state."""
        return itertools.compress(self._keys, self.states == state)

    def missing(self) -> Iterator[tuple[int, str]]:
        """Index and key of each missing one."""
        indices = np.flatnonzero(self.states == MISSING).tolist()
        return zip(indices, self.keys(MISSING), strict=True)

    def record_size(self, nbytes: int) -> None:
        """Record the bytes of a value."""
        self.largest = max(nbytes, self.largest or 0)

    def count(self, state: int) -> int:
        """How many keys have the state."""
        return int(np.count_nonzero(self.states == state))


def count(parts: Sequence[Part], state: int) -> int:
    """How many chunks have the state."""
    return sum(part.count(state) for part in parts if part.is_chunks)


def count_all(parts: Sequence[Part]) -> int:
    """How many chunks there are."""
    return sum(part.states.size for part in parts if part.is_chunks)


async def plan(
    store: CacheStore, cached: SourceView, parts: Sequence[Part], max_concurrency: int
) -> WarmPlan:
    """What is to be fetched, from the cache file and the sizes of a few chunks."""
    cached_bytes = sizes_asked = 0
    nbytes: int | None = 0
    has_sizes = _has_cheap_getsize(cached.source)
    for part in parts:
        kept = await part.list_cached(cached)
        part.states = part.states_of(kept)
        if part.is_chunks:
            cached_bytes += sum(kept[key][1] or 0 for key in part.keys(CACHED))
            missing = part.count(MISSING)
            sizes = await _some_sizes(store, part, max_concurrency) if has_sizes else []
            if sizes:
                expected: int | None = sum(sizes) * missing // len(sizes)
            else:
                expected = part.nbytes and part.nbytes * missing if missing else 0
            nbytes = None if nbytes is None or expected is None else nbytes + expected
            sizes_asked += len(sizes)
    return WarmPlan(
        chunks=count_all(parts),
        cached=count(parts, CACHED),
        cached_bytes=cached_bytes,
        absent=count(parts, ABSENT),
        requests=sum(part.count(MISSING) for part in parts),
        nbytes=nbytes,
        sizes_asked=sizes_asked,
        is_exact=sizes_asked == count(parts, MISSING),
        max_size=store.max_size,
    )


async def _some_sizes(store: CacheStore, part: Part, max_concurrency: int) -> list[int]:
    """Sizes of missing chunks spread evenly over the part; 0 for absent ones.

    An absent chunk still takes a request later: see `reading.exists`.
    """
    missing = part.count(MISSING)
    chosen = set(np.linspace(0, missing - 1, min(missing, MAX_SIZES)).astype(int).tolist())

    async def size_of(key: str) -> int:
        async with limit:
            try:
                return await store.getsize(key)
            except FileNotFoundError:
                return 0

    limit = asyncio.Semaphore(max_concurrency)
    keys = (key for number, key in enumerate(part.keys(MISSING)) if number in chosen)
    return await asyncio.gather(*map(size_of, keys))


def _has_cheap_getsize(source: Store) -> bool:
    """Whether the source returns the size of a value without reading all of it."""
    while isinstance(source, WrapperStore):
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
    return type(source).getsize is not Store.getsize or isinstance(source, MemoryStore)
