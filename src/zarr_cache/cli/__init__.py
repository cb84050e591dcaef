"""The command line, and the demo.

A command runs operations on the cache file first and prints afterwards: a pipe that is closed early
interrupts no transaction. Imports ``warming`` and what is below it.
"""

import platform
import sqlite3
from importlib.metadata import version
from typing import Annotated

import typer

from zarr_cache.cli.demo.command import demo
from zarr_cache.cli.explain import explain
from zarr_cache.cli.export import export
from zarr_cache.cli.info import info
from zarr_cache.cli.ls import ls
from zarr_cache.cli.map import map_
from zarr_cache.cli.removal import clear, evict
from zarr_cache.cli.terminal import escape_unencodable, say
from zarr_cache.cli.upkeep import compact, verify
from zarr_cache.cli.warm import revalidate, warm

app = typer.Typer(
    no_args_is_help=True,
    # typer's tracebacks print local variables, and a URL among them may contain a token.
    pretty_exceptions_enable=False,
)


def print_versions(value: bool) -> None:  # noqa: FBT001 - typer passes it so
    """End with one line that has the version, and those of what a report of a fault is about."""
    if value:
        say(
            f"zarr-cache {version('zarr-cache')} (Python {platform.python_version()}, "
            f"SQLite {sqlite3.sqlite_version}, zarr {version('zarr')})"
        )
        raise typer.Exit


@app.callback()
def zarr_cache(
    *,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=print_versions,
            is_eager=True,
            help="Print the version, and those of Python, SQLite and zarr.",
        ),
    ] = False,
) -> None:
    """Inspect and change a cache file of Zarr values."""
    escape_unencodable()


# The help lists them in this order.
app.command()(info)
app.command()(ls)
app.command()(explain)
app.command()(evict)
app.command()(clear)
app.command()(export)
app.command()(compact)
app.command()(verify)
app.command()(warm)
app.command()(revalidate)
app.command("map")(map_)
app.command()(demo)
