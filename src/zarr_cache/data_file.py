"""The data file: the bytes of large values, raw, beside the cache file.

Which bytes belong to which value is in the tables of the cache file, see `zarr_cache.extents`; this
module knows places and bytes only. The header of a data file has the identity that the cache file
has as well: the data file of another cache file is neither read nor written to.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache import checksum, memory
from zarr_cache.aside import aside_of
from zarr_cache.cache_file import data_file_of
from zarr_cache.checksum import DamagedValueError
from zarr_cache.errors import (
    FileDamagedError,
    FileFullError,
    FileReadOnlyError,
    ForeignFileError,
    HardLinkedFileError,
    StorageError,
)

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from zarr_cache.checksum import ByteArray
    from zarr_cache.connection import Connection

BLOCK = 4096
"""Extents begin and end at multiples of this: a page of the system's cache, and of most disks."""

HEADER = BLOCK
"""Bytes of the header. The first extent begins behind it."""

MAGIC = b"zarr-cache data\0"
"""What the header begins with. The identity follows."""

IDENTITY_BYTES = 16

MOST_AT_ONCE = 512 * 1024
"""So many bytes are read and verified at a time: they are still in the processor's cache then."""

MOST_ON_LOOP = 2 * 2**20
"""Where the system cannot tell whether bytes are in memory, so many are read on the event loop."""

MOST_BEGUN = 2**20
"""What is not in memory Linux begins to read all the same, and to begin some MiB holds up the loop."""

NOWAIT = getattr(os, "RWF_NOWAIT", 0)
"""The flag with which Linux reads only what is in memory, see preadv2(2); 0 elsewhere."""

