"""Tasks that make one call after another: each is one reader to the cache."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from zarr.core.sync import sync

if TYPE_CHECKING:
    from collections.abc import Awaitable


class Task:
    """A task of zarr's event loop that makes a call when the test says so."""

    def __init__(self) -> None:
        self._calls: asyncio.Queue[Any] = asyncio.Queue()
        self._task = sync(self._begin())

    async def _begin(self) -> asyncio.Task[None]:
        return asyncio.create_task(self._work())

    async def _work(self) -> None:
        while True:
            call, outcome = await self._calls.get()
            if call is None:
                outcome.set_result(None)
                return
            try:
                outcome.set_result(await call)
            except Exception as error:  # noqa: BLE001 - it is raised where the call was made
                outcome.set_exception(error)

    def __call__(self, call: Awaitable[Any] | None) -> Any:
        """The outcome of the call."""
        return sync(self._put(call))

    async def _put(self, call: Awaitable[Any] | None) -> Any:
        outcome = asyncio.get_running_loop().create_future()
        self._calls.put_nowait((call, outcome))
        return await outcome

    def end(self) -> None:
        """End the task."""
        self(None)
