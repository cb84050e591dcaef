"""Single flight: of callers that want the same value at once, one fetches it, the others wait."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from zarr_cache.core.flow import running_loop, step

if TYPE_CHECKING:
    from collections.abc import Hashable

    from zarr_cache.core.flow import Flow


LEADER_SECONDS = 5.0
"""A caller waits for the fetch of another for so long, and then leads one.

A request that is not answered may take as long as the client allows: 300 seconds by default of
https://docs.aiohttp.org/en/stable/client_quickstart.html#timeouts.
"""

LOOK_SECONDS = 0.1
"""So often a caller who waits looks whether the leader can still go on."""


class LazyFuture[T]:
    """A result that is there at once, or later.

    Mostly no caller waits for it. So a future, of which two would be a tenth of the time of a miss,
    is made for the first caller that waits.
    """

    __slots__ = ("_future", "_lock", "_result", "is_set")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._future: Future[T] | None = None
        self.is_set = False

    def set(self, result: T) -> None:
        """Give the result to all waiting callers. Only the first result counts."""
        with self._lock:
            if self.is_set:
                return
            self._result, self.is_set = result, True
            future = self._future
        if future is not None:
            future.set_result(result)

    def wait(self) -> Flow[T]:
        """Wait for the result."""
        return step(self.block, self._await)

    def block(self) -> T:
        """Wait for the result in this thread."""
        return self._waited_for().result()

    async def _await(self) -> T:
        return await asyncio.wrap_future(self._waited_for())

    def _waited_for(self) -> Future[T]:
        with self._lock:
            if self._future is None:
                self._future = Future()
                # A cancelled caller must not cancel the future that others wait for.
                self._future.set_running_or_notify_cancel()
                if self.is_set:
                    self._future.set_result(self._result)
            return self._future


class Flight[T](LazyFuture[tuple[bool, T | None]]):
    """A fetch under way: whether it has brought a response, and the response.

    The caller who makes it leads it: a thread, or a task of an event loop.
    """

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        super().__init__()
        self._loop = running_loop()

    @property
    def is_led(self) -> bool:
        """Whether the leader can go on: a task cannot when its loop is closed."""
        return self._loop is None or not self._loop.is_closed()

    def complete(self, response: T) -> None:
        """Give the response to all waiting callers."""
        self.set((True, response))

    def abandon(self) -> None:
        """Let the waiting callers fetch for themselves, unless they have their response."""
        self.set((False, None))

    def follow(self, seconds: float | None = None) -> Flow[tuple[bool, T | None]]:
        """Wait until the flight has ended or is not led any more, but not longer than `seconds`.

        A thread waits only if another thread leads, and if it runs no event loop.
        """
        return step(partial(self._block, seconds), partial(self._follow, seconds))

    def _block(self, seconds: float | None) -> tuple[bool, T | None]:
        # A thread that leads ends the flight, whatever happens to it.
        if not (self.is_set or (self._loop is None and running_loop() is None)):
            return False, None
        try:
            return self._waited_for().result(seconds)
        except TimeoutError:
            return False, None

    async def _follow(self, seconds: float | None) -> tuple[bool, T | None]:
        result = asyncio.wrap_future(self._waited_for())
        until = float("inf") if seconds is None else time.monotonic() + seconds
        try:
            while not result.done() and self.is_led and (left := until - time.monotonic()) > 0:
                await asyncio.wait([result], timeout=min(left, LOOK_SECONDS))
            return result.result() if result.done() else (False, None)
        finally:
            result.cancel()


class Flights[K: Hashable, T]:
    """The fetches under way in this process, by what they fetch; `ended` counts those ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[K, Flight[T]] = {}
        self.ended = 0

    def join(self, key: K, mine: Flight[T], instead_of: Flight[T] | None = None) -> Flight[T]:
        """The flight for `key`: `mine`, which the caller leads, or that of another.

        The caller calls `end` in the end, whatever happens: Ctrl-C may come before this returns.

        Parameters
        ----------
        instead_of
            A flight that the caller has followed in vain. It leads no caller any more.
        """
        with self._lock:
            flight = self._under_way.get(key)
            if flight is None or flight is instead_of:
                self._under_way[key] = flight = mine
            return flight

    def end(self, key: K, mine: Flight[T]) -> None:
        """End the flight: no caller joins any more, and those without a response fetch it."""
        with self._lock:
            if self._under_way.get(key) is mine:
                self.ended += 1
                del self._under_way[key]
        mine.abandon()
