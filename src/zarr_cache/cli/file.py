"""The cache file of a command: its path, and opening it to read or to write."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from typing import TYPE_CHECKING

from zarr_cache.cache.sqlite_store import SqliteStore
from zarr_cache.cli.terminal import fail
from zarr_cache.core.errors import CacheError, translated
from zarr_cache.disk import paths
from zarr_cache.disk.location import refuse_location
from zarr_cache.disk.paths import default_path, expanded
from zarr_cache.file import migrate, schema
from zarr_cache.file.connection import WriteLock, connect, data_file
from zarr_cache.file.identity import refuse_foreign
from zarr_cache.file.opening import open_read_only

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zarr_cache.file.connection import Connection


def named_or_default(path: Path | None) -> Path:
    """The named file, or the user's own; exits with 1 if no folder for that is known."""
    try:
        return default_path() if path is None else expanded(path)
    except CacheError as error:
        fail(str(error))


def existing(path: Path | None) -> Path:
    """The named file, or the user's own; exits with 1 if it does not exist.

    Only the commands that fill a cache create a file.
    """
    path = named_or_default(path).resolve()
    with errors_on_one_line(path):
        # exists() and is_file() return False for a folder that may not be entered.
        is_file = stat.S_ISREG(path.stat().st_mode)
    if not is_file:
        fail(f"{path}: not a file")
    return path


def size_of(path: Path) -> int:
    """Bytes of a file; 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


@contextlib.contextmanager
def errors_on_one_line(path: Path) -> Iterator[None]:
    """Run the block; an error of the file becomes one line on stderr and exit code 1."""
    try:
        yield
    except CacheError as error:
        fail(str(error))
    except sqlite3.Error as error:
        fail(str(translated(error, path)))
    except UnicodeEncodeError as error:
        if error.encoding != "utf-8":
            raise  # from the terminal, not from an argument to SQLite
        fail(f"{path}: {error.object!a} is not UTF-8, so nothing is cached under it")
    except BrokenPipeError:
        # From printing in the block; typer exits quietly.
        raise
    except FileNotFoundError:
        fail(f"{path}: no such file")
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")


@contextlib.contextmanager
def opened_to_read(path: Path) -> Iterator[Connection]:
    """A connection that writes nothing: it creates and migrates no file and writes no WAL back.

    An error, also of the block, becomes one line on stderr and exit code 1.
    """
    with errors_on_one_line(path):
        refuse_location(path)
        refuse_foreign(path)
        is_writable = paths.is_writable(path)
        connected = _connect(path) if is_writable else open_read_only(path, WriteLock())
        with contextlib.closing(connected) as connection:
            yield connection


def _connect(path: Path) -> Connection:
    is_in_use = paths.wal_of(path).exists()
    # Not mode=ro: such a connection may not remove the -wal and -shm that it creates.
    connection = connect(f"{path.as_uri()}?mode=rw", WriteLock(), uri=True)
    connection.data_file = data_file(path)
    try:
        connection.execute("PRAGMA query_only = ON")
        if is_in_use:
            # The WAL is of a process that has the file open or that died: leave it as it is.
            connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
        _refuse_older(connection, path)
        schema.check_file(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_older(connection: Connection, path: Path) -> None:
    found = migrate.version(connection)
    if found == 0:
        raise CacheError(f"{path}: an empty database: nothing was ever cached in it")
    if found < migrate.newest():
        raise CacheError(
            f"{path}: schema {found} is older than {migrate.newest()}; "
            "`zarr-cache compact` migrates the file"
        )


@contextlib.contextmanager
def opened_to_write(path: Path) -> Iterator[SqliteStore]:
    """The existing file as a `SqliteStore`, which is closed afterwards.

    An error, also of the block, becomes one line on stderr and exit code 1.
    """
    with errors_on_one_line(path):
        if path.stat().st_size == 0 and not size_of(paths.wal_of(path)):
            # Opening an empty file would make it a cache file.
            raise CacheError(f"{path}: an empty file: nothing was ever cached in it")
        store = SqliteStore(path)
        with contextlib.closing(store):
            yield store
