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
from zarr_cache.cli.options import SourceNamespace
from zarr_cache.cli.terminal import fail


def demo(
    *,
    url: Annotated[
        str | None,
        typer.Option(help="A Zarr to read instead of the MRI scan that the demo serves itself."),
    ] = None,
    array: Annotated[
        str, typer.Option(help="Path of the array within --url; empty if it is the root.")
    ] = "",
    namespace: SourceNamespace = None,
    latency_ms: Annotated[
        float, typer.Option(min=0, help="Delay of each response of the demo's own server.")
    ] = 50.0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the cache file as ./zarr-cache-demo.sqlite.")
    ] = False,
    cache_file: Annotated[
        Path | None, typer.Option(help="Path of the cache file, which is kept.")
    ] = None,
) -> None:
    """Read an array without a cache, with a cold one and with a warm one, and compare."""
    if array and url is None:
        fail("--array is the path of an array within --url: give both")
    if namespace and url is None:
        fail("--namespace is the name of what --url reads: give both")
    if keep and cache_file is None:
        cache_file = KEPT_FILE
    try:
        work = run(
            Console(),
            url=url,
            array=array,
            namespace=namespace,
            latency_seconds=latency_ms / 1000,
            cache_file=cache_file,
        )
        asyncio.run(_until_stopped(work))
    except DemoError as error:
        fail(str(error))
    except _StoppedError as stopped:
        typer.echo("stopped: the server has ended and the temporary folder is removed", err=True)
        # As shells report that a signal ended a process.
        raise typer.Exit(128 + stopped.signal_number) from None


class _StoppedError(Exception):
    """A signal asked the command to end."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


async def _until_stopped(work: Awaitable[object]) -> None:
    """Await `work`, which Ctrl-C and SIGTERM cancel.

    A cancellation arrives at an await, where everything open gets closed. An exception raised in a
    signal handler arrives wherever the main thread is; inside the event loop's own code it could
    make the loop wait for ever.

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
        # Interrupted code logs and warns; the user knows why.
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
