"""Evict entries above the limits of a view, and remove all that is cached of its source."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from zarr_cache.core.errors import CacheError

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import SourceView
    from zarr_cache.index.evict import Limits


def enforce(view: SourceView, limits: Limits) -> Flow[None]:
    """Evict until the cache is within the limits.

    Admissions and writes evict by themselves. What is left for this is an excess that another
    process left, or that a view with a larger ``max_size`` admitted.
    """
    evictions = yield from view.values.enforce(view.namespace, limits)
    view.count_evictions(evictions)


def try_to_enforce(view: SourceView) -> Flow[None]:
    """As `enforce`. If the file cannot be written, the cache is read as it is."""
    try:
        yield from enforce(view, view.limits())
    except CacheError as error:
        view.faults.note(error)


def evict_before_write(view: SourceView, key: str) -> Flow[None]:
    """Evict before the key is written, if the cache is above its limits.

    ``max_size`` may be much smaller than before. To evict the whole excess in the transaction of
    the write would make the WAL as long as the file.
    """
    try:
        found = yield from view.values.lookup_metadata(view.namespace, key)
    except CacheError as error:
        view.faults.note(error)
        return
    if view.limits().are_exceeded(found.cached_bytes):
        yield from try_to_enforce(view)


def has_room(
    view: SourceView, key: str, request: ByteRequest | None, nbytes: int, limits: Limits
) -> Flow[bool]:
    """Whether the file has room for a response, or it may be made: then it need not be queued.

    What is not queued costs no write transaction.
    """
    if limits.may_evict or limits.max_size is None:
        return True
    found = yield from view.values.lookup_metadata(view.namespace, key)
    return (yield from view.values.room.is_left(key, request, nbytes, limits, found))


def evict_stale(view: SourceView) -> Flow[None]:
    """Write what waits, then evict, before the cache is reported on."""
    yield from view.values.ensure_listed(view.namespace)
    view.values.flush()
    # The cause of a failed write is logged where writes are tried.
    with contextlib.suppress(CacheError):
        yield from enforce(view, view.limits())


def clear_cache(view: SourceView) -> Flow[None]:
    """Remove what is cached of the source, and admit no response that is being fetched."""
    view.name_source()
    yield from view.values.clear(view.namespace)
