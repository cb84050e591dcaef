"""Time that measures ages within a process and across restarts alike."""

from __future__ import annotations

import threading
import time


def wall_ns() -> int:
    """Nanoseconds since the Unix epoch. Survives a restart, and can be set back."""
    return time.time_ns()


def monotonic_ns() -> int:
    """Nanoseconds that never run backwards and include time asleep where the system counts it.

    On Linux ``CLOCK_MONOTONIC`` stands still while a laptop sleeps, ``CLOCK_BOOTTIME`` does not
    (clock_gettime(2)). On macOS ``time.monotonic`` stands still, as ``CLOCK_UPTIME_RAW`` does, and
    ``CLOCK_MONOTONIC_RAW`` does not (clock_gettime(3)).
    """
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if hasattr(time, "CLOCK_UPTIME_RAW"):
        return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
    return time.monotonic_ns()


def resumed_ns(newest_ns: int, written_ns: int) -> int:
    """From where time continues in a file with this newest timestamp.

    A timestamp ahead of the wall clock is from before that was set back. The time since the file
    was written (`written_ns`, by the wall clock) is added: otherwise time would stand still between
    sessions until the wall clock has caught up.
    """
    now_ns = wall_ns()
    return newest_ns if newest_ns <= now_ns else newest_ns + max(0, now_ns - written_ns)


TIMESTAMPS_END = 2**62
"""Every timestamp is below this: as nanoseconds since the Unix epoch, the year 2116."""


class PersistentClock:
    """Nanoseconds since the Unix epoch that never run backwards, even across restarts.

    The monotonic clock keeps pace but forgets its origin at each start; the wall clock keeps its
    origin but can be set back. This one takes its origin from the wall clock when a file is
    opened, and its pace from the monotonic clock. If the wall clock is behind `floor_ns`, time
    resumes there: see `resumed_ns`.
    """

    def __init__(self, *, floor_ns: int) -> None:
        self._offset_ns = max(wall_ns(), floor_ns) - monotonic_ns()
        self._last_ns = floor_ns
        self._lock = threading.Lock()

    def now_ns(self) -> int:
        """The time. Equal to that of an earlier call if no time has passed."""
        return max(monotonic_ns() + self._offset_ns, self._last_ns)

    def timestamp_ns(self) -> int:
        """The time, later than every timestamp before: two uses in one process never tie."""
        with self._lock:
            self._last_ns = max(monotonic_ns() + self._offset_ns, self._last_ns + 1)
            return self._last_ns

    def restart(self, *, floor_ns: int) -> None:
        """Take the origin again, as at opening; time does not go back."""
        with self._lock:
            offset_ns = max(wall_ns(), floor_ns) - monotonic_ns()
            self._offset_ns = max(self._offset_ns, offset_ns)
            self._last_ns = max(self._last_ns, floor_ns)

    def catch_up(self, timestamp_ns: int) -> bool:
        """Restart if a timestamp of the file is ahead of the time; return whether it was.

        It is of another process, which has counted time that this one missed: while a virtual
        machine is suspended, only the wall clock, which is set afterwards, continues.
        """
        if not self.now_ns() < timestamp_ns < TIMESTAMPS_END:
            return False
        self.restart(floor_ns=timestamp_ns)
        return True
