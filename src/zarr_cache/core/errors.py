"""What can go wrong with a cache file, grouped by what the caller does next."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class CacheError(Exception):
    """Base of every error that this package raises about a file."""


class ForeignFileError(CacheError):
    """The file is not a cache file and is left untouched: name another one."""

    def __init__(self, path: Path, *, found: str) -> None:
        super().__init__(
            f"{path}: {found}, not a file of zarr-cache; it is left as it is, name another file"
        )


class NewerSchemaError(CacheError):
    """The file was written by a later release and is left untouched: upgrade, or name another.

    Attributes
    ----------
    found, known
        Schema version of the file, and the newest that this release knows.
    """

    def __init__(self, path: Path, *, found: int, known: int) -> None:
        super().__init__(
            f"{path}: schema {found} is newer than {known}, the newest that this release knows; "
            "upgrade zarr-cache or name another file"
        )
        self.found = found
        self.known = known


class MigrationError(CacheError):
    """A migration script failed; the file still has the schema it had before."""


class StorageError(CacheError):
    """SQLite refused an operation; its transaction was rolled back.

    The message names the file and what SQLite said; ``__cause__`` is SQLite's own error.
    """


class FileLockedError(StorageError):
    """Another connection held the lock for longer than we wait: try again."""


class FileFullError(StorageError):
    """The disk, or the file's ``max_page_count``, is full: make room."""


class FileReadOnlyError(StorageError):
    """The file, or the folder it is in, cannot be written to: what is cached is served."""


class FileDamagedError(StorageError):
    """The file is not a database any more, or a page of it is damaged.

    Attributes
    ----------
    file_id
        Device and inode of the file in which the damage was found, as far as that is known.
    """

    file_id: tuple[int, int] | None = None


class OutOfMemoryError(StorageError):
    """There was no memory for a value."""


class DataFileError(StorageError):
    """The data file cannot be used: large values are not cached, small ones are.

    Another file is in its place, or it may not be opened: the message says which. Move that file
    away, or name another cache file.
    """


class UnstorableKeyError(StorageError):
    """The key is no text that SQLite can hold, such as a file name that is not UTF-8.

    A `SqliteStore` cannot have it; a `CacheStore` reads it from the source each time.
    """


class NetworkFileSystemError(StorageError):
    """The file would not lie on a local file system and is not opened: name one on a local disk.

    Its type is not one of those that are known to be local. SQLite's write-ahead log needs memory
    that all processes with the file open share, and locks. File systems over a network, of the host
    of a virtual machine, or behind FUSE often only pretend to have them
    (https://www.sqlite.org/wal.html). The environment variable ``ZARR_CACHE_ALLOW_FILE_SYSTEMS``
    names types that are used all the same.

    Attributes
    ----------
    file_system
        The type, as the system names it.
    """

    def __init__(self, path: Path, file_system: str) -> None:
        super().__init__(
            f"{path}: on a file system that is not known to be local ({file_system}), where "
            "SQLite's write-ahead log may not work; name a file on a local disk or, if the "
            "processes of one machine alone use this file system, set "
            f"ZARR_CACHE_ALLOW_FILE_SYSTEMS={file_system}"
        )
        self.file_system = file_system


