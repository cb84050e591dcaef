"""An operation written once, and run on the sync surface or on the async one.

A flow is a generator that yields steps. What a step does is said twice, as a call that blocks and
as one that can be awaited; in which order steps follow, and what is done with their results and
exceptions, is said once. See docs/decisions/0003.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import Any, NamedTuple


class Step(NamedTuple):
    """Something to wait for, in two forms with the same result."""

    blocking: Callable[[], Any]
    awaitable: Callable[[], Awaitable[Any]]


type Flow[T] = Generator[Step, Any, T]


def step[T](blocking: Callable[[], T], awaitable: Callable[[], Awaitable[T]]) -> Flow[T]:
    """Yield one step and return its result: ``result = yield from step(...)``."""
    result: T = yield Step(blocking, awaitable)
    return result


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that this thread runs just now, which nothing must hold up; None if none."""
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
    """Run the flow to its end, also when the task is cancelled, which is told after that."""
    return step(lambda: run(flow()), lambda: _to_its_end(flow()))


async def _to_its_end[T](flow: Flow[T]) -> T:
    task = asyncio.ensure_future(run_async(flow))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            # Nobody is there to be told, and asyncio would say so.
            task.exception()
        raise
