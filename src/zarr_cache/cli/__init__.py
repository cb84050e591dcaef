"""The command ``zarr-cache``: a module each for its commands, and here which there are.

A command is a function that typer understands. It reads and changes a file by operations alone, and
prints when they are done: a pipe that is closed early interrupts no transaction.
"""

import typer

from zarr_cache.cli.compact import compact
from zarr_cache.cli.demo.command import demo
from zarr_cache.cli.explain import explain
from zarr_cache.cli.info import info
from zarr_cache.cli.ls import ls
from zarr_cache.cli.map import map_
from zarr_cache.cli.removal import clear, evict
from zarr_cache.cli.terminal import escape_what_cannot_be_shown
from zarr_cache.cli.verify import verify
from zarr_cache.cli.warm import warm

app = typer.Typer(
    no_args_is_help=True,
    # Its tracebacks print local variables, and a URL among them may carry a token.
    pretty_exceptions_enable=False,
)


@app.callback()
def zarr_cache() -> None:
    """Keep what was read of a Zarr in one SQLite file."""
    escape_what_cannot_be_shown()


# In the order in which the help lists them.
app.command()(info)
app.command()(ls)
app.command()(explain)
app.command()(evict)
app.command()(clear)
app.command()(compact)
app.command()(verify)
app.command()(warm)
app.command("map")(map_)
app.command()(demo)
