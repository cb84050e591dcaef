"""Whether a key exists, and how large its value is: without its bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import call_async
from zarr_cache.flows import fetching, reading

if TYPE_CHECKING:
    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import LookupResult, SourceView


def exists(view: SourceView, key: str) -> Flow[bool]:
    """Whether there is such a key.

    An absence is not admitted: fsspec's ``exists`` and ``info`` also report one for a server that
    is down. Only reads of bytes distinguish the two.
    """
    result = yield from reading.lookup(view, key, with_data=False)
    if result is not None:
        if _find(view, key, result, result.fresh_after) is not None:
            view.count_hit(b"")
            return True
        if reading.serve_absence(view, key, result):
            return False
    view.refuse_if_offline(key)
    try:
        exists: bool = yield from call_async(view.source, lambda source: source.exists(key))
    except Exception as error:
        stale = _find_stale(view, key, result, error)
        if stale is None:
            raise
        return stale.exists
    view.count_miss()
    return exists


def getsize(view: SourceView, key: str) -> Flow[int]:
    """Bytes of the value.

    Raises
    ------
    FileNotFoundError
        There is no such key, by the cache or by the source. As in `exists`, it is not admitted.
    """
    result = yield from reading.lookup(view, key, with_data=False)
    if result is not None:
        found = _find(view, key, result, result.fresh_after)
        if found is not None and found.size is not None:
            view.count_hit(b"")
            return found.size
        if reading.serve_absence(view, key, result):
            raise FileNotFoundError(key)
    view.refuse_if_offline(key)
    try:
        size: int = yield from call_async(view.source, lambda source: source.getsize(key))
    except Exception as error:
        stale = _find_stale(view, key, result, error)
        if stale is None or (stale.exists and stale.size is None):
            view.count_miss()
            raise
        if stale.size is None:
            raise FileNotFoundError(key) from None
        return stale.size
    view.count_miss()
    return size


class _Known(NamedTuple):
    """What the cache knows of a value: that there is one or none, and its size."""

    exists: bool
    size: int | None


def _find(view: SourceView, key: str, result: LookupResult, fresh_after: int) -> _Known | None:
    """What the value or the ranges of the key show that are fresh; None if there are none."""
    asked = result._replace(fresh_after=fresh_after)
    state = result.state
    if state.kind == "value" and asked.may_serve(state.validator, state.as_of):
        return _Known(exists=True, size=state.size)
    try:
        known = view.values.known_ranges(view.namespace, key, state, asked.read_after)
    except CacheError as error:
        view.faults.note(error)
        return None
    return _Known(exists=True, size=known.size) if known.has_any else None


def _find_stale(
    view: SourceView, key: str, result: LookupResult | None, error: Exception
) -> _Known | None:
    """What is cached and stale, since the source fails; None if it may not be served."""
    if result is None or not view.settings.stale_if_error_seconds:
        return None
    now_ns = view.values.clock().now_ns()
    found = _find(view, key, result, view.stale_after(key, now_ns))
    is_absent = result.state.kind == "absent" and view.may_serve_absences()
    if found is None and is_absent:
        since = result.state.stored_at
        found = _Known(exists=False, size=None) if since > view.stale_after(key, now_ns) else None
    if found is None or not fetching.may_serve_stale(view, key, now_ns, error):
        return None
    view.count_hit(b"" if found.exists else None)
    return found
