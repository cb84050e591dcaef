"""A cache file in this process: its connections, shared by every store that names it."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import multiprocessing
import os
import sqlite3
import threading
import weakref
from functools import partial
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, ClassVar, Concatenate

from zarr_cache.core.clock import PersistentClock
from zarr_cache.core.errors import (
    FileDamagedError,
    FileLockedError,
    FileReadOnlyError,
    ForeignFileError,
    MigrationError,
    NetworkFileSystemError,
    OutOfMemoryError,
    StorageError,
    UnstorableKeyError,
    translated,
)
from zarr_cache.core.flow import in_thread
from zarr_cache.disk import paths
from zarr_cache.file import invalidation, opening
from zarr_cache.file.connection import (
    Connection,
    WriteLock,
    connect,
    connect_to,
    data_file,
    deleted,
)
from zarr_cache.file.opening import open_file, open_read_only
from zarr_cache.file.pool import LoopConnection
from zarr_cache.file.quarantine import drop_wal, quarantine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr_cache.disk.paths import FileId


logger = logging.getLogger(__name__)


# Somebody's data, which is not set aside with what is only kept.
STORED_ENTRIES = """
SELECT 1
FROM total
WHERE kind = 'stored' AND entries > 0
"""


# The same without any index. Walks all entries.
STORED_ROW = """
SELECT 1
FROM entry NOT INDEXED
WHERE kind = 'stored'
LIMIT 1
"""


FAILURES = (sqlite3.Error, MemoryError, UnicodeError, FileDamagedError)


"""What an operation raises when the file fails it. Python encodes keys, some of which are no text,
and decodes SQLite's messages, some of which tell bytes of a damaged schema that are none."""


RECHECK_SECONDS = 0.05


"""How often is looked whether an operation has ended: Ctrl-C may come before it is told."""


_forking = threading.Lock()


"""Held from before a fork until after it: no operation begins."""


class ConnectionLease:
    """An operation under way, and the connection it has taken out of those that are idle.

    Ctrl-C raises where a function begins, where a loop begins anew and after a call of what is
    written in C, and not between assignments: what must not come apart is assigned, not called.
    """

    __slots__ = ("connection", "has_ended")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.has_ended = False


