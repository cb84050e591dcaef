"""The connections of event loops: one each, which runs operations on aiosqlite's thread."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate

import aiosqlite

from zarr_cache.core.flow import in_thread, running_loop
from zarr_cache.disk.paths import BUSY_TIMEOUT_SECONDS
from zarr_cache.file.pool import ConnectionLease

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr_cache.file.connection import Connection
    from zarr_cache.file.pool import ConnectionPool


logger = logging.getLogger(__name__)


class LoopConnection(aiosqlite.Connection):
    """aiosqlite's connection for one event loop: runs whole operations on its thread.

    aiosqlite's own methods run a statement each, and tasks that share a connection would share a
    transaction. An operation is a function of the connection, run from beginning to end in one hop.

    Parameters
    ----------
    loop
        The loop whose tasks use it, and no other: then no request reaches a thread that has ended.
    connection
        What it runs operations on.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: Connection) -> None:
        super().__init__(lambda: connection, iter_chunk_size=64)
        self._loop = loop
        self.connection = connection
        self._is_ending = False
        # Otherwise a program that never closes a store never ends (aiosqlite#299).
        self._thread.daemon = True

    @property
    def is_running(self) -> bool:
        """Whether it accepts operations."""
        is_started = self._running and self._connection is not None
        return is_started and self._thread.is_alive() and not self._is_ending

    async def start(self) -> None:
        """Start the thread; a cancellation leaves nothing behind."""
        try:
            await self
        except BaseException:
            if self._thread.is_alive():
                # aiosqlite has stopped it. It must not outlive the loop, see `run`.
                self._thread.join()
            raise

    async def close(self) -> None:
        """Close the connection after the operations that wait for it, and end its thread."""
        self._is_ending = True
        if self._thread.is_alive():
            await super().close()

    def close_now(self) -> None:
        """Close the connection, on which nothing runs; its thread ends with `close`."""
        self._is_ending = True
        self.connection.close()

    async def run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run ``operation(connection, *args, **kwargs)`` on the connection's thread.

        It runs to its end even when the calling task is cancelled.
        """
        try:
            result: T = await self._on_thread(operation, self._conn, *args, **kwargs)
        except asyncio.CancelledError:
            # aiosqlite's thread passes each result to the calling loop, and dies if that loop is
            # closed by then: leave only after the thread is done with our operation.
            await self._on_thread(int)
            raise
        return result

    async def _on_thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await self._execute(function, *args, **kwargs)  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Close the connection and end its thread, from any thread.

        A connection that is being started is closed by the task that starts it. One whose loop is
        blocked is closed by that loop, once it continues.
        """
        if not self._thread.is_alive() or self._connection is None:
            return
        here = running_loop()
        if here is self._loop or not (here is None or self._loop.is_running()):
            # Its thread notifies this loop, which need not run for that.
            self.stop()
            self._thread.join()
        elif self._loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(self.close(), self._loop)
            try:
                closing.result(BUSY_TIMEOUT_SECONDS)
            except TimeoutError:
                logger.warning(
                    "an event loop was blocked for %g s; it closes its connection later",
                    BUSY_TIMEOUT_SECONDS,
                )
        else:
            asyncio.run(self.close())


class LoopConnections:
    """The connections of the event loops that use a file: one each, made at its first need."""

    def __init__(
        self,
        pool: ConnectionPool,
        open_file: Callable[[], object],
        take: Callable[[ConnectionLease], Connection],
    ) -> None:
        self._pool = pool
        self._open_file = open_file
        self._take = take
        self._by_loop: dict[asyncio.AbstractEventLoop, LoopConnection] = {}
        self._starting: dict[asyncio.AbstractEventLoop, asyncio.Task[None]] = {}

    def get(self, loop: asyncio.AbstractEventLoop) -> LoopConnection | None:
        """The connection of this loop; None if it has none to the file that is open."""
        found = self._by_loop.get(loop)
        is_usable = found and found.is_running and found.connection in self._pool.connections
        return found if is_usable else None

    def connections(self) -> set[Connection]:
        """All of them."""
        return {each.connection for each in self._by_loop.values()}

    async def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Make a connection for `loop`; tasks that need it at once wait for the same one.

        Raises
        ------
        RuntimeError
            No thread can be started.
        """
        task = self._starting.get(loop)
        if task is None or task.done():
            task = self._starting[loop] = loop.create_task(self._start(loop))
            # The task that waits for it may be cancelled.
            task.add_done_callback(partial(self._started, loop))
        await asyncio.shield(task)

    def _started(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
        if self._starting.get(loop) is task:
            del self._starting[loop]

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        await self._close_ended(loop)
        # It may wait for another process that creates the file.
        await in_thread(self._open_file)
        lease = ConnectionLease()
        try:
            connection = self._take(lease)
            loop_connection = LoopConnection(loop, connection)
            with self._pool.lock:
                # From here on it is the loop's, and a thread that closes every connection finds it
                # there. It is not leased: this loop's own thread may wait until none is.
                self._by_loop[loop], lease.connection = loop_connection, None
        finally:
            lease.has_ended = True
            self._pool.put_back(lease)
        try:
            await loop_connection.start()
        except BaseException:
            self._pool.discard(connection)
            connection.close()
            raise
        if connection not in self._pool.connections:
            # Closed in between: the caller starts another.
            await loop_connection.close()

    async def _close_ended(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close those of loops that have been closed, and that of this one to an earlier file."""
        for ended in list(self._by_loop):
            if ended is loop or ended.is_closed():
                # Another loop that starts at the same time may have come before.
                its = self._by_loop.pop(ended, None)
                if its is not None:
                    self._pool.discard(its.connection)
                    await its.close()

    def close_now(self) -> None:
        """Close all, while no operation is under way; their threads end later."""
        for each in list(self._by_loop.values()):
            each.close_now()

    def clear(self) -> list[LoopConnection]:
        """Have none any more; return those that there were, for the caller to `end`."""
        cleared = list(self._by_loop.values())
        self._by_loop.clear()
        return cleared

    def abandon(self) -> None:
        """Leave all to the parent, in the child of a fork, which does not have their threads."""
        _left_to_the_parent.append((self._by_loop, self._starting))


# What nothing refers to would be closed by the garbage collector.
_left_to_the_parent: list[object] = []
