"""What comes of something, for those who wait for it: tasks, event loops and threads."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from zarr_cache.flow import step

if TYPE_CHECKING:
    from zarr_cache.flow import Flow


class Outcome[T]:
    """A result that is there at once, or some day.

    Mostly nobody waits for it. So a future, of which two would be a tenth of what a miss takes, is
    made for the first who does.

    Attributes
    ----------
    is_set
        Whether there is a result.
    """

    __slots__ = ("_future", "_lock", "_result", "is_set")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._future: Future[T] | None = None
        self.is_set = False

    def set(self, result: T) -> None:
        """Give the result to all who wait. The first one stands."""
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
        # Shielded: who is cancelled must not cancel what others wait for.
        return await asyncio.shield(asyncio.wrap_future(self._waited_for()))

    def _waited_for(self) -> Future[T]:
        with self._lock:
            if self._future is None:
                self._future = Future()
                if self.is_set:
                    self._future.set_result(self._result)
            return self._future
