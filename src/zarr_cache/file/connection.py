"""Connections to a cache file: their pragmas and their transactions."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

from zarr_cache.core.errors import FileLockedError, StorageError, is_code
from zarr_cache.core.sizes import parse_size
from zarr_cache.disk.data_file import IS_SUPPORTED, DataFile
from zarr_cache.disk.paths import BUSY_TIMEOUT_SECONDS, state_of, wal_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zarr_cache.disk.paths import State


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


MAX_WAL_BYTES = LONG_WAL_BYTES + WAL_BYTES + 2**19


"""The log is no longer than this: one transaction, of some small values and rows, more."""


MAX_ROW_BYTES = 64 * 2**20


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


class WriteLock:
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
    def acquire(self) -> Iterator[None]:
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

    turns: WriteLock
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
        with self.turns.acquire():
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
            As `keep_wal_short`.
        """
        while True:
            self.keep_wal_short()
            with self.writing():
                # Others may have written since.
                if not self.has_long_wal():
                    yield
                    return

    def has_long_wal(self) -> bool:
        """Whether the log is longer than `LONG_WAL_BYTES`."""
        try:
            return self.log is not None and self.log.stat().st_size > LONG_WAL_BYTES
        except FileNotFoundError as error:
            # What is written to it from now on nobody else would see.
            raise deleted(self.log) from error

    def keep_wal_short(self) -> None:
        """Write the log back and begin it anew, if it has become long.

        Raises
        ------
        FileLockedError
            Somebody has been reading for long and keeps it so.
        """
        if not self.has_long_wal():
            return
        deadline = time.monotonic() + CHECKPOINT_SECONDS
        while not self._truncate_wal():
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
            if not self.has_long_wal():
                return

    def _truncate_wal(self) -> bool:
        """Write the log back and cut it; False if that cannot be had soon."""
        (timeout_ms,) = self.execute("PRAGMA busy_timeout").fetchone()
        with self.turns.acquire():
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


def connect(database: str, turns: WriteLock, *, uri: bool = False) -> Connection:
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
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
    try:
        connection.executescript(_PRAGMAS)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to(path: Path, turns: WriteLock) -> Connection:
    """Another connection to a file that has been opened."""
    connection = connect(str(path), turns)
    connection.log = wal_of(path)
    return connection


def data_file(path: Path) -> DataFile | None:
    """The data file of the cache file; None where the system has none."""
    return DataFile(path) if IS_SUPPORTED else None


def prepare_new(connection: Connection) -> None:
    """Set what holds only if it is set before the first page of a file is written."""
    connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")


def switch_to_wal(connection: Connection) -> None:
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
