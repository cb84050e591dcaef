"""Bytes between zarr's buffers and what SQLite reads and writes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from zarr.core.buffer import Buffer, default_buffer_prototype

if TYPE_CHECKING:
    from zarr.core.buffer import BufferPrototype

    from zarr_cache.core.checksum import ByteArray


def to_array(value: Buffer) -> ByteArray:
    """The bytes of `value` in this machine's memory, one after another; a copy only if need be."""
    return np.ascontiguousarray(value.as_numpy_array()).reshape(-1).view(np.uint8)


def to_lasting_array(value: Buffer) -> ByteArray:
    """As `to_array`, but the bytes stay as they are whatever the owner of `value` does to it."""
    array = to_array(value)
    if array.flags.writeable:
        array = array.copy()
        # A reader that gets it as a hit must not change it either.
        array.flags.writeable = False
    return array


def to_buffer(prototype: BufferPrototype | None, data: bytes | ByteArray) -> Buffer:
    """The bytes as a buffer of the prototype's type; zarr's default if None."""
    if isinstance(data, np.ndarray):
        return (prototype or default_buffer_prototype()).buffer.from_array_like(data)
    return (prototype or default_buffer_prototype()).buffer.from_bytes(data)


MIN_REUSED = 128 * 1024
"""Smaller blocks are kept by malloc itself."""

MAX_UNUSED = 32 * 2**20
"""At most so many bytes are kept for the next values."""

MAX_TRIED = 8
"""At most so many blocks are tried for one that fits."""

STEP = 256 * 1024
"""Memory is taken in multiples of this: the next value may be a little larger."""

_unused: deque[ByteArray] = deque()
"""The last one that was used may be in the processor's cache: it is taken first."""


def array(nbytes: int) -> ByteArray:
    """An array of so many bytes, whatever they are."""
    if nbytes < MIN_REUSED:
        return np.empty(nbytes, np.uint8)
    block = _take(nbytes)
    if block is None:
        block = np.empty(-(-nbytes // STEP) * STEP, np.uint8)
    return np.frombuffer(_Lent(block, nbytes), np.uint8)


def _take(nbytes: int) -> ByteArray | None:
    """A block that is long enough and not much longer; None if there is none.

    Each step is one call of the deque. So neither another thread is in its way nor a block that
    the garbage collector returns in between.
    """
    passed: list[ByteArray] = []
    found = None
    while found is None and len(passed) < MAX_TRIED:
        try:
            block = _unused.pop()
        except IndexError:
            break
        if nbytes <= len(block) <= 2 * nbytes + STEP:
            found = block
        else:
            passed.append(block)
    _unused.extend(reversed(passed))
    return found


def _take_back(
    block: ByteArray, unused: deque[ByteArray] = _unused, most: int = MAX_UNUSED
) -> None:
    # With what it needs as parameters: at the end of the interpreter an array may outlive the names
    # of this module.
    unused.append(block)
    try:
        while sum(map(len, list(unused))) > most:
            unused.popleft()
    except IndexError:
        pass  # another thread has taken the last


class _Lent:
    """The owner of a block, to which the arrays over it refer; the last one gives it back.

    See https://peps.python.org/pep-0688/. numpy keeps a memoryview of it, and so does each view of
    the array.
    """

    __slots__ = ("_block", "_nbytes", "_take_back")

    def __init__(self, block: ByteArray, nbytes: int) -> None:
        self._block, self._nbytes = block, nbytes
        self._take_back = _take_back

    def __buffer__(self, _: int) -> memoryview:
        return memoryview(self._block)[: self._nbytes]

    def __release_buffer__(self, view: memoryview) -> None:
        view.release()
        self._take_back(self._block)


def to_prototype(prototype: BufferPrototype, buffer: Buffer | None) -> Buffer | None:
    """The buffer as one of the class that the caller asked for."""
    if buffer is None or isinstance(buffer, prototype.buffer):
        return buffer
    return prototype.buffer.from_buffer(buffer)
