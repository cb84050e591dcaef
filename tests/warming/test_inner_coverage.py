"""Coverage of inner chunks shows which of them are read without a request."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.codecs import TransposeCodec
from zarr.storage import MemoryStore

from tests.arrays.hierarchies import sparse_sharded
from tests.fakes import open_file, restart
from tests.warming.arrays import cached, persisting, rows, sharded
from zarr_cache import CacheStore, SqliteStore, coverage, warm
from zarr_cache.core.byte_range import Span
from zarr_cache.index.listing import ListedRange
from zarr_cache.warming.cached_chunks import _covering

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import HeldTime


def places(found: Any) -> list[list[int]]:
    """The indices of the inner chunks that are cached."""
    cells: list[list[int]] = np.argwhere(found).tolist()
    return cells


def read_by_itself(array: zarr.Array[Any], place: list[int]) -> None:
    """Read one inner chunk."""
    array[
        tuple(slice(at * size, at * size + 1) for at, size in zip(place, array.chunks, strict=True))
    ]


@pytest.mark.parametrize("is_in_file", [True, False], ids=["in the file", "in memory"])
@pytest.mark.parametrize("is_compressed", [False, True], ids=["uncompressed", "zstd"])
@pytest.mark.parametrize("index_location", ["start", "end"])
def test_it_is_true_for_what_is_read_without_a_request_and_for_nothing_else(
    path: Path, index_location: Literal["start", "end"], is_compressed: bool, is_in_file: bool
) -> None:
    memory = sharded(index_location=index_location, is_compressed=is_compressed)
    source, store, array = persisting(memory, path, persist_ranges=is_in_file)
    array[3:22, 20:30]
    array[20:40, 0:24]
    if is_in_file:
        restart(store)
        _, _, array = persisting(source, path)
    source.reset()

    found = coverage(array, inner=True)

    assert source.requests == {}
    assert found.shape == array.cdata_shape == (8, 10)
    window = itertools.product(range(5), (3, 4))
    shard = itertools.product(range(4, 8), range(4))
    assert {tuple(place) for place in places(found)} == {*window, *shard}
    for place in places(found):
        read_by_itself(array, place)
    assert source.requests == {}
    for number, place in enumerate(places(~found), 1):
        read_by_itself(array, place)
        assert len(source.of_chunks()) >= number


def test_it_records_no_hit(path: Path) -> None:
    _, store, array = persisting(sharded(), path)
    array[3, 3]
    before = store.cache_stats()

    assert coverage(array, inner=True).sum() == 1
    assert store.cache_stats() == before


def test_empty_inner_chunks_and_absent_shards_are_shown_as_cached(
    path: Path, held_time: HeldTime
) -> None:
    memory = MemoryStore()
    sparse_sharded(memory)
    _, _, array = persisting(memory, path)
    array[0, 20]
    array[59, 59]

    found = coverage(array, inner=True)
    held_time.step(seconds=61)
    later = coverage(array, inner=True)

    # The shard has one inner chunk that is not empty: [12, 34] is in it.
    in_shard = set(itertools.product(range(4), range(4, 8))) - {(2, 6)}
    absent = set(itertools.product(range(8, 12), range(8, 12)))
    assert {tuple(place) for place in places(found)} == in_shard | absent
    assert {tuple(place) for place in places(later)} == in_shard


def test_without_its_index_an_inner_chunk_is_not_cached(path: Path) -> None:
    source, store, array = persisting(sharded(), path)
    array[3, 3]
    store.flush()
    restart(store)
    with open_file(path) as db:
        removed = db.execute("DELETE FROM entry WHERE kind = 'range' AND start = -2").rowcount
        db.commit()
    _, _, array = persisting(source, path)

    assert removed == 1
    assert not coverage(array, inner=True).any()


def test_what_is_stale_is_not_shown_as_cached(path: Path, held_time: HeldTime) -> None:
    _, _, array = persisting(sharded(), path, max_age_seconds=100)
    array[3, 3]
    held_time.step(seconds=101)

    assert not coverage(array, inner=True).any()


def test_what_was_written_over_is_not_shown_as_cached(path: Path) -> None:
    store = CacheStore(
        sharded(), cache_store=SqliteStore(path), namespace="source", persist_ranges=True
    )
    array = zarr.open_array(store, mode="r+")
    warm(array, np.s_[:10, 3])
    warm(array, np.s_[3, 30])
    array[39, 3] = 1
    array[19, 3] = 1

    found = coverage(array, inner=True)

    # zarr reads the shard to write a part of it, and the new one is cached: all of it or nothing.
    assert found[:4, :4].all() == found[:4, :4].any()
    assert found[0, 5]


def test_an_index_that_is_damaged_in_the_source_shows_nothing_as_cached(path: Path) -> None:
    memory = sharded()
    memory._store_dict["c/0/0"].as_numpy_array()[-1] ^= 1
    _, _, array = persisting(memory, path)
    with pytest.raises(ValueError, match="checksum"):
        array[3, 3]

    assert not coverage(array, inner=True).any()


def test_arrays_without_shards_have_no_other_coverage(path: Path) -> None:
    _, _, array = cached(rows(4), path)
    array[1:3]

    assert coverage(array, inner=True).tolist() == [[False], [True], [True], [False]]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_an_array_without_chunks_has_inner_coverage_too(path: Path, shape: tuple[int, ...]) -> None:
    memory = MemoryStore()
    zarr.create_array(memory, name="a/b", shape=shape, dtype="u1")[...] = 1
    _, _, array = cached(memory, path)
    array[...]

    found = coverage(array, inner=True)

    assert isinstance(found, np.ndarray)
    assert found.shape == array.cdata_shape
    assert found.all()


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
def test_an_array_whose_shards_other_codecs_encode_has_no_inner_chunks(path: Path) -> None:
    memory = sharded(chunks=(5, 5), shards=(20, 20), outer=[TransposeCodec(order=(1, 0))])
    _, _, array = persisting(memory, path)
    array[25, 45]

    found = coverage(array, inner=True)

    assert found.shape == array.cdata_shape == (2, 3)
    assert places(found) == [[1, 2]]


def test_where_a_shard_has_one_inner_chunk_it_is_cached_with_the_shard(path: Path) -> None:
    _, _, array = persisting(sharded(chunks=(20, 24)), path)
    array[25, 45]

    assert places(coverage(array, inner=True)) == [[1, 1]]


def test_where_shards_have_different_shapes_inner_chunks_are_cached_with_them(path: Path) -> None:
    memory = MemoryStore()
    with zarr.config.set({"array.rectilinear_chunks": True}):
        zarr.create_array(memory, shape=12, chunks=(2,), shards=[[4, 8]], dtype="u1")[:] = 1
        _, _, array = persisting(memory, path)
        array[:4]

        found = coverage(array, inner=True)

    assert found.tolist() == [True] * 2 + [False] * 4


def test_with_nested_shards_the_chunks_of_the_outer_ones_count(path: Path) -> None:
    memory = MemoryStore()
    inner = zarr.codecs.ShardingCodec(chunk_shape=(2,))
    outer = zarr.codecs.ShardingCodec(chunk_shape=(4,), codecs=[inner])
    settings: Any = {"serializer": outer, "compressors": None}
    zarr.create_array(memory, shape=32, chunks=16, dtype="u1", **settings)[:] = 1
    source, _, array = persisting(memory, path)
    warm(array, np.s_[5])
    source.reset()

    found = coverage(array, inner=True)
    array[4:8]

    assert found.tolist() == [False, True, *[False] * 6]
    assert source.requests == {}


SPANS = st.tuples(st.integers(0, 12), st.integers(1, 8)).map(
    lambda it: Span(*it, reaches_end=False)
)


@given(st.lists(SPANS, max_size=6), st.lists(SPANS, min_size=1, max_size=6))
def test_a_range_covers_an_interval_if_it_has_all_of_its_bytes(
    ranges: list[Span], wanted: list[Span]
) -> None:
    listed = [ListedRange(None, Span(None, 9, reaches_end=True))]
    listed += [ListedRange(number, span) for number, span in enumerate(ranges)]
    intervals = np.array([(each.start, each.stop) for each in wanted])

    found = _covering(listed, intervals)

    for each, place in zip(wanted, found.tolist(), strict=True):
        covering = [
            number
            for number, span in enumerate(ranges, 1)
            if (span.start or 0) <= (each.start or 0) and each.stop <= span.stop
        ]
        assert (place in covering) if covering else (place == -1)
