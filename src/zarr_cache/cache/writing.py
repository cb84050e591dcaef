"""Writes: to the source first, and fenced, so that no later read sees what was there before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_cache.core.buffers import to_array
from zarr_cache.core.errors import CacheError
from zarr_cache.core.keys import is_storable
from zarr_cache.index.admit import Response
from zarr_cache.sources.names import folder_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zarr.core.buffer import Buffer

    from zarr_cache.cache.view import SourceView
    from zarr_cache.core.flow import Flow


def write(
    cached: SourceView,
    items: Sequence[tuple[str, Buffer | None]],
    to_source: Flow[None],
) -> Flow[None]:
    """Write to the source; no read that begins after it has returned sees what was before.

    A write that fails, or that is cancelled, does not end here: the source may go on with it, as in
    a thread that no cancellation reaches, with the other keys of zarr's ``_set_many``, or as a
    server does that is not heard any more. So nothing is kept of the keys for an hour.

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
    is_recorded = True
    try:
        is_recorded = yield from _begin_write(cached, namespace, keys, begun)
        yield from to_source
    except GeneratorExit:
        # Nothing can be waited for any more. What was begun stands, and the source is asked.
        raise
    except BaseException:
        # Anew: it may have taken longer than that.
        yield from _begin_write(cached, namespace, keys, begun)
        yield from _abandon(cached, keys)
        if not is_recorded:
            yield from _clear(cached)
        raise
    responses: dict[str, Response] = {}
    if begun and cached.settings.cache_set_data:
        responses = _written(cached, items, begun[0])
    yield from _end_write(cached, namespace, keys, responses, begun)
    if not is_recorded:
        # The key has no fence. What was removed on that account while the source was written to may
        # have been asked for and kept again since.
        yield from _clear(cached)


def _begin_write(
    cached: SourceView, namespace: str, keys: Sequence[str], begun: list[int]
) -> Flow[bool]:
    """Make what is kept of the keys unusable; False when the cache cannot."""
    return _recorded(
        cached, namespace, lambda now_ns: cached.values.begin_write(namespace, keys, now_ns, begun)
    )


def _recorded(
    cached: SourceView, namespace: str, operation: Callable[[int], Flow[object]]
) -> Flow[bool]:
    """Run an operation, which is given the time; False when it fails.

    Then nothing is believed that is kept of the namespace.
    """
    try:
        yield from cached.values.opened()
        yield from operation(cached.values.clock().timestamp_ns())
    except CacheError as error:
        yield from cached.values.invalidate(namespace)
        cached.faults.note(error)
        return False
    return True


def _written(
    cached: SourceView, items: Sequence[tuple[str, Buffer | None]], begun: int
) -> dict[str, Response]:
    now_ns = cached.values.clock().now_ns()
    written = {key: to_array(value) for key, value in items if value is not None}
    return {
        key: Response(data, now_ns, cached.values.clock().timestamp_ns(), begun)
        for key, data in written.items()
        if cached.is_kept(data)
    }


def _end_write(
    cached: SourceView,
    namespace: str,
    keys: Sequence[str],
    responses: Mapping[str, Response],
    begun: Sequence[int],
) -> Flow[None]:
    """Let the keys be asked for again, if the write has begun: no other's is ended in its place."""
    if not (begun and keys):
        return
    yield from cached.make_room(keys[0])
    try:
        now_ns = cached.values.clock().timestamp_ns()
        removed = yield from cached.values.end_write(
            namespace, keys, responses, now_ns, cached.limits()
        )
        cached.count_removed(removed)
    except CacheError as error:
        # What was begun stands: nothing is kept of the keys until the writer is taken for dead.
        cached.faults.note(error)


def _abandon(cached: SourceView, keys: Sequence[str]) -> Flow[None]:
    try:
        yield from cached.values.abandon_write(keys)
    except CacheError as error:
        cached.faults.note(error)


def delete(cached: SourceView, key: str, from_source: Flow[None]) -> Flow[None]:
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


def delete_dir(cached: SourceView, prefix: str, from_source: Flow[None]) -> Flow[None]:
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


def remove_folder(cached: SourceView, folder: str, from_source: Flow[None]) -> Flow[None]:
    """Remove a folder; no later read sees what was in it.

    Nothing of the source is kept meanwhile, nor for an hour if the removal fails or is cancelled.

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
    is_begun, is_recorded = False, True
    try:
        is_begun = yield from _begin_removal(cached, namespace)
        is_recorded = is_begun and (yield from _fence(cached, namespace, folder))
        yield from from_source
    except GeneratorExit:
        raise
    except BaseException:
        yield from _begin_removal(cached, namespace)
        yield from _fence(cached, namespace, folder)
        if not is_recorded:
            yield from _clear(cached)
        raise
    # What was asked for meanwhile may have been answered before or after.
    yield from _fence(cached, namespace, folder)
    if is_begun:
        yield from _end_removal(cached, namespace)
    if not is_recorded:
        yield from _clear(cached)


def _begin_removal(cached: SourceView, namespace: str) -> Flow[bool]:
    """Keep no answer of the source; False when the cache cannot tell others of it."""
    return _recorded(
        cached, namespace, lambda now_ns: cached.values.begin_removal(namespace, now_ns)
    )


def _end_removal(cached: SourceView, namespace: str) -> Flow[None]:
    try:
        yield from cached.values.end_removal(namespace)
    except CacheError as error:
        # What was begun stands, for an hour.
        cached.faults.note(error)


def _fence(cached: SourceView, namespace: str, folder: str) -> Flow[bool]:
    """Remove what is kept of a folder, and refuse what is being fetched; False when it cannot."""
    return _recorded(cached, namespace, lambda _: cached.values.fence_prefix(namespace, folder))


def _clear(cached: SourceView) -> Flow[None]:
    """Remove all that is kept of the source: what of it is wrong is not known."""
    try:
        yield from cached.clear()
    except CacheError as error:
        yield from cached.values.invalidate(cached.namespace)
        cached.faults.note(error)
