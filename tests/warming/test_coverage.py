"""Coverage shows which chunks are cached, and queries only the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from tests.arrays.hierarchies import sharded, sparse
from tests.fakes import CountingStore, restart
from tests.warming.arrays import cached, rows
from zarr_cache import CacheStore, SqliteStore, coverage, warm

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import HeldTime


def grid(path: Path, **settings: Any) -> tuple[CountingStore, zarr.Array[Any]]:
    """An array of 4 by 5 chunks."""
    memory = MemoryStore()
    settings = {"shape": (8, 10), "chunks": (2, 2), "dtype": "u1", **settings}
    zarr.create_array(memory, name="a/b", **settings)[...] = 1
    source, _, array = cached(memory, path)
    return source, array


def test_what_was_read_is_shown_as_cached(path: Path) -> None:
    source, array = grid(path)
    array[0:3, 4:7]
    source.reset()

    found = coverage(array)

    expected = np.zeros((4, 5), bool)
    expected[0:2, 2:4] = True
    assert found.tolist() == expected.tolist()
    assert found.dtype == np.bool_
    assert source.requests == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"zarr_format": 2},
        {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
        {"chunk_key_encoding": {"name": "default", "separator": "."}},
        {"chunk_key_encoding": {"name": "v2", "separator": "."}},
    ],
)
def test_the_keys_of_every_format_are_known(path: Path, settings: dict[str, Any]) -> None:
    _, array = grid(path, **settings)
    array[7, 9]

    assert np.argwhere(coverage(array)).tolist() == [[3, 4]]


def test_nothing_is_cached_at_first_and_everything_once_it_is_warm(path: Path) -> None:
    _, array = grid(path)
    at_first = coverage(array)
    warm(array)

    assert not at_first.any()
    assert coverage(array).all()


@pytest.mark.parametrize("is_file", [True, False], ids=["SqliteStore", "MemoryStore"])
def test_coverage_outlives_the_process(path: Path, is_file: bool) -> None:
    in_memory, source = MemoryStore(), rows(4)

    def opened() -> tuple[CacheStore, zarr.Array[Any]]:
        kept = SqliteStore(path) if is_file else in_memory
        store = CacheStore(source, cache_store=kept, namespace="source")
        return store, zarr.open_array(store, path="a/b", mode="r")

    first, array = opened()
    array[1:3]
    restart(first)
    _, again = opened()

    assert coverage(again).tolist() == [[False], [True], [True], [False]]


def test_what_is_stale_is_not_shown_as_cached(path: Path, held_time: HeldTime) -> None:
    _, _, array = cached(rows(3), path, max_age_seconds=100)
    warm(array, 0)
    held_time.step(seconds=60)
    warm(array, 1)
    held_time.step(seconds=60)

    assert coverage(array).tolist() == [[False], [True], [False]]


def test_what_was_written_over_is_not_shown_as_cached(path: Path) -> None:
    store = CacheStore(
        rows(3), cache_store=SqliteStore(path), namespace="source", cache_set_data=False
    )
    array = zarr.open_array(store, path="a/b", mode="r+")
    warm(array)
    array[1] = 9

    assert coverage(array).tolist() == [[True], [False], [True]]


def test_a_shard_is_shown_as_cached_when_the_whole_of_it_is(path: Path) -> None:
    memory = MemoryStore()
    sharded(memory)
    store = CacheStore(memory, cache_store=SqliteStore(path), namespace="source")
    array = zarr.open_array(store, mode="r")
    array[0, 0]
    of_a_part = coverage(array)
    array[:16, :20]

    found = coverage(array)

    assert found.shape == tuple(map(len, array.write_chunk_sizes)) == (3, 2)
    assert not of_a_part.any()
    assert np.argwhere(found).tolist() == [[0, 0]]


def test_a_chunk_that_is_cached_as_absent_is_shown_as_cached(
    path: Path, held_time: HeldTime
) -> None:
    memory = MemoryStore()
    sparse(memory)
    store = CacheStore(memory, cache_store=SqliteStore(path), namespace="source")
    array = zarr.open_array(store, mode="r")
    array[...]
    at_first = coverage(array)
    writable = coverage(zarr.open_array(store, mode="r+"))
    held_time.step(seconds=61)

    there = {(1, 3), (5, 5)}
    assert at_first.all()
    assert {tuple(place) for place in np.argwhere(writable).tolist()} == there
    assert {tuple(place) for place in np.argwhere(coverage(array)).tolist()} == there


def test_neighbours_and_other_namespaces_do_not_count(path: Path) -> None:
    memory = MemoryStore()
    root = zarr.create_group(memory)
    names = ["a", "a-", "a.b", "a0", "ab", "deep/a"]
    for name in names:
        root.create_array(name, shape=2, chunks=1, dtype="u1")[:] = 1
    arrays = {
        namespace: {
            name: zarr.open_array(
                CacheStore(memory, cache_store=SqliteStore(path), namespace=namespace),
                path=name,
                mode="r",
            )
            for name in names
        }
        for namespace in ("one", "other")
    }
    for name in names:
        arrays["other"][name][0]
        arrays["one"][name][1]

    found = {name: coverage(array).tolist() for name, array in arrays["one"].items()}

    assert found == {name: [False, True] for name in names}


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_an_array_without_chunks_has_coverage_too(path: Path, shape: tuple[int, ...]) -> None:
    memory = MemoryStore()
    zarr.create_array(memory, name="a/b", shape=shape, dtype="u1")[...] = 1
    _, _, array = cached(memory, path)
    array[...]

    found = coverage(array)

    assert found.shape == array.cdata_shape
    assert found.all()


def test_an_array_that_is_read_past_the_cache_is_refused() -> None:
    array = zarr.create_array(MemoryStore(), shape=3, dtype="u1")

    with pytest.raises(TypeError, match="caches nothing"):
        coverage(array)
