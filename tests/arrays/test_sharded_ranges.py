"""Windows of sharded arrays are read once: later processes make no request for them."""

from __future__ import annotations

import multiprocessing
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore

from tests.arrays import windows
from tests.arrays.windows import CLIENTS, KINDS, Kind, read_windows
from tests.conftest import PIPELINES
from tests.fakes import (
    STRESS,
    AsyncOnlyStore,
    CountingStore,
    assert_accounts,
    cached_keys,
    cached_ranges,
    open_file,
    preload,
    restart,
)
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.cli.demo.server import DemoServer
from zarr_cache.disk.data_file_opening import IS_SUPPORTED
from zarr_cache.index import extents

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
preload(windows)


IN_DATA_FILE = """
SELECT count(DISTINCT entry.id)
FROM extent
JOIN entry ON entry.id = extent.entry
WHERE kind = 'range'
"""


def persisting(source: CountingStore, path: Path, **settings: Any) -> CacheStore:
    chosen: dict[str, Any] = {"namespace": "sharded", "persist_ranges": True, **settings}
    return CacheStore(source, cache_store=SqliteStore(path), **chosen)


def ranges_in_data_file(path: Path) -> int:
    with open_file(path) as db:
        (number,) = db.execute(IN_DATA_FILE).fetchone()
    return int(number)


@pytest.mark.pairs
@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("surface", [CountingStore, AsyncOnlyStore])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_new_process_reads_windows_without_a_request(
    path: Path, kind: Kind, surface: type[CountingStore]
) -> None:
    data = MemoryStore()
    kind.write(data)
    source = surface(data)
    # Absences are cached, too: the source is only read.
    store = persisting(source, path, read_only=True)
    first = read_windows(store, kind)
    restart(store)
    ranges, in_data_file = cached_ranges(path), ranges_in_data_file(path)
    store = persisting(source, path, read_only=True)
    source.reset()
    second = read_windows(store, kind)

    truth = [kind.data[window] for window in kind.windows]
    for found in (first, second):
        for one, other in zip(found, truth, strict=True):
            np.testing.assert_array_equal(one, other)
    assert source.requests.total() == 0
    # Of two shards the index and inner chunks; the third was read as a whole in the end.
    assert len({each.key for each in ranges}) == 2
    assert len(ranges) >= 8
    assert cached_keys(path) == {f"{kind}/zarr.json", f"{kind}/c/1/0"}
    is_large = IS_SUPPORTED and 4 * kind.inner[0] * kind.inner[1] >= extents.MIN_BYTES
    assert (in_data_file > 0) == is_large


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("kind", [KINDS[0], KINDS[-1]], ids=str)
def test_what_is_in_the_file_serves_a_store_that_does_not_persist(path: Path, kind: Kind) -> None:
    data = MemoryStore()
    kind.write(data)
    source = CountingStore(data)
    store = persisting(source, path, read_only=True)
    read_windows(store, kind)
    restart(store)
    store = persisting(source, path, read_only=True, persist_ranges=False)
    source.reset()
    found = read_windows(store, kind)

    for one, window in zip(found, kind.windows, strict=True):
        np.testing.assert_array_equal(one, kind.data[window])
    assert source.requests.total() == 0
    assert store.cache_info()["ranges"] == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An array of each kind."""
    folder = tmp_path_factory.mktemp("arrays")
    windows.write_all(LocalStore(folder))
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[DemoServer]:
    with DemoServer(folder) as server:
        yield server


PAIRS = list(product(PIPELINES.values(), CLIENTS))[:: 1 if STRESS > 1 else 3]
"""Of codec pipelines and clients: each once, or all."""


def read_in_processes(
    server: DemoServer, client: str, pipeline: str, path: Path, number: int
) -> int:
    """Let so many processes read everything at once; how many requests they made together."""
    context: Any = multiprocessing.get_context(METHOD)
    start, told = context.Barrier(number, timeout=60), context.SimpleQueue()
    before = server.traffic().requests
    arguments = (server.url, client, pipeline, path, start, told)
    processes = [context.Process(target=windows.work, args=arguments) for _ in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0] * number
    assert [told.get() for _ in processes] == [(windows.expected(), 0, 0)] * number
    assert_accounts(path)
    return server.traffic().requests - before


@pytest.mark.parametrize(("pipeline", "client"), PAIRS, indirect=["pipeline"])
def test_over_http_a_second_process_makes_no_request_and_four_at_once_make_few(
    server: DemoServer, client: str, pipeline: str, tmp_path: Path
) -> None:
    path, shared = tmp_path / "one.sqlite", tmp_path / "shared.sqlite"
    one = [read_in_processes(server, client, pipeline, path, 1) for _ in range(2)]
    four = read_in_processes(server, client, pipeline, shared, 4)
    fifth = read_in_processes(server, client, pipeline, shared, 1)

    assert one[1] == fifth == 0
    assert one[0] > 30
    assert one[0] <= four <= 4 * one[0]


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize("surface", [CountingStore, AsyncOnlyStore])
def test_an_absent_shard_that_is_read_in_parts_is_requested_once(
    surface: type[CountingStore], path: Path
) -> None:
    memory = MemoryStore()
    zarr.create_array(memory, shape=(16,), shards=(8,), chunks=(2,), dtype="i4", fill_value=7)
    source = surface(memory.with_read_only(read_only=True))
    store = persisting(source, path)
    array = zarr.open_array(store, mode="r")
    source.reset()

    read = [np.asarray(array[part]).tolist() for part in (slice(1, 7), slice(0, 5), slice(2, 4))]

    assert read == [[7] * 6, [7] * 5, [7] * 2]
    assert source.keys == ["c/0"]
    restart(store)
