"""The systems that are compared, and sources to read from."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from functools import partial
from itertools import batched
from typing import TYPE_CHECKING, Any

import diskcache  # type: ignore[import-untyped] # it ships no types
import lmdb
from zarr.abc.store import Store
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.experimental.cache_store import CacheStore as ZarrCacheStore
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from zarr_cache import CacheStore, SqliteStore, register_namespace

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from measuring import Bench
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

OURS = "zarr_cache"
ZARR = "zarr CacheStore + LocalStore"
ZARR_MEMORY = "zarr CacheStore + MemoryStore"
LOCAL = "LocalStore"
MEMORY = "MemoryStore"
SOURCE = "the source alone"
SELECT = "bare SELECT"
FILE = "open().read()"
DISKCACHE = "diskcache"
LMDB = "LMDB"

PIPELINES = {
    "default": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "fused": "zarr.core.codec_pipeline.FusedCodecPipeline",
}

PROTOTYPE = default_buffer_prototype()

type Read = Callable[[str], Any]


class RemoteStore(WrapperStore[Store]):
    """A source that counts requests and answers each after `latency` seconds.

    With a latency it has async methods only, as every remote store has. Ranges that zarr's merging
    leaves apart are one request each.

    Attributes
    ----------
    requested
        The keys of the requests, of views of other modes too.
    """

    def __init__(self, store: Store, latency: float = 0) -> None:
        super().__init__(store)
        self.latency = latency
        self.requested: list[str] = []

    def _with_store(self, store: Store) -> RemoteStore:
        view = RemoteStore(store, self.latency)
        view.requested = self.requested
        return view

    @property
    def _supports_sync_io(self) -> bool:
        return not self.latency

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As the wrapped store, later."""
        self.requested.append(key)
        if self.latency:
            await asyncio.sleep(self.latency)
        return await self._store.get(key, prototype, byte_range)

    async def get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        **settings: Any,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """By `get`, which the wrapped store's own would not come through."""
        merged = Store.get_ranges(self, key, byte_ranges, prototype=prototype, **settings)
        async for batch in merged:
            yield batch

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """As the wrapped store."""
        self.requested.append(key)
        store: Any = self._store
        buffer: Buffer | None = store.get_sync(key, prototype=prototype, byte_range=byte_range)
        return buffer

    def get_ranges_sync(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        **settings: Any,
    ) -> Sequence[tuple[int, Buffer | None]]:
        """By `get_sync`."""
        return Store.get_ranges_sync(self, key, byte_ranges, prototype=prototype, **settings)


# What is cached of it ends with the benchmark.
register_namespace(RemoteStore, lambda _: None)


class Nowhere(WrapperStore[MemoryStore]):
    """A source to which everything can be written, and which holds nothing of it."""

    async def set(self, key: str, value: Buffer) -> None:
        """Do nothing."""

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        """Do nothing."""


def fill(path: Path, values: Mapping[str, bytes], namespace: str = "source") -> None:
    """Write the values through a CacheStore, 10,000 of them in a transaction."""
    store = ours_at(path, Nowhere(MemoryStore()), namespace=namespace)

    async def write() -> None:
        for some in batched(values.items(), 10_000):
            await store._set_many([(key, cpu.Buffer.from_bytes(data)) for key, data in some])  # noqa: SLF001 - zarr's

    asyncio.run(write())
    store.close()


def ours_at(path: Path, source: Store, **settings: Any) -> CacheStore:
    """Our CacheStore over the file, to be closed by the caller."""
    return CacheStore(source, cache_store=SqliteStore(path), **settings)


def ours(bench: Bench, source: Store, name: str, **settings: Any) -> CacheStore:
    """Our CacheStore over a file in the folder."""
    store = ours_at(bench.folder / f"{name}.sqlite", source, **settings)
    bench.stack.callback(store.close)
    return store


def cache_stores(bench: Bench, source: Store, name: str) -> dict[str, Store]:
    """The caches that are stores, each over `source` and empty."""
    folder = bench.folder / f"{name}-zarr"
    return {
        OURS: ours(bench, source, name),
        ZARR: ZarrCacheStore(source, cache_store=LocalStore(folder)),
        ZARR_MEMORY: ZarrCacheStore(source, cache_store=MemoryStore()),
    }


def write_source(bench: Bench, name: str, values: Mapping[str, bytes]) -> LocalStore:
    """A source on the disk that holds the values."""
    for key, data in values.items():
        path = bench.folder / name / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return LocalStore(bench.folder / name, read_only=True)


def to_bytes(found: Any) -> Any:
    """What a system answered, as bytes; None where it has no such key."""
    return found if found is None or isinstance(found, bytes) else found.to_bytes()


def sync_reads(bench: Bench, name: str, values: Mapping[str, bytes]) -> dict[str, Read]:
    """For each system that reads without an event loop, how it reads a value; all hold them."""
    source = write_source(bench, f"{name}-source", values)
    store = ours(bench, source, name)
    for key in values:
        store.get_sync(key)
    store.close()  # what waited in memory is in the file, and a hit opens it again
    folder = bench.folder / f"{name}-source"
    return {
        OURS: store.get_sync,
        LOCAL: source.get_sync,
        FILE: lambda key: _read_file(f"{folder}/{key}"),
        SELECT: _bare_select(bench, name, values),
        DISKCACHE: _diskcache(bench, name, values),
        LMDB: _lmdb(bench, name, values),
    }


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:  # noqa: PTH123 - it is what one would write without a store
        return file.read()


def _bare_select(bench: Bench, name: str, values: Mapping[str, bytes]) -> Read:
    """One SELECT by key out of a table of two columns, without any pragma."""
    path = bench.folder / f"{name}-bare.sqlite"
    db = sqlite3.connect(path, autocommit=True)  # noqa: TID251 - bare
    bench.stack.enter_context(closing(db))
    db.execute("CREATE TABLE plain (key TEXT PRIMARY KEY, value BLOB)")
    db.executemany("INSERT INTO plain VALUES (?, ?)", values.items())

    def read(key: str) -> bytes:
        row = db.execute("SELECT value FROM plain WHERE key = ?", (key,)).fetchone()
        data: bytes = row[0]
        return data

    return read


def _diskcache(bench: Bench, name: str, values: Mapping[str, bytes]) -> Read:
    cache = diskcache.Cache(
        str(bench.folder / f"{name}-diskcache"),
        eviction_policy="least-recently-used",
        size_limit=2**34,
    )
    bench.stack.enter_context(closing(cache))
    for key, data in values.items():
        cache[key] = data
    read: Read = cache.get
    return read


def _lmdb(bench: Bench, name: str, values: Mapping[str, bytes]) -> Read:
    environment = lmdb.open(str(bench.folder / f"{name}-lmdb"), map_size=2**32)
    bench.stack.enter_context(closing(environment))
    with environment.begin(write=True) as transaction:
        for key, data in values.items():
            transaction.put(key.encode(), data)
    return partial(_read_lmdb, environment)


def _read_lmdb(environment: lmdb.Environment, key: str) -> bytes | None:
    with environment.begin() as transaction:
        data: bytes | None = transaction.get(key.encode())
        return data
