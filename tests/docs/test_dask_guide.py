"""The guide to Dask: its examples run, on a cluster of processes, and its figures are what it says.

All of Dask is tested here, since a cluster takes seconds to start.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray
from distributed import Client, LocalCluster
from zarr.storage import FsspecStore

from tests.fakes import assert_accounts, cached_bytes
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.cache.xarray_engine import ZarrCacheEntrypoint
from zarr_cache.cli.demo.server import DemoServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "dask.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ONE_MACHINE, CLUSTER, OWN_PATHS = EXAMPLE.findall(GUIDE)

WORKERS = 2
CHUNKS = 64

pytestmark = [
    # xarray writes what zarr says it might change; the tests of xarray have it, too.
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part"),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a cluster whose workers are processes of one thread."""
    with (
        LocalCluster(  # type: ignore[no-untyped-call] # distributed has few types
            n_workers=WORKERS,
            threads_per_worker=1,
            processes=True,
            # Any free port: another run of these tests may have the usual one.
            dashboard_address=":0",
            local_directory=str(tmp_path_factory.mktemp("scratch")),
        ) as cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call] # the same
    ):
        yield client


@pytest.fixture(scope="module")
def temperature() -> xarray.DataArray:
    """The data that the source holds."""
    data = np.arange(64 * 32 * 32, dtype="float64").reshape(64, 32, 32)
    return xarray.DataArray(data, dims=("time", "y", "x"), name="temperature")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, temperature: xarray.DataArray) -> Path:
    """The data as Zarr, in `CHUNKS` chunks of 8 KiB before compression."""
    folder = tmp_path_factory.mktemp("source") / "era5.zarr"
    temperature.chunk(time=4, y=16, x=16).to_dataset().to_zarr(
        folder, encoding={"temperature": {"compressors": None}}, zarr_format=3
    )
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[DemoServer]:
    """Serves the data and counts. Each answer is late, so that tasks want chunks at once."""
    with DemoServer(folder, latency_seconds=0.01) as server:
        yield server


def cached(server: DemoServer, path: Path, **settings: Any) -> CacheStore:
    source = FsspecStore.from_url(server.url, read_only=True)
    return CacheStore(source, cache_store=SqliteStore(path), namespace="era5", **settings)


def opened(store: CacheStore, chunks: dict[str, int]) -> xarray.DataArray:
    """The data, lazily. Its metadata are in the cache, so that what is counted next are chunks."""
    array: xarray.DataArray = xarray.open_zarr(store, chunks=chunks)["temperature"]
    return array


def mean(array: xarray.DataArray) -> float:
    """By the cluster, where the data are lazy."""
    return float(array.mean().compute())


def test_each_chunk_is_fetched_once_and_never_again(
    client: Client, server: DemoServer, path: Path, temperature: xarray.DataArray
) -> None:
    array = opened(cached(server, path), chunks={})
    begun = server.traffic().requests
    first = mean(array)
    after_first = server.traffic().requests
    second = array.max("time").compute()
    after_second = server.traffic().requests

    assert len(client.scheduler_info()["workers"]) == WORKERS
    assert first == mean(temperature)
    np.testing.assert_array_equal(second, temperature.max("time"))
    # A task that is given to another worker while it runs would be a request more.
    assert CHUNKS <= after_first - begun <= CHUNKS * 1.05
    assert after_second == after_first


@pytest.mark.filterwarnings("ignore:The specified chunks separate the stored chunks:UserWarning")
@pytest.mark.usefixtures("client")
def test_a_chunk_that_two_tasks_want_at_once_is_fetched_at_most_once_for_each_worker(
    server: DemoServer, path: Path, temperature: xarray.DataArray
) -> None:
    array = opened(cached(server, path), chunks={"time": 2, "y": 16, "x": 16})
    begun = server.traffic().requests
    first = mean(array)
    after_first = server.traffic().requests
    second = mean(array + 1)

    assert (first, second) == (mean(temperature), mean(temperature) + 1)
    assert CHUNKS <= after_first - begun <= CHUNKS * WORKERS
    assert server.traffic().requests == after_first


