"""A training loop whose workers are forked: each sample is fetched in the first epoch only.

Workers of `multiprocessing`, as a PyTorch ``DataLoader`` starts them, share one cache file. Each
opens the source for itself, since what fsspec connects to belongs to the process that did.

The samples are slices of the MRI scan that nibabel brings along; what is learnt is their mean.
"""

import multiprocessing
import os
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import zarr
from zarr.storage import FsspecStore

from zarr_cache import CacheStore, SqliteStore
from zarr_cache.cli.demo.sample import ARRAY, write_sample
from zarr_cache.cli.demo.server import DemoServer

WORKERS = 2
EPOCHS = 3


@cache
def opened(url: str, cache_file: Path, _process: int) -> zarr.Array:
    """The scan, opened once by each process."""
    source = FsspecStore.from_url(url, read_only=True)
    # The server is on this machine, where the address tells nothing of what is served.
    store = CacheStore(source, cache_store=SqliteStore(cache_file), namespace="scan")
    return zarr.open_array(store, path=ARRAY, mode="r")


def sample(place: tuple[str, Path, int, int]) -> np.ndarray:
    """Half of a slice of the scan: the chunks of one sample are those of no other."""
    url, cache_file, block, time = place
    scan = opened(url, cache_file, os.getpid())
    return scan[block * scan.chunks[0] : (block + 1) * scan.chunks[0], :, :, time].astype("f8")


def epoch(places: list[tuple[str, Path, int, int]], order: np.ndarray) -> float:
    """Read every sample once, in workers of its own; return the mean of all."""
    workers = multiprocessing.get_context("fork").Pool(WORKERS)
    means = [each.mean() for each in workers.imap(sample, [places[index] for index in order])]
    # Not terminate(), which the end of a with block is: what waits is written when a worker ends.
    workers.close()
    workers.join()
    return float(np.mean(means))


def main() -> None:
    """Train."""
    order = np.random.default_rng(seed=0)
    with tempfile.TemporaryDirectory() as folder:
        scan, cache_file = Path(folder, "scan.zarr"), Path(folder, "scan-cache.sqlite")
        voxels = write_sample(scan)
        with DemoServer(scan) as server:
            places = [
                (server.url, cache_file, block, time)
                for block in range(voxels.shape[0] // 32)
                for time in range(voxels.shape[3])
            ]
            for number in range(EPOCHS):
                before = server.traffic().requests
                mean = epoch(places, order.permutation(len(places)))
                asked = server.traffic().requests - before
                print(f"epoch {number}: {asked} requests, mean {mean:.3f}")


if __name__ == "__main__":
    main()
