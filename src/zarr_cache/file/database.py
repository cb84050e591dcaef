"""What runs operations on the tables: a cache file, or a database in memory."""

from __future__ import annotations

import os
import threading
import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Concatenate

from zarr_cache.core.clock import PersistentClock
from zarr_cache.file import migrate
from zarr_cache.file.connection import Connection, WriteLock, connect
from zarr_cache.file.identity import APPLICATION_ID

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr_cache.core.errors import FileDamagedError


class Database(ABC):
    """Runs operations: functions whose first parameter is a connection.

    The methods below `run_async` are those of a database that no other process uses.

    Attributes
    ----------
    before_close
        Called by `close` while operations still run, to write what is queued.
    before_end
        Called at the end of the interpreter instead.
    before_pause
        Called before a fork, while operations still run, to write what can be written at once.
    after_fork
        Called in the child of a fork, after the database has forgotten its connections.
    after_loss
        Called when another file, or none, is found in the place of the one that was open: nothing
        that is known of the old one is true of the new one.
    """

    def __init__(self) -> None:
        self.before_close: list[Callable[[], None]] = []
        self.before_end: list[Callable[[], None]] = []
        self.before_pause: list[Callable[[], None]] = []
        self.after_fork: list[Callable[[], None]] = []
        self.after_loss: list[Callable[[], None]] = []

    @abstractmethod
    def clock(self) -> PersistentClock:
        """The clock of the timestamps in this database."""

    @abstractmethod
    def run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``operation(connection, *args, **kwargs)`` in this thread."""

    @abstractmethod
    async def run_async[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run the operation without holding up the event loop."""

    @property
    def is_open(self) -> bool:
        """Whether operations can begin at once."""
        return True

    def is_gone(self) -> bool:
        """Whether the file was deleted: no other is made for what is queued."""
        return False

    def is_marked(self, namespace: str) -> bool:  # noqa: ARG002 - of a file
        """Whether the namespace has an invalidation marker, see `file.invalidation`."""
        return False

    def mark(self, namespace: str) -> bool:  # noqa: ARG002 - of a file
        """Invalidate the namespace in every process; False if no marker could be of use."""
        return False

    def marked_ns(self, namespace: str) -> int | None:  # noqa: ARG002 - of a file
        """The time of the marker, by which a later one differs; None if there is none."""
        return None

    def unmark(self, namespace: str, since_ns: int) -> None:  # noqa: B027 - there is none
        """Remove this marker: the entries of the namespace have been removed since."""

    def quarantine(self, error: FileDamagedError) -> Path | None:
        """Rename the damaged file, so that the next operation starts with an empty one."""
        raise error


class MemoryDatabase(Database):
    """A database in memory, of this process alone.

    Attributes
    ----------
    lock
        Held by the operation that runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self._connection: Connection | None = None
        self._clock = PersistentClock(floor_ns=0)
        _all.add(self)

    def __str__(self) -> str:
        return "in memory"

    def clock(self) -> PersistentClock:
        """As of `Database`."""
        return self._clock

    def run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """As of `Database`."""
        with self.lock:
            connection = self._connection or self._connect()
            try:
                return operation(connection, *args, **kwargs)
            finally:
                # The end of a transaction may fail, and Ctrl-C may come before it.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def _connect(self) -> Connection:
        """Make it, at the first operation: what makes that fail costs a warning, as with a file."""
        connection = connect(":memory:", WriteLock())
        weakref.finalize(self, connection.close)
        migrate.migrate(connection, application_id=APPLICATION_ID, scripts=migrate.scripts())
        self._connection = connection
        return connection

    async def run_async[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run the operation in this thread: nothing here waits for a disk."""
        return self.run(operation, *args, **kwargs)


_all: weakref.WeakSet[MemoryDatabase] = weakref.WeakSet()

# Those whose locks the thread that forks holds.
_held: list[MemoryDatabase] = []


def _before_fork() -> None:
    for database in _all:
        database.lock.acquire()
        _held.append(database)


def _after_fork() -> None:
    while _held:
        _held.pop().lock.release()


def _after_fork_in_child() -> None:
    forked = list(_held)
    _after_fork()
    for database in forked:
        for forget in database.after_fork:
            forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )
