"""Reading out of the data file: what is in memory at once, and what must be waited for."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

from zarr_cache import checksum, memory
from zarr_cache.checksum import DamagedValueError
from zarr_cache.data_file import BLOCK, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr_cache.checksum import ByteArray
    from zarr_cache.data_file import Extent, OpenFile

MOST_BEGUN = 2**20
"""Of more than this one block is tried first: what is not in memory Linux begins to read all the
same, and to begin some MiB holds up the event loop."""

MOST_UNCHECKED = 2**20
"""For so many bytes memory is taken without a look at how long the file is."""

MOST_ON_LOOP = 2 * 2**20
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
        nbytes = extents[0].length if len(extents) == 1 else sum(each.length for each in extents)
        if nbytes > MOST_UNCHECKED and nbytes > size_of(file):
            # Before memory is taken for what somebody says that there is.
            raise DamagedValueError("the data file is shorter than that")
        self._bytes = memory.array(nbytes)
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
        nbytes, read = self._stop - self._start, len(self._bytes)
        if nbytes == read:
            return self._bytes
        found = self._bytes[self._start : self._stop]
        # A view would keep all that was read in memory.
        return found.copy() if 2 * nbytes < read else found


def _damaged(error: OSError) -> DamagedValueError:
    """What a part of the disk that cannot be read comes to: its value is fetched again."""
    return DamagedValueError(f"the data file cannot be read: {error}")