class FileDatabase:
    """A cache file in this process. Opened at the first operation, and again after `close`.

    Get one from `of`, so that there is one for each file: two would not know of each other's range
    entries and stamps.

    Attributes
    ----------
    path
        The file, absolute and with symbolic links followed.
    data_file
        The bytes of large values, beside it; None where the system has none.
    is_open
        Whether the file is open.
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
        self.before_end: list[Callable[[], None]] = []
        self.before_pause: list[Callable[[], None]] = []
        self.after_fork: list[Callable[[], None]] = []
        self.after_loss: list[Callable[[], None]] = []
        self._name = str(path)
        self._marks: dict[str, str] = {}
        self.data_file = data_file(path)
        self._begin()

    def __str__(self) -> str:
        return self._name

    def _begin(self) -> None:
        """Start without connections: at first, and in the child of a fork."""
        self._lock = threading.RLock()
        # Operations under way, with those that have ended and are not put back, and who waits until
        # none is: no other begins then.
        self._under_way: set[ConnectionLease] = set()
        self._waiting: set[object] = set()
        self._changed = threading.Condition(self._lock)
        self._turns = WriteLock()
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._by_loop: dict[asyncio.AbstractEventLoop, LoopConnection] = {}
        self._starting: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}
        self._clock: PersistentClock | None = None
        self.is_open = False
        # What was opened: which file, how long it was when last looked at, and how.
        self._place: FileId | None = None
        self._size = 0
        self._log: FileId | None = None
        self._holds_stored = False
        self._is_read_only = self._is_refused = False

    @classmethod
    def of(cls, path: Path) -> FileDatabase:
        """The one database of this process for the file that `path` names."""
        path = path.resolve()
        with cls._registry_lock:
            database = cls._by_path.get(path)
            if database is None:
                database = cls._by_path[path] = cls(path)
            return database

    def clock(self) -> PersistentClock:
        """The clock of the file, which begins at opening.

        Raises
        ------
        ForeignFileError, NewerSchemaError, MigrationError, StorageError
            The file cannot be opened.
        """
        return self._clock or self._open()

    def _open(self) -> PersistentClock:
        with self._lock:
            if self._clock is not None and self.is_open:
                return self._clock
            try:
                # Before it is opened: if it is another by then, the next operation finds out.
                self._place = paths.file_id_of(self.path)
                written_ns = paths.written_ns(self.path)
                connection = open_file(self.path, self._turns)
                # That of a file which was in this place before is another.
                self._forget_data_file()
                connection.data_file = self.data_file
                self._place = self._place or paths.file_id_of(self.path)
                floor_ns = self._read_first(connection, written_ns)
            except (sqlite3.Error, UnicodeDecodeError, MemoryError) as error:
                raise self._translated(error) from error
            except OSError as error:
                raise StorageError(f"{self.path}: {error}") from error
            except MigrationError as error:
                raise MigrationError(f"{self.path}: {error}") from error
            except FileDamagedError as error:
                error.place = self._place
                raise
            except (ForeignFileError, NetworkFileSystemError):
                self._is_refused = True
                raise
            self._is_refused = False
            self._is_read_only = connection.is_read_only
            self._size = 0
            if self._clock is None:
                self._clock = PersistentClock(floor_ns=floor_ns)
            else:
                self._clock.begin_anew(floor_ns=floor_ns)
            self._remember()
            self._connections.add(connection)
            self._idle, self.is_open = [connection], True
            how = " for reading only" if self._is_read_only else ""
            logger.info("%s: opened%s", self.path, how)
            return self._clock

    def _forget_data_file(self) -> None:
        if self.data_file is not None:
            self.data_file.forget()

    def _read_first(self, connection: Connection, written_ns: int) -> int:
        """The time from which the file's clock goes on; from then on its log is there, too."""
        try:
            self._holds_stored = bool(connection.execute(STORED_ENTRIES).fetchone())
            floor_ns = opening.floor_ns(connection, written_ns)
        except BaseException:
            connection.close()
            raise
        self._log = paths.file_id_of(paths.wal_of(self.path))
        return floor_ns

    def _remember(self) -> None:
        """See to it that the file is closed at the end of the interpreter."""
        with self._registry_lock:
            if not self._opened and multiprocessing.parent_process() is not None:
                # A child that multiprocessing has forked ends without what atexit knows.
                Finalize(None, _close_databases, exitpriority=0)
            self._opened.add(self)

    def _connect(self) -> Connection:
        """Another connection to what is open."""
        if self._is_read_only:
            connection = open_read_only(self.path, self._turns)
        else:
            log = paths.wal_of(self.path)
            if self._connections and not log.exists():
                # Beside connections that still have it SQLite makes no other.
                raise deleted(log)
            connection = connect_to(self.path, self._turns)
        connection.data_file = self.data_file
        self._connections.add(connection)
        return connection

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
        use = ConnectionLease()
        try:
            try:
                return operation(self._take(use), *args, **kwargs)
            finally:
                use.has_ended = True
                self._put_back(use)
        except FAILURES as error:
            own = self._translated(error)
            if not isinstance(own, FileReadOnlyError):
                raise own from error
        return self._run_reopened(operation, *args, **kwargs)

    def _run_reopened[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """As `run`, after what could not be written to: it may have been opened at a bad time."""
        with self._lock:
            self._wait_until_unused()
            # What one connection found that it may not write, all others believe as well.
            self._close_all()
            self._open()
        use = ConnectionLease()
        try:
            try:
                return operation(self._take(use), *args, **kwargs)
            finally:
                use.has_ended = True
                self._put_back(use)
        except FAILURES as error:
            own = self._translated(error)
            if isinstance(own, FileReadOnlyError) and self._is_of_another_version(error):
                own = FileDamagedError(f"{self.path}: its header says that nothing may be written")
                own.place = self._place
            raise own from error

    def _is_of_another_version(self, error: Exception) -> bool:
        """Whether SQLite writes nothing although everything can be written to.

        It serves files of a write version that it does not know, and none of our files has one.
        """
        return (
            not self._is_read_only
            and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY
            and paths.is_writable(self.path)
        )

    def _translated(self, error: Exception) -> StorageError:
        """What one of `FAILURES` comes to."""
        if isinstance(error, MemoryError):
            return OutOfMemoryError(f"{self.path}: no memory for a value")
        if isinstance(error, UnicodeEncodeError):
            return UnstorableKeyError(
                f"{self.path}: {error.object!r} is no text that can be stored"
            )
        if isinstance(error, FileDamagedError):
            if error.place is not None:
                return error
            own: StorageError = FileDamagedError(f"{self.path}: {error}")
        elif isinstance(error, sqlite3.Error):
            own = translated(error, self.path)
        else:
            own = FileDamagedError(f"{self.path}: {error}")
        if isinstance(own, FileDamagedError):
            own.place = self._place
        return own

    def _take(self, use: ConnectionLease) -> Connection:
        """A connection for an operation. `_put_back` takes it again, once the use has ended."""
        with self._lock:
            # The child of a fork could hang on SQLite's own locks, and a file that is in use is not
            # set aside.
            while self._waiting or _forking.locked():
                self._changed.wait(RECHECK_SECONDS)
            if self.is_open:
                self._look_at_file()
            if not self.is_open:
                self._open()
            if not self._idle:
                # Ctrl-C may have come before they were put back.
                for ended in [each for each in self._under_way if each.has_ended]:
                    self._put_back(ended)
            self._under_way.add(use)
            if self._idle:
                # Nothing is called in between: it would be lost, or belong to two.
                use.connection = connection = self._idle[-1]
                del self._idle[-1]
            else:
                use.connection = connection = self._connect()
            return connection

    def _put_back(self, use: ConnectionLease) -> None:
        """Count the operation no more; whoever needs its connection does so if this cannot."""
        with self._lock:
            connection, use.connection = use.connection, None
            if connection is not None:
                # One in a transaction would see nothing new. The end of it may have failed, and
                # Ctrl-C may have come before it.
                if connection in self._connections and not connection.in_transaction:
                    self._idle.append(connection)
                    connection = None
                else:
                    self._connections.discard(connection)
            self._under_way.discard(use)
            if self._waiting:
                self._changed.notify_all()
        if connection is not None:
            # It was in use while the others were closed, or is in the middle of something.
            connection.close()

    def _look_at_file(self) -> None:
        """Forget the connections if the path names another file by now, or none."""
        try:
            now = os.stat(self._name)  # noqa: PTH116 - at every operation: a Path costs as much again
        except FileNotFoundError:
            self._lose("it was deleted while it was open")
            return
        except OSError as error:
            raise StorageError(f"{self.path}: {error}") from error
        if self._place != (now.st_dev, now.st_ino):
            self._lose("another file was put in its place while it was open")
            return
        size = now.st_size
        if size == 0 < self._size:
            self._lose("it was emptied while it was open")
            return
        if size < self._size:
            # What is mapped into memory beyond its end must not be touched. Mostly it has given
            # space back; if somebody has cut it, SQLite will find out.
            self._forget_connections()
        elif self._is_read_only and any(
            each.is_outdated(self.path, now) for each in self._connections
        ):
            # Somebody writes, or has written, and what was taken to stay as it is does not.
            self._forget_connections()
        self._size = size

    def is_gone(self) -> bool:
        """Whether the path names no file."""
        try:
            self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            pass  # it cannot be told; what opens the file says why
        return False

    def is_marked(self, namespace: str) -> bool:
        """Whether nobody is to believe what is kept of the namespace, see `marks.mark_of`."""
        name = self._marks.get(namespace)
        if name is None:
            name = self._marks[namespace] = str(invalidation.mark_of(self.path, namespace))
        # At each operation: it makes no exception where there is none, as a stat would.
        return os.access(name, os.F_OK)

    def mark(self, namespace: str) -> bool:
        """Tell every process that what is kept of the namespace is not to be believed.

        Returns
        -------
        bool
            Whether they are told. Not of what no process opens: a file that is not ours, or none.

        Raises
        ------
        StorageError
            They cannot be told.
        """
        if self._is_refused:
            return False
        try:
            invalidation.mark(self.path, namespace)
        except (FileNotFoundError, NotADirectoryError):
            return False  # without its folder there is no file
        except OSError as error:
            raise StorageError(f"{self.path}: {error}") from error
        return True

    def marked_ns(self, namespace: str) -> int | None:
        """Which mark it is; None if there is none.

        Raises
        ------
        StorageError
            It cannot be looked at.
        """
        try:
            return invalidation.marked_ns(self.path, namespace)
        except OSError as error:
            raise StorageError(f"{self.path}: {error}") from error

    def unmark(self, namespace: str, since_ns: int) -> None:
        """Remove this mark: what is kept of the namespace has been removed since.

        Raises
        ------
        StorageError
            It cannot be removed.
        """
        try:
            invalidation.unmark(self.path, namespace, since_ns)
        except OSError as error:
            raise StorageError(
                f"{self.path}: what says not to believe it cannot be removed: {error}"
            ) from error

    def _lose(self, why: str) -> None:
        # Before anything is forgotten: who does not get the lock finds the loss again.
        self._wait_until_unused()
        with paths.locked_folder(self.path, is_shared=False):
            logger.warning("%s: %s; it is opened anew", self.path, why)
            # What is in the log goes into the file that was, wherever that is now.
            for connection in self._idle:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self._close_all()
            with contextlib.suppress(OSError):
                drop_wal(self.path, self._log)
        for forget in self.after_loss:
            forget()

    def _forget_connections(self) -> None:
        """Close the connections that nobody uses, and leave the others to those who do."""
        with self._lock:
            for connection in self._forgotten():
                connection.close()

    def _forgotten(self) -> set[Connection]:
        """Have no connections any more; return those that nobody uses, which are to be closed."""
        under_way = {each for each in self._under_way if not each.has_ended}
        used = {each.connection for each in under_way}
        used |= {each.connection for each in self._by_loop.values()}
        # Not only the idle ones: Ctrl-C may have come before one was put back.
        unused = {each for each in self._connections if each not in used}
        none: set[Connection] = set()
        # Before they are closed: none that is closed may be taken.
        self._under_way, self._idle = under_way, []
        self._connections, self.is_open = none, False
        return unused

    def _close_all(self) -> None:
        """Close every connection, while no operation is under way."""
        for loop_connection in list(self._by_loop.values()):
            loop_connection.close_now()
        self._forget_connections()

    def quarantine(self, error: FileDamagedError) -> Path | None:
        """Set the damaged file aside, so that the next operation begins another.

        Returns
        -------
        Path or None
            Where it is now; None if somebody else has set it aside already.

        Raises
        ------
        CacheError
            It is left where it is: it is not ours any more, holds what somebody has stored in it,
            or cannot be renamed.
        """
        with self._lock:
            self._wait_until_unused()
            if self._may_hold_stored():
                raise StorageError(
                    f"{error}; it holds values that were stored with SqliteStore and is left where "
                    f"it is; 'zarr-cache verify --repair -f {self.path}' begins another with them"
                )
            return self.begin_anew(error)

    def begin_anew(self, error: FileDamagedError) -> Path | None:
        """As `quarantine`, also if the file holds what was stored in it: that is set aside, too.

        Returns
        -------
        Path or None
            As `quarantine`.

        Raises
        ------
        CacheError
            It is left where it is: it is not ours any more, or cannot be renamed.
        """
        with self._lock:
            try:
                self._wait_until_unused()
                self._close_all()
                aside = quarantine(self.path, error.place)
            except OSError as failure:
                raise StorageError(f"{error}; it cannot be set aside: {failure}") from failure
            if aside is not None:
                logger.warning("%s; it is now %s, and another is begun", error, aside)
                for forget in self.after_loss:
                    forget()
            return aside

    def _may_hold_stored(self) -> bool:
        """Whether the file holds values that somebody has stored, or did when it was opened."""
        try:
            with contextlib.closing(connect(self._name, self._turns)) as connection:
                with contextlib.suppress(sqlite3.DatabaseError, UnicodeDecodeError):
                    if connection.execute(STORED_ENTRIES).fetchone():
                        return True
                # That the total tells of none is not enough: it may be what is damaged.
                with contextlib.suppress(sqlite3.DatabaseError, UnicodeDecodeError):
                    return bool(connection.execute(STORED_ROW).fetchone())
        except FAILURES:
            pass  # too damaged to tell now
        return self._holds_stored

    def _wait_until_unused(self) -> None:
        """Wait until no operation is under way; none begins while the caller holds the lock."""
        mine = object()
        try:
            self._waiting.add(mine)
            while not all(each.has_ended for each in self._under_way):
                self._changed.wait(RECHECK_SECONDS)
        finally:
            self._waiting.discard(mine)
            self._changed.notify_all()

    def pause(self) -> None:
        """Write what waits, before a fork."""
        if self.is_open:
            for write in self.before_pause:
                write()

    def before_fork(self) -> None:
        """Close every connection, once no thread is inside SQLite.

        SQLite remembers which files a process has open and locked. A child inherits the memory and
        not the locks, and would write without any ("How To Corrupt An SQLite Database File", 2.6).
        """
        with self._lock:
            self._wait_until_unused()
            self._close_all()

    def after_fork_in_parent(self) -> None:
        """Tell those who wait that operations may begin again."""
        with self._lock:
            self._changed.notify_all()

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
        while True:
            mine = self._by_loop.get(loop)
            if mine and mine.is_running and mine.connection in self._connections:
                guarded = partial(self._guarded, operation)
                return await mine.run(guarded, *args, **kwargs)
            try:
                await self._start(loop)
            except FAILURES as error:
                own = self._translated(error)
                if not isinstance(own, FileReadOnlyError):
                    raise own from error
                return await in_thread(partial(self.run, operation, *args, **kwargs))
            except RuntimeError:
                # No thread can be started. Better that the loop waits than that a read fails.
                return self.run(operation, *args, **kwargs)

    def _guarded[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        connection: Connection,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        use, is_usable = ConnectionLease(), False
        try:
            with self._lock:
                while self._waiting or _forking.locked():
                    self._changed.wait(RECHECK_SECONDS)
                if self.is_open:
                    self._look_at_file()
                is_usable = connection in self._connections
                if is_usable:
                    self._under_way.add(use)
            if is_usable:
                return operation(connection, *args, **kwargs)
        except FAILURES as error:
            own = self._translated(error)
            if not isinstance(own, FileReadOnlyError):
                raise own from error
        finally:
            use.has_ended = True
            with self._lock:
                self._put_back(use)
                if connection in self._connections and connection.in_transaction:
                    # As in `_put_back`.
                    self._connections.discard(connection)
        if not is_usable:
            # Closed, or of a file that is gone, while this waited for its turn.
            return self.run(operation, *args, **kwargs)
        return self._run_reopened(operation, *args, **kwargs)

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make a connection for `loop`; tasks that ask at once wait for the same one."""
        task = self._starting.get(loop)
        if task is None or task.done():
            task = self._starting[loop] = loop.create_task(self._start_connection(loop))
            # Whoever waits for it may be cancelled.
            task.add_done_callback(partial(self._started, loop))
        await asyncio.shield(task)

    def _started(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
        if self._starting.get(loop) is task:
            del self._starting[loop]

    async def _start_connection(self, loop: asyncio.AbstractEventLoop) -> None:
        # Those of loops that have been closed, and of this one if its file is open no more.
        for ended in list(self._by_loop):
            if ended is loop or ended.is_closed():
                # Another loop that starts at the same time may have come before.
                its = self._by_loop.pop(ended, None)
                if its is not None:
                    with self._lock:
                        self._connections.discard(its.connection)
                    await its.close()
        # It may wait for another process that creates the file.
        await in_thread(self._open)
        use = ConnectionLease()
        try:
            connection = self._take(use)
            loop_connection = LoopConnection(loop, connection)
            with self._lock:
                # From here on it is the loop's, and whoever closes every connection finds it there.
                # It is not in use: this loop's own thread may wait until none is.
                self._by_loop[loop], use.connection = loop_connection, None
        finally:
            use.has_ended = True
            self._put_back(use)
        try:
            await loop_connection.start()
        except BaseException:
            with self._lock:
                self._connections.discard(connection)
            connection.close()
            raise
        if connection not in self._connections:
            # Closed in between: the caller starts another.
            await loop_connection.close()

    def close(self) -> None:
        """Write what waits and close every connection; the next operation opens the file again.

        The last process to close leaves no ``-wal`` and ``-shm`` behind. If the file was deleted,
        no other is begun for what waits.
        """
        if not self.is_open:
            return
        for write in self.before_close:
            write()
        self._close_connections()

    def end(self) -> None:
        """Close the file at the end of the interpreter."""
        for end in self.before_end:
            end()
        if self.is_open:
            self._close_connections()
        else:
            # It could not be opened again after it was lost.
            with self._registry_lock:
                self._opened.discard(self)

    def _close_connections(self) -> None:
        with self._lock:
            self._forget_data_file()
            loop_connections = list(self._by_loop.values())
            unused = self._forgotten()
            self._by_loop.clear()
            # Not when all are closed: it may be open again by then.
            with self._registry_lock:
                self._opened.discard(self)
        for loop_connection in loop_connections:
            loop_connection.end()
        for connection in unused:
            connection.close()
        if self.is_gone():
            # If the lock is not to be had, SQLite removes the log when a file is begun beside it.
            with (
                contextlib.suppress(OSError, FileLockedError),
                paths.locked_folder(self.path, is_shared=False),
            ):
                drop_wal(self.path, self._log)

    def after_fork_in_child(self) -> None:
        """Forget the threads, which are the parent's."""
        _left_to_the_parent.append((self._by_loop, self._starting))
        if self.data_file is not None:
            self.data_file.abandon()
        self.data_file = data_file(self.path)
        self._begin()
        for begin in self.after_fork:
            begin()


_left_to_the_parent: list[object] = []


def _close_databases() -> None:
    for database in list(FileDatabase._opened):  # noqa: SLF001 - of this module
        database.end()


def _before_fork() -> None:
    try:
        for database in list(FileDatabase._by_path.values()):  # noqa: SLF001 - of this module
            database.pause()
    finally:
        # Nothing that is raised here keeps the fork from being made.
        _forking.acquire()
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
    # Ctrl-C during the fork raises where the first function of Python begins after it.
    os.register_at_fork(
        before=_before_fork, after_in_parent=_forking.release, after_in_child=_forking.release
    )
    os.register_at_fork(after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
