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


REFUSALS = (NotImplementedError, TypeError, ValueError)
"""What a source raises before it has done anything."""

CUT_OFF = (ConnectionError, TimeoutError)
"""What a source raises that has not waited for the end."""


def write(
    cached: CachedSource,
    items: Sequence[tuple[str, Buffer | None]],
    to_source: Flow[None],
) -> Flow[None]:
    """Write to the source; no read that begins after it has returned sees what was before.

    Parameters
    ----------
    items
        Each key with what the source will hold then, or None if that is for the source to say.
    to_source
        Writes to the source.
    """
    cached.open_source()
    namespace = cached.namespace
    items = [(key, value) for key, value in items if is_storable(key)]
    keys = [key for key, _ in items]
    begun: list[int] = []
    is_recorded, is_asked = True, False
    try:
        is_recorded = yield from _begin_write(cached, namespace, keys, begun)
        is_asked = True
        yield from to_source
    except GeneratorExit:
        # Nothing can be waited for any more. What was begun stands, and the source is asked.
        raise
    except BaseException as error:
        # Only the source knows what it holds.
        may_go_on = _may_go_on(error) if len(keys) > 1 else _is_cut_off(error)
        if begun and is_asked and may_go_on:
            yield from _abandon(cached, keys)
        else:
            yield from _end_write(cached, namespace, keys, {}, begun)
        if not is_recorded:
            yield from _clear(cached)
        raise
    answers: dict[str, Answer] = {}
    if begun and cached.settings.cache_set_data:
        answers = _written(cached, items, begun[0])
    yield from _end_write(cached, namespace, keys, answers, begun)
    if not is_recorded:
        # The key has no fence. What was removed on that account while the source was written to may
        # have been asked for and kept again since.
        yield from _clear(cached)


def _is_cut_off(error: BaseException) -> bool:
    """Whether the source may go on with what it was asked for, although nobody waits for it.

    A cancellation, or Ctrl-C, ends the wait for a thread or for another event loop and not what is
    done there; and a server may do what it has been asked for. So nothing is kept of the keys until
    the writer is taken for dead.
    """
    return not isinstance(error, Exception) or isinstance(error, CUT_OFF)


def _may_go_on(error: BaseException) -> bool:
    """Whether the source may go on with others of several keys when one has failed.

    zarr's own ``_set_many`` raises the first error and leaves the others to themselves.
    """
    return not isinstance(error, REFUSALS)


def _begin_write(
    cached: CachedSource, namespace: str, keys: Sequence[str], begun: list[int]
) -> Flow[bool]:
    """Make what is kept of the keys unusable; False when the cache cannot."""
    try:
        yield from cached.values.opened()
        now_ns = cached.values.clock().stamp_ns()
        yield from cached.values.begin_write(namespace, keys, now_ns, begun)
    except CacheError as error:
        yield from cached.values.distrust(namespace)
        cached.faults.note(error)
        return False
    return True


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
    cached: CachedSource,
    namespace: str,
    keys: Sequence[str],
    answers: Mapping[str, Answer],
    begun: Sequence[int],
) -> Flow[bool]:
    """Let the keys be asked for again, if the write has begun: no other's is ended in its place.

    Returns
    -------
    bool
        Whether the cache knows that it has ended.
    """
    if not (begun and keys):
        return True
    yield from cached.make_room(keys[0])
    try:
        now_ns = cached.values.clock().stamp_ns()
        removed = yield from cached.values.end_write(
            namespace, keys, answers, now_ns, cached.limits()
        )
        cached.count_removed(removed)
    except CacheError as error:
        # What was begun stands: nothing is kept of the keys until the writer is taken for dead.
        cached.faults.note(error)
        return False
    return True


def _abandon(cached: CachedSource, keys: Sequence[str]) -> Flow[None]:
    try:
        yield from cached.values.abandon_write(keys)
    except CacheError as error:
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
        from_source = remove_folder(cached, f"{key.rstrip('/')}/" if key else "", from_source)
    yield from write(cached, [(key, None)], from_source)


def delete_dir(cached: CachedSource, prefix: str, from_source: Flow[None]) -> Flow[None]:
    """Remove a folder, and a key of the same name, which fsspec takes for the folder as well.

    Parameters
    ----------
    from_source
        Removes it from the source.
    """
    if prefix and not prefix.endswith("/"):
        removal = remove_folder(cached, f"{prefix}/", from_source)
        yield from write(cached, [(prefix, None)], removal)
    else:
        yield from remove_folder(cached, prefix, from_source)


def remove_folder(cached: CachedSource, folder: str, from_source: Flow[None]) -> Flow[None]:
    """Remove a folder; no later read sees what was in it.

    Parameters
    ----------
    folder
        Its name with a slash at the end; empty for all keys.
    from_source
        Removes it from the source.
    """
    cached.open_source()
    if not is_storable(folder):
        # Nothing is kept of the keys in it.
        yield from from_source
        return
    namespace = cached.namespace
    begun: list[int] = []
    is_recorded, is_asked = True, False
    try:
        # While it is removed, it has a writer as a key has. See `index.is_being_removed`.
        is_recorded = yield from _begin_write(cached, namespace, [folder], begun)
        is_recorded &= yield from _fence(cached, namespace, folder)
        is_asked = True
        yield from from_source
    except GeneratorExit:
        raise
    except BaseException as error:
        if not (begun and is_recorded and is_asked and _is_cut_off(error)):
            yield from _end_removal(cached, namespace, folder, begun, is_recorded=is_recorded)
        raise
    yield from _end_removal(cached, namespace, folder, begun, is_recorded=is_recorded)


def _end_removal(
    cached: CachedSource, namespace: str, folder: str, begun: list[int], *, is_recorded: bool
) -> Flow[None]:
    # What was asked for meanwhile may have been answered before or after.
    yield from _fence(cached, namespace, folder)
    if not (yield from _end_write(cached, namespace, [folder], {}, begun)):
        # All that is in it would not be kept for an hour. Who can write to the file next ends it.
        cached.values.unended.add((namespace, folder))
        yield from cached.values.distrust(namespace)
    if not is_recorded:
        yield from _clear(cached)


def _fence(cached: CachedSource, namespace: str, folder: str) -> Flow[bool]:
    """Remove what is kept of a folder, and refuse what is being fetched; False when it cannot."""
    try:
        yield from cached.values.fence_prefix(namespace, folder)
    except CacheError as error:
        yield from cached.values.distrust(namespace)
        cached.faults.note(error)
        return False
    return True


def _clear(cached: CachedSource) -> Flow[None]:
    """Remove all that is kept of the source: what of it is wrong is not known."""
    try:
        yield from cached.clear()
    except CacheError as error:
        yield from cached.values.distrust(cached.namespace)
        cached.faults.note(error)
