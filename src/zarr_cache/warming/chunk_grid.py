"""The chunks of an array, stored and inner: which of them a selection touches, and their keys.

A stored chunk is what one key of a store holds: a chunk or, in a sharded array, a whole shard.

Chunks are counted and numbered by arithmetic, and none are listed: a sparse array may have more of
them than memory. Only along one dimension are they listed, where indices or a mask select them.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, override

import numpy as np
from zarr.core.chunk_key_encodings import V2ChunkKeyEncoding
from zarr.core.metadata.v3 import ArrayV3Metadata, RegularChunkGridMetadata
from zarr.errors import BoundsCheckError, NegativeStepError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence
    from types import EllipsisType

    import numpy.typing as npt
    import zarr
    from zarr.core.chunk_key_encodings import ChunkKeyEncoding


type AnyArray = zarr.Array[Any] | zarr.AsyncArray[Any]

type OneSelection = int | slice | EllipsisType | Sequence[int] | npt.NDArray[Any]

type Selection = OneSelection | tuple[OneSelection, ...]
"""As for zarr's ``oindex``: for each dimension an index, a slice, indices, or a mask."""


class Touched(ABC):
    """The chunks along one dimension that a selection touches, numbered in ascending order."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many there are: more than ``len`` could return, perhaps."""

    @abstractmethod
    def at(self, number: int) -> int:
        """The index of one of them."""

    @abstractmethod
    def find(self, chunk: int) -> int | None:
        """Which of them this is; None if it is not touched."""

    @abstractmethod
    def between(self, first: int, last: int) -> Iterable[int]:
        """The indices of those in ``[first, last)``."""

    @abstractmethod
    def shards(self, per_shard: int) -> Touched:
        """The shards of so many chunks that they lie in."""

    @abstractmethod
    def in_shard(self, shard: int, per_shard: int) -> tuple[int, int]:
        """Which of them, ``[first, last)``, lie in this shard."""


@dataclass(frozen=True, slots=True)
class Spaced(Touched):
    """The chunks with the elements ``start + n * step``, for n below `count`, each in another.

    Attributes
    ----------
    length
        The length of a chunk. If `step` is the same, no chunk between two of them is left out.
    """

    start: int
    step: int
    count: int
    length: int

    @property
    @override
    def size(self) -> int:
        return self.count

    @override
    def at(self, number: int) -> int:
        return (self.start + number * self.step) // self.length

    @override
    def find(self, chunk: int) -> int | None:
        number = max(0, _ceil_div(chunk * self.length - self.start, self.step))
        return number if number < self.count and self.at(number) == chunk else None

    @override
    def between(self, first: int, last: int) -> Iterable[int]:
        return map(self.at, range(first, last))

    @override
    def shards(self, per_shard: int) -> Touched:
        return _spaced(self.start, self.step, self.count, self.length * per_shard)

    @override
    def in_shard(self, shard: int, per_shard: int) -> tuple[int, int]:
        elements = self.length * per_shard
        first = max(0, _ceil_div(shard * elements - self.start, self.step))
        return first, min(self.count, _ceil_div((shard + 1) * elements - self.start, self.step))


