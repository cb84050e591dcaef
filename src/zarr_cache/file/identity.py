"""Whether a file is one of ours, which is checked before any other statement uses it."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core.errors import (
    FileDamagedError,
    ForeignFileError,
    HardLinkedFileError,
    NewerSchemaError,
    StorageError,
    is_code,
)
from zarr_cache.disk.paths import BUSY_TIMEOUT_SECONDS, journal_of, shared_memory_of, wal_of
from zarr_cache.file import migrate
from zarr_cache.file.connection import refuse_unusable_module

if TYPE_CHECKING:
    import os
    from pathlib import Path


APPLICATION_ID = 0x5A43_4131
"""``PRAGMA application_id`` of our files: "ZCA1" in ASCII."""

# https://www.sqlite.org/fileformat2.html#the_database_header
_MAGIC = b"SQLite format 3\0"

_HEADER_BYTES = 100

_APPLICATION_ID_AT = slice(68, 72)

_VERSION_AT = slice(60, 64)
# How many rows of the schema the first page has, where it is a leaf of the tree.
_CELLS_AT = slice(103, 105)

# https://www.sqlite.org/fileformat2.html#the_write_ahead_log: a header, and one for each page.
_FIRST_PAGE_OF_WAL_AT = 32 + 24

# Its magic, which ends with the byte order of its checksums, and the version of its format.
_WAL_MAGICS = (bytes.fromhex("377f0682"), bytes.fromhex("377f0683"))

_WAL_VERSION = (3_007_000).to_bytes(4)

# https://www.sqlite.org/fileformat2.html#the_rollback_journal
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")

# SQLite lengthens the index of the WAL by pages of the system's memory, from nothing or from the 3
# bytes to which it cuts what a process has left that died.
_SHARED_PAGE_BYTES = 4096

_SHARED_CUT_BYTES = 3

# In the first pages of each of our files, also when the header is damaged.
_OUR_SCHEMA = (b"CREATE TABLE namespace (", b"CREATE TABLE entry (", b"CREATE TABLE value (")

_SCHEMA_BYTES = 64 * 1024

MAX_SCHEMA_ROW_BYTES = 2**20
"""No user writes a longer text of a table or view, and SQLite holds each in memory."""


def is_ours(path: Path) -> bool:
    """Whether the file was one of ours before it was damaged, by its first bytes.

    Reads it by ``open()``, and closing that drops the locks that SQLite holds on the file in this
    process ("How To Corrupt An SQLite Database File", 2.2): not for a file that is in use.
    """
    start = _start_of(path)
    return start[_APPLICATION_ID_AT] == APPLICATION_ID.to_bytes(4) or all(
        table in start for table in _OUR_SCHEMA
    )


def is_cut(path: Path) -> bool:
    """Whether so little is left of the file that it cannot be identified."""
    start = _start_of(path)
    return len(start) < _HEADER_BYTES and _MAGIC.startswith(start[: len(_MAGIC)])


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_SCHEMA_BYTES)


# By these a file is ours although its application id is damaged.
OUR_TABLES = """
SELECT count(*)
FROM sqlite_schema
WHERE type = 'table' AND name IN ('counter', 'entry', 'namespace', 'total', 'usage', 'value')
"""

ALL_OUR_TABLES = 6


class _Identity(NamedTuple):
    """The application id, the schema version, how many tables, views... and tables of our names."""

    application_id: int = 0
    version: int = 0
    objects: int = 0
    ours: int = 0


def refuse_foreign(path: Path) -> None:
    """Raise unless the file is ours and of a schema that we know, or an empty database.

    Raises
    ------
    ForeignFileError, NewerSchemaError
        The file, and those beside it, are left byte for byte as they were.
    HardLinkedFileError
        It has more than one name.
    FileDamagedError
        It is ours, and its header is damaged.
    """
    _refuse_what_is_no_file(path)
    # Not by plain open(): closing it drops the locks that SQLite holds on the file in this process
    # ("How To Corrupt An SQLite Database File", 2.2).
    # First without the WAL and without locks, which leaves nothing beside another program's file.
    wal = wal_of(path)
    # SQLite removes the WAL when another process is the last to close the file: then look again.
    with contextlib.suppress(FileNotFoundError):
        try:
            identity = _identity(path, "immutable=1")
        except sqlite3.DatabaseError as error:
            # Without the WAL: it may be that of a file that was here before, and SQLite would write
            # it over this one. Unless another process was making the file meanwhile.
            if not _start_of(path).startswith(_MAGIC):
                _refuse_what_is_no_database(path, error)
        else:
            _judge(path, identity)
            # Beside a file without a page SQLite removes any WAL.
            if not (path.stat().st_size and wal.exists() and wal.stat().st_size):
                return
            if identity == _Identity():
                _judge(path, _identity_in_wal(wal))
    # A file that is ours, or still empty, may be another with its WAL, or be written just now.
    try:
        identity = _identity(path, "mode=ro")
    except sqlite3.DatabaseError as error:
        _refuse_what_is_no_database(path, error)
        if is_code(error, sqlite3.SQLITE_NOTADB):
            raise ForeignFileError(path, found="not an SQLite database") from error
        raise
    _judge(path, identity)


def _refuse_what_is_no_file(path: Path) -> None:
    """Raise unless there is a file, and nothing but SQLite's own files beside it.

    To read a pipe or a terminal may take for ever, and to open a device may have effects.
    """
    found = path.stat()
    _refuse_special(path, found)
    if found.st_size == 1:
        # SQLite takes it for empty (unixFileSize in its os_unix.c), and would write over it.
        raise ForeignFileError(path, found="a file of one byte")
    refuse_foreign_beside(path)


def _refuse_special(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ForeignFileError(path, found=_kind_of(found))
    if found.st_nlink > 1:
        raise HardLinkedFileError(path, found.st_nlink)


def refuse_foreign_beside(path: Path) -> None:
    """Raise unless what has the names of SQLite's own files beside the file may be these.

    There need not be a file. SQLite writes over what has the names of its WAL and of the index of
    that, and deletes what has the name of its journal, whatever these are. A link may lead to a
    file of another program, and so may another name of a file.

    Raises
    ------
    ForeignFileError, HardLinkedFileError
        One is not; it is left as it is.
    """
    wal, shared_memory, journal = wal_of(path), shared_memory_of(path), journal_of(path)
    for each in (wal, shared_memory, journal):
        with contextlib.suppress(FileNotFoundError):
            _refuse_special(each, each.lstat())
    if not _may_be_wal(_header_of(wal)):
        raise ForeignFileError(wal, found="not a WAL of SQLite")
    if not _may_be_journal(_header_of(journal)):
        raise ForeignFileError(journal, found="not a journal of SQLite")
    with contextlib.suppress(FileNotFoundError):
        # By its size alone: to read it and close it would drop the locks that SQLite holds on it.
        size = shared_memory.lstat().st_size
        if size != _SHARED_CUT_BYTES and size % _SHARED_PAGE_BYTES:
            raise ForeignFileError(shared_memory, found="not the index of a WAL of SQLite")


def _header_of(path: Path) -> bytes:
    """The first eight bytes of a file; fewer if it is short, is not there or cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_JOURNAL_MAGIC))
    except OSError:
        return b""


