"""Writes: to the source first, and fenced, so that no later read sees what was there before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_cache.answer import Answer
from zarr_cache.buffers import to_array
from zarr_cache.errors import CacheError
from zarr_cache.index import is_storable
from zarr_cache.namespace import folder_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zarr.core.buffer import Buffer

    from zarr_cache.cached_source import CachedSource
    from zarr_cache.flow import Flow


def write(
    cached: CachedSource, items: Sequence[tuple[str, Buffer | None]], to_source: Flow[None]
) -> Flow[None]:
    """Write to the source; no read that begins after it has returned sees what was before.

    Parameters
    ----------
    items
        Each key with what the source will hold then, or None if that is for the source to say.
    to_source
        Writes to the source.
    """
    cached.has_moved()
    items = [(key, value) for key, value in items if is_storable(key)]
    keys = [key for key, _ in items]
    # As long as it is not known: an operation runs to its end even if the task is cancelled at it.
    is_fenced = True
    try:
        begun = yield from _begin_write(cached, keys)
        is_fenced = begun is not None
        yield from to_source
    except GeneratorExit:
        # Nothing can be waited for any more. What was begun stands, and the source is asked.
        raise
    except BaseException:
        # It has failed or was cancelled, and only the source knows what it holds.
        yield from _end_write(cached, keys, {}, is_fenced=is_fenced)
        raise
    answers: dict[str, Answer] = {}
    if cached.has_moved():
        # Where it was written to is not known. What was begun stands there, and is begun here.
        is_fenced = (yield from _begin_write(cached, keys)) is not None
    elif begun is not None and cached.settings.cache_set_data:
        answers = _written(cached, items, begun)
    yield from _end_write(cached, keys, answers, is_fenced=is_fenced)


def _begin_write(cached: CachedSource, keys: Sequence[str]) -> Flow[int | None]:
    """Make what is kept of the keys unusable; None when the cache cannot."""
    try:
        yield from cached.values.opened()
        for key in keys:
            cached.values.ranges.remove_key(cached.namespace, key)
        now_ns = cached.values.clock().stamp_ns()
        return (yield from cached.values.begin_write(cached.namespace, keys, now_ns))
    except CacheError as error:
        yield from cached.values.distrust(cached.namespace)
        cached.faults.note(error)
        return None


def _written(
    cached: CachedSource, items: Sequence[tuple[str, Buffer | None]], begun: int
) -> dict[str, Answer]:
    now_ns = cached.values.clock().now_ns()
    written = {key: to_array(value) for key, value in items if value is not None}
    return {
        key: Answer(data, now_ns, cached.values.clock().stamp_ns(), begun)
        for key, data in written.items()
        if cached.is_kept(data)
    }


def _end_write(
    cached: CachedSource, keys: Sequence[str], answers: Mapping[str, Answer], *, is_fenced: bool
) -> Flow[None]:
    if not is_fenced:
        # The key has no fence. What was removed on that account while the source was written to may
        # have been asked for and kept again since.
        yield from _fence_or_note(cached, "")
        return
    if keys:
        yield from cached.make_room(keys[0])
    try:
        now_ns = cached.values.clock().stamp_ns()
        removed = yield from cached.values.end_write(
            cached.namespace, keys, answers, now_ns, cached.limits()
        )
        cached.count_removed(removed)
    except CacheError as error:
        # What was begun stands: nothing is kept of the keys until the writer is taken for dead.
        cached.faults.note(error)


def delete(cached: CachedSource, key: str, from_source: Flow[None]) -> Flow[None]:
    """Delete a key; no later read sees what was there before.

    A local source also takes the name of a folder, and deletes all that is in it.

    Parameters
    ----------
    from_source
        Deletes it from the source.
    """
    folder = folder_of(cached.source)
    if folder is not None and (folder / key).is_dir():
        from_source = remove(cached, f"{key.rstrip('/')}/" if key else "", from_source)
    yield from write(cached, [(key, None)], from_source)


def remove(cached: CachedSource, prefix: str, from_source: Flow[None]) -> Flow[None]:
    """Remove the keys that begin with `prefix`; no later read sees what was there before.

    Parameters
    ----------
    from_source
        Removes them from the source.
    """
    cached.has_moved()
    yield from _fence_or_note(cached, prefix)
    try:
        yield from from_source
    except GeneratorExit:
        raise
    except BaseException:
        yield from _fence_or_note(cached, prefix)
        raise
    # Once more: what was asked for meanwhile may have been answered before or after.
    yield from _fence_or_note(cached, prefix)


def _fence_or_note(cached: CachedSource, prefix: str) -> Flow[None]:
    try:
        yield from cached.fence(prefix)
    except CacheError as error:
        yield from cached.values.distrust(cached.namespace)
        cached.faults.note(error)
