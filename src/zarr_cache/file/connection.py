"""Connections to a cache file: their pragmas and their transactions."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from typing import TYPE_CHECKING

from zarr_cache.core.errors import FileLockedError, StorageError, is_code
from zarr_cache.core.sizes import parse_size
from zarr_cache.disk.data_file_opening import IS_SUPPORTED, DataFile
from zarr_cache.disk.paths import BUSY_TIMEOUT_SECONDS, locked_wal, wal_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

    from zarr_cache.disk.paths import State


logger = logging.getLogger(__name__)

OLDEST_SQLITE = (3, 40)
"""An older one may report the schema of a file as damage."""

NEEDED = (
    "Connection.autocommit",
    "Connection.blobopen",
    "Connection.setconfig",
    "Connection.setlimit",
    "SQLITE_BUSY",
    "SQLITE_CANTOPEN",
    "SQLITE_CONSTRAINT",
    "SQLITE_CORRUPT",
    "SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE",
    "SQLITE_ERROR",
    "SQLITE_FULL",
    "SQLITE_IOERR_CORRUPTFS",
    "SQLITE_IOERR_READ",
    "SQLITE_IOERR_SHORT_READ",
    "SQLITE_LIMIT_LENGTH",
    "SQLITE_LOCKED",
    "SQLITE_MISMATCH",
    "SQLITE_NOTADB",
    "SQLITE_READONLY",
    "SQLITE_READONLY_DBMOVED",
)
"""What is used of `sqlite3` that not every module in its place has, such as ``pysqlite3``."""

PAGE_SIZE = 4 * 1024
"""Bytes of a page of a new file: rows are small. See docs/decisions/0013."""


def mmap_bytes() -> int:
    """The value of ``$ZARR_CACHE_MMAP_BYTES``, or 0; a ValueError if it is no size."""
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
"""The WAL is written back into the file when it has grown to this length, and cut to it."""

LONG_WAL_BYTES = 8 * 2**20
"""From this length on, writes wait until the WAL can be truncated. While a reader keeps it so long,
nothing is written."""

MAX_WAL_BYTES = LONG_WAL_BYTES + WAL_BYTES + 2**19
"""The WAL is no longer than this: one transaction, of some small values and rows, more."""

MAX_ROW_BYTES = 64 * 2**20
"""Longer than any row: a part of a value, or a key, and some numbers."""

CHECKPOINT_SECONDS = 2.0
"""How long a writer waits for readers, so that the WAL can be truncated."""

CHECKPOINT_TURN_SECONDS = 0.2
"""How long of this at a time: meanwhile no other connection can write."""

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
    """Lets one thread of a process at a time write to a database.

    SQLite's busy handler polls, at intervals of up to 100 ms; this does not.

    Attributes
    ----------
    not_before
        Time of ``time.monotonic`` before which no thread waits again to truncate a long WAL.
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
            With ``SQLITE_BUSY``: the thread before has waited in vain for a lock of another
            process. The threads that queued behind it do not wait as long again.
        """
        locked_out = self._locked_out
        with self._lock:
            if self._locked_out != locked_out:
                locked = sqlite3.OperationalError("database is locked")
                locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
                raise locked
            try:
                yield
            except (sqlite3.OperationalError, FileLockedError) as error:
                if isinstance(error, FileLockedError) or is_code(error, sqlite3.SQLITE_BUSY):
                    self._locked_out += 1
                raise


class Connection(sqlite3.Connection):
    """A connection whose transactions are blocks of code.

    Attributes
    ----------
    data_file
        Where the bytes of large values are; None if they are in the database, or in another store.
    write_lock
        What the writers of this process to the database share.
    wal
        The write-ahead log of the file; None of a database in memory, or one only read.
    is_read_only
        Whether it was opened for reading only.
    assumed
        The state in which the file was when it was opened as immutable: SQLite then neither looks
        for a WAL nor reads a page again that it has read. None if it was not.
    """

    write_lock: WriteLock
    wal: Path | None = None
    data_file: DataFile | None = None
    is_read_only = False
    assumed: State | None = None

    @contextlib.contextmanager
    def as_only_writer(self) -> Iterator[None]:
        """Run the block while no other thread or process commits, or writes the WAL back.

        A commit that begins the WAL anew while another connection writes it back may damage the
        database: see docs/sqlite.md. SQLite writes it back after a commit, without its own lock.
        """
        with self.write_lock.acquire():
            if self.wal is None:
                yield
                return
            with locked_wal(self.wal):
                yield

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Run the block as one write transaction; an exception rolls it back.

        However long the WAL is: for values stored with SqliteStore, and for what must be finished.
        """
        with self.as_only_writer():
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
        """As `writing`, after `keep_wal_short`: the WAL is not long when the transaction begins."""
        while True:
            self.keep_wal_short()
            with self.writing():
                # Another connection may have written since.
                if not self.has_long_wal():
                    yield
                    return

    def has_long_wal(self) -> bool:
        """Whether the WAL is longer than `LONG_WAL_BYTES`."""
        try:
            return self.wal is not None and self.wal.stat().st_size > LONG_WAL_BYTES
        except FileNotFoundError as error:
            # No other process would see what is written to it from now on.
            raise deleted(self.wal) from error

    def keep_wal_short(self) -> None:
        """Write the WAL back and truncate it, if it has become long.

        Raises
        ------
        FileLockedError
            A reader has kept it long for `CHECKPOINT_SECONDS`.
        """
        if not self.has_long_wal():
            return
        deadline = time.monotonic() + CHECKPOINT_SECONDS
        while not self._truncate_wal():
            now = time.monotonic()
            if now > deadline:
                # Nor do the other threads wait for it one after another.
                self.write_lock.not_before = now + CHECKPOINT_SECONDS
            if now < self.write_lock.not_before:
                raise FileLockedError(
                    f"{self.wal}: longer than {LONG_WAL_BYTES} bytes, and a reader keeps it from "
                    "being written back; nothing is cached meanwhile"
                )
            # Another connection does it, and SQLite returns BUSY without calling the busy handler.
            time.sleep(0.002)
            if not self.has_long_wal():
                return

    def _truncate_wal(self) -> bool:
        """Write the WAL back and truncate it; False if readers prevent that."""
        (timeout_ms,) = self.execute("PRAGMA busy_timeout").fetchone()
        with self.as_only_writer():
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


