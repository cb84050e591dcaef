"""An operation written once, and run on the sync surface or on the async one.

A flow is a generator that yields steps. What a step does is said twice, as a call that blocks and
as one that can be awaited; in which order steps follow, and what is done with their results and
exceptions, is said once. See docs/decisions/0003.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from zarr.abc.store import Store, _store_supports_sync_io
from zarr.core.sync import sync

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Step(NamedTuple):
    """Something to wait for, in two forms with the same result."""

    blocking: Callable[[], Any]
    awaitable: Callable[[], Awaitable[Any]]


type Flow[T] = Generator[Step, Any, T]


def step[T](blocking: Callable[[], T], awaitable: Callable[[], Awaitable[T]]) -> Flow[T]:
    """Yield one step and return its result: ``result = yield from step(...)``."""
    result: T = yield Step(blocking, awaitable)
    return result


def threaded[T](function: Callable[[], T]) -> Flow[T]:
    """Call the function, on the async surface as `in_thread`."""
    return step(function, partial(in_thread, function))


async def in_thread[T](function: Callable[[], T]) -> T:
    """Call the function in another thread, or in this one where no other can be started.

    Not by ``asyncio.to_thread``: where a thread could not be started for it, none can be for the
    end of the loop either, and the function would still be in the queue and be called later.
    """
    result: Future[T] = Future()
    # The task that waits may be cancelled, and the result is not.
    result.set_running_or_notify_cancel()

    def call() -> None:
        try:
            result.set_result(function())
        except BaseException as error:  # noqa: BLE001 - it is for the waiting task
            result.set_exception(error)

    thread = threading.Thread(target=call, name="zarr-cache", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return function()
    try:
        return await asyncio.wrap_future(result)
    except asyncio.CancelledError:
        # It must not run on after the loop has ended.
        thread.join()
        raise


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this thread runs now, which must not be blocked; None if none."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def run[T](flow: Flow[T]) -> T:
    """Run the flow to its end in this thread."""
    try:
        current = next(flow)
        while True:
            try:
                result = current.blocking()
            except BaseException as error:  # noqa: BLE001 - it is the flow's to handle
                current = flow.throw(error)
            else:
                current = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value


async def run_async[T](flow: Flow[T]) -> T:
    """Run the flow to its end in this task. A cancellation reaches the flow at its step."""
    try:
        current = next(flow)
        while True:
            try:
                result = await current.awaitable()
            except BaseException as error:  # noqa: BLE001 - it is the flow's to handle
                current = flow.throw(error)
            else:
                current = flow.send(result)
    except StopIteration as stop:
        value: T = stop.value
        return value


def to_its_end[T](flow: Callable[[], Flow[T]]) -> Flow[T]:
    """Run the flow to its end, also when the task is cancelled, which is raised after that."""
    return step(lambda: run(flow()), lambda: _to_its_end(flow()))


async def _to_its_end[T](flow: Flow[T]) -> T:
    task = asyncio.ensure_future(run_async(flow))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            # No task takes its exception, which asyncio would log.
            task.exception()
        raise


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
