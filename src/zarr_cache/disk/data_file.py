"""The data file: the bytes of large values, raw, beside the cache file.

Which bytes belong to which value is in the tables of the cache file, see `zarr_cache.extents`; this
module knows places and bytes only. The header of a data file has the identity that the cache file
has as well: the data file of another cache file is neither read nor written to.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import stat
import struct
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core.checksum import DamagedValueError
from zarr_cache.core.errors import (
    DataFileError,
    FileDamagedError,
    FileFullError,
    FileReadOnlyError,
    ForeignFileError,
    HardLinkedFileError,
    StorageError,
)
from zarr_cache.disk.paths import data_file_of, quarantine_path

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable
    from pathlib import Path

    from zarr_cache.core.checksum import ByteArray


if sys.platform != "win32":
    import fcntl


logger = logging.getLogger(__name__)


IS_SUPPORTED = hasattr(os, "preadv") and hasattr(os, "pwrite")


"""Whether the system reads and writes at a place. Where not, as on Windows, there is no data file,
and values of every size are in the database."""


BLOCK = 4096


"""Extents begin and end at multiples of this: a page of the system's cache, and of most disks."""


HEADER = BLOCK


"""Bytes of the header. The first extent begins behind it."""


MAGIC = b"zarr-cache data\0"


"""What the header begins with. The identity follows."""


IDENTITY_BYTES = 16


MAX_COPIED = 512 * 1024


"""So many bytes are copied at a time."""


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


LOCKS_AT = 1 << 60


"""The locks of writers are at this place and behind it, where no file has bytes."""


OWNERS = 1 << 40


"""How many numbers there are of which a writer takes one."""


IDENTITY = """
SELECT identity
FROM data_file
"""


class Extent(NamedTuple):
    """Bytes ``[place, place + length)`` of the data file."""

    place: int
    length: int


class OpenFile:
    """A data file that is open. It is closed when nothing refers to it any more.

    Attributes
    ----------
    place
        Device and inode.
    is_writable
        Whether it was opened to be written to.
    owner
        Which byte this holds a lock on, for as long as the process lives: see `is_alive`.
    """

    def __init__(self, descriptor: int, *, is_writable: bool) -> None:
        self.descriptor = descriptor
        self.is_writable = is_writable
        found = os.fstat(descriptor)
        self.place = (found.st_dev, found.st_ino)
        self.owner = int.from_bytes(os.urandom(8)) % OWNERS
        self._is_locked = False
        _expect_no_order(descriptor)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close it. Nobody may use it any more."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def lock_owner(self) -> None:
        """Hold the lock of `owner` from now on.

        The lock is that of the open file and not of the process (F_OFD_SETLK in fcntl(2)), so that
        no other ``close`` of this process drops it.
        """
        if not self._is_locked:
            self._is_locked = _lock(self.descriptor, self.owner, "F_OFD_SETLK") is not None

    def is_alive(self, owner: int) -> bool:
        """Whether a process holds the lock of a writer; True where the system does not tell."""
        if owner == self.owner:
            return True
        found = _lock(self.descriptor, owner, "F_OFD_GETLK")
        return found is None or found != fcntl.F_UNLCK


# short l_type, short l_whence, off_t l_start, off_t l_len, pid_t l_pid
_FLOCK = struct.Struct("hhqqi4x")


def _lock(descriptor: int, owner: int, how: str) -> int | None:
    """Lock the byte of an owner, or ask who has; None where there are no such locks."""
    command = getattr(fcntl, how, None) if sys.platform == "linux" else None
    if command is None:
        return None
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, LOCKS_AT + owner, 1, 0)
    try:
        response = fcntl.fcntl(descriptor, command, asked)
    except OSError:
        return None
    return int(_FLOCK.unpack(response)[0])


