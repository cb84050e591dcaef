"""One fetch for all who ask for the same answer at once, over tasks, event loops and threads.

A task waits for any fetch. A thread waits for what another thread fetches, and not for what a task
does: the task may need a thread of its loop's executor, and those that wait may be all of them.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from zarr_cache.flow import running_loop
from zarr_cache.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Hashable


class Flight[T](Outcome[tuple[bool, T | None]]):
    """A fetch under way: whether it has brought an answer, and the answer.

    Attributes
    ----------
    is_of_thread
        Whether a thread leads it, and no task of an event loop.
    """

    __slots__ = ("is_of_thread",)

    def __init__(self) -> None:
        super().__init__()
        self.is_of_thread = running_loop() is None

    def land(self, answer: T) -> None:
        """Give the answer to all who follow."""
        self.set((True, answer))

    def fail(self) -> None:
        """Tell all who follow to ask for themselves, unless they have their answer."""
        self.set((False, None))

    def block(self) -> tuple[bool, T | None]:
        """Wait in this thread if another leads; nobody waits who runs an event loop."""
        may_wait = self.is_of_thread and running_loop() is None
        return super().block() if may_wait or self.is_set else (False, None)


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

    def join(self, key: K, mine: Flight[T]) -> Flight[T]:
        """The flight for `key`: `mine`, which the caller leads, or that of another.

        The caller calls `end` in the end, whatever happens: Ctrl-C may come before this returns.
        """
        with self._lock:
            return self._under_way.setdefault(key, mine)

    def end(self, key: K, mine: Flight[T]) -> None:
        """Nobody joins any more; who has no answer by now asks for itself."""
        with self._lock:
            if self._under_way.get(key) is mine:
                self.ended += 1
                del self._under_way[key]
        mine.fail()
