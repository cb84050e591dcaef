"""Time that measures ages within a process and across restarts alike."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def wall_ns() -> int:
    """Nanoseconds since the Unix epoch. Survives a restart, and can be set back."""
    return time.time_ns()


def monotonic_ns() -> int:
    """Nanoseconds that never run backwards and count suspend where the system can tell.

    ``CLOCK_MONOTONIC`` stands still while a laptop sleeps, ``CLOCK_BOOTTIME`` does not
    (clock_gettime(2)).
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.monotonic_ns()


class PersistentClock:
    """Nanoseconds since the Unix epoch that never run backwards, even across restarts.

    The monotonic clock keeps pace but forgets its origin at each start; the wall clock keeps its
    origin but can be set back. This one takes its origin from the wall clock once, at opening,
    and its pace from the monotonic clock.

    Parameters
    ----------
    floor_ns
        Newest time stored in the file. If the wall clock is behind it, time resumes here, so
        entries look younger than they are, never older.
    wall
        Tells the wall clock's time in nanoseconds.
    monotonic
        Tells the monotonic clock's time in nanoseconds.
    """

    def __init__(
        self,
        *,
        floor_ns: int,
        wall: Callable[[], int] | None = None,
        monotonic: Callable[[], int] | None = None,
    ) -> None:
        # Looked up here and not in the signature, so that a test can hold the module's clocks.
        self._monotonic_ns = monotonic or monotonic_ns
        self._offset_ns = max((wall or wall_ns)(), floor_ns) - self._monotonic_ns()
        self._last_ns = floor_ns
        self._lock = threading.Lock()

    def now_ns(self) -> int:
        """The time. Equal to what an earlier call told if no time has passed."""
        return max(self._monotonic_ns() + self._offset_ns, self._last_ns)

    def stamp_ns(self) -> int:
        """The time, later than every stamp before: two uses in one process never tie."""
        with self._lock:
            self._last_ns = max(self._monotonic_ns() + self._offset_ns, self._last_ns + 1)
            return self._last_ns