def _may_be_wal(header: bytes) -> bool:
    """Whether the header is that of a WAL, which may be cut, not be written yet, or be damaged."""
    magic, version = header[:4], header[4:8]
    return (
        not any(header)
        or any(each.startswith(magic) for each in _WAL_MAGICS)
        or version == _WAL_VERSION
    )


def _may_be_journal(header: bytes) -> bool:
    """Whether the header is that of a rollback journal, which may be cut or be over (zeros)."""
    return not any(header) or _JOURNAL_MAGIC.startswith(header)


def _kind_of(found: os.stat_result) -> str:
    if stat.S_ISDIR(found.st_mode):
        return "a folder"
    return "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a regular file"


def _refuse_what_is_no_database(path: Path, error: sqlite3.DatabaseError) -> None:
    if not is_code(error, sqlite3.SQLITE_NOTADB) or not any(_start_of(path)[:_HEADER_BYTES]):
        # Another process is making the file, if its page is all zeros.
        return
    # No process can have it open through SQLite.
    if is_ours(path):
        raise FileDamagedError(f"{path}: its header is damaged") from error
    raise ForeignFileError(path, found="not an SQLite database") from error


def _identity_in_wal(wal: Path) -> _Identity:
    """The identity of a file that is empty without its WAL, whose first page is the file's."""
    with wal.open("rb") as file:
        file.seek(_FIRST_PAGE_OF_WAL_AT)
        page = file.read(_CELLS_AT.stop)
    if len(page) < _CELLS_AT.stop:
        return _Identity()
    # A process that creates a file writes a page without tables before the one of our schema.
    fields = (_APPLICATION_ID_AT, _VERSION_AT, _CELLS_AT)
    return _Identity(*(int.from_bytes(page[field]) for field in fields))


def _identity(path: Path, how: str) -> _Identity:
    """The identity that SQLite reads from the file."""
    refuse_unusable_module(path)
    connection = sqlite3.connect(  # noqa: TID251 - without our pragmas, which would write
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        timeout=BUSY_TIMEOUT_SECONDS,
        autocommit=True,
    )
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_SCHEMA_ROW_BYTES)
    try:
        # All of one state of the file: another process may be creating it.
        connection.execute("BEGIN")
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (count,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (ours,) = connection.execute(OUR_TABLES).fetchone()
    except sqlite3.DataError as error:
        if application_id == APPLICATION_ID:
            raise StorageError(
                f"{path}: its schema has a text of more than {MAX_SCHEMA_ROW_BYTES} bytes and is "
                "not read; drop what was added to it, or use another file"
            ) from error
        return _Identity(application_id, version, objects=1)
    finally:
        connection.close()
    return _Identity(application_id, version, count, ours)


def _judge(path: Path, identity: _Identity) -> None:
    if identity == _Identity():
        return
    if identity.application_id != APPLICATION_ID:
        found = f"an SQLite database with application_id {identity.application_id:#x}"
        if identity.ours == ALL_OUR_TABLES:
            raise FileDamagedError(f"{path}: {found}, and tables of zarr-cache")
        raise ForeignFileError(path, found=found)
    if identity.version > migrate.newest():
        raise NewerSchemaError(path, found=identity.version, known=migrate.newest())
