"""An image pyramid, read as a viewer does: zooming in, and out again.

Each level is an array of tiles. Zooming in reads a few tiles of each level, and on the way
back they are all cached.

The picture is the portrait of Grace Hopper that matplotlib brings along.
"""

import tempfile
from pathlib import Path

import numpy as np
import zarr
from matplotlib import cbook
from PIL import Image
from zarr.storage import FsspecStore

from zarr_cache import CacheStore, SqliteStore
from zarr_cache.cli.demo.server import DemoServer

TILE = 64
LEVELS = 4
CENTRE = (0.35, 0.5)
"""Where the viewer looks: rows and columns, as shares of the picture."""


def write_pyramid(folder: Path) -> None:
    """Write the picture, and each time half of it, as arrays of tiles."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        picture = Image.open(file).convert("RGB")
    group = zarr.open_group(folder, mode="w")
    for level in range(LEVELS):
        size = (picture.width >> level, picture.height >> level)
        group.create_array(
            str(level), data=np.asarray(picture.resize(size)), chunks=(TILE, TILE, 3)
        )


def view(group: zarr.Group, level: int) -> np.ndarray:
    """What a window of two by two tiles shows of a level, around the centre."""
    array = group[str(level)]
    rows, columns = (
        slice(max(0, int(share * length) - TILE), int(share * length) + TILE)
        for share, length in zip(CENTRE, array.shape[:2], strict=True)
    )
    return array[rows, columns]


def main() -> None:
    """Zoom in, out, and in again."""
    with tempfile.TemporaryDirectory() as folder:
        pyramid, cache_file = Path(folder, "pyramid.zarr"), Path(folder, "pyramid-cache.sqlite")
        write_pyramid(pyramid)
        with DemoServer(pyramid) as server:
            source = FsspecStore.from_url(server.url, read_only=True)
            # On this machine an address tells nothing of what is served.
            cache_store = SqliteStore(cache_file)
            with CacheStore(source, cache_store=cache_store, namespace="pyramid") as store:
                group = zarr.open_group(store, mode="r")
                for what, levels in {
                    "in": reversed(range(LEVELS)),
                    "out": range(LEVELS),
                    "in again": reversed(range(LEVELS)),
                }.items():
                    before = server.traffic().requests
                    seen = sum(int(view(group, level).sum(dtype="i8")) for level in levels)
                    asked = server.traffic().requests - before
                    print(f"{what}: {asked} requests, sum of what was seen {seen}")


if __name__ == "__main__":
    main()
