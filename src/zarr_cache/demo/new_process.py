"""A reading in a process that knows nothing but the URL and the cache file.

``python -m zarr_cache.demo.new_process URL ARRAY CACHE_FILE RESULT`` writes what it read as a Zarr
array to the folder RESULT, with what the reading took as its attributes.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import zarr

from zarr_cache.demo.reading import Reading, read
from zarr_cache.demo.server import Traffic


class NewProcessError(Exception):
    """The process ended without a result; the message is the last line that it wrote."""


def read_in_new_process(url: str, array: str, cache_file: Path, result: Path) -> Reading:
    """Call `read` in a new process, which leaves what it read in the folder `result`.

    Raises
    ------
    NewProcessError
        It failed.
    """
    command = [sys.executable, "-P", "-m", __name__, url, array, str(cache_file), str(result)]
    # Its output is captured: on Ctrl-C it would write a traceback of its own.
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - this module
    if ended.returncode != 0:
        lines = ended.stderr.strip().splitlines() or [f"exit status {ended.returncode}"]
        raise NewProcessError(lines[-1])
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
    reading = read(url, array, Path(cache_file))
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
