"""Opening a cache file: it is made, opened, opened for reading only, or refused."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING

from zarr_cache.core.clock import resumed_ns
from zarr_cache.core.errors import (
    FAILURES,
    CacheError,
    FileDamagedError,
    FileLockedError,
    FileNameTooLongError,
    FileReadOnlyError,
    ForeignFileError,
    MigrationError,
    NetworkFileSystemError,
    StorageError,
    translated_failure,
)
from zarr_cache.disk import paths
from zarr_cache.disk.data_file import READ_ONLY
from zarr_cache.disk.data_file_opening import remove_orphan
from zarr_cache.disk.location import refuse_location
from zarr_cache.disk.paths import is_writable, locked_folder, state_of
from zarr_cache.disk.presence import Presence
from zarr_cache.file import migrate, schema
from zarr_cache.file.connection import (
    WriteLock,
    connect,
    connect_to,
    data_file,
    deleted,
    prepare_new,
    switch_to_wal,
)
from zarr_cache.file.identity import APPLICATION_ID, refuse_foreign, refuse_foreign_beside
from zarr_cache.file.quarantine import (
    drop_orphans,
    drop_wal,
    finds_stored,
    has_orphans,
    holds_stored,
)

if TYPE_CHECKING:
    from pathlib import Path

    from zarr_cache.disk.data_file_opening import DataFile
    from zarr_cache.disk.paths import FileId
    from zarr_cache.file.connection import Connection


class OpenedFile:
    """The file at a path, as it was when it was last opened; makes the connections to it.

    Attributes
    ----------
    path, data_file
        The file, and that with the bytes of large values; None where the system has none.
    presence
        Notices that the path names another file by now.
    is_read_only
        Whether it was opened for reading only.
    holds_stored
        Whether it held values stored with SqliteStore when it was opened, or this process has
        stored some since: what counts if the file cannot be read any more.
    """

    def __init__(self, path: Path, data_file: DataFile | None) -> None:
        self.path = path
        self.data_file = data_file
        self.presence = Presence(path)
        self.is_read_only = False
        self._refusal: CacheError | None = None
        self._write_lock = WriteLock()
        self._wal: FileId | None = None
        self.holds_stored = False

    def open(self) -> tuple[Connection, int]:
        """The first connection to the file, and the time from which the file's clock continues."""
        try:
            # Before it is opened: if it is another by then, the next operation finds out.
            self.presence.remember(paths.file_id_of(self.path))
            written_ns = paths.written_ns(self.path)
            connection = open_file(self.path, self._write_lock)
            # The data file of an earlier file at this path is another.
            self.forget_data_file()
            if self.presence.file_id is None:
                self.presence.remember(paths.file_id_of(self.path))
            self._prepare(connection)
            resumes_at_ns = self._read_first(connection, written_ns)
        except (sqlite3.Error, UnicodeDecodeError, MemoryError) as error:
            raise self.translated(error) from error
        except OSError as error:
            raise StorageError(f"{self.path}: {error}") from error
        except MigrationError as error:
            raise MigrationError(f"{self.path}: {error}") from error
        except FileDamagedError as error:
            error.file_id = self.presence.file_id
            raise
        except (ForeignFileError, FileNameTooLongError, NetworkFileSystemError) as error:
            self._refusal = error
            raise
        except CacheError:
            raise
        except Exception as error:
            raise unforeseen(error, self.path) from error
        self._refusal, self.is_read_only = None, connection.is_read_only
        return connection, resumes_at_ns

    def is_refused(self) -> bool:
        """Whether no process opens the file: it is not ours, or cannot be where its path says."""
        if isinstance(self._refusal, NetworkFileSystemError):
            # Another process may be allowed to use it, if it is there.
            return not self.path.exists()
        return self._refusal is not None

    def _prepare(self, connection: Connection) -> None:
        connection.data_file = self.data_file
        if connection.assumed is not None:
            self.presence.expect(connection.assumed)

    def _read_first(self, connection: Connection, written_ns: int) -> int:
        """The time from which the file's clock continues. From this read on, the WAL exists."""
        try:
            self.holds_stored = holds_stored(connection)
            resumes_at_ns = floor_ns(connection, written_ns)
        except BaseException:
            connection.close()
            raise
        self._wal = paths.file_id_of(paths.wal_of(self.path))
        return resumes_at_ns

    def connect(self, *, is_first: bool) -> Connection:
        """Another connection to the file; `is_first` if all others have been closed meanwhile."""
        try:
            return self._connect(is_first=is_first)
        except (CacheError, *FAILURES):
            raise
        except Exception as error:
            raise unforeseen(error, self.path) from error

    def _connect(self, *, is_first: bool) -> Connection:
        if self.is_read_only:
            connection = open_read_only(self.path, self._write_lock)
        else:
            wal = paths.wal_of(self.path)
            if not (is_first or wal.exists()):
                # Beside connections that still have it SQLite makes no other.
                raise deleted(wal)
            connection = connect_to(self.path, self._write_lock)
        self._prepare(connection)
        return connection

    def translated(self, error: Exception) -> StorageError:
        """The error of this package for one of `FAILURES`, of an operation on the file."""
        return translated_failure(error, self.path, self.presence.file_id)

    def translated_again(self, error: Exception) -> StorageError:
        """As `translated`, of an operation that failed although the file was opened again for it.

        SQLite only reads a file of a write version that it does not know, and ours have none.
        """
        own = self.translated(error)
        is_refused = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY
        if is_refused and not self.is_read_only and is_writable(self.path):
            own = FileDamagedError(f"{self.path}: its header allows no writes")
            own.file_id = self.presence.file_id
        return own

    def may_hold_stored(self) -> bool:
        """Whether the file holds values stored with SqliteStore, as far as that can be known."""
        found = finds_stored(self.path, self._write_lock)
        return self.holds_stored if found is None else found

    def forget_data_file(self) -> None:
        """Open the data file again when it is next needed."""
        if self.data_file is not None:
            self.data_file.forget()

    def abandon(self) -> None:
        """Close the data file, in the child of a fork."""
        if self.data_file is not None:
            self.data_file.abandon()

    def drop_wal(self) -> None:
        """Remove the WAL of a file that is gone, in a `locked_folder`."""
        drop_wal(self.path, self._wal)

    def drop_wal_if_gone(self) -> None:
        """After the last connection was closed, remove the WAL if there is no file."""
        if self.presence.is_gone():
            # If the lock is not to be had, SQLite removes the WAL when a file is made beside it.
            with (
                contextlib.suppress(OSError, FileLockedError),
                locked_folder(self.path, is_shared=False),
            ):
                self.drop_wal()


