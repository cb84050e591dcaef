"""A cache file in this process: what every store that names it shares."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Concatenate

from zarr_cache.core.clock import PersistentClock
from zarr_cache.core.errors import FAILURES, FileReadOnlyError, StorageError, is_unreadable
from zarr_cache.core.flow import in_thread
from zarr_cache.disk import descriptors
from zarr_cache.disk.paths import locked_folder
from zarr_cache.disk.presence import Change
from zarr_cache.file.connection import Connection, data_file
from zarr_cache.file.database import Database
from zarr_cache.file.forks import Registry, forking, uses
from zarr_cache.file.invalidation import Markers
from zarr_cache.file.loop_connections import LoopConnections
from zarr_cache.file.opening import OpenedFile
from zarr_cache.file.pool import ConnectionLease, ConnectionPool
from zarr_cache.file.quarantine import end_statements, quarantine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr_cache.core.errors import FileDamagedError


logger = logging.getLogger(__name__)


class FileDatabase(Database):
    """A cache file in this process. Opened at the first operation, and again after `close`.

    Get one from `of`, so that there is one for each file: two would not know of each other's range
    entries and timestamps.

    Attributes
    ----------
    registry
        The databases of this process.
    path
        The file, absolute and with symbolic links followed.
    """

    registry: ClassVar[Registry[FileDatabase]]

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._markers = markers = Markers(path)
        # Bound, which calls no further function: `is_marked` is called at each operation.
        self.is_marked, self.unmark = markers.is_marked, markers.unmark  # type: ignore[method-assign]
        self.marked_ns = markers.marked_ns  # type: ignore[method-assign]
        self._start_closed()

    def __str__(self) -> str:
        return str(self.path)

    def _start_closed(self) -> None:
        """Start without connections: at first, and in the child of a fork."""
        self._file = OpenedFile(self.path, data_file(self.path))
        self._pool = ConnectionPool(self._connect)
        self._loops = LoopConnections(self._pool, self._open, self._take)
        self._clock: PersistentClock | None = None
        self.last_use = 0

    @classmethod
    def of(cls, path: Path) -> FileDatabase:
        """The one database of this process for the file that `path` names."""
        return cls.registry.of(path.resolve(), cls)

    @property
    def is_open(self) -> bool:
        """Whether the file is open."""
        return self._pool.is_open

    def clock(self) -> PersistentClock:
        """The clock of the file, which begins at opening."""
        return self._clock or self._open()

    def _open(self) -> PersistentClock:
        with self._pool.lock:
            if self._clock is not None and self.is_open:
                return self._clock
            known = self._file.presence.file_id
            with self.registry.room_for(self, descriptors.OF_FIRST):
                connection, floor_ns = self._file.open()
                if self._clock is None:
                    self._clock = PersistentClock(floor_ns=floor_ns)
                else:
                    self._clock.restart(floor_ns=floor_ns)
                self.registry.add_opened(self)
                self._pool.open_with(connection)
            if known not in {None, self._file.presence.file_id}:
                # It was replaced while no connection was open, as after `release`.
                self._forget()
            how = " for reading only" if connection.is_read_only else ""
            logger.info("%s: opened%s", self.path, how)
            return self._clock

    def _connect(self, *, is_first: bool) -> Connection:
        count = descriptors.OF_FIRST if is_first else descriptors.OF_OTHERS
        with self.registry.room_for(self, count):
            return self._file.connect(is_first=is_first)

    def descriptors(self) -> int:
        """How many descriptors the connections and the data file hold at most."""
        return self._pool.descriptors

    def release(self) -> int:
        """Close the connections and the data file, unless an operation uses them.

        Returns how many descriptors are free by that. Never waits: the thread that uses the file
        may wait for the caller to open another one.
        """
        with self._pool.locked_if_unused() as is_unused:
            count = self._pool.descriptors if is_unused else 0
            if count:
                self._close_all()
                self._file.forget_data_file()
            return count

    def run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``operation(connection, *args, **kwargs)`` in this thread.

        If the file cannot be read, once more before it counts as damaged: a disk may fail for a
        moment.

        Raises
        ------
        StorageError
            SQLite refused; what the operation had written is rolled back.
        """
        is_reopened = is_repeated = False
        while True:
            lease = ConnectionLease()
            try:
                try:
                    return operation(self._take(lease), *args, **kwargs)
                finally:
                    lease.has_ended = True
                    self._pool.put_back(lease)
            except FAILURES as error:
                if is_reopened:
                    raise self._file.translated_again(error) from error
                if is_unreadable(error) and not is_repeated:
                    is_repeated = True
                    continue
                own = self._file.translated(error)
                if not isinstance(own, FileReadOnlyError):
                    raise own from error
            self._reopen()
            is_reopened = True

    def _reopen(self) -> None:
        """Open the file again after a write was refused: it may have been opened at a bad time."""
        with self._pool.lock:
            self._pool.wait_until_unused()
            # If one connection was opened for reading only, so were all others.
            self._close_all()
            self._open()

    def _take(self, lease: ConnectionLease) -> Connection:
        """A connection to the file that the path names now, which is opened if need be."""
        pool, self.last_use = self._pool, next(uses)
        with pool.lock:
            if pool.exclusive or forking.locked():
                pool.wait_for_turn()
            if pool.is_open:
                change = self._file.presence.change()
                if change is not None:
                    self._close_after(change)
            if not pool.is_open:
                self._open()
            return pool.take(lease)

    def _close_after(self, change: Change) -> None:
        """Close the connections to a file that has changed; the next operation opens it again."""
        if change in {Change.SHRUNK, Change.WRITTEN}:
            # What is mapped into memory beyond its end must not be touched. Mostly space was given
            # back; if the file was cut, SQLite will find out. And SQLite does not notice a write to
            # a file that was opened as immutable.
            self._close_unused()
            return
        # Before anything is closed: if the lock is not to be had, the next operation finds the
        # change again.
        self._pool.wait_until_unused()
        with locked_folder(self.path, is_shared=False):
            logger.warning("%s: %s; it is opened again", self.path, change.value)
            self._pool.checkpoint()
            self._close_all()
            with contextlib.suppress(OSError):
                self._file.drop_wal()
        self._forget()

    def _forget(self) -> None:
        for forget in self.after_loss:
            forget()

    def _close_unused(self) -> None:
        """Close the connections that nothing uses; one in use is closed when it is put back."""
        with self._pool.lock:
            for connection in self._pool.clear(self._loops.connections()):
                connection.close()

    def _close_all(self) -> None:
        """Close every connection, while no operation is under way."""
        self._loops.close_now()
        self._close_unused()

    def is_gone(self) -> bool:
        """Whether the path names no file."""
        return self._file.presence.is_gone()

    def mark(self, namespace: str) -> bool:
        """As `Markers.mark`; False, too, for a file that no process opens: it is not ours."""
        return not self._file.is_refused() and self._markers.mark(namespace)

    def note_stored(self) -> None:
        """Remember that a value is stored with SqliteStore: the file is not quarantined."""
        self._file.holds_stored = True

    def quarantine(self, error: FileDamagedError) -> Path | None:
        """Rename the damaged file, so that the next operation starts with an empty one.

        Returns
        -------
        Path or None
            Its name now; None if another process has quarantined it already.

        Raises
        ------
        CacheError
            It stays where it is: it is not ours any more, holds values that were stored with
            SqliteStore, or cannot be renamed.
        """
        with self._pool.lock:
            self._pool.wait_until_unused()
            if self._file.may_hold_stored():
                raise StorageError(
                    f"{error}; it holds values that were stored with SqliteStore and is left where "
                    f"it is; 'zarr-cache verify --repair -f {self.path}' makes another with them"
                )
            return self.quarantine_with_stored(error)

    def quarantine_with_stored(self, error: FileDamagedError) -> Path | None:
        """As `quarantine`, also a file with values that were stored with SqliteStore."""
        with self._pool.lock:
            try:
                self._pool.wait_until_unused()
                end_statements(error)
                self._close_all()
                quarantined = quarantine(self.path, error.file_id)
            except OSError as failure:
                raise StorageError(f"{error}; it cannot be renamed: {failure}") from failure
            if quarantined is not None:
                logger.warning("%s; it is now %s, and another is begun", error, quarantined)
                self._forget()
            return quarantined

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
        with self._pool.lock:
            self._pool.wait_until_unused()
            self._close_all()

    def after_fork_in_parent(self) -> None:
        """Let operations begin again."""
        self._pool.notify()

    def after_fork_in_child(self) -> None:
        """Forget the connections and the threads, which are the parent's."""
        self._loops.abandon()
        self._file.abandon()
        self._start_closed()
        for forget in self.after_fork:
            forget()

    async def run_async[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``operation(connection, *args, **kwargs)`` on the thread of this event loop."""
        loop = asyncio.get_running_loop()
        while True:
            mine = self._loops.get(loop)
            if mine is not None:
                on_thread = partial(self._run_on_thread, operation)
                return await mine.run(on_thread, *args, **kwargs)
            try:
                await self._loops.start(loop)
            except FAILURES as error:
                own = self._file.translated(error)
                if not (isinstance(own, FileReadOnlyError) or is_unreadable(error)):
                    raise own from error
                return await in_thread(partial(self.run, operation, *args, **kwargs))
            except RuntimeError:
                # No thread can be started. Better that the loop waits than that a read fails.
                return self.run(operation, *args, **kwargs)

    def _run_on_thread[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        connection: Connection,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """As `run`, with the connection of an event loop, on its thread."""
        pool, lease, is_usable, is_repeated = self._pool, ConnectionLease(), False, False
        self.last_use = next(uses)
        try:
            with pool.lock:
                pool.wait_for_turn()
                if pool.is_open:
                    change = self._file.presence.change()
                    if change is not None:
                        self._close_after(change)
                is_usable = connection in pool.connections
                if is_usable:
                    pool.leases.add(lease)
            if is_usable:
                return operation(connection, *args, **kwargs)
        except FAILURES as error:
            own, is_repeated = self._file.translated(error), is_unreadable(error)
            if not (isinstance(own, FileReadOnlyError) or is_repeated):
                raise own from error
        finally:
            lease.has_ended = True
            with pool.lock:
                pool.put_back(lease)
                if connection in pool.connections and connection.in_transaction:
                    # As in `put_back`.
                    pool.discard(connection)
        # Closed, or of a file that is gone, while this waited for its turn; or for reading only.
        if is_usable and not is_repeated:
            self._reopen()
        return self.run(operation, *args, **kwargs)

    def close(self) -> None:
        """Write what waits and close every connection; the next operation opens the file again.

        The last process to close leaves no ``-wal`` and ``-shm`` behind. If the file was deleted,
        what waits is dropped.
        """
        if not self.is_open and self not in self.registry.opened:
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
            self.registry.discard_opened(self)

    def _close_connections(self) -> None:
        with self._pool.lock:
            self._file.forget_data_file()
            unused = self._pool.clear(self._loops.connections())
            loop_connections = self._loops.clear()
            # Not when all are closed: it may be open again by then.
            self.registry.discard_opened(self)
        for loop_connection in loop_connections:
            loop_connection.end()
        for connection in unused:
            connection.close()
        self._file.drop_wal_if_gone()


FileDatabase.registry = Registry()