def test_workers_keep_the_budget_at_every_moment(
    client: Client, server: DemoServer, path: Path, temperature: xarray.DataArray
) -> None:
    max_size = 10 * 8192
    array = opened(cached(server, path, max_size=max_size), chunks={})
    future = client.compute(array.mean())  # type: ignore[no-untyped-call] # the same
    looks = [0]
    while not future.done():
        looks.append(cached_bytes(path))

    assert float(future.result()) == mean(temperature)
    assert max_size / 2 < max(looks) <= max_size


def test_threads_of_one_process_fetch_each_chunk_once(
    server: DemoServer, path: Path, temperature: xarray.DataArray
) -> None:
    # Two tasks want each chunk.
    array = opened(cached(server, path), chunks={}).chunk(time=2)
    begun = server.traffic().requests
    found = float(array.mean().compute(scheduler="threads", num_workers=8))

    assert found == mean(temperature)
    assert server.traffic().requests - begun == CHUNKS


@pytest.fixture
def run(
    client: Client, server: DemoServer, path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], float]:
    """Runs an example of the guide with addresses and paths of this test; what it prints."""
    # Where the client keeps its own file in the last example.
    monkeypatch.setenv("CACHE_FOLDER", str(path.parent))

    def run(example: str) -> float:
        for stated, own in {
            "https://example.org/era5.zarr": server.url,
            # A server of this machine must be named.
            "max_size=": 'namespace="era5", max_size=',
            "tcp://scheduler:8786": client.scheduler_info()["address"],
            '"era5-cache.sqlite")': f'"{path.name}")',
            'engine="zarr_cache"': "engine=ZarrCacheEntrypoint",
            '"/scratch/era5-cache.sqlite"': f'"{path}"',
        }.items():
            example = example.replace(stated, own)
        printed: list[Any] = []
        # As in a script: what it defines is pickled by value.
        names: dict[str, Any] = {"__name__": "__main__", "print": printed.append}
        # A checkout that is not installed has no engine of this name.
        names["ZarrCacheEntrypoint"] = ZarrCacheEntrypoint
        exec(example, names)  # noqa: S102 - our own
        if "client" in names:
            names["client"].close()
        (found,) = printed
        return float(found)

    return run


def test_the_example_of_one_machine_runs(
    run: Callable[[str], float],
    path: Path,
    temperature: xarray.DataArray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ZARR_CACHE_PATH", str(path))

    assert run(ONE_MACHINE) == mean(temperature)
    assert cached_bytes(path) > temperature.nbytes


def test_the_example_of_a_cluster_fetches_each_chunk_once(
    run: Callable[[str], float], server: DemoServer, path: Path, temperature: xarray.DataArray
) -> None:
    found = run(CLUSTER), run(CLUSTER)

    assert found == (mean(temperature), mean(temperature))
    assert cached_bytes(path) > temperature.nbytes
    # Beside the chunks, the client reads a few metadata, and some that are not there.
    assert CHUNKS < server.traffic().requests < CHUNKS * 1.05 + 10


def test_in_the_example_of_own_paths_each_node_fetches_a_chunk_at_most_once(
    run: Callable[[str], float],
    client: Client,
    server: DemoServer,
    path: Path,
    temperature: xarray.DataArray,
) -> None:
    # As if each worker were alone on its node.
    own_paths = OWN_PATHS.replace("worker.local_directory).parent", "worker.local_directory)")
    found = {run(own_paths) for _ in range(3)}
    nodes = [
        Path(worker["local_directory"], path.name)
        for worker in client.scheduler_info()["workers"].values()
    ]

    assert own_paths != OWN_PATHS
    assert found == {mean(temperature)}
    assert [node.exists() for node in nodes] == [True] * WORKERS
    assert CHUNKS < server.traffic().requests < CHUNKS * WORKERS + 10
    for node in nodes:
        assert_accounts(node)
