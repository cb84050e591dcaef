"""Opening a cache file: it is made, opened, opened for reading only, or refused."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from zarr_cache.core.clock import resumed_ns
from zarr_cache.core.errors import FileReadOnlyError, StorageError
from zarr_cache.disk.data_file import remove_orphan
from zarr_cache.disk.network import refuse_network
from zarr_cache.disk.paths import is_writable, locked_folder, state_of
from zarr_cache.file import migrate, schema
from zarr_cache.file.connection import connect, connect_to, data_file, prepare_new, switch_to_wal
from zarr_cache.file.identity import APPLICATION_ID, refuse_foreign
from zarr_cache.file.quarantine import drop_orphans, has_orphans

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from zarr_cache.file.connection import Connection, WriteLock


def open_file(path: Path, turns: WriteLock) -> Connection:
    """A connection to a cache file of the newest schema.

    A file that is absent is made. One that may be written to is opened, and one that may only be
    read is opened for reading. Anything else is refused, and not written to. Several processes may
    open a file at once.

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
    FileReadOnlyError
        As `open_read_only`.
    """
    refuse_network(path)
    while True:
        with locked_folder(path, is_shared=True):
            if not has_orphans(path):
                _make(path)
                refuse_foreign(path)
                if is_writable(path):
                    return _open_to_write(path, turns)
                return open_read_only(path, turns)
        # Not while others open the file: what one of them has just made is no orphan.
        drop_orphans(path)


def _make(path: Path) -> None:
    """Let there be a file, empty if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        # Before SQLite does, which would give it the umask's mode: what is cached is its owner's.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _open_to_write(path: Path, turns: WriteLock) -> Connection:
    connection = connect_to(path, turns)
    try:
        schema.check_file(connection, path)
        if migrate.version(connection) < migrate.newest():
            prepare_new(connection)
            # The log first: a migration that dies leaves nothing that must be rolled back.
            switch_to_wal(connection)
            migrate.migrate(connection, application_id=APPLICATION_ID, scripts=migrate.scripts())
            # Into the file itself, where the next to open it can look without the log.
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            remove_orphan(path, connection)
        else:
            switch_to_wal(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def open_read_only(path: Path, turns: WriteLock) -> Connection:
    """A connection to a file of the newest schema that is not to be written to.

    Raises
    ------
    FileReadOnlyError
        It is of an older schema.
    sqlite3.OperationalError
        It has a log, beside which SQLite cannot make the shared memory.
    StorageError
        It is gone.
    """
    # Before it is opened: what somebody writes meanwhile is seen by the next operation.
    try:
        state = state_of(path, path.stat())
    except OSError as error:
        raise StorageError(f"{path}: {error}") from error
    # To read along with a log SQLite needs the shared memory beside it. Without a log nobody
    # writes, and the file is read as it is.
    how = "mode=ro" if state.has_log else "immutable=1"
    connection = connect(f"{path.as_uri()}?{how}", turns, uri=True)
    try:
        schema.check_file(connection, path)
        found = migrate.version(connection)
    except BaseException:
        connection.close()
        raise
    if found < migrate.newest():
        connection.close()
        raise FileReadOnlyError(
            f"{path}: schema {found} is older than {migrate.newest()}, and the file cannot be "
            "written to; make it writable, or name another file"
        )
    connection.data_file = data_file(path)
    connection.is_read_only = True
    if not state.has_log:
        connection.take_to_stay(state)
    return connection


# Along the index entry_by_use. No other stamp is newer: what is stored is used at that time.
# A stamp from which the clock could not count on, far beyond the year 2100, is not one of ours.
NEWEST = """
SELECT coalesce(max(used_at), 0)
FROM (
    SELECT max(used_at) AS used_at FROM entry WHERE kind = 'stored' AND used_at < 1 << 62
    UNION ALL
    SELECT max(used_at) FROM entry WHERE kind = 'value' AND used_at < 1 << 62
    UNION ALL
    SELECT max(used_at) FROM entry WHERE kind = 'absent' AND used_at < 1 << 62
    UNION ALL
    SELECT max(used_at) FROM entry WHERE kind = 'tombstone' AND used_at < 1 << 62
)
"""


def floor_ns(connection: sqlite3.Connection, written_ns: int) -> int:
    """The time that a clock of the file begins with, at least.

    Parameters
    ----------
    written_ns
        When the file was last written, see `cache_file.written_ns`; from before it was opened.
    """
    (newest_ns,) = connection.execute(NEWEST).fetchone()
    return resumed_ns(newest_ns, written_ns)
