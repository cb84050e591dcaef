"""The chunks of an array, stored and inner: which of them a selection touches, and their keys.

A stored chunk is what one key of a store holds: a chunk or, in a sharded array, a whole shard.
"""

from __future__ import annotations

import itertools
import math
import operator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from zarr.errors import BoundsCheckError, NegativeStepError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import EllipsisType

    import numpy.typing as npt
    import zarr


type AnyArray = zarr.Array[Any] | zarr.AsyncArray[Any]

type OneSelection = int | slice | EllipsisType | Sequence[int] | npt.NDArray[Any]

type Selection = OneSelection | tuple[OneSelection, ...]
"""As for zarr's ``oindex``: for each dimension an index, a slice, indices, or a mask."""


class StoredChunks:
    """The stored chunks of `array` that `selection` touches, in the order of the grid.

    Parameters
    ----------
    selection
        As for ``array.oindex``. A slice may extend past the end, as in numpy.

    Attributes
    ----------
    prefix
        Prefix of the keys of the array: of its chunks and of its metadata.
    shape
        How many stored chunks are touched in each dimension.

    Raises
    ------
    IndexError
        `selection` does not fit the array.
    """

    def __init__(self, array: AnyArray, selection: Selection = ...) -> None:
        self.prefix = prefix_of(array)
        self._encode = array.metadata.encode_chunk_key
        each = by_dimension(selection, array.ndim)
        self._places = [
            _touched(one, sizes, dimension)
            for dimension, (one, sizes) in enumerate(
                zip(each, array.write_chunk_sizes, strict=True)
            )
        ]
        self.shape = tuple(len(places) for places in self._places)

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __iter__(self) -> Iterator[str]:
        """The keys, in order."""
        for place in itertools.product(*(places.tolist() for places in self._places)):
            yield self.prefix + self._encode(place)


class Shard(NamedTuple):
    """A shard that a selection touches.

    Attributes
    ----------
    key
        Its key.
    where
        The touched inner chunks of it, in an array of the shape of `Shards`.
    inside
        The same in an array of all inner chunks of the shard.
    is_whole
        Whether these are all: then zarr reads the shard as a whole.
    """

    key: str
    where: tuple[slice, ...]
    inside: tuple[npt.NDArray[np.intp], ...]
    is_whole: bool


class Shards:
    """The shards of `array` that `selection` touches, in the order of their grid.

    Parameters
    ----------
    per_shard
        How many inner chunks a shard has in each dimension.
    selection
        As for `StoredChunks`.

    Attributes
    ----------
    prefix
        Prefix of the keys of the array.
    shape
        How many inner chunks are touched in each dimension.

    Raises
    ------
    IndexError
        `selection` does not fit the array.
    """

    def __init__(
        self, array: AnyArray, per_shard: tuple[int, ...], selection: Selection = ...
    ) -> None:
        self.prefix = prefix_of(array)
        self._encode = array.metadata.encode_chunk_key
        self._chunks = math.prod(per_shard)
        each = by_dimension(selection, array.ndim)
        places = [
            _touched(one, sizes, dimension)
            for dimension, (one, sizes) in enumerate(zip(each, array.read_chunk_sizes, strict=True))
        ]
        self.shape = tuple(map(len, places))
        self._parts = [
            list(_by_shard(along, number)) for along, number in zip(places, per_shard, strict=True)
        ]

    def __len__(self) -> int:
        return math.prod(map(len, self._parts))

    def __iter__(self) -> Iterator[Shard]:
        for parts in itertools.product(*self._parts):
            places, where, inside = zip(*parts, strict=True)
            chunks = math.prod(map(len, inside))
            key = self.prefix + self._encode(places)
            yield Shard(key, where, np.ix_(*inside), is_whole=chunks == self._chunks)


