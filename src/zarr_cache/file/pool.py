"""The connections to an open file: which are idle, and which an operation has taken."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from typing import TYPE_CHECKING, Protocol

from zarr_cache.disk import descriptors
from zarr_cache.file.forks import forking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr_cache.file.connection import Connection


RECHECK_SECONDS = 0.05
"""How often a waiting thread checks for itself: Ctrl-C may have come before it was notified."""


class ConnectionLease:
    """An operation under way, and the connection that it has taken from the pool.

    Ctrl-C raises where a function begins, where a loop repeats and after a call of a function that
    is written in C, and not between assignments. So steps that must not come apart are assignments,
    and not calls.
    """

    __slots__ = ("connection", "has_ended")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.has_ended = False


class Connect(Protocol):
    """Makes another connection to the file of a pool."""

    def __call__(self, *, is_first: bool) -> Connection:
        """`is_first`: whether the pool has no other."""


class ConnectionPool:
    """The connections to one file.

    Methods that say so are called with `lock` held.

    Attributes
    ----------
    lock
        Held while what follows changes.
    is_open
        Whether operations can take a connection without opening the file.
    connections
        Every connection to the file that is open, those of event loops included. An operation may
        still use one that is not among them, which is closed when that operation ends.
    leases
        Operations under way, and those that have ended and are not put back yet.
    exclusive
        One object for each thread that waits until no operation is under way. No other operation
        begins meanwhile.
    """

    def __init__(self, connect: Connect) -> None:
        self.lock = threading.RLock()
        self.is_open = False
        self.connections: set[Connection] = set()
        self.leases: set[ConnectionLease] = set()
        self.exclusive: set[object] = set()
        self._idle: list[Connection] = []
        self._changed = threading.Condition(self.lock)
        self._connect = connect

    def open_with(self, connection: Connection) -> None:
        """Begin with the first connection to a file. Holds `lock`."""
        self.connections.add(connection)
        self._idle, self.is_open = [connection], True

    def wait_for_turn(self) -> None:
        """Wait until an operation may begin. Holds `lock`.

        The child of a fork could hang on SQLite's own locks, and a file that is in use is not
        quarantined.
        """
        while self.exclusive or forking.locked():
            self._changed.wait(RECHECK_SECONDS)

    def take(self, lease: ConnectionLease) -> Connection:
        """A connection for an operation, until `put_back`; holds `lock`."""
        if not self._idle:
            # Ctrl-C may have come before they were put back.
            for ended in [each for each in self.leases if each.has_ended]:
                self.put_back(ended)
        self.leases.add(lease)
        if self._idle:
            # Nothing is called in between: the connection would be lost, or belong to two leases.
            lease.connection = connection = self._idle[-1]
            del self._idle[-1]
        else:
            lease.connection = connection = self._connect(is_first=not self.connections)
            self.connections.add(connection)
        return connection

    def put_back(self, lease: ConnectionLease) -> None:
        """End the lease. If Ctrl-C prevents that, a later `take` does it."""
        with self.lock:
            connection, lease.connection = lease.connection, None
            if connection is not None:
                # One in a transaction would see nothing new. The end of it may have failed, and
                # Ctrl-C may have come before it.
                if connection in self.connections and not connection.in_transaction:
                    self._idle.append(connection)
                    connection = None
                else:
                    self.connections.discard(connection)
            self.leases.discard(lease)
            if self.exclusive:
                self._changed.notify_all()
        if connection is not None:
            # It was in use while the others were closed, or is in the middle of something.
            connection.close()

    def checkpoint(self) -> None:
        """Write the WAL into the file, wherever that is now. Holds `lock`."""
        for connection in self._idle:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def discard(self, connection: Connection) -> None:
        """Give the connection to no operation any more; the caller closes it."""
        with self.lock:
            self.connections.discard(connection)

    def clear(self, kept: set[Connection]) -> set[Connection]:
        """Have no connections any more; return those that are unused, for the caller to close.

        Holds `lock`. The event loops close theirs, `kept`, themselves.
        """
        leases = {each for each in self.leases if not each.has_ended}
        used = kept | {each.connection for each in leases}
        # Not only the idle ones: Ctrl-C may have come before one was put back.
        unused = {each for each in self.connections if each not in used}
        none: set[Connection] = set()
        # Before they are closed: no operation may take a closed one.
        self.leases, self._idle = leases, []
        self.connections, self.is_open = none, False
        return unused

    @property
    def descriptors(self) -> int:
        """How many descriptors the connections hold at most, and the data file with them."""
        count = len(self.connections)
        return descriptors.OF_FIRST + (count - 1) * descriptors.OF_OTHERS if count else 0

    @contextlib.contextmanager
    def locked_if_unused(self) -> Iterator[bool]:
        """Run the block with `lock` held, if no operation is under way; whether that is so.

        Never waits for `lock`. The thread that calls must not hold it.
        """
        try:
            yield self.lock.acquire(blocking=False) and not (
                self.exclusive or any(not each.has_ended for each in self.leases)
            )
        finally:
            # Not by whether it was acquired: Ctrl-C may come before that is written down.
            try:  # noqa: SIM105 - Ctrl-C may come before what `suppress` runs
                self.lock.release()
            except RuntimeError:
                pass  # another thread holds it

    def wait_until_unused(self) -> None:
        """Wait until no operation is under way. Holds `lock`, and none begins until it is free."""
        mine = object()
        try:
            self.exclusive.add(mine)
            while not all(each.has_ended for each in self.leases):
                self._changed.wait(RECHECK_SECONDS)
        finally:
            self.exclusive.discard(mine)
            self._changed.notify_all()

    def notify(self) -> None:
        """Let the threads in `wait_for_turn` check again."""
        with self.lock:
            self._changed.notify_all()
