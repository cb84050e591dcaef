"""A reading in a process that knows nothing but the URL and the cache file.

``python -m zarr_cache.cli.demo.new_process URL ARRAY CACHE_FILE RESULT`` writes what it read as a
Zarr array to the folder RESULT, with what the reading took as its attributes.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any, cast

import zarr

from zarr_cache.cli.demo.reading import Reading, read
from zarr_cache.cli.demo.server import Traffic


class NewProcessError(Exception):
    """The process ended without a result; the message is the last line that it wrote."""


async def read_in_new_process(url: str, array: str, cache_file: Path, result: Path) -> Reading:
    """Call `read` in a new process, which leaves what it read in the folder `result`.

    Raises
    ------
    NewProcessError
        It failed.
    """
    command = [sys.executable, "-P", "-m", __name__, url, array, str(cache_file), str(result)]
    # Its output is captured: on Ctrl-C it would write a traceback of its own.
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    try:
        _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise NewProcessError(lines[-1] if lines else f"exit status {process.returncode}")
    written = zarr.open_array(result, mode="r")
    took = cast("dict[str, Any]", written.attrs.asdict())
    traffic = took.pop("traffic")
    return Reading(
        data=cast("Any", written[...]),
        shape=tuple(took.pop("shape")),
        traffic=Traffic(**traffic) if traffic is not None else None,
        **took,
    )


def main(url: str, array: str, cache_file: str, result: str) -> None:
    """Read, and write the result down."""
    reading = asyncio.run(read(url, array, Path(cache_file)))
    traffic = reading.traffic
    zarr.create_array(
        result,
        data=reading.data,
        attributes={
            "shape": reading.shape,
            "seconds": reading.seconds,
            "traffic": vars(traffic) if traffic is not None else None,
            "hits": reading.hits,
            "misses": reading.misses,
        },
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