class DataFile:
    """The data file of one cache file, opened when it is needed.

    Any thread may call.

    Parameters
    ----------
    path
        The cache file.
    """

    def __init__(self, path: Path) -> None:
        self._cache_file = path
        self.path = data_file_of(path)
        self._lock = threading.Lock()
        self._file: OpenFile | None = None

    def forget(self) -> None:
        """Open it anew when it is needed again."""
        self._file = None

    def abandon(self) -> None:
        """Close it, in the child of a fork, where nothing reads or writes."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def opened(self, connection: sqlite3.Connection) -> OpenFile:
        """The file, open for reading at least.

        Raises
        ------
        DamagedValueError
            There is none, or one that is not of this cache file: what is said to be in it is not.
        DataFileError
            It cannot be opened, or something that is not ours is in its place.
        """
        file = self._file
        # Not by its path: at each read that costs as much again, and what is in it is there.
        if file is not None and os.fstat(file.descriptor).st_nlink:
            return file
        self._file = None
        return self._open(connection)

    def opened_if_there(self, connection: sqlite3.Connection) -> OpenFile | None:
        """As `opened`; None if there is none that can be opened."""
        try:
            return self.opened(connection)
        except (DamagedValueError, DataFileError):
            return None

    def _open(self, connection: sqlite3.Connection) -> OpenFile:
        with self._lock:
            if self._file is None:
                identity = _identity(connection)
                try:
                    found = _open_file(self.path)
                except OSError as error:
                    raise DataFileError(f"{self.path}: {error}") from error
                except (ForeignFileError, HardLinkedFileError) as error:
                    raise DataFileError(str(error)) from error
                if found is None or _header(found) != MAGIC + identity:
                    raise DamagedValueError(f"{self.path}: not the data file of this cache file")
                self._file = found
            return self._file

    def opened_to_cut(self, connection: sqlite3.Connection) -> OpenFile | None:
        """The file, open for writing, if the path still names it; None otherwise.

        A file that was moved away is whatever it was moved away for.
        """
        file = self.opened_if_there(connection)
        is_ours = file is not None and file.is_writable and not self.is_replaced(file)
        return file if is_ours else None

    def why_unusable(self, connection: sqlite3.Connection) -> DataFileError | None:
        """Why nothing can be kept in it, as far as that is known without a transaction."""
        file = self._file
        if file is not None and file.is_writable and not self.is_replaced(file):
            return None
        try:
            found = _open_file(self.path)
            if found is not None:
                self._refuse_foreign(found, _identity(connection))
        except (OSError, ForeignFileError, HardLinkedFileError) as error:
            return DataFileError(str(error))
        if found is not None and not found.is_writable:
            return DataFileError(f"{self.path}: may not be written to; large values are not kept")
        return None

    def _refuse_foreign(self, found: OpenFile, identity: bytes) -> None:
        # An empty one is nobody's: somebody has cut it.
        is_empty = size_of(found) == 0
        if not (is_empty or is_header_of_ours(_header(found), identity)):
            raise ForeignFileError(self.path, found="not a data file of this cache file")

    def is_replaced(self, file: OpenFile) -> bool:
        """Whether the path names another file by now, or none; it is opened anew then."""
        try:
            found = self.path.lstat()
        except OSError:
            is_replaced = True
        else:
            # Or it has another name by now: then it may be somebody's copy.
            is_replaced = (found.st_dev, found.st_ino) != file.place or found.st_nlink > 1
        if is_replaced and self._file is file:
            self._file = None
        return is_replaced

    def opened_to_write(self, connection: sqlite3.Connection) -> OpenFile:
        """The file, open for writing; begun anew if there is none of this cache file.

        Call it in a write transaction: then no other process does the same.

        Raises
        ------
        DataFileError
            Something not ours is in its place, and is left as it is; or it cannot be opened.
        FileFullError
            There is no room for it.
        """
        identity = _identity(connection)
        file = self._file
        if file is not None and file.is_writable and not self.is_replaced(file):
            if _header(file) == MAGIC + identity:
                file.lock_owner()
                return file
            self._file = file = None
        try:
            file = self._open_or_begin(identity)
        except OSError as error:
            own = translated(error, self.path)
            raise own if isinstance(own, FileFullError) else DataFileError(str(own)) from error
        except (ForeignFileError, HardLinkedFileError) as error:
            raise DataFileError(str(error)) from error
        if not file.is_writable:
            raise DataFileError(f"{self.path}: may not be written to; large values are not kept")
        file.lock_owner()
        self._file = file
        return file

    def _open_or_begin(self, identity: bytes) -> OpenFile:
        found = _open_file(self.path)
        if found is not None:
            if _header(found) == MAGIC + identity:
                return found
            self._refuse_foreign(found, identity)
            # Of another cache file, or damaged: it may be wanted.
            aside = data_file_of(quarantine_path(self._cache_file))
            self.path.rename(aside)
            logger.warning(
                "%s: not the data file of this cache file; it is now %s, and another is begun",
                self.path,
                aside,
            )
        mode = stat.S_IMODE(self._cache_file.stat().st_mode)
        return _begin(self.path, identity, mode)


def remove_orphan(path: Path, connection: sqlite3.Connection) -> None:
    """Remove the data file of a cache file that is gone.

    Parameters
    ----------
    path, connection
        Of the cache file that has been begun in its place. Its own data file stays.
    """
    beside, identity = data_file_of(path), _identity(connection)
    with contextlib.suppress(OSError, StorageError, ForeignFileError):
        found = _open_file(beside)
        if found is not None:
            header = _header(found)
            if header.startswith(MAGIC) and header != MAGIC + identity:
                beside.unlink()


def is_header_of_ours(header: bytes, identity: bytes) -> bool:
    """Whether a header is that of a data file, of this cache file or of another, maybe damaged."""
    is_cut = MAGIC.startswith(header[: len(MAGIC)])
    return is_cut or not any(header) or header[len(MAGIC) :] == identity


def _identity(connection: sqlite3.Connection) -> bytes:
    row = connection.execute(IDENTITY).fetchone()
    if row is None or not isinstance(row[0], bytes) or len(row[0]) != IDENTITY_BYTES:
        raise FileDamagedError("the row of data_file is missing, or its identity is not one")
    return row[0]


def _header(file: OpenFile) -> bytes:
    try:
        return os.pread(file.descriptor, len(MAGIC) + IDENTITY_BYTES, 0)
    except OSError:
        return b""


def _open_file(path: Path) -> OpenFile | None:
    """The file open, for writing where that is allowed; None if there is none.

    Raises
    ------
    ForeignFileError
        It is no regular file. To open a device may do something, and a link leads elsewhere.
    HardLinkedFileError
        It has more than one name.
    """
    try:
        _refuse_special(path, path.lstat())
    except FileNotFoundError:
        return None
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor, is_writable = os.open(path, os.O_RDWR | flags), True
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        descriptor, is_writable = os.open(path, os.O_RDONLY | flags), False
    file = OpenFile(descriptor, is_writable=is_writable)
    _refuse_special(path, os.fstat(descriptor))
    return file


def _expect_no_order(descriptor: int) -> None:
    """Tell the system to read what is asked for and no more: what comes next is anywhere."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def _refuse_special(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a regular file"
        raise ForeignFileError(path, found=kind)
    if found.st_nlink > 1:
        raise HardLinkedFileError(path, found.st_nlink)


