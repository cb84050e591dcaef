"""Which stored chunks of an array are cached."""

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
    """Whether each stored chunk of the array is cached and fresh: reading it makes no request.

    Makes no request and reads no value: it is one query of the cache file.

    A chunk that is absent from the source counts as cached while the cache remembers the absence:
    in arrays opened read-only, for `max_age_absent_seconds`. A shard counts only if all of it is
    cached. Ranges of it that were read are in the memory of the process and do not count.

    Parameters
    ----------
    array
        An array that is read through a `CacheStore`.

    Returns
    -------
    ndarray of bool
        One element for each stored chunk. Its shape is ``array.cdata_shape`` without shards, and
        the number of shards in each dimension otherwise: ``tuple(map(len,
        array.write_chunk_sizes))``.

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
    """The cached and fresh entries of this view, of the keys with this prefix."""
    yield from cached.values.ensure_open()
    if cached.values.invalidated.is_invalidated(cached.namespace):
        # The next read removes the entries of the namespace.
        return {}
    limits = cached.limits()
    absent_fresh_after = limits.absent_fresh_after if cached.may_serve_absences() else NEVER
    return (
        yield from cached.values.list_cached(
            cached.namespace, prefix, limits.fresh_after, absent_fresh_after
        )
    )


def source_of(store: Store) -> SourceView:
    """The view of the source that the CacheStore works on."""
    if not isinstance(store, CacheStore):
        raise TypeError(
            f"{store!r} caches nothing: open the array or group through a CacheStore, "
            "as in zarr.open_array(CacheStore(source, cache_store=...), mode='r')"
        )
    return store._view  # noqa: SLF001 - private to the package, not to the class
