"""Threads of an event loop's executor, which what waits for that loop must not take all of.

zarr's fused pipeline reads and writes a batch by the sync methods in one thread of the executor of
the event loop that it was called on. What such a thread waits for may need another: a source that
reads in threads of its own, as `LocalStore` and fsspec's local file system do, takes them from the
same executor. If all of them waited, none would ever go on.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref

from zarr.core.config import config

_lock = threading.Lock()
# A task holds its loop: one that never ends, since its loop was closed, must not be held here.
_batches: weakref.WeakKeyDictionary[
    asyncio.AbstractEventLoop, weakref.WeakSet[asyncio.Task[object]]
] = weakref.WeakKeyDictionary()


def _after_fork() -> None:
    global _lock  # noqa: PLW0603 - the child of a fork may have inherited it held
    _lock = threading.Lock()
    _batches.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def begin_batch(*, is_optional: bool) -> bool:
    """Count that the task under way gives a batch to a thread, from now on to its end.

    A task does one thing at a time, so it counts once.

    Parameters
    ----------
    is_optional
        Whether to refuse, and return False, if no thread would be left.
    """
    task = asyncio.current_task()
    if task is None:
        return not is_optional
    loop = task.get_loop()
    with _lock:
        for each in list(_batches):
            if each.is_closed():
                del _batches[each]
        tasks = _batches.setdefault(loop, weakref.WeakSet())
        if task in tasks:
            return True
        if is_optional and len(tasks) + 1 >= _threads_of(loop):
            return False
        tasks.add(task)
    task.add_done_callback(tasks.discard)
    return True


def may_wait_for(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a thread may wait for a task of the loop: one of its executor is left to go on."""
    with _lock:
        return len(_batches.get(loop, ())) < _threads_of(loop)


def _threads_of(loop: asyncio.AbstractEventLoop) -> int:
    """How many threads the default executor of the loop has, or will have when it is made."""
    executor = getattr(loop, "_default_executor", None)
    if executor is not None:
        # Of an executor of another kind nothing is known.
        return int(getattr(executor, "_max_workers", 1))
    # As `ThreadPoolExecutor` has it: `process_cpu_count` came with Python 3.13.
    processors = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    return int(config.get("threading.max_workers", None) or min(32, processors + 4))