def unforeseen(error: Exception, path: Path) -> StorageError:
    """The error of this package for whatever else is raised while a file is opened.

    A read that goes to the source is better than one that fails.
    """
    return StorageError(f"{path}: cannot be opened: {type(error).__name__}: {error}")


def open_file(path: Path, write_lock: WriteLock) -> Connection:
    """A connection to a cache file of the newest schema.

    A file that is absent is made. One that may be written to is opened, and one that may only be
    read is opened for reading. Anything else is refused, and not written to. Several processes may
    open a file at once.

    Raises
    ------
    MigrationError
        The file still has the schema that it had.
    StorageError
        SQLite is too old; or as `refuse_location`, `refuse_foreign`, `schema.check_file` and
        `open_read_only`.
    """
    refuse_location(path)
    # Before a file is made there, and before what SQLite has left without its file is removed.
    refuse_foreign_beside(path)
    while True:
        with locked_folder(path, is_shared=True):
            if not has_orphans(path):
                _make(path)
                refuse_foreign(path)
                if is_writable(path):
                    return _open_to_write(path, write_lock)
                return open_read_only(path, write_lock)
        # Not while another process opens the file: what that has just made is no orphan.
        drop_orphans(path)


def _make(path: Path) -> None:
    """Create the file, empty, unless there is one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            # Before SQLite does, which would give it the umask's mode: what is cached is its
            # owner's.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        raise StorageError(f"{path}: {error}; {paths.WAY_OUT}") from error


def _open_to_write(path: Path, write_lock: WriteLock) -> Connection:
    connection = connect_to(path, write_lock)
    try:
        schema.check_file(connection, path)
        if migrate.version(connection) < migrate.newest():
            prepare_new(connection)
            # The WAL first: a migration that dies leaves nothing that must be rolled back.
            switch_to_wal(connection)
            # From a first read on, there is a WAL that can be locked.
            migrate.version(connection)
            with connection.as_only_writer():
                migrate.migrate(
                    connection, application_id=APPLICATION_ID, scripts=migrate.scripts()
                )
                # Into the file itself, where the next process to open it can look without the WAL.
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            remove_orphan(path, connection)
        else:
            switch_to_wal(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def open_read_only(path: Path, write_lock: WriteLock) -> Connection:
    """A connection to a file of the newest schema that is not to be written to.

    Raises
    ------
    FileReadOnlyError
        It is of an older schema.
    sqlite3.OperationalError
        It has a WAL, beside which SQLite cannot make the shared memory.
    StorageError
        It is gone.
    """
    # Before it is opened: a write by another process meanwhile is noticed by the next operation.
    try:
        state = state_of(path, path.stat())
    except OSError as error:
        raise StorageError(f"{path}: {error}") from error
    # To read with a WAL, SQLite needs the shared memory beside it. Without a WAL no process writes,
    # and the file is read as it is.
    how = "mode=ro" if state.has_wal else "immutable=1"
    connection = connect(f"{path.as_uri()}?{how}", write_lock, uri=True)
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
    connection.assumed = None if state.has_wal else state
    return connection


# Along the index entry_by_use. No other timestamp is newer: an entry is used when it is stored.
# A timestamp from which the clock could not count on, beyond the year 2100, is not one of ours.
NEWEST = """
SELECT coalesce(max(used_at), 0)
FROM (
    SELECT max(used_at) AS used_at FROM entry WHERE ordered_as = 'stored' AND used_at < 1 << 62
    UNION ALL
    SELECT max(used_at) FROM entry WHERE ordered_as = 'value' AND used_at < 1 << 62
    UNION ALL
    SELECT max(used_at) FROM entry WHERE ordered_as = 'absent' AND used_at < 1 << 62
    UNION ALL
    SELECT max(used_at) FROM entry WHERE ordered_as = 'tombstone' AND used_at < 1 << 62
)
"""


def floor_ns(connection: sqlite3.Connection, written_ns: int) -> int:
    """The earliest time from which a clock of the file may continue.

    `written_ns` is `paths.written_ns` of the file, from before it was opened.
    """
    (newest_ns,) = connection.execute(NEWEST).fetchone()
    return resumed_ns(newest_ns, written_ns)
