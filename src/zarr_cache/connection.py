"""Connections to a cache file: the only place that opens one to work on it."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import threading
import time
from typing import TYPE_CHECKING

from zarr_cache import migrate, schema
from zarr_cache.aside import drop_orphans, has_orphans
from zarr_cache.cache_file import (
    BUSY_TIMEOUT_SECONDS,
    locked_folder,
    log_of,
    shared_memory_of,
    state_of,
)
from zarr_cache.data_file import IS_SUPPORTED, DataFile, remove_orphan
from zarr_cache.errors import FileLockedError, StorageError, is_code
from zarr_cache.network import refuse_network
from zarr_cache.owner import APPLICATION_ID, refuse_foreign
from zarr_cache.sizes import parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zarr_cache.cache_file import State

OLDEST_SQLITE = (3, 40)
"""An older one may take the schema of a file for damage."""

PAGE_SIZE = 4 * 1024
"""Bytes of a page of a new file: rows are small. See docs/decisions/0013."""


def mmap_bytes() -> int:
    """What the environment says, or nothing.

    Raises
    ------
    ValueError
        It says no size.
    """
    named = os.environ.get("ZARR_CACHE_MMAP_BYTES")
    try:
        return parse_size(named) if named else 0
    except ValueError as error:
        raise ValueError(f"ZARR_CACHE_MMAP_BYTES: {error}") from error


MMAP_BYTES = mmap_bytes()
"""How much of the file is read through memory mapping. SQLite caps it at its own limit.
See docs/decisions/0010.
"""

WAL_BYTES = 4 * 2**20
"""The log is written back into the file when it has grown to this length, and cut to it."""

LONG_WAL_BYTES = 8 * 2**20
"""From this length on, what would be written waits until the log can be begun anew. While somebody
who reads keeps it so long, nothing is written."""

MOST_WAL_BYTES = LONG_WAL_BYTES + WAL_BYTES + 2**19
"""The log is no longer than this: one transaction, of some small values and rows, more."""

MOST_ROW_BYTES = 64 * 2**20
"""Longer than any row: a part of a value, or a key, and some numbers."""

CHECKPOINT_SECONDS = 2.0
"""How long is waited for readers, so that the log can be begun anew."""

CHECKPOINT_TURN_SECONDS = 0.2
"""How long of this at a time: meanwhile nobody else can write."""

_PRAGMAS = f"""
PRAGMA trusted_schema = OFF;
PRAGMA synchronous = NORMAL;
PRAGMA secure_delete = OFF;
PRAGMA temp_store = MEMORY;
PRAGMA mmap_size = {MMAP_BYTES};
PRAGMA journal_size_limit = {WAL_BYTES};
PRAGMA wal_autocheckpoint = {WAL_BYTES // PAGE_SIZE};
"""


class Turns:
    """Where the writers of a process to one database take turns.

    SQLite's busy handler polls, at up to 100 ms a turn; this does not.

    Attributes
    ----------
    not_before
        Time of ``time.monotonic`` before which nobody waits again for a long log to be begun anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locked_out = 0
        self.not_before = 0.0

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Run the block while no other thread of this process does.

        Raises
        ------
        sqlite3.OperationalError
            With ``SQLITE_BUSY``: the one before found the file locked by another process, for as
            long as anybody waits. Who queued behind it does not wait as long once more.
        """
        locked_out = self._locked_out
        with self._lock:
            if self._locked_out != locked_out:
                locked = sqlite3.OperationalError("database is locked")
                locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise locked
            try:
                yield
            except sqlite3.OperationalError as error:
                if is_code(error, sqlite3.SQLITE_BUSY):
                    self._locked_out += 1
                raise


class Connection(sqlite3.Connection):
    """A connection whose transactions are blocks of code.

    Attributes
    ----------
    data_file
        Where the bytes of large values are; None if they are in the database, or in another store.
    is_immutable
        Whether SQLite takes the file to stay as it is: it neither looks for a log nor reads a page
        again that it has read.
    """

    turns: Turns
    log: Path | None = None
    data_file: DataFile | None = None
    is_read_only = False
    is_immutable = False
    _state: State | None = None

    def is_outdated(self, path: Path, found: os.stat_result) -> bool:
        """Whether somebody has written to a file that was taken to stay as it is.

        Parameters
        ----------
        path, found
            The file, and what the system tells of it now.
        """
        return self.is_immutable and self._state != state_of(path, found)

    def take_to_stay(self, state: State) -> None:
        """Note what the file was before SQLite was told that it stays as it is."""
        self.is_immutable = True
        self._state = state

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Run the block as one write transaction; an exception rolls it back.

        However long the log is: for what somebody stores, and for what must end that was begun.
        """
        with self.turns.turn():
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
            except BaseException:
                # SQLite has already rolled back after some errors, a full disk for one.
                if self.in_transaction:
                    self.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def writing_much(self) -> Iterator[None]:
        """As `writing`, with a log that is not long when the transaction begins.

        Raises
        ------
        FileLockedError
            As `keep_log_short`.
        """
        while True:
            self.keep_log_short()
            with self.writing():
                # Others may have written since.
                if not self.has_long_log():
                    yield
                    return

    def has_long_log(self) -> bool:
        """Whether the log is longer than `LONG_WAL_BYTES`."""
        try:
            return self.log is not None and self.log.stat().st_size > LONG_WAL_BYTES
        except FileNotFoundError as error:
            # What is written to it from now on nobody else would see.
            raise deleted(self.log) from error

    def keep_log_short(self) -> None:
        """Write the log back and begin it anew, if it has become long.

        Raises
        ------
        FileLockedError
            Somebody has been reading for long and keeps it so.
        """
        if not self.has_long_log():
            return
        deadline = time.monotonic() + CHECKPOINT_SECONDS
        while not self._begin_log_anew():
            now = time.monotonic()
            if now > deadline:
                # Nor does everybody else wait for it in turn.
                self.turns.not_before = now + CHECKPOINT_SECONDS
            if now < self.turns.not_before:
                raise FileLockedError(
                    f"{self.log}: longer than {LONG_WAL_BYTES} bytes, and somebody who reads keeps "
                    "it from being written back; nothing is kept meanwhile"
                )
            # Somebody else is at it, and SQLite answers BUSY without asking the busy handler.
            time.sleep(0.002)
            if not self.has_long_log():
                return

    def _begin_log_anew(self) -> bool:
        """Write the log back and cut it; False if that cannot be had soon."""
        (timeout_ms,) = self.execute("PRAGMA busy_timeout").fetchone()
        with self.turns.turn():
            # It holds the write lock while it waits for readers.
            self.execute(f"PRAGMA busy_timeout = {CHECKPOINT_TURN_SECONDS * 1000:.0f}")
            try:
                (is_busy, *_) = self.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self.execute(f"PRAGMA busy_timeout = {timeout_ms}")
        return not is_busy

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Let the statements of the block see one and the same state of the file."""
        self.execute("BEGIN")
        try:
            yield
        finally:
            # SQLite has already rolled back after some errors, a damaged page for one.
            if self.in_transaction:
                self.execute("COMMIT")


def deleted(log: Path | None) -> sqlite3.OperationalError:
    """What SQLite has for a file that was moved, so that it is opened anew."""
    error = sqlite3.OperationalError(f"{log} was deleted while it was open")
    error.sqlite_errorcode = sqlite3.SQLITE_READONLY_DBMOVED
    return error


def connect(database: str, turns: Turns, *, uri: bool = False) -> Connection:
    """A connection in autocommit mode that any thread may use, one at a time.

    Parameters
    ----------
    database
        Path or, with `uri`, a ``file:`` URI (https://www.sqlite.org/uri.html).
    turns
        What the writers of this process to this database share.

    Raises
    ------
    StorageError
        SQLite is older than `OLDEST_SQLITE`.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise StorageError(
            f"{database}: not opened by the SQLite of this Python, {sqlite3.sqlite_version}: "
            f"{'.'.join(map(str, OLDEST_SQLITE))} or newer is needed, which the Python of uv, "
            "conda or python.org has"
        )
    connection = sqlite3.connect(  # noqa: TID251 - here, with our pragmas
        database,
        uri=uri,
        timeout=BUSY_TIMEOUT_SECONDS,
        autocommit=True,
        check_same_thread=False,
        factory=Connection,
    )
    connection.turns = turns
    # No row of ours is longer, and none that says so is read.
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_ROW_BYTES)
    try:
        connection.executescript(_PRAGMAS)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to(path: Path, turns: Turns) -> Connection:
    """Another connection to a file that has been opened."""
    connection = connect(str(path), turns)
    connection.log = log_of(path)
    return connection


def data_file(path: Path) -> DataFile | None:
    """The data file of the cache file; None where the system has none."""
    return DataFile(path) if IS_SUPPORTED else None


def open_file(path: Path, turns: Turns) -> Connection:
    """A connection to a cache file of the newest schema, which is made if there is none.

    Several processes may do so at once. A file that is not ours is not written to. What cannot be
    written to is opened for reading.

    Raises
    ------
    ForeignFileError, NewerSchemaError
        The file is left byte for byte as it was.
    HardLinkedFileError
        It has more than one name.
    FileDamagedError
        It is ours, and its header or its schema is damaged.
    MigrationError
        The file still has the schema that it had.
    NetworkFileSystemError
        SQLite's log does not work where the path is.
    """
    refuse_network(path)
    while True:
        with locked_folder(path, is_shared=True):
            if not has_orphans(path):
                return _open_as_it_may(path, turns)
        # Not while others open the file: what one of them has just made is no orphan.
        drop_orphans(path)


def _open_as_it_may(path: Path, turns: Turns) -> Connection:
    try:
        _make(path)
        refuse_foreign(path)
        _give_its_mode_to_its_log(path)
        return _open_newest(path, turns)
    except (sqlite3.OperationalError, OSError) as error:
        if not (_is_read_only(error) and path.is_file()):
            raise
        return reopen_read_only(path, turns)


def _make(path: Path) -> None:
    """Let there be a file, empty if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        # Before SQLite does, which would give it the umask's mode: what is cached is its owner's.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _give_its_mode_to_its_log(path: Path) -> None:
    """Let an empty log, and its index, have the mode of the file.

    SQLite gives what it makes beside the file the mode that the file has then. What was made while
    nothing could be written would keep everything from being written now.
    """
    with contextlib.suppress(FileNotFoundError, PermissionError):
        mode = stat.S_IMODE(path.stat().st_mode)
        if log_of(path).stat().st_size == 0:
            for beside in (log_of(path), shared_memory_of(path)):
                found = beside.lstat()
                if _is_our_file(found) and stat.S_IMODE(found.st_mode) != mode:
                    beside.chmod(mode)


def _is_our_file(found: os.stat_result) -> bool:
    """Whether it is a file, and this user's: in a shared folder others may have put it there."""
    is_ours = not hasattr(os, "geteuid") or found.st_uid == os.geteuid()
    return stat.S_ISREG(found.st_mode) and is_ours


def _open_newest(path: Path, turns: Turns) -> Connection:
    connection = connect_to(path, turns)
    try:
        schema.check_file(connection, path)
        if migrate.version(connection) < migrate.newest():
            # Both hold only when set before the first page is written, and do nothing later.
            connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            # The log first: a migration that dies leaves nothing that must be rolled back.
            _switch_to_wal(connection)
            migrate.migrate(connection, application_id=APPLICATION_ID, scripts=migrate.scripts())
            # Into the file itself, where the next to open it can look without the log.
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            remove_orphan(path, connection)
        else:
            _switch_to_wal(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def reopen_read_only(path: Path, turns: Turns) -> Connection:
    """A connection to a file of the newest schema that cannot be written to.

    Raises
    ------
    sqlite3.OperationalError
        It cannot be read either: it is being written to, or of an older schema.
    StorageError
        It is gone.
    """
    # Before it is opened: what somebody writes meanwhile is seen by the next operation.
    try:
        state = state_of(path, path.stat())
    except OSError as error:
        raise StorageError(f"{path}: {error}") from error
    try:
        return _open_read_only(path, "mode=ro", turns)
    except sqlite3.OperationalError as error:
        # Reading along with a log takes a file beside it. Without a log nobody writes, and the file
        # is read as it is.
        if not _is_read_only(error) or state.has_log:
            raise
    connection = _open_read_only(path, "immutable=1", turns)
    connection.take_to_stay(state)
    return connection


def _open_read_only(path: Path, how: str, turns: Turns) -> Connection:
    connection = connect(f"{path.as_uri()}?{how}", turns, uri=True)
    connection.data_file = data_file(path)
    connection.is_read_only = True
    try:
        schema.check_file(connection, path)
        if migrate.version(connection) == migrate.newest():
            return connection
    except BaseException:
        connection.close()
        raise
    connection.close()
    older = sqlite3.OperationalError("read-only, and of an older schema")
    older.sqlite_errorcode = sqlite3.SQLITE_READONLY
    raise older


def _is_read_only(error: sqlite3.OperationalError | OSError) -> bool:
    """Whether something cannot be written, rather than be read."""
    if isinstance(error, OSError):
        return error.errno in {errno.EROFS, errno.EACCES, errno.EPERM}
    codes = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM)
    return any(is_code(error, code) for code in codes)


def _switch_to_wal(connection: Connection) -> None:
    """Switch to write-ahead logging, which holds for the file from then on."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            # When two switch at once, SQLite answers BUSY without asking the busy handler.
            if not is_code(error, sqlite3.SQLITE_BUSY) or time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return
