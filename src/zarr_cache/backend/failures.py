"""When the cache file fails: warn, stop asking it for a while, and try again."""

from __future__ import annotations

import logging
import threading
import warnings
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Concatenate

from zarr_cache.core import clock
from zarr_cache.core.errors import (
    CacheError,
    CircuitOpenError,
    DataFileError,
    FileDamagedError,
    OutOfMemoryError,
)
from zarr_cache.core.flow import step

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr_cache.backend.counters import Statistics
    from zarr_cache.core.flow import Flow
    from zarr_cache.file.connection import Connection
    from zarr_cache.file.database import Database


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
    def is_open(self) -> bool:
        """Whether nothing is to be tried just now."""
        return self._error is not None and clock.monotonic_ns() < self._until_ns

    def look(self) -> None:
        """As `check`, for one who will not try: whoever does is not kept from it."""
        error = self._error
        if error is not None and self.is_open:
            raise CircuitOpenError(f"{error} (left alone for a while)")

    def check(self) -> None:
        """Return if an operation may be tried.

        Raises
        ------
        CircuitOpenError
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


class CacheWarning(UserWarning):
    """The cache has failed, and the source was asked instead."""


class Faults:
    """Warns of the first fault of each kind, and counts all."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._warned: set[type[CacheError]] = set()
        self._untold: deque[CacheError] = deque()

    def note(self, error: CacheError) -> None:
        """Count the fault, and warn of it unless one like it has been warned of."""
        self._statistics.add(faults=1)
        self._warn(error)

    def note_later(self, error: CacheError) -> None:
        """Count the fault, which no reader waits for; `tell` warns of it."""
        self._statistics.add(faults=1)
        self._untold.append(error)

    @property
    def has_unreported(self) -> bool:
        """Whether there is something to `tell`."""
        return bool(self._untold)

    def tell(self) -> None:
        """Warn of what has been noted for later."""
        while self._untold:
            self._warn(self._untold.popleft())

    def _warn(self, error: CacheError) -> None:
        # Of the fault on whose account the file is left alone has been warned.
        if isinstance(error, CircuitOpenError) or type(error) in self._warned:
            return
        self._warned.add(type(error))
        warnings.warn(
            f"the cache has failed, the source is asked instead: {error}",
            CacheWarning,
            stacklevel=2,
        )


class Guarded:
    """Runs operations on a database through a breaker of its own.

    Attributes
    ----------
    breaker
        What lets operations through, or keeps them from the database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.breaker = Breaker()

    def flow[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Flow[T]:
        """Run the operation, off the event loop on the async surface."""
        self.breaker.check()
        try:
            result = yield from step(
                partial(self._database.run, operation, *args, **kwargs),
                partial(self._database.run_async, operation, *args, **kwargs),
            )
        except CacheError as error:
            raise self.failed(error) from error
        self.breaker.succeeded()
        return result

    def run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run the operation in this thread."""
        breaker = self.breaker
        if not breaker.is_closed:
            breaker.check()
        try:
            result = self._database.run(operation, *args, **kwargs)
        except CacheError as error:
            raise self.failed(error) from error
        if not breaker.is_closed:
            breaker.succeeded()
        return result

    def failed(self, error: CacheError) -> CacheError:
        """See to it that the fault costs the next reads no time; return what there is to tell."""
        if isinstance(error, (OutOfMemoryError, DataFileError)):
            # The fault of one value, or of large ones: the database has not failed.
            return error
        if isinstance(error, FileDamagedError):
            try:
                aside = self._database.quarantine(error)
            except CacheError as failure:
                error = failure
            else:
                begun = "another is begun in its place"
                where = f"it is now {aside}, and {begun}" if aside else begun
                return FileDamagedError(f"{error}; {where}")
        is_known = not self.breaker.is_closed
        self.breaker.failed(error)
        # A trial that fails, maybe in another way, is no news.
        return CircuitOpenError(str(error)) if is_known else error
