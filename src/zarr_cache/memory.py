"""Memory for large values, which is used again once nothing refers to it any more.

The system gives fresh memory a page at a time, as it is first written to, which takes several times
as long as to read the bytes out of the system's cache. Whether malloc gives memory back between one
value and the next depends on what else the program has allocated.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from zarr_cache.checksum import ByteArray

LEAST = 128 * 1024
"""Less than this malloc keeps by itself."""

MOST_UNUSED = 32 * 2**20
"""At most so many bytes are kept for what comes next."""

STEP = 256 * 1024
"""Memory is taken in multiples of this: the next value may be a little larger."""

_lock = threading.RLock()  # garbage may be collected while it is held
_unused: list[ByteArray] = []


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the child of a fork may have inherited it held
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def array(nbytes: int) -> ByteArray:
    """An array of so many bytes, whatever they are."""
    if nbytes < LEAST:
        return np.empty(nbytes, np.uint8)
    block = _take(nbytes)
    if block is None:
        block = np.empty(-(-nbytes // STEP) * STEP, np.uint8)
    return np.frombuffer(_Lent(block, nbytes), np.uint8)


def _take(nbytes: int) -> ByteArray | None:
    with _lock:
        # The last one that was used may be in the processor's cache.
        for place in range(len(_unused) - 1, -1, -1):
            if nbytes <= len(_unused[place]) <= 2 * nbytes + STEP:
                return _unused.pop(place)
    return None


def _take_back(block: ByteArray) -> None:
    with _lock:
        _unused.append(block)
        while sum(map(len, _unused)) > MOST_UNUSED:
            del _unused[0]


class _Lent:
    """What the arrays over a block refer to; it comes back with the last of them.

    See https://peps.python.org/pep-0688/. numpy keeps a memoryview of it, and so does each view of
    the array.
    """

    __slots__ = ("_block", "_nbytes")

    def __init__(self, block: ByteArray, nbytes: int) -> None:
        self._block, self._nbytes = block, nbytes

    def __buffer__(self, _: int) -> memoryview:
        return memoryview(self._block)[: self._nbytes]

    def __release_buffer__(self, view: memoryview) -> None:
        view.release()
        _take_back(self._block)
