"""One fetch for all who ask for the same answer at once, over tasks, event loops and threads."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING

from zarr_cache.flow import step

if TYPE_CHECKING:
    from collections.abc import Hashable

    from zarr_cache.flow import Flow


class Flight[T]:
    """A fetch under way, and where those who follow it wait."""

    def __init__(self) -> None:
        self._landed: Future[tuple[bool, T | None]] = Future()

    @property
    def has_landed(self) -> bool:
        """Whether there is an answer, or there will be none."""
        return self._landed.done()

    def land(self, answer: T) -> None:
        """Give the answer to all who follow."""
        self._landed.set_result((True, answer))

    def fail(self) -> None:
        """Tell all who follow to ask for themselves, unless they have their answer."""
        if not self._landed.done():
            self._landed.set_result((False, None))

    def wait(self) -> Flow[tuple[bool, T | None]]:
        """Whether there is an answer, and the answer."""
        return step(self._block, self._await)

    def _block(self) -> tuple[bool, T | None]:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            # Who leads may need this very loop.
            return self._landed.result() if self._landed.done() else (False, None)
        return self._landed.result()

    async def _await(self) -> tuple[bool, T | None]:
        # Shielded: a follower that is cancelled must not cancel what others wait for.
        return await asyncio.shield(asyncio.wrap_future(self._landed))


class Flights[K: Hashable, T]:
    """The fetches under way in this process, by what they ask for.

    Attributes
    ----------
    ended
        How many have ended. If it is another number than before a look-up that missed, the answer
        may be at hand by now.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: dict[K, Flight[T]] = {}
        self.ended = 0

    def join(self, key: K) -> tuple[Flight[T], bool]:
        """The flight for `key`, and whether the caller leads it.

        Who leads calls `end` in the end, whatever happens.
        """
        with self._lock:
            flight = self._under_way.get(key)
            if flight is not None:
                return flight, False
            flight = self._under_way[key] = Flight()
            return flight, True

    def end(self, key: K, flight: Flight[T]) -> None:
        """Nobody joins any more; who has no answer by now asks for itself."""
        with self._lock:
            self.ended += 1
            if self._under_way.get(key) is flight:
                del self._under_way[key]
        flight.fail()
