"""A few threads that read the data file where an event loop must not wait for the disk."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr_cache.checksum import ByteArray
    from zarr_cache.data_read import Read

MOST_THREADS = min(16, 4 * (os.cpu_count() or 1))
"""So many reads are under way at once: enough to keep a disk busy, and not so many that they keep
the event loop from running."""

_pool: ThreadPoolExecutor | None = None


def _forget() -> None:
    global _pool  # noqa: PLW0603 - its threads are the parent's
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def read_all(reads: Sequence[Read]) -> list[ByteArray | None]:
    """What each brings, in this thread; None for bytes that are not those that were written."""
    return [read.wait_once() for read in reads]


async def read_in_pool(reads: Sequence[Read]) -> list[ByteArray | None]:
    """As `read_all`, in threads of the pool, or in this one where none can be started."""
    if len(reads) == 1:
        return [await _read_one(reads[0])]
    return list(await asyncio.gather(*map(_read_one, reads)))


async def _read_one(read: Read) -> ByteArray | None:
    global _pool  # noqa: PLW0603 - made when it is needed
    if _pool is None:
        _pool = ThreadPoolExecutor(MOST_THREADS, "zarr-cache-read")
    try:
        future = asyncio.get_running_loop().run_in_executor(_pool, read.wait_once)
    except RuntimeError:
        # No thread can be started. Better that the loop waits than that a read fails.
        return read.wait_once()
    return await future
