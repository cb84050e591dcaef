"""A connection of an event loop, which runs operations on aiosqlite's thread."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Concatenate

import aiosqlite

from zarr_cache.core.flow import running_loop
from zarr_cache.disk.paths import BUSY_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr_cache.file.connection import Connection


logger = logging.getLogger(__name__)


class LoopConnection(aiosqlite.Connection):
    """aiosqlite's connection for one event loop: runs whole operations on its thread.

    aiosqlite's own methods run a statement each, and tasks that share a connection would share a
    transaction. An operation is a function of the connection, run from beginning to end in one hop.

    Parameters
    ----------
    loop
        The loop whose tasks use it, and no other: then nothing is asked of a thread that has ended.
    connection
        What it runs operations on.

    Attributes
    ----------
    connection : Connection
        The same.
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
        """Whether operations can be given to it."""
        is_started = self._running and self._connection is not None
        return is_started and self._thread.is_alive() and not self._is_ending

    async def start(self) -> None:
        """Start the thread; a cancellation leaves nothing behind.

        Raises
        ------
        RuntimeError
            No thread can be started.
        """
        try:
            await self
        except BaseException:
            if self._thread.is_alive():
                # aiosqlite has told it to end. It must not outlive the loop, see `run`.
                self._thread.join()
            raise

    async def close(self) -> None:
        """Close the connection when what was given to it has run, and end its thread."""
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

        It runs to its end even when the task that asked for it is cancelled.
        """
        try:
            result: T = await self._on_thread(operation, self._conn, *args, **kwargs)
        except asyncio.CancelledError:
            # aiosqlite's thread hands each result to the loop that asked, and dies if that loop is
            # closed by then: leave only after the thread is done with what we gave it.
            await self._on_thread(int)
            raise
        return result

    async def _on_thread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return await self._execute(function, *args, **kwargs)  # type: ignore[no-untyped-call]

    def end(self) -> None:
        """Close the connection and end its thread, from whatever thread this is called.

        One that is being started is closed by who starts it, and one whose loop is held up by that
        loop, once it goes on.
        """
        if not self._thread.is_alive() or self._connection is None:
            return
        here = running_loop()
        if here is self._loop or not (here is None or self._loop.is_running()):
            # Its thread tells this loop, which need not go on for that.
            self.stop()
            self._thread.join()
        elif self._loop.is_running():
            closing = asyncio.run_coroutine_threadsafe(self.close(), self._loop)
            try:
                closing.result(BUSY_TIMEOUT_SECONDS)
            except TimeoutError:
                logger.warning(
                    "an event loop has done nothing for %g s; it closes its connection when it "
                    "goes on",
                    BUSY_TIMEOUT_SECONDS,
                )
        else:
            asyncio.run(self.close())
