"""``zarr-cache demo``."""

import asyncio
import logging
import signal
import warnings
from collections.abc import Awaitable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from zarr_cache.cli.demo.run import KEPT_FILE, DemoError, run
from zarr_cache.cli.terminal import fail


def demo(
    *,
    url: Annotated[
        str | None,
        typer.Option(help="A Zarr to read instead of the MRI scan that the demo serves itself."),
    ] = None,
    array: Annotated[
        str, typer.Option(help="Path of the array within --url; empty if it is at the root.")
    ] = "",
    latency_ms: Annotated[
        float, typer.Option(min=0, help="How long the demo's own server holds each answer back.")
    ] = 50.0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the cache file as ./zarr-cache-demo.sqlite.")
    ] = False,
    cache_file: Annotated[
        Path | None, typer.Option(help="Put the cache file here, and leave it there.")
    ] = None,
) -> None:
    """Read an array without a cache, cold, warm, and warm from a new process; show what it took."""
    if array and url is None:
        fail("--array names an array within --url: give both")
    if keep and cache_file is None:
        cache_file = KEPT_FILE
    try:
        work = run(
            Console(),
            url=url,
            array=array,
            latency_seconds=latency_ms / 1000,
            cache_file=cache_file,
        )
        asyncio.run(_until_stopped(work))
    except DemoError as error:
        fail(str(error))
    except _StoppedError as stopped:
        typer.echo("stopped: the server is down and the temporary folder is gone", err=True)
        # As shells report the end by a signal.
        raise typer.Exit(128 + stopped.signal_number) from None


class _StoppedError(Exception):
    """A signal asked the command to end."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


async def _until_stopped(work: Awaitable[object]) -> None:
    """Await `work`, which Ctrl-C and SIGTERM cancel.

    At an await, and so where all that is open gets closed: an exception out of a signal handler
    comes up wherever the main thread is, and from inside the event loop's own code it can leave
    that waiting for ever.

    Raises
    ------
    _StoppedError
        A signal came, and the work has ended.
    """
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    received: list[int] = []

    def stop(signal_number: int, _: object) -> None:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        # What is cut off in the middle complains, and the user knows why.
        logging.disable()
        warnings.simplefilter("ignore")
        received.append(signal_number)
        loop.call_soon_threadsafe(task.cancel)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, stop)
    try:
        await task
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            raise _StoppedError(received[0]) from None
