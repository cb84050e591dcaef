"""Calls of another store, as steps of a flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zarr.abc.store import Store, _store_supports_sync_io
from zarr.core.sync import sync

from zarr_cache.flow import step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from zarr_cache.flow import Flow


def call[T](
    store: Store,
    blocking: Callable[[Any], T],
    awaitable: Callable[[Any], Coroutine[Any, Any, T]],
) -> Flow[T]:
    """Call `store` by the one function or the other.

    Where it has no sync methods, the sync surface waits for zarr's event loop.
    """
    if not _store_supports_sync_io(store):
        return call_async(store, awaitable)
    return step(lambda: blocking(store), lambda: awaitable(store))


def call_async[T](store: Store, awaitable: Callable[[Any], Coroutine[Any, Any, T]]) -> Flow[T]:
    """Call what only the async surface of `store` has."""
    return step(lambda: sync(awaitable(store)), lambda: awaitable(store))
