"""``zarr-cache export``."""

from pathlib import Path
from typing import Annotated

import typer

from zarr_cache.cli.file import existing, opened_to_read
from zarr_cache.cli.options import CacheFile, Json
from zarr_cache.cli.terminal import count, fail, print_json, say
from zarr_cache.core.sizes import format_size
from zarr_cache.inspect import export as exporting


def export(
    new_file: Annotated[Path, typer.Argument(help="The file to make. Its folder must exist.")],
    cache_file: CacheFile = None,
    *,
    namespace: Annotated[
        str | None,
        typer.Option(help="The source, as `info` names it. By default the only one in the file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a new cache file with what is cached of one source, to use it on another machine.

    Values, ranges and absences are copied with their ages and the order of their use.
    """
    path = existing(cache_file)
    try:
        new = new_file.expanduser().resolve()
    except RuntimeError as error:
        fail(f"{new_file}: {error}")
    try:
        with opened_to_read(path) as connection:
            name = exporting.namespace_of(connection, path, namespace)
            amount, damaged = exporting.export(connection, path, name, new)
    except KeyboardInterrupt:
        typer.echo(f"stopped: {new} was not made", err=True)
        raise typer.Exit(130) from None
    if as_json:
        print_json(
            {
                "path": str(path),
                "new_path": str(new),
                "namespace": name,
                "entries": amount.entries,
                "bytes": amount.bytes,
                "damaged_entries": damaged,
            }
        )
        return
    entries = count(amount.entries, "entry", "entries")
    say(f"{new}: {entries} ({format_size(amount.bytes)}) of {name}")
    if damaged:
        left_out = count(damaged, "damaged entry is", "damaged entries are")
        say(f"{left_out} left out; `zarr-cache verify --repair` removes what is damaged")
