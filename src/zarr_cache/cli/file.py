"""The cache file of a command: which it is, opened to be read or to be changed."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from typing import TYPE_CHECKING

from zarr_cache.cache.sqlite_store import SqliteStore
from zarr_cache.cli.terminal import fail
from zarr_cache.core.errors import CacheError, translated
from zarr_cache.disk import paths
from zarr_cache.disk.network import refuse_network
from zarr_cache.disk.paths import default_path
from zarr_cache.file import migrate, schema
from zarr_cache.file.connection import WriteLock, connect, data_file
from zarr_cache.file.identity import refuse_foreign
from zarr_cache.file.opening import open_read_only

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zarr_cache.file.connection import Connection


def existing(path: Path | None) -> Path:
    """The file that is named, or else the user's own; no command but those that fill it makes one.

    Ends the command if there is no such file.
    """
    named = default_path() if path is None else path
    try:
        path = named.expanduser().resolve()
    except RuntimeError as error:
        fail(f"{named}: {error}")
    with told_on_one_line(path):
        # Neither exists() nor is_file(): they tell nothing of a folder that may not be entered.
        is_file = stat.S_ISREG(path.stat().st_mode)
    if not is_file:
        fail(f"{path}: not a file")
    return path


def wal_bytes(path: Path) -> int:
    """Bytes of the log of the file; 0 if it has none."""
    log = paths.wal_of(path)
    return log.stat().st_size if log.exists() else 0


def data_bytes(path: Path) -> int:
    """Bytes of the data file of the file; 0 if it has none."""
    data = paths.data_file_of(path)
    return data.stat().st_size if data.exists() else 0


@contextlib.contextmanager
def told_on_one_line(path: Path) -> Iterator[None]:
    """Run the block, and end the command with one line if the file cannot be worked on."""
    try:
        yield
    except CacheError as error:
        fail(str(error))
    except sqlite3.Error as error:
        fail(str(translated(error, path)))
    except UnicodeEncodeError as error:
        if error.encoding != "utf-8":
            raise  # of the terminal, not of an argument to SQLite
        fail(f"{path}: {error.object!a} is not UTF-8, so nothing is kept under it")
    except BrokenPipeError:
        # Of what is printed meanwhile; typer ends quietly.
        raise
    except FileNotFoundError:
        fail(f"{path}: no such file")
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")


@contextlib.contextmanager
def opened_to_read(path: Path) -> Iterator[Connection]:
    """A connection that writes nothing: no file is made, none is migrated, no log is written back.

    Ends the command with one line if that fails, or if the block does.
    """
    with told_on_one_line(path):
        refuse_network(path)
        refuse_foreign(path)
        is_writable = paths.is_writable(path)
        connected = _connect(path) if is_writable else open_read_only(path, WriteLock())
        with contextlib.closing(connected) as connection:
            yield connection


def _connect(path: Path) -> Connection:
    is_in_use = paths.wal_of(path).exists()
    # Not mode=ro: whoever reads so is not allowed to take away the files that a log needs.
    connection = connect(f"{path.as_uri()}?mode=rw", WriteLock(), uri=True)
    connection.data_file = data_file(path)
    try:
        connection.execute("PRAGMA query_only = ON")
        if is_in_use:
            # Of a process that has the file open, or that died: it is not for us to write back.
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
        raise CacheError(f"{path}: an empty database, in which nothing was ever cached")
    if found < migrate.newest():
        raise CacheError(
            f"{path}: schema {found} is older than {migrate.newest()}; to open it once with "
            "this release, as `zarr-cache compact` does, brings it up to date"
        )


@contextlib.contextmanager
def opened_to_write(path: Path) -> Iterator[SqliteStore]:
    """The file that exists, as other processes have it; closed afterwards.

    Ends the command with one line if it cannot be opened, or if the block fails.
    """
    with told_on_one_line(path):
        if path.stat().st_size == 0 and not wal_bytes(path):
            # To open it would make a cache file of it.
            raise CacheError(f"{path}: an empty file, in which nothing was ever cached")
        store = SqliteStore(path)
        with contextlib.closing(store):
            yield store