class MountedFileError(StorageError):
    """The file is mounted by itself and is not opened: mount its folder.

    The WAL lies in the folder. Where a file is mounted alone (``docker run -v file:file``, a
    ``subPath`` of Kubernetes), it is without the WAL that other processes write.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path}: mounted by itself, without the files beside it that processes elsewhere use; "
            "mount its folder instead"
        )


class FileNameTooLongError(StorageError):
    """The file has so long a name that others beside it do not fit: name another.

    Without these names, a damaged file could not be renamed, nor would other processes know of
    a write that could not be recorded. The path may also be longer than SQLite opens.
    """

    def __init__(self, path: Path, found: str) -> None:
        super().__init__(f"{path}: {found}")


class HardLinkedFileError(StorageError):
    """The file has more than one name and is not opened: copy it, and name the copy.

    SQLite names the WAL after the file, so each name would have a WAL of its own, and a process
    that uses one name would not see writes through another
    (https://www.sqlite.org/howtocorrupt.html, 2.5).
    """

    def __init__(self, path: Path, names: int) -> None:
        super().__init__(
            f"{path}: a file of {names} names (hard links), each of which would have a WAL of its "
            "own; copy it and put the copy in its place, or name another file"
        )


class SourceChangedError(Exception):
    """A value was replaced at the source after some of its bytes were served: read it again.

    The bytes that are still wanted would be of another version than those that were returned. What
    was cached of the value is removed, so the next read is of one version: read the chunk or the
    selection again from its beginning. Open the array again if its metadata may have changed, too.

    Attributes
    ----------
    key
        The key of the value.
    """

    def __init__(self, key: str) -> None:
        super().__init__(
            f"{key!r} was replaced at the source after some of its bytes were read; what was "
            "cached of it is removed: read it again"
        )
        self.key = key


class OfflineError(Exception):
    """The key is not cached, and ``offline=True`` forbids to ask the source.

    Attributes
    ----------
    key
        The key. Whether the source has it is not known.
    """

    def __init__(self, key: str, namespace: str) -> None:
        super().__init__(
            f"{key!r} of {namespace!r} is not cached, and the store is offline: fetch it where the "
            "source can be reached, for example with zarr-cache warm, or open the store without "
            "offline=True"
        )
        self.key = key


class CircuitOpenError(StorageError):
    """The circuit is open: the file has just failed, and is not tried again for a while."""


LeftAloneError = CircuitOpenError
"""The earlier name of `CircuitOpenError`."""

type Kinds = type[Exception] | tuple[type[Exception], ...]


def has_kind(error: Exception | None, kinds: Kinds) -> bool:
    """Whether it is an error of one of these kinds, or a group with one in it."""
    if isinstance(error, ExceptionGroup):
        return error.subgroup(kinds) is not None
    return isinstance(error, kinds)


def first_of(group: ExceptionGroup) -> Exception:
    """The first error of a group, at any depth."""
    error: Exception = group
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _code(name: str) -> int:
    """The result code of this name; -1 if the module in the place of sqlite3 lacks it.

    Such a module opens no file (`file.connection.lacks`), and zarr_cache can be imported all the
    same.
    """
    return getattr(sqlite3, name, -1)


_BY_PRIMARY_CODE: dict[int, type[StorageError]] = {
    _code("SQLITE_BUSY"): FileLockedError,
    _code("SQLITE_LOCKED"): FileLockedError,
    _code("SQLITE_FULL"): FileFullError,
    _code("SQLITE_READONLY"): FileReadOnlyError,
    _code("SQLITE_CORRUPT"): FileDamagedError,
    _code("SQLITE_NOTADB"): FileDamagedError,
    # Our statements satisfy our schema, so the file has another.
    _code("SQLITE_CONSTRAINT"): FileDamagedError,
    _code("SQLITE_MISMATCH"): FileDamagedError,
}

_WAY_OUT = {
    _code("SQLITE_READONLY"): (
        "; to be written to, the file, what SQLite keeps beside it (-wal, -shm) and the folder "
        "must all be writable"
    ),
    _code("SQLITE_CANTOPEN"): (
        "; it must be readable, and if it has a WAL (-wal) and the folder is read-only, a process "
        "that may write to it must open and close it once"
    ),
}


_UNREADABLE = {
    _code("SQLITE_IOERR_SHORT_READ"),
    _code("SQLITE_IOERR_READ"),
    _code("SQLITE_IOERR_CORRUPTFS"),
}
"""Extended codes of reads that failed. The first is of a file that ends before what SQLite knows to
be in it, which is a WAL that was cut; the others are of a disk that cannot be read there."""


def is_unreadable(error: BaseException | None) -> bool:
    """Whether SQLite could not read some bytes of the file, or of its WAL.

    Of an error of this package, its cause decides.
    """
    if isinstance(error, FileDamagedError):
        error = error.__cause__
    return getattr(error, "sqlite_errorcode", None) in _UNREADABLE


def is_code(error: sqlite3.Error, code: int) -> bool:
    """Whether `error` carries the primary result code `code`.

    The low eight bits are the primary code, the rest the extended one
    (https://www.sqlite.org/rescode.html). Errors that Python raises itself carry none.
    """
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF == code


def translated(error: sqlite3.Error, path: Path) -> StorageError:
    """The error of this package that stands for SQLite's, chosen by its result code."""
    code = getattr(error, "sqlite_errorcode", None)
    is_operational = isinstance(error, sqlite3.OperationalError)
    if is_operational and (code is None or "unsupported file format" in str(error)):
        # Python's own, of text that is not UTF-8; or a schema format that SQLite does not know, to
        # which it gives the code of an error in a statement.
        return FileDamagedError(f"{path}: {error}")
    if is_unreadable(error):
        # A caller that can has tried again by now, see `FileDatabase.run`.
        return FileDamagedError(f"{path}: cannot be read ({error}), or its WAL was cut")
    code = (code or 0) & 0xFF
    message = f"{path}: {error}{_WAY_OUT.get(code, '')}"
    return _BY_PRIMARY_CODE.get(code, StorageError)(message)


FAILURES = (sqlite3.Error, MemoryError, UnicodeError, FileDamagedError)
"""What an operation raises when the file fails it. Python encodes keys, some of which are no text,
and decodes SQLite's messages, some of which quote bytes of a damaged schema that are none."""


def translated_failure(
    error: Exception, path: Path, file_id: tuple[int, int] | None
) -> StorageError:
    """The error of this package for one of `FAILURES`, of an operation on this file."""
    if isinstance(error, MemoryError):
        return OutOfMemoryError(f"{path}: no memory for a value")
    if isinstance(error, UnicodeEncodeError):
        return UnstorableKeyError(f"{path}: {error.object!r} is no text that can be stored")
    if isinstance(error, FileDamagedError) and error.file_id is not None:
        return error
    if isinstance(error, sqlite3.Error):
        own = translated(error, path)
    else:
        own = FileDamagedError(f"{path}: {error}")
    if isinstance(own, FileDamagedError):
        own.file_id = file_id
    return own
