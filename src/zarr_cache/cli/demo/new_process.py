"""A reading in a process that knows only the URL and the cache file.

``python -m zarr_cache.cli.demo.new_process URL ARRAY CACHE_FILE NAMESPACE RESULT`` writes the data
that it read to the folder RESULT, as a Zarr array whose attributes are the measurements. NAMESPACE
is empty if the source has its own name.
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
    """The process ended without a result; the message is the last line of its stderr."""


async def read_in_new_process(
    url: str, array: str, cache_file: Path, namespace: str | None, result: Path
) -> Reading:
    """Call `read` in a new process, which writes the data to the folder `result`.

    Raises
    ------
    NewProcessError
        The process failed.
    """
    arguments = [url, array, str(cache_file), namespace or "", str(result)]
    command = [sys.executable, "-P", "-m", __name__, *arguments]
    # Its output is captured: at Ctrl-C the process would print a traceback.
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
    measured = cast("dict[str, Any]", written.attrs.asdict())
    traffic = measured.pop("traffic")
    return Reading(
        data=cast("Any", written[...]),
        shape=tuple(measured.pop("shape")),
        traffic=Traffic(**traffic) if traffic is not None else None,
        **measured,
    )


def main(url: str, array: str, cache_file: str, namespace: str, result: str) -> None:
    """Read, and write the result to a folder."""
    reading = asyncio.run(read(url, array, Path(cache_file), namespace or None))
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
