"""Shards: which of their inner chunks a selection touches, and the index that zarr reads first.

Private names of zarr are used here and nowhere else: methods of `ShardingCodec`, and the function
that merges ranges. A range in the cache is a hit only if zarr requests the same bytes, and both of
its pipelines request an index by `_shard_index_byte_range`. The public attributes of the codec do
not say how long an encoded index is, nor of which type its numbers are: that would have to be
repeated here, and could differ from the next release. The names are the same in zarr 3.4.0 and
3.4.2, and tests compare the requests with those of zarr.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core._coalesce import coalesce_ranges
from zarr.core.buffer import cpu
from zarr.core.metadata.v3 import ArrayV3Metadata, RegularChunkGridMetadata

from zarr_cache.warming.chunk_grid import Grid, Spaced, axes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from zarr.abc.store import ByteRequest
    from zarr.codecs import ShardingCodec

    from zarr_cache.warming.chunk_grid import AnyArray, Selection, Touched


EMPTY = -1
"""The start of an inner chunk that the shard does not have: it holds the fill value."""


MAX_SHARDS_KNOWN = 4096
"""Of so many shards along a dimension it is remembered which of their inner chunks are touched."""


class Shard(NamedTuple):
    """A shard that a selection touches.

    Attributes
    ----------
    key, number
        Its key, and the number of it.
    where
        The touched inner chunks of it, in an array of the shape of `Shards`.
    inside
        The same in an array of all inner chunks of the shard.
    is_whole
        Whether these are all: then zarr reads the shard as a whole.
    """

    key: str
    number: int
    where: tuple[slice, ...]
    inside: tuple[npt.NDArray[np.intp], ...]
    is_whole: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """How many inner chunks of it are touched in each dimension."""
        return tuple(each.stop - each.start for each in self.where)

    @property
    def size(self) -> int:
        """How many inner chunks of it are touched."""
        return math.prod(self.shape)


class Shards(Grid):
    """The shards of `array` that `selection` touches, in the order of their grid.

    Parameters
    ----------
    per_shard
        How many inner chunks a shard has in each dimension.
    selection
        As for `StoredChunks`.

    Attributes
    ----------
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
        inner = axes_of(array, array.metadata.chunks, selection)
        axes = [axis.shards(number) for axis, number in zip(inner, per_shard, strict=True)]
        super().__init__(array, axes)
        self.shape = tuple(axis.size for axis in inner)
        self._inner = inner
        self._per_shard = per_shard
        self._parts = [lru_cache(MAX_SHARDS_KNOWN)(self._part) for _ in axes]

    def __iter__(self) -> Iterator[Shard]:
        return map(self.at, range(self.count))

    def at(self, number: int) -> Shard:
        """The shard of this number."""
        places = self.place_at(number)
        parts = [part(*each) for part, each in zip(self._parts, enumerate(places), strict=True)]
        where, inside = zip(*parts, strict=True)
        is_whole = all(map(_has_all, where, self._per_shard))
        return Shard(self.key_of(places), number, where, np.ix_(*inside), is_whole)

    def _part(self, dimension: int, shard: int) -> tuple[slice, npt.NDArray[np.intp]]:
        """Along a dimension, the touched inner chunks in the shard, and their indices in it."""
        inner, number = self._inner[dimension], self._per_shard[dimension]
        first, last = inner.in_shard(shard, number)
        places = np.array(list(inner.between(first, last)), np.int64) - shard * number
        return slice(first, last), places.astype(np.intp)

    def count_whole(self) -> int:
        """How many of the shards are whole."""
        along = zip(self.axes, self._inner, self._per_shard, strict=True)
        return math.prod(_count_whole(*each) for each in along)


def _has_all(where: slice, per_shard: int) -> bool:
    return bool(where.stop - where.start == per_shard)


