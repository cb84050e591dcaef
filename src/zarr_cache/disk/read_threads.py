"""A few threads that wait for the disk: for reads of an event loop, and for writes side by side."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.disk.data_read import Read


MAX_THREADS = min(16, 4 * (os.cpu_count() or 1))
"""So many reads run at once: enough to keep a disk busy, and not so many that the event loop cannot
run."""

_pool: ThreadPoolExecutor | None = None


def _forget() -> None:
    global _pool  # noqa: PLW0603 - its threads are the parent's
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _threads() -> ThreadPoolExecutor:
    global _pool  # noqa: PLW0603 - made when it is needed
    if _pool is None:
        _pool = ThreadPoolExecutor(MAX_THREADS, "zarr-cache-disk")
    return _pool


def read_all(reads: Sequence[Read]) -> list[ByteArray | None]:
    """The bytes of each, read in this thread; None where they are not those that were written."""
    return [read.wait_once() for read in reads]


async def read_in_pool(reads: Sequence[Read]) -> list[ByteArray | None]:
    """As `read_all`, in other threads, or in this one where none can be started."""
    if len(reads) == 1:
        return [await _read_one(reads[0])]
    return list(await asyncio.gather(*map(_read_one, reads)))


async def _read_one(read: Read) -> ByteArray | None:
    try:
        future = asyncio.get_running_loop().run_in_executor(_threads(), read.wait_once)
    except RuntimeError:
        # No thread can be started. Better that the loop waits than that a read fails.
        return read.wait_once()
    return await future


def in_two_threads[T, R](function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Call the function for each and return its results in order; half of them in another thread.

    Returns, or raises the function's error, when no call is running any more.
    """
    half = len(items) // 2
    queued = list(items[:half])
    try:
        first = _threads().submit(lambda: [function(each) for each in queued]) if half else None
    except RuntimeError:
        # No thread can be started, for a limit or at the end of the interpreter. The call may be in
        # the queue all the same, and must do nothing later.
        queued.clear()
        first = None
    try:
        rest = [function(each) for each in items[half if first else 0 :]]
    finally:
        # If reads keep all the threads busy, it has not started, and will not.
        if first is not None and not first.cancel():
            wait([first])
    if first is None:
        return rest
    return [*(map(function, queued) if first.cancelled() else first.result()), *rest]
