"""Single flight: of callers that want the same value at once, one fetches it, the others wait."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from zarr_cache.core.flow import running_loop, step

if TYPE_CHECKING:
    from collections.abc import Hashable

    from zarr_cache.core.flow import Flow


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
        # Shielded: a cancelled caller must not cancel the future that others wait for.
        return await asyncio.shield(asyncio.wrap_future(self._waited_for()))

    def _waited_for(self) -> Future[T]:
        with self._lock:
            if self._future is None:
                self._future = Future()
                if self.is_set:
                    self._future.set_result(self._result)
            return self._future


class Flight[T](LazyFuture[tuple[bool, T | None]]):
    """A fetch under way: whether it has brought a response, and the response."""

    __slots__ = ("is_of_thread",)

    def __init__(self) -> None:
        super().__init__()
        # Whether a thread leads it, and no task of an event loop.
        self.is_of_thread = running_loop() is None

    def complete(self, response: T) -> None:
        """Give the response to all waiting callers."""
        self.set((True, response))

    def abandon(self) -> None:
        """Let the waiting callers fetch for themselves, unless they have their response."""
        self.set((False, None))

    def block(self) -> tuple[bool, T | None]:
        """Wait in this thread if another leads; a thread that runs an event loop does not wait."""
        may_wait = self.is_of_thread and running_loop() is None
        return super().block() if may_wait or self.is_set else (False, None)


class Flights[K: Hashable, T]:
    """The fetches under way in this process, by what they fetch; `ended` counts those ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[K, Flight[T]] = {}
        self.ended = 0

    def join(self, key: K, mine: Flight[T]) -> Flight[T]:
        """The flight for `key`: `mine`, which the caller leads, or that of another.

        The caller calls `end` in the end, whatever happens: Ctrl-C may come before this returns.
        """
        with self._lock:
            return self._under_way.setdefault(key, mine)

    def end(self, key: K, mine: Flight[T]) -> None:
        """End the flight: no caller joins any more, and those without a response fetch it."""
        with self._lock:
            if self._under_way.get(key) is mine:
                self.ended += 1
                del self._under_way[key]
        mine.abandon()
