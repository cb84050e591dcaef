"""One fetch for all who ask for the same answer at once, over tasks, event loops and threads."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from zarr_cache.executor import may_wait_for
from zarr_cache.flow import running_loop
from zarr_cache.outcome import Outcome

if TYPE_CHECKING:
    from collections.abc import Hashable


class Flight[T](Outcome[tuple[bool, T | None]]):
    """A fetch under way: whether it has brought an answer, and the answer.

    Attributes
    ----------
    loop
        The event loop on which it is led; None if it is led by a thread.
    """

    __slots__ = ("loop",)

    def __init__(self) -> None:
        super().__init__()
        self.loop = running_loop()

    def land(self, answer: T) -> None:
        """Give the answer to all who follow."""
        self.set((True, answer))

    def fail(self) -> None:
        """Tell all who follow to ask for themselves, unless they have their answer."""
        self.set((False, None))

    def block(self) -> tuple[bool, T | None]:
        """Wait in this thread, unless who leads may need this thread itself."""
        may_wait = running_loop() is None and (self.loop is None or may_wait_for(self.loop))
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
