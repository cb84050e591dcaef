"""A thread that writes while readers go on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE_SECONDS = 2.0
"""After so long without work the thread ends; the next work starts another."""


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
        self._has_work = False
        self._is_stopping = False

    def wake(self) -> None:
        """See to it that the work is done soon."""
        with self._changed:
            self._has_work = True
            if self._thread is not None:
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
                while not self._has_work:
                    is_woken = not self._is_stopping and self._changed.wait(IDLE_SECONDS)
                    if self._is_stopping or not (is_woken or self._has_work):
                        self._thread = None
                        return
                self._has_work = False
            self._work()
