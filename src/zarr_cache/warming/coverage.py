"""Which stored chunks of an array are at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zarr_cache.cache.store import CacheStore
from zarr_cache.core.ages import NEVER
from zarr_cache.core.flow import run
from zarr_cache.warming.chunk_grid import StoredChunks

if TYPE_CHECKING:
    import numpy.typing as npt
    from zarr.abc.store import Store

    from zarr_cache.cache.view import SourceView
    from zarr_cache.core.flow import Flow
    from zarr_cache.index.lookup import Kept
    from zarr_cache.warming.chunk_grid import AnyArray


def coverage(array: AnyArray) -> npt.NDArray[np.bool_]:
    """Whether each stored chunk of the array is at hand: a read of it makes no request.

    The source is not asked, and no value is read: one query of the cache file.

    A chunk that the source is known not to have is at hand while that is believed: by arrays that
    are opened read-only, and for `max_age_absent_seconds`. A shard is at hand when the whole of it
    is kept. Parts of it that were read are not: they are in the memory of the process, and do not
    make a read of the shard local.

    Parameters
    ----------
    array
        An array that is read through a `CacheStore`.

    Returns
    -------
    ndarray of bool
        With one element for each stored chunk. For an array without shards its shape is
        ``array.cdata_shape``; for a sharded one, the number of shards in each dimension. Either is
        ``tuple(map(len, array.write_chunk_sizes))``.

    Raises
    ------
    TypeError
        The array is not read through a CacheStore.
    CacheError
        The cache file cannot be read.
    """
    cached = source_of(array.store)
    chunks = StoredChunks(array)
    kept = run(list_cached(cached, chunks.prefix))
    cells = (key in kept for key in chunks)
    return np.fromiter(cells, np.bool_, count=len(chunks)).reshape(chunks.shape)


def list_cached(cached: SourceView, prefix: str) -> Flow[dict[str, Kept]]:
    """What this view answers without a request of the keys with this prefix."""
    yield from cached.values.opened()
    if cached.values.is_invalidated(cached.namespace):
        # The next read removes all of it.
        return {}
    limits = cached.limits()
    absent_fresh_after = limits.absent_fresh_after if cached.believes_absent() else NEVER
    return (
        yield from cached.values.list_cached(
            cached.namespace, prefix, limits.fresh_after, absent_fresh_after
        )
    )


def source_of(store: Store) -> SourceView:
    """What the CacheStore works on.

    Raises
    ------
    TypeError
        `store` is none.
    """
    if not isinstance(store, CacheStore):
        raise TypeError(
            f"{store!r} keeps nothing: open the array or group through a CacheStore, "
            "as in zarr.open_array(CacheStore(source, cache_store=...), mode='r')"
        )
    return store._cached  # noqa: SLF001 - of this package, and no concern of who uses it
