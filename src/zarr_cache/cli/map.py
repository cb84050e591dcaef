"""``zarr-cache map``."""

from pathlib import Path
from typing import Annotated, Any

import typer
import zarr
from rich.console import Console

from zarr_cache.cli import source
from zarr_cache.cli.file import existing
from zarr_cache.cli.options import CacheFile, SourceNamespace, SourceUrl
from zarr_cache.cli.terminal import fail, say
from zarr_cache.core.sizes import format_size
from zarr_cache.warming import coverage_map
from zarr_cache.warming.chunk_grid import by_dimension
from zarr_cache.warming.coverage import cached_places, cached_ranges
from zarr_cache.warming.coverage_map import CoverageMap
from zarr_cache.warming.shard_index import is_sharded

MAX_CELLS = {".png": (640, 640), ".svg": (160, 160)}
"""Rows and columns of a picture, by file extension."""

MAX_LINES = 40
"""Lines of a map that is printed to a file or a pipe."""


def map_(
    url: SourceUrl,
    *,
    array: Annotated[
        str, typer.Option(help="Path of an array in it; empty if it is at the root.")
    ] = "",
    slice_: Annotated[
        str,
        typer.Option(
            "--slice",
            help="The part of the grid to draw, in chunk indices: '0,:,:'. By default the last two "
            "dimensions, with the mean over the others in each cell.",
        ),
    ] = "",
    inner: Annotated[
        bool,
        typer.Option("--inner", help="Of a sharded array, draw the inner chunks, not the shards."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Draw to this file, .png or .svg, instead of the terminal.")
    ] = None,
    cache_file: CacheFile = None,
    namespace: SourceNamespace = None,
) -> None:
    """Draw which chunks of an array are cached.

    Reads only the metadata of the array from the source, if it is not cached.
    """
    selected = source.selection(slice_)
    ending = "" if output is None else output.suffix.lower()
    if output is not None and ending not in MAX_CELLS:
        fail(f"{output}: a map can be drawn as .png or .svg")
    if ending == ".png" and not coverage_map.has_pillow():
        fail("Pillow not installed: pip install 'zarr-cache[map]', or draw an .svg")
    path = existing(cache_file)
    console = Console()
    is_coloured = console.color_system is not None and not console.no_color
    lines = max(console.height - 6, 4) if console.is_terminal else MAX_LINES
    most = MAX_CELLS.get(ending, (2 * lines if is_coloured else lines, console.width))

    async def draw() -> CoverageMap:
        async with source.opened(url, array, path, namespace=namespace) as node:
            if not isinstance(node, zarr.AsyncArray):
                fail(f"{url}: {array!r} is a group; name an array of it with --array")
            cached = cached_places(node, inner=inner)
            noun = ("inner chunk" if inner else "shard") if is_sharded(node) else "chunk"
            names = getattr(node.metadata, "dimension_names", None)
            try:
                chosen = tuple(by_dimension(selected, node.ndim))
                return coverage_map.map_of(
                    cached,
                    node.path or url,
                    names,
                    slice_of=chosen,
                    most=most,
                    noun=noun,
                    notes=[] if inner else _notes(node),
                )
            except IndexError as error:
                fail(f"--slice {slice_!r}: {error}; the grid has the shape {cached.shape}")

    drawn = source.run(url, array, draw())
    if output is None:
        is_wide = console.encoding.startswith("utf")
        letters = coverage_map.SHADES if is_wide else coverage_map.ASCII_SHADES
        text = coverage_map.as_text(drawn, is_coloured=is_coloured and is_wide, letters=letters)
        console.print(text)
        return
    try:
        if ending == ".svg":
            output.write_text(coverage_map.as_svg(drawn), encoding="utf-8")
        else:
            coverage_map.save_png(drawn, output)
    except OSError as error:
        fail(f"{output}: {error.strerror or error}")
    say(f"{output}: {drawn.caption[0]}")


def _notes(array: zarr.AsyncArray[Any]) -> list[str]:
    """A line on the inner chunks that a map of shards does not show, if there are any."""
    found = cached_ranges(array)
    if not found.ranges:
        return []
    ranges = "1 range" if found.ranges == 1 else f"{found.ranges} ranges"
    shards = "1 shard" if found.shards == 1 else f"{found.shards} shards"
    verb = "is" if found.ranges == 1 else "are"
    size = format_size(found.nbytes)
    return [f"{ranges} ({size}) of {shards} {verb} cached as well; --inner draws them"]
