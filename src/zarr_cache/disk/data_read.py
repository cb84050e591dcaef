"""Reading from the data file: at once what is in memory, and otherwise in another thread."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

from zarr_cache.core import buffers, checksum
from zarr_cache.core.checksum import DamagedValueError
from zarr_cache.disk.data_file import BLOCK, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.disk.data_file import Extent, OpenFile


MAX_UNTRIED = 2**20
"""Of more than this, one block is tried first: Linux starts to read what is not in memory all the
same, and to start with some MiB blocks the event loop."""

MAX_IN_MEMORY = 8 * 2**20
"""So many bytes that are in memory are copied on the event loop, which takes a millisecond or two;
more are copied in another thread."""

MAX_UNCHECKED = 2**20
"""For so many bytes memory is taken without comparing them with the length of the file."""

MAX_ON_LOOP = 2 * 2**20
"""So many are read on the event loop where it is unknown whether they are in memory."""

NOWAIT = getattr(os, "RWF_NOWAIT", 0)
"""The flag with which Linux reads only what is in memory, see preadv2(2); 0 elsewhere."""

UNSUPPORTED = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
"""Errors of a system or a file system that does not know the flag; tmpfs is one."""


class Read:
    """A read of the bytes of one value from the data file.

    Parameters
    ----------
    file
        The data file.
    extents
        What is to be read, in the order of the value: also an attribute.
    identity_checksum, first, checksums
        What the bytes are verified with, see `checksum.of_blocks`.
    start, stop
        Which of the bytes are returned, counted from the first that is read.

    Raises
    ------
    DamagedValueError
        The file is shorter.
    """

    def __init__(
        self,
        file: OpenFile,
        extents: Sequence[Extent],
        identity_checksum: int,
        first: int,
        checksums: bytes,
        start: int,
        stop: int,
    ) -> None:
        self._file = file
        self.extents = extents
        self._identity_checksum, self._first, self._checksums = identity_checksum, first, checksums
        self._start, self._stop = start, stop
        self._nbytes = sum(extent.length for extent in extents)
        if self._nbytes > MAX_UNCHECKED and self._nbytes > size_of(file):
            # Before memory is taken for a length that may be wrong.
            raise DamagedValueError("the data file is shorter than that")
        self._turn = threading.Lock()

    def now(self) -> ByteArray | None:
        """The requested bytes, verified; None if they must be read from the disk.

        None as well for so many bytes that to copy them would block the event loop.
        """
        if self._nbytes > (MAX_IN_MEMORY if NOWAIT else MAX_ON_LOOP):
            return None
        array = buffers.array(self._nbytes)
        is_read = self._read_from_memory(array) if NOWAIT else None
        if is_read is None:
            return self.wait() if self._nbytes <= MAX_ON_LOOP else None
        return self._verified(array) if is_read else None

    def _read_from_memory(self, array: ByteArray) -> bool | None:
        """Read what is in memory; whether that is all, None if the system cannot report it."""
        at = 0
        for place, length in self.extents:
            # Of a long extent one block is tried first, see `MAX_UNTRIED`.
            ends = (BLOCK, length) if length > MAX_UNTRIED else (length,)
            done = 0
            for end in ends:
                piece = array[at + done : at + end]
                try:
                    count = os.preadv(self._file.descriptor, [piece], place + done, NOWAIT)
                except BlockingIOError:
                    return False
                except OSError as error:
                    if error.errno in UNSUPPORTED:
                        return None
                    raise _damaged(error) from error
                if count < end - done:
                    return False
                done = end
            at += length
        return True

    def wait(self) -> ByteArray:
        """The requested bytes, verified, read by this thread."""
        array = buffers.array(self._nbytes)
        at = 0
        for place, length in self.extents:
            self._read_into(array[at : at + length], place)
            at += length
        return self._verified(array)

    def wait_once(self) -> ByteArray | None:
        """As `wait`; None if the bytes are not those that were written, or another call came first.

        None as well if there is no memory for them: the next lookup of the key reports that. A read
        that waits in the queue of a pool may start long after its caller has read the bytes itself.
        """
        if not self._turn.acquire(blocking=False):
            return None
        try:
            return self.wait()
        except (DamagedValueError, MemoryError):
            return None

    def _read_into(self, array: ByteArray, place: int) -> None:
        done = 0
        while done < len(array):
            try:
                count = os.preadv(self._file.descriptor, [array[done:]], place + done)
            except OSError as error:
                raise _damaged(error) from error
            if count == 0:
                raise DamagedValueError("the data file ends before it")
            done += count

    def _verified(self, array: ByteArray) -> ByteArray:
        if checksum.of_blocks(self._identity_checksum, self._first, array) != self._checksums:
            raise DamagedValueError(f"block {self._first} or one after it")
        nbytes = self._stop - self._start
        if nbytes == len(array):
            return array
        found = array[self._start : self._stop]
        # A view would keep all of the array in memory.
        return found.copy() if 2 * nbytes < len(array) else found


def _damaged(error: OSError) -> DamagedValueError:
    """The error for a part of the disk that cannot be read: its value is fetched again."""
    return DamagedValueError(f"the data file cannot be read: {error}")
