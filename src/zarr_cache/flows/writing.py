"""Writes: invalidate what is cached, write to the source, and cache what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_cache.core.buffers import to_array
from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import call, call_async
from zarr_cache.core.keys import is_storable
from zarr_cache.flows import evict
from zarr_cache.index.admit import Response
from zarr_cache.sources.names import folder_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zarr.core.buffer import Buffer

    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import SourceView


def set_value(view: SourceView, key: str, value: Buffer) -> Flow[None]:
    """Write the value to the source, and cache it if ``cache_set_data``."""
    to_source = call(
        view.source,
        lambda source: source.set_sync(key, value),
        lambda source: source.set(key, value),
    )
    return write(view, [(key, value)], to_source)


def set_many(view: SourceView, items: Sequence[tuple[str, Buffer]]) -> Flow[None]:
    """Write the values to the source concurrently, and cache them if ``cache_set_data``."""
    to_source = call_async(view.source, lambda source: source._set_many(items))  # noqa: SLF001 - zarr's
    return write(view, items, to_source)


def set_if_not_exists(view: SourceView, key: str, value: Buffer) -> Flow[None]:
    """Write the value to the source, unless it has the key."""
    to_source = call_async(view.source, lambda source: source.set_if_not_exists(key, value))
    # Only the source knows which value it holds then; the next read fetches it.
    return write(view, [(key, None)], to_source)


def write(
    view: SourceView,
    items: Sequence[tuple[str, Buffer | None]],
    to_source: Flow[None],
) -> Flow[None]:
    """Write to the source; a read that begins after the write has returned sees the new value.

    After a write that failed or was cancelled, nothing is admitted for the keys for an hour: the
    source may still carry it out, in a thread that cannot be cancelled, for the other keys of
    zarr's ``_set_many``, or on a server whose response was lost.

    Parameters
    ----------
    items
        Each key with the value that the source will hold, or None if only the source knows it.
    to_source
        Writes to the source.
    """
    view.refuse_if_named_by_content()
    view.open_source()
    namespace = view.namespace
    items = [(key, value) for key, value in items if is_storable(key)]
    keys = [key for key, _ in items]
    begun: list[int] = []

    def begin() -> Flow[bool]:
        return _record_or_invalidate(
            view, namespace, lambda now_ns: view.values.begin_write(namespace, keys, now_ns, begun)
        )

    def end() -> Flow[None]:
        # Unless this write has not begun: that would end another writer's.
        if begun and keys:
            yield from _end_write(view, namespace, items, begun[0])

    yield from _change(view, begin, to_source, end)


def _change(
    view: SourceView,
    begin: Callable[[], Flow[bool]],
    in_source: Flow[None],
    end: Callable[[], Flow[None]],
) -> Flow[None]:
    """Change the source between `begin`, False if that could not be recorded, and `end`."""
    is_recorded = True
    try:
        is_recorded = yield from begin()
        yield from in_source
    except GeneratorExit:
        # Waiting is no longer possible. What has begun stays so, and reads go to the source.
        raise
    except BaseException:
        # Again, for an hour from now: the change may have taken long.
        yield from begin()
        if not is_recorded:
            yield from _clear_cache(view)
        raise
    yield from end()
    if not is_recorded:
        # A concurrent read may have removed all entries because the namespace is invalidated, and
        # then admitted the old value.
        yield from _clear_cache(view)


def _record_or_invalidate(
    view: SourceView, namespace: str, operation: Callable[[int], Flow[object]]
) -> Flow[bool]:
    """Run an operation on the cache, which is given the time; False if the cache has failed.

    Then the whole namespace is invalidated.
    """
    try:
        yield from view.values.ensure_open()
        yield from operation(view.values.clock().timestamp_ns())
    except CacheError as error:
        yield from view.values.invalidated.invalidate(namespace)
        view.faults.note(error)
        return False
    return True


def _written_values(
    view: SourceView, items: Sequence[tuple[str, Buffer | None]], begun: int
) -> dict[str, Response]:
    """The values that were written, as responses to admit."""
    now_ns = view.values.clock().now_ns()
    written = {key: to_array(value) for key, value in items if value is not None}
    return {
        key: Response(data, now_ns, view.values.clock().timestamp_ns(), begun)
        for key, data in written.items()
        if view.is_cacheable(data)
    }


def _end_write(
    view: SourceView, namespace: str, items: Sequence[tuple[str, Buffer | None]], begun: int
) -> Flow[None]:
    """Admit responses for the keys again, first those that were written."""
    responses = _written_values(view, items, begun) if view.settings.cache_set_data else {}
    keys = [key for key, _ in items]
    yield from evict.evict_before_write(view, keys[0])
    try:
        now_ns = view.values.clock().timestamp_ns()
        evictions = yield from view.values.end_write(
            namespace, keys, responses, now_ns, view.limits()
        )
        view.count_evictions(evictions)
    except CacheError as error:
        # The write stays in flight: nothing is admitted for the keys until its lease expires.
        view.faults.note(error)


def delete(view: SourceView, key: str) -> Flow[None]:
    """Delete a key; a read that begins after this has returned does not see it.

    A local source also deletes a folder of that name, with all that is in it.
    """
    from_source = call(
        view.source,
        lambda source: source.delete_sync(key),
        lambda source: source.delete(key),
    )
    folder = folder_of(view.source)
    if folder is not None and (folder / key).is_dir():
        from_source = _remove_folder(view, f"{key.rstrip('/')}/" if key else "", from_source)
    yield from write(view, [(key, None)], from_source)


def delete_dir(view: SourceView, prefix: str) -> Flow[None]:
    """Remove a folder, and the key of that name, which fsspec removes with it."""
    from_source = call_async(view.source, lambda source: source.delete_dir(prefix))
    if prefix and not prefix.endswith("/"):
        removal = _remove_folder(view, f"{prefix}/", from_source)
        yield from write(view, [(prefix, None)], removal)
    else:
        yield from _remove_folder(view, prefix, from_source)


def clear(view: SourceView) -> Flow[None]:
    """Remove every key."""
    try:
        yield from _remove_folder(view, "", call_async(view.source, lambda source: source.clear()))
    finally:
        # An archive is another file now; if its path was a link, it is at another place.
        view.close_source()
    previous = view.namespace
    view.open_source()
    if view.namespace != previous:
        yield from _clear_cache(view)


def _remove_folder(view: SourceView, folder: str, from_source: Flow[None]) -> Flow[None]:
    """Remove a folder; a read that begins after this has returned sees nothing of it.

    Meanwhile no response of the source is admitted, nor for an hour after a removal that failed or
    was cancelled.

    Parameters
    ----------
    folder
        Its name with a slash at the end; empty for all keys.
    from_source
        Removes it from the source.
    """
    view.refuse_if_named_by_content()
    view.open_source()
    if not is_storable(folder):
        # No key in it can be cached.
        yield from from_source
        return
    namespace, values = view.namespace, view.values
    is_begun = False

    def begin() -> Flow[bool]:
        nonlocal is_begun
        is_begun = yield from _record_or_invalidate(
            view, namespace, lambda now_ns: values.begin_removal(namespace, now_ns)
        )
        return is_begun and (yield from invalidate())

    def invalidate() -> Flow[bool]:
        return _record_or_invalidate(
            view, namespace, lambda _: values.invalidate_prefix(namespace, folder)
        )

    def end() -> Flow[None]:
        # A response that was fetched meanwhile may be from before or after the removal.
        yield from invalidate()
        if is_begun:
            try:
                yield from values.end_removal(namespace)
            except CacheError as error:
                # The removal stays in flight until its lease expires.
                view.faults.note(error)

    yield from _change(view, begin, from_source, end)


def _clear_cache(view: SourceView) -> Flow[None]:
    """Remove all entries of the source: it is not known which of them are wrong."""
    try:
        yield from evict.clear_cache(view)
    except CacheError as error:
        yield from view.values.invalidated.invalidate(view.namespace)
        view.faults.note(error)
