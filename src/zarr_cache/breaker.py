"""Leaves a file that has failed alone for a while, so that reads do not wait for it in turn."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from zarr_cache import clock
from zarr_cache.errors import LeftAloneError

if TYPE_CHECKING:
    from zarr_cache.errors import CacheError

logger = logging.getLogger(__name__)

FIRST_NS = 1_000_000_000
"""How long the file is left alone after it has failed."""

LONGEST_NS = 60 * 1_000_000_000
"""After each trial that fails as well, it is left alone for twice as long, up to this."""


class Breaker:
    """Lets operations through while they succeed, and after a failure one now and then.

    Any thread may call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._error: CacheError | None = None
        self._wait_ns = FIRST_NS
        self._until_ns = -LONGEST_NS
        self._is_trying = False

    @property
    def is_closed(self) -> bool:
        """Whether operations go through."""
        return self._error is None

    @property
    def is_left_alone(self) -> bool:
        """Whether nothing is to be tried just now."""
        return self._error is not None and clock.monotonic_ns() < self._until_ns

    def look(self) -> None:
        """As `check`, for one who will not try: whoever does is not kept from it."""
        error = self._error
        if error is not None and self.is_left_alone:
            raise LeftAloneError(f"{error} (left alone for a while)")

    def check(self) -> None:
        """Return if an operation may be tried.

        Raises
        ------
        LeftAloneError
            Not now; the message tells why.
        """
        if self._error is None:
            return
        with self._lock:
            self.look()
            # Who comes meanwhile does not try as well.
            self._until_ns = clock.monotonic_ns() + self._wait_ns
            self._is_trying = True

    def try_again(self) -> None:
        """Let the next operation be tried, however short ago the last one failed."""
        with self._lock:
            self._until_ns = 0

    def failed(self, error: CacheError) -> None:
        """Let no operation through for a while."""
        with self._lock:
            now_ns = clock.monotonic_ns()
            is_new = self._error is None
            if not is_new and not self._is_trying:
                # It had begun before the one that failed first had ended.
                return
            if now_ns - self._until_ns < LONGEST_NS:
                # Also if something that takes less has succeeded in between: on a full disk, what
                # needs no room does.
                self._wait_ns = min(2 * self._wait_ns, LONGEST_NS)
            else:
                self._wait_ns = FIRST_NS
            self._error, self._is_trying = error, False
            self._until_ns = now_ns + self._wait_ns
        if is_new:
            logger.warning("%s; left alone, and tried again after a while", error)

    def succeeded(self) -> None:
        """Let every operation through."""
        if self._error is None:
            return
        with self._lock:
            error, self._error, self._is_trying = self._error, None, False
        if error is not None:
            logger.warning("works again after: %s", error)
