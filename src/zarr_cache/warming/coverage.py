"""Which chunks of an array are cached."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zarr_cache.cache.store import CacheStore
from zarr_cache.core.byte_range import span_of
from zarr_cache.core.flow import run
from zarr_cache.warming.cached_chunks import MISSING, find_inner, list_cached, list_ranges
from zarr_cache.warming.chunk_grid import StoredChunks, axes_of, prefix_of
from zarr_cache.warming.shard_index import Shards, is_sharded, sharding_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy.typing as npt
    from zarr.abc.store import Store

    from zarr_cache.flows.view import SourceView
    from zarr_cache.warming.chunk_grid import AnyArray
    from zarr_cache.warming.shard_index import Shard


def coverage(array: AnyArray, *, inner: bool = False) -> npt.NDArray[np.bool_]:
    """Whether each chunk of the array is cached and fresh: reading it makes no request.

    Makes no request and reads no value: it is one query of the cache file. With `inner`, it is two,
    and reads the cached indexes of shards. Takes time for each chunk that is cached, not for the
    others.

    A chunk that is absent from the source counts as cached while the cache remembers the absence:
    in arrays opened read-only, for `max_age_absent_seconds`.

    Parameters
    ----------
    array
        An array that is read through a `CacheStore`.
    inner
        Of a sharded array: whether to return inner chunks, not shards. A shard counts only if all
        of it is cached. An inner chunk also counts if the index of its shard is cached, in the file
        or in the memory of this process, and its bytes are as well, or the index says that the
        shard does not have the chunk. Other arrays have no inner chunks: then it makes no
        difference.

    Returns
    -------
    ndarray of bool
        One element for each stored chunk. Its shape is ``array.cdata_shape`` without shards, and
        the number of shards in each dimension otherwise: ``tuple(map(len,
        array.write_chunk_sizes))``. With `inner`, one for each inner chunk, and the shape is
        ``tuple(map(len, array.read_chunk_sizes))``.

    Raises
    ------
    TypeError
        The array is not read through a CacheStore.
    CacheError
        The cache file cannot be read.
    MemoryError
        The array has more chunks than memory has room for a boolean of each.
    """
    cached = cached_places(array, inner=inner)
    try:
        found = np.zeros(cached.shape, np.bool_)
    except (MemoryError, ValueError) as error:
        # numpy says ValueError of more elements than there are addresses.
        raise MemoryError(
            f"{array.path!r} has {math.prod(cached.shape)} chunks, too many for an array of one "
            "boolean for each: draw a map of it with zarr-cache map, or count those of a selection "
            "with warm(array, selection, dry_run=True)"
        ) from error
    for places in cached.blocks:
        found[tuple(places.T)] = True
    return found


class CachedPlaces(NamedTuple):
    """The chunks of an array that are cached and fresh.

    Attributes
    ----------
    shape
        Of the grid, as of `coverage`.
    blocks
        The indices of the cached chunks in the grid, in arrays of a row for each; none is empty.
    """

    shape: tuple[int, ...]
    blocks: Iterable[npt.NDArray[np.int64]]


def cached_places(array: AnyArray, *, inner: bool = False) -> CachedPlaces:
    """As `coverage`, in an amount of memory that goes with what is cached, not with the grid."""
    cached = source_of(array.store)
    chunks = StoredChunks(array)
    sharding = sharding_of(array) if inner else None
    if sharding is not None:
        shards = Shards(array, sharding.per_shard)
        flow = find_inner(cached, shards, sharding, is_together=False, in_memory=True)
        every = [(shard, found.states) for shard, found in run(flow)]
        return CachedPlaces(shards.shape, _blocks_of(every))
    kept = run(list_cached(cached, chunks.prefix))
    places = [chunks.place_at(number) for number, _ in chunks.find(kept)]
    blocks = [np.array(places, np.int64).reshape(len(places), len(chunks.shape))] if places else []
    if not inner or not is_sharded(array) or _inner_shape(array) == chunks.shape:
        return CachedPlaces(chunks.shape, blocks)
    # zarr reads no part of these shards. Their lengths, if they differ, are in the metadata.
    found = np.zeros(chunks.shape, np.bool_)
    for block in blocks:
        found[tuple(block.T)] = True
    found = found[_stored_chunk_of_inner(array)]
    return CachedPlaces(found.shape, [np.argwhere(found)] if found.any() else [])


def _inner_shape(array: AnyArray) -> tuple[int, ...]:
    """How many inner chunks a sharded array has in each dimension."""
    return tuple(axis.size for axis in axes_of(array, array.metadata.chunks, ...))


def _blocks_of(
    every: Iterable[tuple[Shard, npt.NDArray[np.uint8] | int]],
) -> Iterator[npt.NDArray[np.int64]]:
    """For each shard, the indices of its inner chunks that are not missing."""
    for shard, states in every:
        is_cached = np.broadcast_to(np.not_equal(states, MISSING), shard.shape)
        if is_cached.any():
            yield np.argwhere(is_cached) + [each.start for each in shard.where]


def _stored_chunk_of_inner(array: AnyArray) -> tuple[npt.NDArray[np.intp], ...]:
    """For each inner chunk, the stored chunk that it is in."""
    places = []
    for stored, inner in zip(array.write_chunk_sizes, array.read_chunk_sizes, strict=True):
        starts = np.cumsum(inner, dtype=np.int64) - np.array(inner, np.int64)
        places.append(np.searchsorted(np.cumsum(stored, dtype=np.int64), starts, side="right"))
    return np.ix_(*places)


class CachedRanges(NamedTuple):
    """How many inner chunks of shards are cached as ranges, without the indexes of the shards."""

    ranges: int
    nbytes: int
    shards: int


def cached_ranges(array: AnyArray) -> CachedRanges:
    """The ranges of an array that are cached and fresh, in the file and in memory."""
    cached, sharding = source_of(array.store), sharding_of(array)
    if sharding is None:
        return CachedRanges(0, 0, 0)
    index = span_of(sharding.index_request, sharding.index_nbytes)
    listed = run(list_ranges(cached, prefix_of(array)))
    sizes = {key: [span.size for _, span in each if span != index] for key, each in listed.items()}
    return CachedRanges(
        ranges=sum(map(len, sizes.values())),
        nbytes=sum(map(sum, sizes.values())),
        shards=sum(map(bool, sizes.values())),
    )


def source_of(store: Store) -> SourceView:
    """The view of the source that the CacheStore works on."""
    if not isinstance(store, CacheStore):
        raise TypeError(
            f"{store!r} caches nothing: open the array or group through a CacheStore, "
            "as in zarr.open_array(CacheStore(source, cache_store=...), mode='r')"
        )
    return store._view  # noqa: SLF001 - private to the package, not to the class