def _begin(path: Path, identity: bytes, mode: int) -> OpenFile:
    """Begin a data file with nothing in it but its header, for who may use the cache file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    file = OpenFile(os.open(path, flags, 0o600), is_writable=True)
    try:
        os.fchmod(file.descriptor, mode)
        _write_all(file.descriptor, (MAGIC + identity).ljust(HEADER, b"\0"), 0)
        # Once in its life: a file without a header would be nobody's after a power cut.
        os.fsync(file.descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return file


def write(file: OpenFile, path: Path, extents: Iterable[Extent], data: ByteArray) -> None:
    """Write the bytes of a value into its extents, of which the last may be longer than the rest.

    Raises
    ------
    FileFullError, FileReadOnlyError, StorageError
        They cannot be written.
    """
    at = 0
    try:
        for place, length in extents:
            piece = data[at : at + length]
            _write_all(file.descriptor, piece, place)
            at += length
    except OSError as error:
        raise translated(error, path) from error


def copy(file: OpenFile, path: Path, source: int, extents: Iterable[Extent]) -> None:
    """Write the bytes from `source` on into other extents.

    Raises
    ------
    StorageError
        They cannot be read or written.
    """
    try:
        for place, length in extents:
            for start in range(0, length, MAX_COPIED):
                piece = os.pread(file.descriptor, min(MAX_COPIED, length - start), source + start)
                # What lies beyond the end, of the last extent, is nothing.
                _write_all(file.descriptor, piece, place + start)
            source += length
    except OSError as error:
        raise translated(error, path) from error


def _write_all(descriptor: int, data: bytes | ByteArray, place: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, place)
        view, place = view[count:], place + count


def size_of(file: OpenFile) -> int:
    """Bytes of the file as the file system has it."""
    return os.fstat(file.descriptor).st_size


def cut(file: OpenFile, path: Path, length: int) -> None:
    """Cut off what is behind this length."""
    try:
        if size_of(file) > length:
            os.ftruncate(file.descriptor, length)
    except OSError as error:
        raise translated(error, path) from error


def translated(error: OSError, path: Path) -> StorageError:
    """The error of this package that stands for the system's."""
    if error.errno in FULL:
        return FileFullError(f"{path}: {error}")
    if error.errno in READ_ONLY:
        return FileReadOnlyError(f"{path}: {error}")
    return StorageError(f"{path}: {error}")