@dataclass(frozen=True, slots=True, eq=False)
class Listed(Touched):
    """Chunks that are listed, in ascending order."""

    chunks: npt.NDArray[np.intp]

    @property
    @override
    def size(self) -> int:
        return len(self.chunks)

    @override
    def at(self, number: int) -> int:
        return int(self.chunks[number])

    @override
    def find(self, chunk: int) -> int | None:
        number = int(np.searchsorted(self.chunks, chunk))
        return number if number < len(self.chunks) and self.chunks[number] == chunk else None

    @override
    def between(self, first: int, last: int) -> Iterable[int]:
        return map(int, self.chunks[first:last])

    @override
    def shards(self, per_shard: int) -> Touched:
        return Listed(np.unique(self.chunks // per_shard))

    @override
    def in_shard(self, shard: int, per_shard: int) -> tuple[int, int]:
        first, last = np.searchsorted(self.chunks, [shard * per_shard, (shard + 1) * per_shard])
        return int(first), int(last)


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def _spaced(start: int, step: int, count: int, length: int) -> Spaced:
    """The chunks of this length in which so many elements lie."""
    if count and step < length:
        # No chunk between the first and the last is left out.
        first, last = start // length, (start + (count - 1) * step) // length
        return Spaced(first * length, length, last - first + 1, length)
    return Spaced(start, step, count, length)


def _product(axes: Sequence[Touched]) -> Iterator[tuple[int, ...]]:
    """As ``itertools.product``, which would list the chunks along each dimension first."""
    if not axes:
        yield ()
        return
    *others, last = axes
    for place in _product(others):
        for along in last.between(0, last.size):
            yield (*place, along)


class Grid:
    """Keys that a selection touches, numbered in the order of their grid.

    Attributes
    ----------
    prefix
        Prefix of the keys of the array: of its chunks and of its metadata.
    count
        How many keys there are: more than ``len`` could return, perhaps.
    """

    def __init__(self, array: AnyArray, axes: Sequence[Touched]) -> None:
        self.prefix = prefix_of(array)
        metadata = array.metadata
        self._encode = metadata.encode_chunk_key
        encoding: ChunkKeyEncoding = (
            metadata.chunk_key_encoding
            if isinstance(metadata, ArrayV3Metadata)
            else V2ChunkKeyEncoding(separator=metadata.dimension_separator)
        )
        self._decode = encoding.decode_chunk_key
        self.axes = axes
        self.count = math.prod(axis.size for axis in axes)

    def place_at(self, number: int) -> tuple[int, ...]:
        """The indices of a key in the whole grid."""
        place = []
        for axis in reversed(self.axes):
            number, along = divmod(number, axis.size)
            place.append(axis.at(along))
        return tuple(reversed(place))

    def key_of(self, place: tuple[int, ...]) -> str:
        """The key of these indices."""
        return self.prefix + self._encode(place)

    def key_at(self, number: int) -> str:
        """The key of this number."""
        return self.key_of(self.place_at(number))

    def keys(self) -> Iterator[str]:
        """The keys, in order."""
        return map(self.key_of, _product(self.axes))

    def find(self, keys: Collection[str]) -> list[tuple[int, str]]:
        """Those of the keys that the selection touches, with their numbers, in their order.

        Takes time for each of `keys`, or for each key of the selection if these are fewer. An
        encoding of keys that is not zarr's own and cannot be decoded takes the latter.
        """
        if self.count > len(keys):
            try:
                found = [(self._number_of(key), key) for key in keys]
            except NotImplementedError:
                pass
            else:
                return sorted((number, key) for number, key in found if number is not None)
        return [(number, key) for number, key in enumerate(self.keys()) if key in keys]

    def _number_of(self, key: str) -> int | None:
        """The number of a key; None if it is another's, such as of metadata."""
        encoded = key.removeprefix(self.prefix)
        try:
            place = self._decode(encoded) if self.axes else ()
        except ValueError:
            return None
        # "00" and "0" are decoded alike, and a key of an array below this one may be decoded, too.
        if len(place) != len(self.axes) or self._encode(place) != encoded:
            return None
        number = 0
        for axis, chunk in zip(self.axes, place, strict=True):
            along = axis.find(chunk)
            if along is None:
                return None
            number = number * axis.size + along
        return number


class StoredChunks(Grid):
    """The stored chunks of `array` that `selection` touches, in the order of the grid.

    Parameters
    ----------
    selection
        As for ``array.oindex``. A slice may extend past the end, as in numpy.

    Attributes
    ----------
    shape
        How many stored chunks are touched in each dimension.

    Raises
    ------
    IndexError
        `selection` does not fit the array.
    """

    def __init__(self, array: AnyArray, selection: Selection = ...) -> None:
        axes = axes_of(array, _stored_lengths(array), selection)
        super().__init__(array, axes)
        self.shape = tuple(axis.size for axis in axes)


def prefix_of(array: AnyArray) -> str:
    """Prefix of the keys of the array: of its chunks and of its metadata."""
    return f"{array.path}/" if array.path else ""


def _stored_lengths(array: AnyArray) -> Sequence[int | Sequence[int]]:
    """For each dimension the length of a stored chunk; that of each, if they differ."""
    metadata = array.metadata
    if not isinstance(metadata, ArrayV3Metadata):
        return metadata.chunks
    grid = metadata.chunk_grid
    if isinstance(grid, RegularChunkGridMetadata):
        return grid.chunk_shape
    return array.write_chunk_sizes


def axes_of(
    array: AnyArray, lengths: Sequence[int | Sequence[int]], selection: Selection
) -> list[Touched]:
    """Along each dimension, the chunks of these lengths that are touched.

    Parameters
    ----------
    lengths
        For each dimension the length of a chunk; that of each, if they differ.
    """
    each = by_dimension(selection, array.ndim)
    return [
        _touched(one, extent, of_chunks, dimension)
        for dimension, (one, extent, of_chunks) in enumerate(
            zip(each, array.shape, lengths, strict=True)
        )
    ]


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


def _touched(
    selected: object, extent: int, lengths: int | Sequence[int], dimension: int
) -> Touched:
    """The chunks along one dimension that are touched."""
    ends = np.cumsum([] if isinstance(lengths, int) else lengths, dtype=np.int64)
    if isinstance(selected, slice):
        if selected.step is not None and selected.step < 1:
            raise NegativeStepError(f"the step of a slice must be positive, got {selected.step}")
        start, stop, step = selected.indices(extent)
        if isinstance(lengths, int):
            return _spaced(start, step, len(range(start, stop, step)), lengths)
        return Listed(_touched_by_slice(start, stop, step, ends))
    positions = _positions(selected, extent, dimension)
    outside = positions[(positions < -extent) | (positions >= extent)]
    if outside.size:
        raise BoundsCheckError(
            f"index {outside[0]} is out of bounds for dimension {dimension} of length {extent}"
        )
    positions = np.where(positions < 0, positions + extent, positions)
    if isinstance(lengths, int):
        return Listed(np.unique(positions // lengths))
    return Listed(np.unique(np.searchsorted(ends, positions, side="right")))


def _touched_by_slice(
    start: int, stop: int, step: int, ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.intp]:
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
