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
"""Work begins once no more has come for this long: readers in a hurry need the interpreter."""

LONGEST_SECONDS = 0.2
"""Work begins no later than this after the first of it."""


class Writer:
    """Does work in a thread of its own, which is there while there is work.

    Parameters
    ----------
    work
        Does what there is to do. Raises nothing.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._has_work = self._is_urgent = False
        self._is_gathering = self._is_stopping = False

    def wake(self, *, is_urgent: bool = False) -> None:
        """See to it that the work is done soon; if it is urgent, at once."""
        with self._changed:
            self._has_work = True
            self._is_urgent |= is_urgent
            if self._thread is not None:
                if is_urgent or not self._is_gathering:
                    self._changed.notify()
                return
            # A daemon: a program that never closes anything ends, and what waits is written then.
            self._thread = threading.Thread(target=self._run, name="zarr-cache", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                # No thread can be started while the interpreter ends.
                self._thread = None
            else:
                return
        self._work()

    def stop(self) -> None:
        """End the thread when it has done what it is doing."""
        with self._changed:
            thread = self._thread
            self._is_stopping = True
            self._changed.notify()
        if thread is not None:
            thread.join()
        with self._changed:
            self._is_stopping = False

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._wait_for_work():
                    self._thread = None
                    return
                self._gather()
            try:
                self._work()
            except BaseException:
                # Which is told as of any thread. The next work starts another.
                with self._changed:
                    self._thread = None
                raise

    def _wait_for_work(self) -> bool:
        """Whether there is work; if not, the thread is to end."""
        while not self._has_work:
            is_woken = not self._is_stopping and self._changed.wait(IDLE_SECONDS)
            if self._is_stopping or not (is_woken or self._has_work):
                return False
        return True

    def _gather(self) -> None:
        """Wait while more work comes."""
        deadline = time.monotonic() + LONGEST_SECONDS
        self._is_gathering = True
        while not (self._is_urgent or self._is_stopping or time.monotonic() > deadline):
            self._has_work = False
            self._changed.wait(QUIET_SECONDS)
            if not self._has_work:
                break
        self._has_work = self._is_urgent = self._is_gathering = False
