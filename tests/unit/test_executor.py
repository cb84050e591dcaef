"""What waits for an event loop leaves it a thread of its executor."""

from __future__ import annotations

import asyncio
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

from zarr_cache.executor import begin_batch, may_wait_for


async def begun(release: asyncio.Event, *, is_optional: bool) -> bool:
    is_begun = begin_batch(is_optional=is_optional)
    await release.wait()
    return is_begun


async def begin(number: int, *, is_optional: bool) -> list[bool]:
    """How many tasks at once may give a batch to a thread."""
    release = asyncio.Event()
    tasks = [asyncio.create_task(begun(release, is_optional=is_optional)) for _ in range(number)]
    await asyncio.sleep(0)
    release.set()
    return await asyncio.gather(*tasks)


async def test_one_thread_is_left_by_batches_that_may_have_to_wait() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(3))

    assert await begin(4, is_optional=True) == [True, True, False, False]


async def test_batches_that_ended_are_counted_no_more() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
    first = await begin(2, is_optional=True)
    second = await begin(2, is_optional=True)

    assert first == second == [True, False]


async def test_a_task_counts_once_however_many_batches_it_reads() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))

    assert [begin_batch(is_optional=True) for _ in range(5)] == [True] * 5


async def test_nobody_waits_where_batches_may_have_taken_all_threads() -> None:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(2))
    release = asyncio.Event()
    may_wait = [may_wait_for(loop)]
    tasks = []
    for _ in range(2):
        tasks.append(asyncio.create_task(begun(release, is_optional=False)))
        await asyncio.sleep(0)
        may_wait.append(may_wait_for(loop))
    release.set()

    assert await asyncio.gather(*tasks) == [True, True]
    assert may_wait == [True, True, False]


async def test_an_executor_with_one_thread_has_none_to_spare() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))

    assert not begin_batch(is_optional=True)


def closed_with_a_batch() -> weakref.ref[asyncio.AbstractEventLoop]:
    """A loop that was closed while a task that had given a batch to a thread was under way."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(begun(asyncio.Event(), is_optional=False))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert not task.done()
    # Nobody is to be told that it never ended.
    loop.set_exception_handler(lambda _loop, _context: None)
    return weakref.ref(loop)


def test_a_loop_that_was_closed_with_a_batch_under_way_is_collected() -> None:
    loop = closed_with_a_batch()
    gc.collect()

    assert loop() is None


def test_a_loop_that_was_closed_is_forgotten_at_the_next_batch() -> None:
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _loop, _context: None)
    loop.set_default_executor(ThreadPoolExecutor(1))
    task = loop.create_task(begun(asyncio.Event(), is_optional=False))
    loop.run_until_complete(asyncio.sleep(0))
    before = may_wait_for(loop)
    loop.close()

    asyncio.run(begin(1, is_optional=False))

    assert not task.done()
    assert not before
    assert may_wait_for(loop)
