"""Reading out of the data file: what is in memory at once, and what must be waited for."""

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


MAX_BEGUN = 2**20


"""Of more than this one block is tried first: what is not in memory Linux begins to read all the
same, and to begin some MiB holds up the event loop."""


MAX_IN_MEMORY = 8 * 2**20


"""So many bytes that are in memory are copied on the event loop, which takes a millisecond or two;
more are copied in another thread."""


MAX_UNCHECKED = 2**20


"""For so many bytes memory is taken without a look at how long the file is."""


MAX_ON_LOOP = 2 * 2**20


"""Where the system cannot tell whether bytes are in memory, so many are read on the event loop."""


NOWAIT = getattr(os, "RWF_NOWAIT", 0)


"""The flag with which Linux reads only what is in memory, see preadv2(2); 0 elsewhere."""


CANNOT_TELL = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


"""What a system or a file system answers that does not know the flag; tmpfs is one."""


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

    Raises
    ------
    DamagedValueError
        So many bytes are not in the file.
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
        self._nbytes = sum(extent.length for extent in extents)
        if self._nbytes > MAX_UNCHECKED and self._nbytes > size_of(file):
            # Before memory is taken for what somebody says that there is.
            raise DamagedValueError("the data file is shorter than that")
        self._turn = threading.Lock()

    def now(self) -> ByteArray | None:
        """The bytes asked for, verified; None where the disk would have to be waited for.

        None as well for so many bytes that to copy them would hold up the event loop.

        Raises
        ------
        DamagedValueError
            They are not those that were written.
        """
        if self._nbytes > (MAX_IN_MEMORY if NOWAIT else MAX_ON_LOOP):
            return None
        array = buffers.array(self._nbytes)
        is_read = self._read_from_memory(array) if NOWAIT else None
        if is_read is None:
            return self.wait() if self._nbytes <= MAX_ON_LOOP else None
        return self._verified(array) if is_read else None

    def _read_from_memory(self, array: ByteArray) -> bool | None:
        """Read what is in memory; tell whether that is all, None if the system does not tell."""
        at = 0
        for place, length in self.extents:
            # One block of what is long is tried first, see `MAX_BEGUN`.
            ends = (BLOCK, length) if length > MAX_BEGUN else (length,)
            done = 0
            for end in ends:
                piece = array[at + done : at + end]
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
        array = buffers.array(self._nbytes)
        at = 0
        for place, length in self.extents:
            self._read_into(array[at : at + length], place)
            at += length
        return self._verified(array)

    def wait_once(self) -> ByteArray | None:
        """As `wait`; None if the bytes are not those that were written, or another call came first.

        None as well if there is no memory for them: who looks the key up again is told so.
        What waits in the queue of a pool may begin long after who asked has read the bytes itself.
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
        if checksum.of_blocks(self._seed, self._first, array) != self._checksums:
            raise DamagedValueError(f"block {self._first} or one after it")
        nbytes = self._stop - self._start
        if nbytes == len(array):
            return array
        found = array[self._start : self._stop]
        # A view would keep all that was read in memory.
        return found.copy() if 2 * nbytes < len(array) else found


def _damaged(error: OSError) -> DamagedValueError:
    """What a part of the disk that cannot be read comes to: its value is fetched again."""
    return DamagedValueError(f"the data file cannot be read: {error}")
