"""Climate-like data with xarray: the mean of some regions, asked for twice.

A field over latitude and longitude lies on a server, in chunks. The first round fetches the chunks
that the regions touch. The second, in a store opened anew, asks the server nothing, and neither
does a region inside those.

The data are heights and depths around Vancouver Island, which matplotlib brings along.
"""

import tempfile
from pathlib import Path

import numpy as np
import xarray
from matplotlib import cbook
from zarr.storage import FsspecStore

from zarr_cache import CacheStore, SqliteStore
from zarr_cache.cli.demo.server import DemoServer

REGIONS = {
    "Vancouver Island": {"latitude": slice(49.4, 49.9), "longitude": slice(234.2, 235.2)},
    "Strait of Georgia": {"latitude": slice(49.1, 49.4), "longitude": slice(236.1, 236.6)},
}
INSIDE = {"Georgia Deep": {"latitude": slice(49.2, 49.3), "longitude": slice(236.2, 236.4)}}


def write_field(folder: Path) -> None:
    """Write the field as Zarr, as a provider of data would."""
    with cbook.get_sample_data("topobathy.npz") as data:
        field = xarray.DataArray(
            data["topo"].astype("float32"),
            dims=("latitude", "longitude"),
            coords={"latitude": data["latitude"], "longitude": data["longitude"]},
            attrs={"units": "m"},
        )
    chunks = {"latitude": 15, "longitude": 15}
    field.sortby(["latitude", "longitude"]).chunk(chunks).to_dataset(name="height").to_zarr(
        folder, zarr_format=2
    )


def means(url: str, cache_file: Path, regions: dict[str, dict[str, slice]]) -> dict[str, int]:
    """The mean height of each region, in metres, through the cache."""
    source = FsspecStore.from_url(url, read_only=True)
    with (
        # The server is on this machine, where the address tells nothing of what is served.
        CacheStore(source, cache_store=SqliteStore(cache_file), namespace="field") as store,
        xarray.open_zarr(store) as data,
    ):
        return {
            name: round(float(np.mean(data["height"].sel(where).values)))
            for name, where in regions.items()
        }


def main() -> None:
    """Read, read again, and read inside of what was read."""
    with tempfile.TemporaryDirectory() as folder:
        field, cache_file = Path(folder, "field.zarr"), Path(folder, "field-cache.sqlite")
        write_field(field)
        with DemoServer(field) as server:
            for what, regions in {
                "cold": REGIONS,
                "warm": REGIONS,
                "inside": INSIDE,
            }.items():
                before = server.traffic().requests
                found = means(server.url, cache_file, regions)
                print(f"{what}: {server.traffic().requests - before} requests, {found}")


if __name__ == "__main__":
    main()