CANNOT_TELL = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
"""What a system or a file system answers that does not know the flag; tmpfs is one."""

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
    """A data file that is open: closed when nothing refers to it any more, a read under way for one.

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

        The lock is that of the open file and not of the process (fcntl_locking(2)), so that no other
        ``close`` of this process drops it.
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
        answer = fcntl.fcntl(descriptor, command, asked)
    except OSError:
        return None
    return int(_FLOCK.unpack(answer)[0])


class Read:
    """Bytes of one value on their way out of the data file.

    Parameters
    ----------
    file
        The data file.
    extents
        What is to be read, in the order of the value: also an attribute.
    seed, first, checksums
        What the bytes are verified with, see `checksum.of_blocks`.
    start, stop
        Which of the bytes are asked for, counted from the first that is read.
    """

    def __init__(
        self,
        file: OpenFile,
        extents: Sequence[Extent],
        seed: int,
        first: int,
        checksums: bytes,
        start: int,
        stop: int,
    ) -> None:
        self._file = file
        self.extents = extents
        self._seed, self._first, self._checksums = seed, first, checksums
        self._start, self._stop = start, stop
        self._bytes = memory.array(sum(extent.length for extent in extents))
        self._turn = threading.Lock()

    def now(self) -> ByteArray | None:
        """The bytes asked for, verified; None where the disk would have to be waited for.

        Raises
        ------
        DamagedValueError
            They are not those that were written.
        """
        is_read = self._read_from_memory() if NOWAIT else None
        if is_read is not None:
            return self._verified() if is_read else None
        return self.wait() if self._bytes.size <= MOST_ON_LOOP else None

    def _read_from_memory(self) -> bool | None:
        """Read what is in memory; tell whether that is all, None if the system does not tell."""
        at = 0
        for place, length in self.extents:
            # One block of what is long is tried first, see `MOST_BEGUN`.
            ends = (BLOCK, length) if length > MOST_BEGUN else (length,)
            done = 0
            for end in ends:
                piece = self._bytes[at + done : at + end]
                try:
                    count = os.preadv(self._file.descriptor, [piece], place + done, NOWAIT)
                except BlockingIOError:
                    return False
                except OSError as error:
                    if error.errno in CANNOT_TELL:
                        return None
                    raise _damaged(error) from error
                if count < end - done:
                    return False
                done = end
            at += length
        return True

    def wait(self) -> ByteArray:
        """The bytes asked for, verified, read by this thread.

        Raises
        ------
        DamagedValueError
            They are not those that were written.
        """
        at = 0
        for place, length in self.extents:
            self._file_into(self._bytes[at : at + length], place)
            at += length
        return self._verified()

    def wait_once(self) -> ByteArray | None:
        """As `wait`; None if the bytes are not those that were written, or another call came first.

        A thread that was to read may begin long after somebody else has: the bytes are the caller's
        then, and must not be written to any more.
        """
        if not self._turn.acquire(blocking=False):
            return None
        try:
            return self.wait()
        except DamagedValueError:
            return None

    def _file_into(self, array: ByteArray, place: int) -> None:
        done = 0
        while done < array.size:
            try:
                count = os.preadv(self._file.descriptor, [array[done:]], place + done)
            except OSError as error:
                raise _damaged(error) from error
            if count == 0:
                raise DamagedValueError("the data file ends before it")
            done += count

    def _verified(self) -> ByteArray:
        if checksum.of_blocks(self._seed, self._first, self._bytes) != self._checksums:
            raise DamagedValueError(f"block {self._first} or one after it")
        found = self._bytes[self._start : self._stop]
        # A view would keep all that was read in memory.
        return found.copy() if 2 * found.size < self._bytes.size else found


def _damaged(error: OSError) -> DamagedValueError:
    """What a part of the disk that cannot be read comes to: its value is fetched again."""
    return DamagedValueError(f"the data file cannot be read: {error}")


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
        self._name = str(self.path)
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

    def opened(self, connection: Connection) -> OpenFile:
        """The file, open for reading at least.

        Raises
        ------
        DamagedValueError
            There is none, or one that is not of this cache file: what is said to be in it is not.
        """
        file = self._file
        return self._open(connection) if file is None or self.is_replaced(file) else file

    def opened_if_there(self, connection: Connection) -> OpenFile | None:
        """As `opened`; None if there is none."""
        try:
            return self.opened(connection)
        except DamagedValueError:
            return None

    def _open(self, connection: Connection) -> OpenFile:
        with self._lock:
            if self._file is None:
                identity = _identity(connection)
                try:
                    found = _open_file(self.path)
                except (OSError, StorageError, ForeignFileError) as error:
                    raise DamagedValueError(f"{self.path}: {error}") from error
                if found is None or _header(found) != MAGIC + identity:
                    raise DamagedValueError(f"{self.path}: not the data file of this cache file")
                self._file = found
            return self._file

    def is_replaced(self, file: OpenFile) -> bool:
        """Whether the path names another file by now, or none; it is opened anew then."""
        try:
            found = os.lstat(self._name)  # at each use: a Path costs as much again
        except OSError:
            is_replaced = True
        else:
            is_replaced = (found.st_dev, found.st_ino) != file.place
        if is_replaced and self._file is file:
            self._file = None
        return is_replaced

    def opened_to_write(self, connection: Connection) -> OpenFile:
        """The file, open for writing; begun anew if there is none of this cache file.

        Call it in a write transaction: then no other process does the same.

        Raises
        ------
        ForeignFileError, HardLinkedFileError
            Something that is not ours is in its place, and is left as it is.
        StorageError
            It cannot be opened or begun.
        """
        identity = _identity(connection)
        file = self._file
        if file is not None and file.is_writable and not self.is_replaced(file):
            if _header(file) == MAGIC + identity:
                return file
            self._file = file = None
        try:
            file = self._open_or_begin(identity)
        except OSError as error:
            raise translated(error, self.path) from error
        if not file.is_writable:
            raise FileReadOnlyError(f"{self.path}: may not be written to")
        file.lock_owner()
        self._file = file
        return file

    def _open_or_begin(self, identity: bytes) -> OpenFile:
        found = _open_file(self.path)
        if found is not None:
            header = _header(found)
            if header == MAGIC + identity:
                return found
            # An empty one is nobody's: somebody has cut it.
            if os.fstat(found.descriptor).st_size and not is_header_of_ours(header, identity):
                raise ForeignFileError(self.path, found="not a data file of this cache file")
            # Of another cache file, or damaged: it may be wanted.
            self.path.rename(data_file_of(aside_of(self._cache_file)))
        return _begin(self.path, identity)


def remove_orphan(path: Path, connection: Connection) -> None:
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
    is_zero = not any(header)
    return is_zero or header.startswith(MAGIC) or header[len(MAGIC) :] == identity


def _identity(connection: Connection) -> bytes:
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
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
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
    """Tell the system that what is read next is anywhere: it reads what is asked for and no more."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def _refuse_special(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a regular file"
        raise ForeignFileError(path, found=kind)
    if found.st_nlink > 1:
        raise HardLinkedFileError(path, found.st_nlink)


def _begin(path: Path, identity: bytes) -> OpenFile:
    """Begin a data file, with nothing in it but its header."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
    file = OpenFile(
        os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600),
        is_writable=True,
    )
    try:
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
            for start in range(0, length, MOST_AT_ONCE):
                piece = os.pread(
                    file.descriptor, min(MOST_AT_ONCE, length - start), source + start
                )
                # What lies beyond the end, of the last extent, is nothing.
                _write_all(file.descriptor, piece, place + start)
            source += length
    except OSError as error:
        raise translated(error, path) from error


def _write_all(descriptor: int, data: bytes | ByteArray, place: int) -> None:
    view = memoryview(data)
    while len(view):
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