def lacks(module: ModuleType) -> str | None:
    """What `module`, which was imported as ``sqlite3``, lacks, in words; None if nothing."""
    lacking = [name for name in NEEDED if not _has(module, name)] or _lacks_in_use(module)
    if lacking:
        its = getattr(module, "__file__", None) or "built in"
        return (
            f"the module {module.__name__} ({its}), which is imported as sqlite3, lacks "
            f"{', '.join(lacking)}; import zarr_cache before sys.modules['sqlite3'] is replaced, "
            "or do not replace it"
        )
    if module.sqlite_version_info < OLDEST_SQLITE:
        return (
            f"the SQLite of this Python is {module.sqlite_version}: "
            f"{'.'.join(map(str, OLDEST_SQLITE))} or newer is needed, which the Python of uv, "
            "conda or python.org has"
        )
    return None


def _has(module: ModuleType, name: str) -> bool:
    found: object = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is not None


def _lacks_in_use(module: ModuleType) -> list[str]:
    """What a connection lacks that is made as `connect` makes one."""
    try:
        with contextlib.closing(
            module.connect(
                ":memory:",
                uri=False,
                timeout=BUSY_TIMEOUT_SECONDS,
                autocommit=True,
                check_same_thread=False,
                factory=module.Connection,
            )
        ) as connection:
            connection.execute("no statement")
    except module.Error as error:
        # Without the code, a lock would be taken for damage.
        return [] if hasattr(error, "sqlite_errorcode") else ["Error.sqlite_errorcode"]
    except Exception as error:  # noqa: BLE001 - whatever it is, zarr_cache can be imported
        return [f"what a connection needs ({type(error).__name__}: {error})"]
    return ["errors"]


LACKS = lacks(sqlite3)
"""What the module lacks with which this process opens files; None if nothing."""

if LACKS is not None:
    logger.warning("no cache file can be opened, reads go to the source: %s", LACKS)


def refuse_unusable_module(database: object) -> None:
    """Raise unless the module that is imported as ``sqlite3`` has what is needed.

    Raises
    ------
    StorageError
        It names the module and what it lacks.
    """
    if LACKS is not None:
        raise StorageError(f"{database}: not opened: {LACKS}")


def deleted(wal: Path | None) -> sqlite3.OperationalError:
    """SQLite's error for a file that was moved, after which it is opened again."""
    error = sqlite3.OperationalError(f"{wal} was deleted while it was open")
    error.sqlite_errorcode = sqlite3.SQLITE_READONLY_DBMOVED
    return error


def connect(database: str, write_lock: WriteLock, *, uri: bool = False) -> Connection:
    """A connection in autocommit mode that any thread may use, one at a time.

    `database` is a path or, with `uri`, a ``file:`` URI (https://www.sqlite.org/uri.html).
    """
    refuse_unusable_module(database)
    connection = sqlite3.connect(  # noqa: TID251 - here, with our pragmas
        database,
        uri=uri,
        timeout=BUSY_TIMEOUT_SECONDS,
        autocommit=True,
        check_same_thread=False,
        factory=Connection,
    )
    connection.write_lock = write_lock
    # No row of ours is longer, whatever length a damaged one claims.
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_ROW_BYTES)
    try:
        connection.executescript(_PRAGMAS)
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to(path: Path, write_lock: WriteLock) -> Connection:
    """Another connection to a file that has been opened."""
    connection = connect(str(path), write_lock)
    connection.wal = wal_of(path)
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
            # When two switch at once, SQLite returns BUSY without calling the busy handler.
            if not is_code(error, sqlite3.SQLITE_BUSY) or time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            return