def _by_shard(
    places: npt.NDArray[np.intp], number: int
) -> Iterator[tuple[int, slice, npt.NDArray[np.intp]]]:
    """For each shard along a dimension its index, where its inner chunks are, and their indices.

    Parameters
    ----------
    places
        The touched inner chunks, ascending.
    number
        How many inner chunks a shard has.
    """
    shards, starts = np.unique(places // number, return_index=True)
    stops = np.append(starts, len(places))[1:]
    for shard, start, stop in zip(shards.tolist(), starts.tolist(), stops.tolist(), strict=True):
        yield shard, slice(start, stop), places[start:stop] - shard * number


def prefix_of(array: AnyArray) -> str:
    """Prefix of the keys of the array: of its chunks and of its metadata."""
    return f"{array.path}/" if array.path else ""


def decoded_nbytes(array: AnyArray) -> int | None:
    """Bytes of a full stored chunk before encoding; None if the data type has no fixed size."""
    if array.dtype.kind in "OT":
        return None
    try:
        shape = array.shards or array.chunks
    except NotImplementedError:
        # A rectilinear grid: the largest chunk in each dimension.
        shape = tuple(max(sizes, default=0) for sizes in array.write_chunk_sizes)
    return int(array.dtype.itemsize) * math.prod(shape)


def by_dimension(selection: Selection, ndim: int) -> list[Any]:
    """The selection of each dimension, with full slices for those that are not given."""
    each: list[Any] = list(selection) if isinstance(selection, tuple) else [selection]
    at = [place for place, one in enumerate(each) if one is Ellipsis]
    if len(at) > 1:
        raise IndexError("a selection can only have a single ellipsis ('...')")
    if not at:
        at = [len(each)]
        each.append(...)
    missing = ndim - (len(each) - 1)
    if missing < 0:
        raise IndexError(f"{len(each) - 1} indices are too many for an array of {ndim} dimensions")
    each[at[0] : at[0] + 1] = [slice(None)] * missing
    return each


def _touched(selected: object, sizes: Sequence[int], dimension: int) -> npt.NDArray[np.intp]:
    """Indices along one dimension of the chunks of these lengths that are touched, ascending."""
    ends = np.cumsum(sizes, dtype=np.int64)
    length = int(ends[-1]) if len(ends) else 0
    if isinstance(selected, slice):
        return _touched_by_slice(selected, ends, length)
    positions = _positions(selected, length, dimension)
    outside = positions[(positions < -length) | (positions >= length)]
    if outside.size:
        raise BoundsCheckError(
            f"index {outside[0]} is out of bounds for dimension {dimension} of length {length}"
        )
    positions = np.where(positions < 0, positions + length, positions)
    return np.unique(np.searchsorted(ends, positions, side="right"))


def _touched_by_slice(
    selected: slice, ends: npt.NDArray[np.int64], length: int
) -> npt.NDArray[np.intp]:
    if selected.step is not None and selected.step < 1:
        raise NegativeStepError(f"the step of a slice must be positive, got {selected.step}")
    start, stop, step = selected.indices(length)
    begins = np.concatenate(([0], ends[:-1])) if len(ends) else ends
    # For each chunk, the first selected position at or after its start.
    first = start + -(-np.maximum(begins - start, 0) // step) * step
    return np.flatnonzero(first < np.minimum(ends, stop))


def _positions(selected: object, length: int, dimension: int) -> npt.NDArray[np.int64]:
    """The positions that an index, indices, or a mask selects."""
    if isinstance(selected, bool | np.bool_) or selected is None:
        raise IndexError(f"cannot select {selected!r} of dimension {dimension}")
    try:
        return np.array([operator.index(selected)])  # type: ignore[arg-type] # may raise
    except TypeError:
        found = np.asarray(selected)
    if found.ndim == 1 and found.dtype == np.bool_:
        if len(found) != length:
            raise IndexError(
                f"a mask of length {len(found)} for dimension {dimension} of length {length}"
            )
        return np.flatnonzero(found)
    if found.ndim == 1 and (found.size == 0 or found.dtype.kind in "iu"):
        return found.astype(np.int64)
    raise IndexError(
        f"cannot select {selected!r} of dimension {dimension}: "
        "expected an index, a slice, or a one-dimensional array of indices or of booleans"
    )
