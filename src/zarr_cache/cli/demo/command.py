"""``zarr-cache demo``."""

import asyncio
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
        str, typer.Option(help="Path of the array within --url; empty if it is the root.")
    ] = "",
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
        asyncio.run(work)
    except DemoError as error:
        fail(str(error))
    except KeyboardInterrupt:
        typer.echo("stopped: the server has ended and the temporary folder is removed", err=True)
        raise typer.Exit(130) from None
