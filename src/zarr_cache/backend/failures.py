"""Failures of the cache: a warning of each kind, circuit breakers, and namespaces without a record.

A namespace is invalidated if a write to its source could not be recorded.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Concatenate

from zarr_cache.core import clock
from zarr_cache.core.errors import (
    CacheError,
    CircuitOpenError,
    DataFileError,
    FileDamagedError,
    OutOfMemoryError,
)
from zarr_cache.core.flow import step, threaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr_cache.backend.counters import Statistics
    from zarr_cache.core.flow import Flow
    from zarr_cache.file.connection import Connection
    from zarr_cache.file.database import Database


logger = logging.getLogger(__name__)

MIN_OPEN_NS = 1_000_000_000
"""How long the circuit stays open after a first failure."""

MAX_OPEN_NS = 60 * 1_000_000_000
"""The circuit stays open for twice as long after each trial that fails, up to this."""


class CircuitBreaker:
    """Refuses operations for a while after a failure, then lets one of them try.

    Any thread may call.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._error: CacheError | None = None
        self._open_ns = MIN_OPEN_NS
        self._until_ns = -MAX_OPEN_NS
        self._is_trying = False

    @property
    def is_closed(self) -> bool:
        """Whether the last operation succeeded, so that all are let through."""
        return self._error is None

    @property
    def is_open(self) -> bool:
        """Whether no operation may try now."""
        return self._error is not None and clock.monotonic_ns() < self._until_ns

    def raise_if_open(self) -> None:
        """Return if an operation may try, and leave the trial to another caller.

        Raises
        ------
        CircuitOpenError
            None may; the message says why.
        """
        error = self._error
        if error is not None and self.is_open:
            raise CircuitOpenError(f"{error} (circuit open)")

    def check(self) -> None:
        """Return if the caller may try; it reports a success or a failure.

        Raises
        ------
        CircuitOpenError
            It may not; the message says why.
        """
        if self._error is None:
            return
        with self._lock:
            self.raise_if_open()
            # One trial at a time: it is open for the other callers.
            self._until_ns = clock.monotonic_ns() + self._open_ns
            self._is_trying = True

    def half_open(self) -> None:
        """Let the next operation try, however recent the last failure is."""
        with self._lock:
            self._until_ns = 0

    def record_failure(self, error: CacheError) -> None:
        """Open the circuit."""
        with self._lock:
            now_ns = clock.monotonic_ns()
            is_new = self._error is None
            if not is_new and not self._is_trying:
                # This operation had begun before the first failure.
                return
            if now_ns - self._until_ns < MAX_OPEN_NS:
                # Even if another operation has succeeded in between: on a full disk, one that
                # needs no space succeeds.
                self._open_ns = min(2 * self._open_ns, MAX_OPEN_NS)
            else:
                self._open_ns = MIN_OPEN_NS
            self._error, self._is_trying = error, False
            self._until_ns = now_ns + self._open_ns
        if is_new:
            logger.warning("%s; circuit open: retried with back-off", error)

    def record_success(self) -> None:
        """Close the circuit."""
        if self._error is None:
            return
        with self._lock:
            error, self._error, self._is_trying = self._error, None, False
        if error is not None:
            logger.warning("works again after: %s", error)


class CacheWarning(UserWarning):
    """The cache has failed, and reads go to the source."""


class Faults:
    """Counts failures, and warns of the first of each kind."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._warned: set[type[CacheError]] = set()
        self._unreported: deque[CacheError] = deque()

    def note(self, error: CacheError) -> None:
        """Count the failure, and warn of it unless one of its kind has been warned of."""
        self._statistics.add(faults=1)
        self._warn(error)

    def note_in_background(self, error: CacheError) -> None:
        """Count the failure of a background write; `report` warns of it."""
        self._statistics.add(faults=1)
        self._unreported.append(error)

    def report(self) -> None:
        """Warn of the failures of background writes."""
        while self._unreported:
            self._warn(self._unreported.popleft())

    def _warn(self, error: CacheError) -> None:
        # An open circuit is no news: the failure that opened it has been warned of.
        if isinstance(error, CircuitOpenError) or type(error) in self._warned:
            return
        self._warned.add(type(error))
        warnings.warn(
            f"the cache has failed, reads go to the source: {error}",
            CacheWarning,
            stacklevel=2,
        )


class GuardedDatabase:
    """Runs operations on a database through a circuit breaker.

    Attributes
    ----------
    breaker
        The circuit breaker, of this object alone.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.breaker = CircuitBreaker()

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
            raise self.record_failure(error) from error
        self.breaker.record_success()
        return result

    def run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run the operation in this thread."""
        self.breaker.check()
        try:
            result = self._database.run(operation, *args, **kwargs)
        except CacheError as error:
            raise self.record_failure(error) from error
        self.breaker.record_success()
        return result

    def record_failure(self, error: CacheError) -> CacheError:
        """Quarantine a damaged file, or open the circuit; return the error for the caller."""
        if isinstance(error, (OutOfMemoryError, DataFileError)):
            # One value failed, or all large ones: the database did not.
            return error
        if isinstance(error, FileDamagedError):
            try:
                quarantined = self._database.quarantine(error)
            except CacheError as failure:
                error = failure
            else:
                renamed = f"it is now {quarantined}, and " if quarantined else ""
                return FileDamagedError(f"{error}; {renamed}a new file takes its place")
        is_known = not self.breaker.is_closed
        self.breaker.record_failure(error)
        # A trial that fails, even in another way, is no news.
        return CircuitOpenError(str(error)) if is_known else error


class InvalidatedNamespaces:
    """Namespaces with a write to the source that could not be recorded in the database.

    No process serves their entries until they have been removed. A marker beside the file says so
    to all processes. Where none can be made, this process alone remembers it.
    """

    # Those with a namespace in `_unmarked`, which must outlive the last CacheStore over the
    # database. The hooks of the database keep its cache.
    _remembered: ClassVar[set[InvalidatedNamespaces]] = set()

    def __init__(self, database: Database) -> None:
        self._database = database
        # Invalidated, without a marker that says so. A child of a fork inherits them.
        self._unmarked: set[str] = set()

    def invalidate(self, namespace: str) -> Flow[None]:
        """Let no process serve an entry of the namespace until `release`."""
        is_known = namespace in self._unmarked
        self._unmarked.add(namespace)
        self._remembered.add(self)
        try:
            is_marked = yield from threaded(partial(self._database.mark, namespace))
        except CacheError as error:
            if not is_known:
                logger.warning("%s; other processes may serve values from before a write", error)
        else:
            if is_marked:
                self._forget(namespace)

    def is_invalidated(self, namespace: str) -> bool:
        """Whether a write to this source could not be recorded."""
        return namespace in self._unmarked or self._database.is_marked(namespace)

    def release(self, namespace: str, marked_ns: int | None) -> Flow[None]:
        """Let entries of the namespace be served again: those from before the write are removed.

        A marker that is newer than `marked_ns`, which is `Database.marked_ns` from before they were
        removed, stays: it stands for another write.
        """
        self._forget(namespace)
        if marked_ns is not None:
            yield from threaded(partial(self._database.unmark, namespace, marked_ns))

    def _forget(self, namespace: str) -> None:
        self._unmarked.discard(namespace)
        if not self._unmarked:
            self._remembered.discard(self)