def _count_whole(shards: Touched, inner: Touched, per_shard: int) -> int:
    """How many of the shards along a dimension have all their inner chunks touched."""

    def is_whole(number: int) -> bool:
        return _has_all(slice(*inner.in_shard(shards.at(number), per_shard)), per_shard)

    if isinstance(inner, Spaced) and inner.step == inner.length and shards.size > 2:  # noqa: PLR2004 - see below
        # Without a gap, only the first and the last may lack some.
        return shards.size - 2 + is_whole(0) + is_whole(shards.size - 1)
    return sum(map(is_whole, range(shards.size)))


class Sharding:
    """How zarr reads inner chunks of the shards of one array.

    Attributes
    ----------
    per_shard
        How many inner chunks a shard has in each dimension.
    index_request, index_nbytes
        The bytes of a shard that zarr reads first, and how many they are.
    coalescing
        The arguments with which zarr calls ``Store.get_ranges`` for the inner chunks.
    """

    def __init__(self, codec: ShardingCodec, per_shard: tuple[int, ...], array: AnyArray) -> None:
        self._codec = codec
        self.per_shard = per_shard
        self.index_request: ByteRequest = codec._shard_index_byte_range(per_shard)  # noqa: SLF001
        match self.index_request:
            case SuffixByteRequest(nbytes) | RangeByteRequest(_, nbytes):
                self.index_nbytes = nbytes
        self.coalescing = {
            "max_gap_bytes": array.config.sharding_coalesce_max_gap_bytes,
            "max_coalesced_bytes": array.config.sharding_coalesce_max_bytes,
        }

    def locate(self, index: bytes | npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """The interval ``[start, stop)`` of each inner chunk in the shard; `EMPTY` for none.

        Parameters
        ----------
        index
            The response to `index_request`.

        Returns
        -------
        ndarray
            Of the shape ``(*per_shard, 2)``.

        Raises
        ------
        ValueError
            The bytes are no index of such a shard. zarr raises the same when it reads the shard.
        """
        buffer = cpu.Buffer.from_array_like(np.frombuffer(index, np.uint8))
        decoded = self._codec._decode_shard_index_sync(buffer, self.per_shard)  # noqa: SLF001
        starts, lengths = np.moveaxis(decoded.offsets_and_lengths, -1, 0).astype(np.int64)
        spans = np.stack([starts, starts + lengths], axis=-1)
        spans[starts == EMPTY] = EMPTY  # the largest unsigned number, in the index
        return spans

    def count_requests(self, spans: npt.NDArray[np.int64]) -> int:
        """How many requests zarr merges the reads of these intervals of one shard into."""
        groups, _ = coalesce_ranges(requests_for(spans), **self.coalescing)
        return len(groups)


def requests_for(spans: npt.NDArray[np.int64]) -> list[RangeByteRequest]:
    """The requests for intervals ``[start, stop)``, given in the rows."""
    return [RangeByteRequest(start, stop) for start, stop in spans.tolist()]


def is_sharded(array: AnyArray) -> bool:
    """Whether a stored chunk of the array is a shard, as zarr says."""
    return _codec_of(array) is not None


def sharding_of(array: AnyArray) -> Sharding | None:
    """How zarr reads inner chunks of the array; None if it reads whole stored chunks.

    It also does where a shard has one inner chunk, and where other codecs encode the shard: it does
    not call these arrays sharded. Shards of different shapes, and indexes that are decoded by
    coroutines, are possible and not supported.
    """
    codec = _codec_of(array)
    if codec is None or not isinstance(array.metadata, ArrayV3Metadata):
        return None
    grid = array.metadata.chunk_grid
    if not isinstance(grid, RegularChunkGridMetadata):
        return None
    per_shard = tuple(
        shard // chunk for shard, chunk in zip(grid.chunk_shape, codec.chunk_shape, strict=True)
    )
    if math.prod(per_shard) < 2 or not codec._index_codecs_sync_capable():  # noqa: PLR2004, SLF001
        return None
    return Sharding(codec, per_shard, array)


def _codec_of(array: AnyArray) -> ShardingCodec | None:
    """The codec of a sharded array."""
    metadata = array.metadata
    return metadata.sharding_codec if isinstance(metadata, ArrayV3Metadata) else None
