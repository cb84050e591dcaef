"""Connections to a cache file: the only place that calls ``sqlite3.connect``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate

import aiosqlite

from zarr_cache import migrate
from zarr_cache.errors import ForeignFileError, NewerSchemaError, is_code

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

APPLICATION_ID = 0x5A43_4131
"""``PRAGMA application_id`` of our files: "ZCA1" in ASCII."""

PAGE_SIZE = 16 * 1024
"""Bytes of a page of a new file. See docs/decisions/0002."""

BUSY_TIMEOUT_SECONDS = 5.0
"""How long a statement waits for another connection's lock."""

MMAP_BYTES = 2**33
"""How much of the file is read through memory mapping. SQLite caps it at its own limit."""

# The log is written back into the file when it has grown to this length, and cut to it.
WAL_BYTES = 16 * 2**20

_PRAGMAS = f"""
PRAGMA trusted_schema = OFF;
PRAGMA synchronous = NORMAL;
PRAGMA secure_delete = OFF;
PRAGMA temp_store = MEMORY;
PRAGMA mmap_size = {MMAP_BYTES};
PRAGMA journal_size_limit = {WAL_BYTES};
PRAGMA wal_autocheckpoint = {WAL_BYTES // PAGE_SIZE};
"""


class Connection(sqlite3.Connection):
    """A connection whose transactions are blocks of code."""

    write_lock: threading.Lock
    is_closed = False

    def close(self) -> None:
        """Close the connection; closing it again does nothing."""
        self.is_closed = True
        super().close()

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Run the block as one write transaction; an exception rolls it back.

        The writers of this process take turns at a lock before they take turns at SQLite's: its
        busy handler polls, at up to 100 ms a turn.
        """
        with self.write_lock:
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
    def reading(self) -> Iterator[None]:
        """Let the statements of the block see one and the same state of the file."""
        self.execute("BEGIN")
        try:
            yield
        finally:
            self.execute("COMMIT")


def connect(database: str, write_lock: threading.Lock, *, uri: bool = False) -> Connection:
    """A connection in autocommit mode that any thread may use, one at a time.

    Parameters
    ----------
    database
        Path or, with `uri`, a ``file:`` URI (https://www.sqlite.org/uri.html).
    write_lock
        The lock that the writers of this process to this database share.
    """
    connection = sqlite3.connect(  # noqa: TID251 - this is the one place for it
        database,
        uri=uri,
        timeout=BUSY_TIMEOUT_SECONDS,
        autocommit=True,
        check_same_thread=False,
        factory=Connection,
    )
    connection.write_lock = write_lock
    try:
        connection.executescript(_PRAGMAS)
    except BaseException:
        connection.close()
        raise
    return connection


def create(path: Path, write_lock: threading.Lock) -> None:
    """Make sure that `path` is a cache file of the newest schema, in WAL mode.

    Several processes may do so at once. A file that is not ours is not written to.

    Raises
    ------
    ForeignFileError, NewerSchemaError
        The file is left byte for byte as it was.
    MigrationError
        The file still has the schema that it had.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        # Before SQLite does, which would give it the umask's mode: what is cached is its owner's.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    _refuse_foreign(path)
    connection = connect(str(path), write_lock)
    try:
        # Both hold only when set before the first page is written, and do nothing later.
        connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # The log first: a migration that dies leaves nothing behind that must be rolled back.
        _switch_to_wal(connection)
        migrate.migrate(connection, application_id=APPLICATION_ID, scripts=migrate.scripts())
        # Into the file itself, where the next to open it can look without the log.
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    finally:
        connection.close()


NOTHING = (0, 0, 0)
"""What `_identity` tells of an empty database."""


def _refuse_foreign(path: Path) -> None:
    """Raise unless the file is ours and of a schema that we know, or an empty database."""
    if path.is_dir():
        raise ForeignFileError(path, found="a folder")
    # Not by plain open(): closing it drops the locks that SQLite holds on the file in this process
    # ("How To Corrupt An SQLite Database File", 2.2).
    # First without the log and without locks, which leaves nothing beside somebody else's file.
    log = path.with_name(f"{path.name}-wal")
    # The log goes when another process is the last to close the file: then look again.
    with contextlib.suppress(sqlite3.DatabaseError, FileNotFoundError):
        identity = _identity(path, "immutable=1")
        _judge(path, *identity)
        if not (log.exists() and log.stat().st_size):
            return
        if identity == NOTHING:
            _judge(path, *_identity_of_copy(path, log))
            return
    # What is ours, or still empty, may be another thing with its log, or be written just now.
    try:
        identity = _identity(path, "mode=ro")
    except sqlite3.DatabaseError as error:
        if is_code(error, sqlite3.SQLITE_NOTADB):
            raise ForeignFileError(path, found="not an SQLite database") from error
        raise
    _judge(path, *identity)


def _identity_of_copy(path: Path, log: Path) -> tuple[int, int, int]:
    """As `_identity`, of a copy of the file with its log: SQLite writes beside what it reads.

    The file itself has nothing in it yet, and nothing in this process has it open.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        shutil.copyfile(path, copy)
        shutil.copyfile(log, copy.with_name(f"{path.name}-wal"))
        return _identity(copy, "mode=ro")


def _identity(path: Path, how: str) -> tuple[int, int, int]:
    """The application id, the schema version and the number of tables, views, and so on."""
    connection = sqlite3.connect(  # noqa: TID251 - without our pragmas, which would write
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        timeout=BUSY_TIMEOUT_SECONDS,
        autocommit=True,
    )
    try:
        # All three of one state of the file: another process may be creating it.
        connection.execute("BEGIN")
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (count,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    finally:
        connection.close()
    return application_id, version, count


def _judge(path: Path, application_id: int, version: int, count: int) -> None:
    if (application_id, version, count) == NOTHING:
        return
    if application_id != APPLICATION_ID:
        raise ForeignFileError(
            path, found=f"an SQLite database with application_id {application_id:#x}"
        )
    if version > migrate.newest():
        raise NewerSchemaError(path, found=version, known=migrate.newest())


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


class LoopConnection(aiosqlite.Connection):
    """aiosqlite's connection for one event loop: runs whole operations on its thread.

    aiosqlite's own methods run a statement each, and tasks that share a connection would share a
    transaction. An operation is a function of the connection, run from beginning to end in one hop.

    Parameters
    ----------
    loop
        The loop whose tasks use it, and no other: then nothing is asked of a thread that has ended.
    connection
        What it runs operations on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        super().__init__(lambda: connection, iter_chunk_size=64)
        self._loop = loop
        self._sqlite_connection = connection
        self._is_ending = False
        # Otherwise a program that never closes a store never ends (aiosqlite#299).
        self._thread.daemon = True

    @property
    def is_running(self) -> bool:
        """Whether operations can be given to it."""
        return self._running and self._thread.is_alive() and not self._is_ending

    async def start(self) -> None:
        """Start the thread; a cancellation leaves nothing behind."""
        try:
            await self
        except BaseException:
            # aiosqlite has told the thread to end. It must not outlive the loop, see `run`.
            self._thread.join()
            raise

    async def close(self) -> None:
        """Close the connection when what was given to it has run, and end its thread."""
        self._is_ending = True
        if self._thread.is_alive():
            await super().close()

    def close_now(self) -> None:
        """Close the connection, on which nothing runs; its thread ends with `close`."""
        self._is_ending = True
        self._sqlite_connection.close()

    async def run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``operation(connection, *args, **kwargs)`` on the connection's thread.

        It runs to its end even when the task that asked for it is cancelled.
        """
        try:
            result: T = await self._on_thread(operation, self._conn, *args, **kwargs)
        except asyncio.CancelledError:
            # aiosqlite's thread hands each result to the loop that asked, and dies if that loop is
            # closed by then: leave only after the thread is done with what we gave it.
            await self._on_thread(int)
            raise
        return result

    async def _on_thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await self._execute(function, *args, **kwargs)  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Close the connection and end its thread, from whatever thread this is called."""
        if not self._thread.is_alive():
            return
        if _running_loop() is self._loop:
            self.stop()
            self._thread.join()
        elif self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self.close(), self._loop).result(BUSY_TIMEOUT_SECONDS)
        elif _running_loop() is None:
            asyncio.run(self.close())
        else:
            thread = threading.Thread(target=lambda: asyncio.run(self.close()))
            thread.start()
            thread.join()


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
