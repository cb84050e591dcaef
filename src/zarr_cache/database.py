"""A database in this process: its connections, shared by every store that names it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sqlite3
import threading
import weakref
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Concatenate, Protocol

from zarr_cache import migrate
from zarr_cache.clock import PersistentClock
from zarr_cache.connection import (
    APPLICATION_ID,
    Connection,
    LoopConnection,
    connect,
    create,
)
from zarr_cache.errors import StorageError, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# Along the index entry_by_use. No other stamp is newer: what is stored is used at that time.
NEWEST_STAMP = """
SELECT coalesce(max(used_at), 0)
FROM (
    SELECT max(used_at) AS used_at FROM entry WHERE kind = 'stored'
    UNION ALL
    SELECT max(used_at) FROM entry WHERE kind = 'value'
    UNION ALL
    SELECT max(used_at) FROM entry WHERE kind = 'absent'
    UNION ALL
    SELECT max(used_at) FROM entry WHERE kind = 'fence'
)
"""


class Database(Protocol):
    """Runs operations: functions whose first parameter is a connection.

    Attributes
    ----------
    before_close
        Called by `close` while operations still run, to write what waits.
    after_fork
        Called in the child of a fork, after the database has forgotten its connections.
    """

    before_close: list[Callable[[], None]]
    after_fork: list[Callable[[], None]]

    @property
    def is_open(self) -> bool:
        """Whether operations can begin at once."""

    def run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run the operation in this thread."""

    async def run_async[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run the operation without holding up the event loop."""

    def clock(self) -> PersistentClock:
        """The clock that stamps what is kept in this database."""


class FileDatabase:
    """A cache file in this process. Opened at the first operation, and again after `close`.

    Get one from `of`, so that there is one for each file: two would not know of each other's range
    entries and stamps.

    Attributes
    ----------
    path
        The file, absolute and with symbolic links followed.
    """

    _by_path: ClassVar[weakref.WeakValueDictionary[Path, FileDatabase]] = (
        weakref.WeakValueDictionary()
    )
    # What holds connections lives until it is closed, or to the end of the interpreter.
    _opened: ClassVar[set[FileDatabase]] = set()
    _registry_lock = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before_close: list[Callable[[], None]] = []
        self.after_fork: list[Callable[[], None]] = []
        self._begin()

    def _begin(self) -> None:
        """Start without connections: at first, and in the child of a fork."""
        self._lock = threading.RLock()
        # Operations under way, and whether a fork waits for them to end.
        self._under_way = 0
        self._is_forking = False
        self._changed = threading.Condition(self._lock)
        self._write_lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._idle: deque[Connection] = deque()
        self._by_loop: dict[asyncio.AbstractEventLoop, LoopConnection] = {}
        self._starting: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        self._clock: PersistentClock | None = None
        self._is_open = False

    @classmethod
    def of(cls, path: Path) -> FileDatabase:
        """The one database of this process for the file that `path` names."""
        path = path.resolve()
        with cls._registry_lock:
            database = cls._by_path.get(path)
            if database is None:
                database = cls._by_path[path] = cls(path)
            return database

    @property
    def is_open(self) -> bool:
        """Whether the file is open."""
        return self._is_open

    def clock(self) -> PersistentClock:
        """The clock of the file, which begins at opening.

        Raises
        ------
        ForeignFileError, NewerSchemaError, MigrationError, StorageError
            The file cannot be opened.
        """
        if self._clock is None or not self._is_open:
            return self._open()
        return self._clock

    def _open(self) -> PersistentClock:
        with self._lock:
            if self._clock is not None and self._is_open:
                return self._clock
            try:
                create(self.path, self._write_lock)
                connection = connect(str(self.path), self._write_lock)
                self._connections.add(connection)
                (floor_ns,) = connection.execute(NEWEST_STAMP).fetchone()
            except sqlite3.Error as error:
                raise translated(error, self.path) from error
            except OSError as error:
                raise StorageError(f"{self.path}: {error}") from error
            self._idle.append(connection)
            if self._clock is None:
                self._clock = PersistentClock(floor_ns=floor_ns)
            self._is_open = True
            with self._registry_lock:
                self._opened.add(self)
            return self._clock

    def run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``operation(connection, *args, **kwargs)`` in this thread.

        Raises
        ------
        StorageError
            SQLite refused; what the operation had written is rolled back.
        """
        try:
            with self._operating():
                connection = self._take()
                try:
                    return operation(connection, *args, **kwargs)
                finally:
                    self._put_back(connection)
        except sqlite3.Error as error:
            raise translated(error, self.path) from error

    @contextlib.contextmanager
    def _operating(self) -> Iterator[None]:
        """Run the block while no fork is under way: the child could hang on SQLite's own locks."""
        with self._lock:
            while self._is_forking:
                self._changed.wait()
            self._under_way += 1
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                self._changed.notify_all()

    def before_fork(self) -> None:
        """Close every connection, once no thread is inside SQLite, and let none in.

        SQLite remembers which files a process has open and locked. A child inherits the memory and
        not the locks, and would write without any ("How To Corrupt An SQLite Database File", 2.6).
        """
        if self._is_open:
            self._write_waiting()
        with self._lock:
            self._is_forking = True
            while self._under_way:
                self._changed.wait()
            for loop_connection in self._by_loop.values():
                loop_connection.close_now()
            for connection in self._idle:
                connection.close()
            self._idle.clear()
            self._connections.clear()
            self._is_open = False

    def after_fork_in_parent(self) -> None:
        """Let operations begin again."""
        with self._lock:
            self._is_forking = False
            self._changed.notify_all()

    def _take(self) -> Connection:
        with self._lock:
            self._open()
            if self._idle:
                return self._idle.pop()
            connection = connect(str(self.path), self._write_lock)
            self._connections.add(connection)
            return connection

    def _put_back(self, connection: Connection) -> None:
        with self._lock:
            if connection in self._connections:
                self._idle.append(connection)
                return
        # It was in use during `close`.
        connection.close()

    async def run_async[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``operation(connection, *args, **kwargs)`` on the thread of this event loop.

        Raises
        ------
        StorageError
            As from `run`.
        """
        loop = asyncio.get_running_loop()
        try:
            while True:
                connection = self._by_loop.get(loop)
                if connection is not None and connection.is_running:
                    guarded = partial(self._guarded, operation)
                    return await connection.run(guarded, *args, **kwargs)
                await self._start(loop)
        except sqlite3.Error as error:
            raise translated(error, self.path) from error

    def _guarded[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        connection: Connection,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        with self._operating():
            if not connection.is_closed:
                return operation(connection, *args, **kwargs)
            # A fork has closed it while this waited for its turn.
            another = self._take()
            try:
                return operation(another, *args, **kwargs)
            finally:
                self._put_back(another)

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make a connection for `loop`; tasks that ask at once wait for the same one."""
        task = self._starting.get(loop)
        if task is None or task.done():
            task = self._starting[loop] = loop.create_task(self._start_connection(loop))
        try:
            await asyncio.shield(task)
        finally:
            if task.done() and self._starting.get(loop) is task:
                del self._starting[loop]

    async def _start_connection(self, loop: asyncio.AbstractEventLoop) -> None:
        # Those of loops that have been closed, and of this one if it was closed before a fork.
        for ended in [known for known in self._by_loop if known is loop or known.is_closed()]:
            await self._by_loop.pop(ended).close()
        # It may wait for another process that creates the file.
        await asyncio.to_thread(self._open)
        connection = self._take()
        loop_connection = LoopConnection(loop, connection)
        try:
            await loop_connection.start()
        except BaseException:
            self._put_back(connection)
            raise
        with self._lock:
            if connection in self._connections:
                # From here on it is the loop's, and `close` finds it there.
                self._connections.remove(connection)
                self._by_loop[loop] = loop_connection
                return
        # Closed in between: the caller starts another.
        await loop_connection.close()

    def close(self) -> None:
        """Write what waits and close every connection; the next operation opens the file again.

        The last process to close leaves no ``-wal`` and ``-shm`` behind.
        """
        if not self._is_open:
            return
        self._write_waiting()
        with self._lock:
            loop_connections = list(self._by_loop.values())
            idle = list(self._idle)
            self._by_loop.clear()
            self._idle.clear()
            self._connections.clear()
            self._is_open = False
        for loop_connection in loop_connections:
            loop_connection.end()
        for connection in idle:
            connection.close()
        with self._registry_lock:
            self._opened.discard(self)

    def after_fork_in_child(self) -> None:
        """Forget the threads, which are the parent's."""
        _left_to_the_parent.append((self._by_loop, self._starting))
        self._begin()
        for begin in self.after_fork:
            begin()

    def _write_waiting(self) -> None:
        for write in self.before_close:
            write()


class MemoryDatabase:
    """A database in memory, of this process alone."""

    def __init__(self) -> None:
        self.before_close: list[Callable[[], None]] = []
        self.after_fork: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._connection = connect(":memory:", threading.Lock())
        migrate.migrate(self._connection, application_id=APPLICATION_ID, scripts=migrate.scripts())
        self._clock = PersistentClock(floor_ns=0)
        self.is_open = True
        weakref.finalize(self, self._connection.close)

    def clock(self) -> PersistentClock:
        """The clock that stamps what is kept here."""
        return self._clock

    def run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``operation(connection, *args, **kwargs)`` in this thread."""
        with self._lock:
            return operation(self._connection, *args, **kwargs)

    async def run_async[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run the operation in this thread: nothing here waits for a disk."""
        return self.run(operation, *args, **kwargs)


_left_to_the_parent: list[object] = []


def _close_databases() -> None:
    for database in list(FileDatabase._opened):  # noqa: SLF001 - of this module
        database.close()


def _before_fork() -> None:
    for database in list(FileDatabase._by_path.values()):  # noqa: SLF001 - of this module
        database.before_fork()


def _after_fork_in_parent() -> None:
    for database in list(FileDatabase._by_path.values()):  # noqa: SLF001 - of this module
        database.after_fork_in_parent()


def _after_fork_in_child() -> None:
    FileDatabase._registry_lock = threading.Lock()  # noqa: SLF001 - of this module
    for database in list(FileDatabase._by_path.values()):  # noqa: SLF001 - of this module
        database.after_fork_in_child()
    FileDatabase._opened.clear()  # noqa: SLF001 - of this module


atexit.register(_close_databases)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
