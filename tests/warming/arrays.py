"""Arrays whose requests are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import zarr
from zarr.codecs import BytesCodec, ShardingCodec, ZstdCodec
from zarr.storage import MemoryStore

from tests.fakes import CountingStore
from zarr_cache import CacheStore, SqliteStore, register_namespace

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

CHUNK = 1000
"""Bytes of a chunk."""


class Cached(NamedTuple):
    """A source, a CacheStore over it, and an array that is read through that."""

    source: CountingStore
    store: CacheStore
    array: zarr.Array[Any]


def rows(count: int, **settings: Any) -> MemoryStore:
    """An array "a/b" of so many chunks, one below the other, of `CHUNK` bytes each."""
    memory = MemoryStore()
    root = zarr.create_group(memory, zarr_format=settings.pop("zarr_format", 3))
    settings = {"shape": (count, CHUNK), "chunks": (1, CHUNK), **settings}
    array = root.create_array("a/b", dtype="u1", compressors=None, fill_value=0, **settings)
    array[...] = np.arange(array.shape[0])[:, None] + 1
    return memory


def cached(
    memory: Store,
    path: Path,
    kind: type[CountingStore] = CountingStore,
    *,
    name: str = "a/b",
    **settings: Any,
) -> Cached:
    """An array of `memory`, opened through a CacheStore."""
    source = kind(memory)
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source", **settings)
    array = zarr.open_array(store, path=name, mode="r")
    source.reset()
    return Cached(source, store, array)


def chunk_keys(source: CountingStore) -> list[str]:
    """The requests for chunks, sorted."""
    return sorted(key for key in source.keys if "/c/" in key)


class RecordingStore(CountingStore):
    """A counting source that also records which bytes were requested, and how many it sent.

    Attributes
    ----------
    reads
        Key and byte range of each read.
    sent
        Bytes of each response.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.reads: list[tuple[str, ByteRequest | None]] = []
        self.sent: list[int] = []

    @property
    def nbytes(self) -> int:
        """Bytes sent."""
        return sum(self.sent)

    def reset(self) -> None:
        super().reset()
        self.reads.clear()
        self.sent.clear()

    def of_chunks(self) -> list[tuple[str, ByteRequest | None]]:
        """The reads of chunks, sorted."""
        return sorted((read for read in self.reads if "c/" in read[0]), key=repr)

    def _record[T: Buffer | None](self, key: str, request: ByteRequest | None, buffer: T) -> T:
        self.reads.append((key, request))
        self.sent.append(0 if buffer is None else len(buffer))
        return buffer

    async def _get(
        self, method: str, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None
    ) -> Buffer | None:
        buffer = await super()._get(method, key, prototype, byte_range)
        return self._record(key, byte_range, buffer)

    def _get_sync(
        self,
        method: str,
        key: str,
        prototype: BufferPrototype | None,
        byte_range: ByteRequest | None,
    ) -> Buffer | None:
        buffer = super()._get_sync(method, key, prototype, byte_range)
        return self._record(key, byte_range, buffer)


register_namespace(RecordingStore, lambda store: store._store)


def sharded(
    shape: tuple[int, ...] = (40, 60),
    chunks: tuple[int, ...] = (5, 6),
    shards: tuple[int, ...] = (20, 24),
    *,
    index_location: Literal["start", "end"] = "end",
    is_compressed: bool = False,
    outer: Sequence[Any] = (),
) -> MemoryStore:
    """A sharded array at the root, of random bytes.

    By default of 2 by 3 shards of 4 by 4 inner chunks of 30 bytes; the last shards of each row
    reach over the end.

    Parameters
    ----------
    outer
        Filters before the sharding codec.
    """
    memory = MemoryStore()
    codecs: list[Any] = [BytesCodec()]
    if is_compressed:
        codecs.append(ZstdCodec())
    codec = ShardingCodec(chunk_shape=chunks, codecs=codecs, index_location=index_location)
    array = zarr.create_array(
        memory,
        shape=shape,
        chunks=shards,
        dtype="u1",
        fill_value=0,
        filters=outer,
        serializer=codec,
        compressors=None,
    )
    array[...] = np.random.default_rng(0).integers(1, 256, shape, "u1")
    return memory


class Recorded(NamedTuple):
    """As `Cached`, with a source that records."""

    source: RecordingStore
    store: CacheStore
    array: zarr.Array[Any]


UNMERGED: Any = {"sharding_coalesce_max_bytes": 1}
"""The configuration of an array with which zarr merges no reads."""


def persisting(memory: Store, path: Path, config: Any = UNMERGED, **settings: Any) -> Recorded:
    """The array at the root through a CacheStore that persists ranges, by default.

    Parameters
    ----------
    config
        How zarr merges reads: by default none.
    """
    source = memory if isinstance(memory, RecordingStore) else RecordingStore(memory)
    settings = {"persist_ranges": True, "namespace": "source", **settings}
    store = CacheStore(source, cache_store=SqliteStore(path), **settings)
    # `open_array` of zarr 3.4.0 takes a configuration and ignores it.
    array = zarr.open_array(store, mode="r", zarr_format=3).with_config(config)
    source.reset()
    return Recorded(source, store, array)
