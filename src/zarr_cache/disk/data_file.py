"""The data file: the bytes of large values, raw, beside the cache file.

Which bytes belong to which value is in the tables of the cache file, see `index.extents`; this
module knows places and bytes only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core.errors import (
    FileFullError,
    FileReadOnlyError,
    ForeignFileError,
    HardLinkedFileError,
    StorageError,
)
from zarr_cache.disk.paths import FileId

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from zarr_cache.core.checksum import ByteArray


# Windows has neither it nor a data file.
with contextlib.suppress(ImportError):
    import fcntl


BLOCK = 4096
"""Extents begin and end at multiples of this: a page of the system's cache, and of most disks."""

HEADER = BLOCK
"""Bytes of the header. The first extent begins behind it."""

MAGIC = b"zarr-cache data\0"
"""The beginning of the header. The identity follows."""

IDENTITY_BYTES = 16

MAX_COPIED = 512 * 1024
"""At most so many bytes are copied at a time."""

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}

LOCKS_AT = 1 << 60
"""The locks of writers are at this place and behind it, where no file has bytes."""

OWNERS = 1 << 40
"""A writer takes a number below this."""


class Extent(NamedTuple):
    """Bytes ``[place, place + length)`` of the data file."""

    place: int
    length: int


class OpenFile:
    """A data file that is open. It is closed when nothing refers to it any more.

    Attributes
    ----------
    file_id
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
        self.file_id = FileId(found.st_dev, found.st_ino)
        self.owner = int.from_bytes(os.urandom(8)) % OWNERS
        self._is_locked = False
        if hasattr(os, "posix_fadvise"):
            # The system reads no more than each request: the next value is anywhere.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close it, once no thread reads or writes it any more."""
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
        """Whether a process holds the lock of a writer; True where that is unknown."""
        if owner == self.owner:
            return True
        found = _lock(self.descriptor, owner, "F_OFD_GETLK")
        return found is None or found != fcntl.F_UNLCK


# short l_type, short l_whence, off_t l_start, off_t l_len, pid_t l_pid
_FLOCK = struct.Struct("hhqqi4x")


def _lock(descriptor: int, owner: int, how: str) -> int | None:
    """Lock the byte of an owner, or find its lock; None where there are no such locks."""
    command = getattr(fcntl, how, None) if sys.platform == "linux" else None
    if command is None:
        return None
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, LOCKS_AT + owner, 1, 0)
    try:
        response = fcntl.fcntl(descriptor, command, request)
    except OSError:
        return None
    return int(_FLOCK.unpack(response)[0])


def header_of(file: OpenFile) -> bytes:
    """The magic and the identity; fewer bytes if the file is short or cannot be read."""
    try:
        return os.pread(file.descriptor, len(MAGIC) + IDENTITY_BYTES, 0)
    except OSError:
        return b""


def open_file(path: Path) -> OpenFile | None:
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


def _refuse_special(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a regular file"
        raise ForeignFileError(path, found=kind)
    if found.st_nlink > 1:
        raise HardLinkedFileError(path, found.st_nlink)


def create(path: Path, identity: bytes, mode: int) -> OpenFile:
    """Make a data file with nothing in it but its header, with the mode of the cache file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    file = OpenFile(os.open(path, flags, 0o600), is_writable=True)
    try:
        os.fchmod(file.descriptor, mode)
        _write_all(file.descriptor, (MAGIC + identity).ljust(HEADER, b"\0"), 0)
        # Once in its life: after a power cut, a file without a header would be no data file.
        os.fsync(file.descriptor)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return file


def write(file: OpenFile, path: Path, extents: Iterable[Extent], data: ByteArray) -> None:
    """Write the bytes of a value into its extents; the last extent may be longer than the rest."""
    at = 0
    try:
        for place, length in extents:
            piece = data[at : at + length]
            _write_all(file.descriptor, piece, place)
            at += length
    except OSError as error:
        raise translated(error, path) from error


def copy(file: OpenFile, path: Path, source: int, extents: Iterable[Extent]) -> None:
    """Write the bytes from `source` on into other extents."""
    try:
        for place, length in extents:
            for start in range(0, length, MAX_COPIED):
                piece = os.pread(file.descriptor, min(MAX_COPIED, length - start), source + start)
                # Of the last extent, nothing is written beyond the end of the file.
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
