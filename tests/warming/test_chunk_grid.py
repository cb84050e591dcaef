"""The chunks that a selection touches are those that zarr reads for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from tests.fakes import CountingStore
from zarr_cache.warming.chunk_grid import StoredChunks, decoded_nbytes

if TYPE_CHECKING:
    from zarr_cache.warming.chunk_grid import Selection

SHAPE = (23, 17)


def full(**settings: Any) -> tuple[zarr.Array[Any], CountingStore]:
    """An array of ones, below the root, and the source that counts what is read of it."""
    memory = MemoryStore()
    zarr.create_array(memory, name="a/b", dtype="u1", **settings)[...] = 1
    source = CountingStore(memory)
    return zarr.open_array(source, path="a/b", mode="r"), source


ARRAYS = [
    pytest.param({"shape": SHAPE, "chunks": (5, 4)}, id="margins"),
    pytest.param({"shape": SHAPE, "chunks": (50, 4)}, id="a chunk larger than the array"),
    pytest.param({"shape": SHAPE, "chunks": (2, 3), "shards": (4, 6)}, id="shards"),
    pytest.param({"shape": SHAPE, "chunks": (5, 4), "zarr_format": 2}, id="format 2"),
    pytest.param(
        {
            "shape": SHAPE,
            "chunks": (5, 4),
            "zarr_format": 2,
            "chunk_key_encoding": {"name": "v2", "separator": "/"},
        },
        id="format 2 with /",
    ),
    pytest.param(
        {
            "shape": SHAPE,
            "chunks": (5, 4),
            "chunk_key_encoding": {"name": "default", "separator": "."},
        },
        id="dots",
    ),
    pytest.param(
        {"shape": SHAPE, "chunks": (5, 4), "chunk_key_encoding": {"name": "v2"}},
        id="keys of format 2 in format 3",
    ),
    pytest.param({"shape": (), "chunks": ()}, id="no dimension"),
    pytest.param({"shape": (7,), "chunks": (1,)}, id="one dimension"),
]


@pytest.mark.parametrize("settings", ARRAYS)
def test_the_keys_of_an_array_are_those_that_zarr_reads(settings: dict[str, Any]) -> None:
    array, source = full(**settings)
    source.reset()
    array[...]

    # Of a shard that reaches over the end, zarr reads parts.
    assert set(StoredChunks(array).keys()) == set(source.keys)
    assert StoredChunks(array).count == len(set(source.keys))


def slices(length: int) -> st.SearchStrategy[slice]:
    bound = st.none() | st.integers(-length - 3, length + 3)
    return st.builds(slice, bound, bound, st.none() | st.integers(1, length + 3))


def selections(length: int) -> st.SearchStrategy[Any]:
    index = st.integers(-length, length - 1)
    return (
        index
        | slices(length)
        | st.lists(index, max_size=4)
        | st.lists(st.booleans(), min_size=length, max_size=length).map(np.array)
    )


@given(st.tuples(*map(selections, SHAPE)), st.tuples(*[st.integers(1, 30)] * 2))
def test_a_selection_touches_the_chunks_that_its_elements_lie_in(
    selection: tuple[Any, Any], chunks: tuple[int, int]
) -> None:
    array = zarr.create_array(MemoryStore(), shape=SHAPE, chunks=chunks, dtype="u1")
    elements = [
        np.arange(length)[np.array(one, int) if isinstance(one, list) else one]
        for length, one in zip(SHAPE, selection, strict=True)
    ]
    places = [
        sorted(set(np.atleast_1d(along // chunk).tolist()))
        for along, chunk in zip(elements, chunks, strict=True)
    ]

    touched = StoredChunks(array, selection)

    assert list(touched.keys()) == [
        f"c/{row}/{column}" for row in places[0] for column in places[1]
    ]
    assert touched.shape == tuple(map(len, places))


@pytest.mark.parametrize(
    ("selection", "touched"),
    [
        (..., 12),
        (0, 3),
        ((..., 0), 4),
        ((0, ..., 0), 1),
        ((slice(5), ..., slice(5)), 1),
        (slice(100, 200), 0),
        ([], 0),
        (np.int64(-1), 3),
        ([0, 19, -1], 6),
    ],
)
def test_what_is_not_named_is_selected(selection: Selection, touched: int) -> None:
    array = zarr.create_array(MemoryStore(), shape=(20, 15), chunks=(5, 5), dtype="u1")

    assert StoredChunks(array, selection).count == touched


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (20, "index 20 is out of bounds for dimension 0 of length 20"),
        ((0, -16), "index -16 is out of bounds for dimension 1 of length 15"),
        (([0, 99],), "index 99 is out of bounds for dimension 0"),
        ((0, 0, 0), "3 indices are too many for an array of 2 dimensions"),
        ((..., 0, ...), "single ellipsis"),
        (slice(None, None, -1), "must be positive, got -1"),
        (np.ones(19, bool), "a mask of length 19 for dimension 0 of length 20"),
        (np.ones((20, 15), bool), "cannot select"),
        (1.5, "cannot select 1.5 of dimension 0"),
        ("x", "cannot select 'x' of dimension 0"),
        (None, "cannot select None of dimension 0"),
        (True, "cannot select True of dimension 0"),
    ],
)
def test_a_selection_that_is_none_of_the_array_is_refused(selection: Any, message: str) -> None:
    array = zarr.create_array(MemoryStore(), shape=(20, 15), chunks=(5, 5), dtype="u1")

    with pytest.raises(IndexError, match=message):
        StoredChunks(array, selection)


def test_chunks_of_several_lengths_are_distinguished() -> None:
    with zarr.config.set({"array.rectilinear_chunks": True}):
        array = zarr.create_array(
            MemoryStore(), shape=(10, 10), chunks=[[2, 3, 5], [10]], dtype="i2"
        )

        assert list(StoredChunks(array, (slice(4, 6), 0)).keys()) == ["c/1/0", "c/2/0"]
        assert decoded_nbytes(array) == 5 * 10 * 2


@pytest.mark.parametrize(
    ("settings", "nbytes"),
    [
        ({"shape": (23, 17), "chunks": (5, 4), "dtype": "f8"}, 160),
        ({"shape": (23, 17), "chunks": (2, 3), "shards": (4, 6), "dtype": "i2"}, 48),
        ({"shape": (3,), "chunks": (100,), "dtype": "i2"}, 200),
        ({"shape": (), "chunks": (), "dtype": "f4"}, 4),
        ({"shape": (3,), "chunks": (3,), "dtype": "str"}, None),
    ],
)
def test_a_chunk_at_the_margin_is_as_large_as_any(
    settings: dict[str, Any], nbytes: int | None
) -> None:
    assert decoded_nbytes(zarr.create_array(MemoryStore(), **settings)) == nbytes
