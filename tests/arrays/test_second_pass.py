"""The second pass over data makes no request to its source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from tests.arrays.hierarchies import (
    RAMP,
    consolidated,
    consolidated_format_2,
    format_2,
    groups,
    plain,
    sharded,
    sharded_with_a_margin,
    sparse,
    sparse_sharded,
    strings,
    zero_dimensional,
)
from tests.fakes import AsyncOnlyStore, CountingStore, HeldTime, restart, values
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import Store

    from tests.arrays.hierarchies import BackgroundWorker

pytestmark = [
    # A cached absence is fresh for a minute, and a test may take longer on a busy machine.
    pytest.mark.usefixtures("pipeline", "held_time"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part"),
]


class Pass(NamedTuple):
    """Data, and one way to read it."""

    write: BackgroundWorker
    read: Callable[[Store], Any]


def whole(store: Store) -> Any:
    return values(zarr.open_array(store, mode="r"))


def windows(store: Store) -> Any:
    """Overlapping windows, smaller than a chunk."""
    array = zarr.open_array(store, mode="r")
    return [values(array, np.s_[row : row + 3, 4:7]) for row in range(0, 40, 2)]


def in_group(store: Store) -> Any:
    root = zarr.open_group(store, mode="r")
    return root.attrs.asdict(), root["ramp"].attrs.asdict(), values(root["ramp"])


def deep_in_group(store: Store) -> Any:
    root = zarr.open_group(store, mode="r")
    return root.attrs.asdict(), root["a/b"].attrs.asdict(), values(root["a/b/ramp"])


def opened(store: Store) -> Any:
    """Without saying which format it has or whether it is an array."""
    return zarr.open(store, mode="r").attrs.asdict()


def group_opened(store: Store) -> Any:
    return zarr.open_group(store, mode="r").attrs.asdict()


def probed(store: Store) -> Any:
    """Keys looked for, of which one is there."""
    root = zarr.open_group(store, mode="r")
    return [name in root for name in ("a", "b", "a/b", "zarr.json")]


OF_WHOLE_VALUES = [
    pytest.param(Pass(plain, whole), id="plain"),
    pytest.param(Pass(plain, windows), id="windows of plain"),
    pytest.param(Pass(format_2, in_group), id="format 2"),
    pytest.param(Pass(sharded, whole), id="sharded"),
    pytest.param(Pass(sparse, whole), id="sparse"),
    pytest.param(Pass(sparse, windows), id="windows of sparse"),
    pytest.param(Pass(sparse_sharded, whole), id="sparse sharded"),
    pytest.param(Pass(zero_dimensional, whole), id="zero-dimensional"),
    pytest.param(Pass(strings, whole), id="strings"),
    pytest.param(Pass(groups, deep_in_group), id="groups"),
    pytest.param(Pass(groups, opened), id="opening"),
    pytest.param(Pass(groups, group_opened), id="opening a group"),
    pytest.param(Pass(groups, probed), id="probing"),
    pytest.param(Pass(format_2, opened), id="opening format 2"),
    pytest.param(Pass(format_2, group_opened), id="opening a group of format 2"),
    pytest.param(Pass(consolidated, deep_in_group), id="consolidated"),
    pytest.param(Pass(consolidated_format_2, in_group), id="consolidated format 2"),
]
OF_RANGES = [
    pytest.param(Pass(sharded, windows), id="windows of sharded"),
    pytest.param(Pass(sharded_with_a_margin, whole), id="sharded with a margin"),
    pytest.param(Pass(sharded_with_a_margin, windows), id="windows of sharded with a margin"),
    pytest.param(Pass(sparse_sharded, windows), id="windows of sparse sharded"),
]
of_each_source = pytest.mark.parametrize("kind", [CountingStore, AsyncOnlyStore])


def filled(kind: type[CountingStore], write: BackgroundWorker) -> CountingStore:
    """A source that holds what `write` has written, and has had no requests."""
    store = MemoryStore()
    write(store)
    return kind(store)


def cached(source: Store, path: Path) -> CacheStore:
    return CacheStore(source, cache_store=SqliteStore(path), namespace="source")


@pytest.mark.pairs
@of_each_source
@pytest.mark.parametrize("each", OF_WHOLE_VALUES + OF_RANGES)
def test_the_second_pass_makes_no_request(
    each: Pass, kind: type[CountingStore], path: Path
) -> None:
    source = filled(kind, each.write)
    store = cached(source, path)
    first = each.read(store)
    source.reset()

    second = each.read(store)

    assert first == second == each.read(filled(CountingStore, each.write))
    assert source.requests == {}, source.keys


@pytest.mark.parametrize("each", OF_WHOLE_VALUES + OF_RANGES)
def test_the_first_pass_of_a_new_process_requests_nothing_but_ranges(
    each: Pass, path: Path
) -> None:
    source = filled(AsyncOnlyStore, each.write)
    store = cached(source, path)
    first = each.read(store)
    restart(store)
    source.reset()

    second = each.read(cached(source, path))

    assert first == second
    if each in [of_whole_values.values[0] for of_whole_values in OF_WHOLE_VALUES]:
        assert source.requests == {}, source.keys
    assert not [key for key in source.keys if key.endswith(".json")]


def test_windows_of_a_shard_that_was_read_whole_make_no_request(path: Path) -> None:
    source = filled(AsyncOnlyStore, sharded)
    store = cached(source, path)
    whole(store)
    restart(store)
    source.reset()

    windows(cached(source, path))

    assert source.requests == {}, source.keys


def test_small_windows_of_a_shard_do_not_read_it_whole(path: Path) -> None:
    source = filled(AsyncOnlyStore, sharded)
    store = cached(source, path)

    windows(store)

    assert store.cache_stats()["bytes_fetched"] < RAMP.nbytes / 2


@of_each_source
def test_what_was_written_is_read_without_a_request(kind: type[CountingStore], path: Path) -> None:
    source = kind(MemoryStore())
    store = cached(source, path)
    plain(store)
    source.reset()

    # The format is said, so that zarr does not look for one that was never written.
    array = zarr.open_array(store, mode="r", zarr_format=3)

    assert values(array) == RAMP.tolist()
    assert source.requests == {}, source.keys


def test_absent_chunks_are_requested_again_after_a_minute(path: Path, held_time: HeldTime) -> None:
    source = filled(CountingStore, sparse)
    store = cached(source, path)
    array = zarr.open_array(store, mode="r")
    array[:]
    held_time.step(seconds=61)
    source.reset()

    array[:]

    assert source.requests.total() == array.nchunks - array.nchunks_initialized
