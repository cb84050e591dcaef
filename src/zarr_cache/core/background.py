"""A thread that writes while readers go on."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


IDLE_SECONDS = 2.0
"""After so long without work the thread ends; the next work starts another."""

QUIET_SECONDS = 0.01
"""Work begins once no more has arrived for this long: busy readers need the interpreter."""

MAX_DELAY_SECONDS = 0.2
"""Work begins no later than this after the first of it."""


class BackgroundWorker:
    """Does work in a thread of its own, which is there while there is work.

    Parameters
    ----------
    work
        Does all the work there is. Raises nothing.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        # Not the condition is entered, which is written in Python: Ctrl-C could come in between.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        # The one that continues after a round of work.
        self._thread: threading.Thread | None = None
        self._has_work = self._is_urgent = self._is_gathering = False

    def wake(self, *, is_urgent: bool = False) -> None:
        """Have the work done soon; if it is urgent, at once."""
        with self._lock:
            self._has_work = True
            self._is_urgent |= is_urgent
            if self._thread is not None:
                if is_urgent or not self._is_gathering:
                    self._changed.notify_all()
                return
            # A daemon: a program that never closes anything ends, and what waits is written then.
            thread = threading.Thread(target=self._run, name="zarr-cache", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                pass  # none can be started, for a limit or while the interpreter ends
            else:
                self._thread = thread
                return
        self._work()

    def stop(self) -> None:
        """End the thread after the present work; later work starts another."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        mine, continues = threading.current_thread(), True
        while continues:
            with self._lock:
                if not self._wait_for_work(mine):
                    return
                self._gather(mine)
                # After `stop` this round is the last, even if other threads always add more.
                continues = self._thread is mine
            try:
                self._work()
            except BaseException:
                # Which Python reports, as of any thread. The next work starts another.
                with self._lock:
                    if self._thread is mine:
                        self._thread = None
                raise

    def _wait_for_work(self, mine: threading.Thread) -> bool:
        """Whether there is work; if not, the thread is to end."""
        while not self._has_work:
            if self._thread is not mine:
                return False
            is_woken = self._changed.wait(IDLE_SECONDS)
            if self._thread is mine and not (is_woken or self._has_work):
                self._thread = None
        return True

    def _gather(self, mine: threading.Thread) -> None:
        """Wait while more work arrives."""
        deadline = time.monotonic() + MAX_DELAY_SECONDS
        self._is_gathering = True
        while self._thread is mine and not self._is_urgent and time.monotonic() <= deadline:
            self._has_work = False
            self._changed.wait(QUIET_SECONDS)
            if not self._has_work:
                break
        self._has_work = self._is_urgent = self._is_gathering = False
