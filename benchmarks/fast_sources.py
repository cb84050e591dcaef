"""Reads through a cache from sources as fast as a disk, and what it takes to keep a value."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from measuring import MIB, Row, expect
from systems import OURS, PIPELINES, PROTOTYPE, SOURCE, ZARR, ours_at
from zarr.experimental.cache_store import CacheStore as ZarrCacheStore
from zarr.storage import LocalStore, MemoryStore, WrapperStore

if TYPE_CHECKING:
    from measuring import Bench, Timed
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

BYTES_PER_SECOND = 1e9
"""Of the source that has a network before it, in all."""

AT_ONCE = 10
NUMBER = itertools.count()
RNG = np.random.default_rng(1)
WRITE = "open().write()"


class Limited(WrapperStore[MemoryStore]):
    """A source behind a network of 1 GB/s, which all requests share."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self._free_at = 0.0

    def _with_store(self, store: MemoryStore) -> Limited:
        return Limited(store)

    @property
    def _supports_sync_io(self) -> bool:
        return False

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As the wrapped store, when the network has brought it."""
        found = await self._store.get(key, prototype, byte_range)
        now = time.perf_counter()
        nbytes = 0 if found is None else len(found)
        self._free_at = max(now, self._free_at) + nbytes / BYTES_PER_SECOND
        await asyncio.sleep(self._free_at - now)
        return found


class AtOnce(MemoryStore):
    """A source that has every key, and answers without a wait."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self.blob = RNG.integers(0, 256, nbytes + 1000, dtype="u1").tobytes()
        self.nbytes = nbytes

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Bytes that no other of a thousand keys has."""
        _ = byte_range
        start = int(key) % 1000
        return prototype.buffer.from_bytes(self.blob[start : start + self.nbytes])


def caches(bench: Bench, source: Store, max_size: int | None = None) -> dict[str, Any]:
    """A new cache of each system."""
    folder = bench.folder / f"fast-{next(NUMBER)}"
    folder.mkdir()
    return {
        OURS: lambda: ours_at(folder / "c.sqlite", source, max_size=max_size, namespace="fast"),
        ZARR: lambda: ZarrCacheStore(
            source, cache_store=LocalStore(folder / "files"), max_size=max_size
        ),
        SOURCE: lambda: source,
    }


def removed(bench: Bench) -> None:
    """Remove what the caches have kept, so that the disk has room for the next."""
    for folder in bench.folder.glob("fast-*"):
        shutil.rmtree(folder)


def array_rows(bench: Bench) -> list[Row]:
    """An array in chunks of 4 MiB, behind a network."""
    count = bench.scale.fast_chunks
    memory = MemoryStore()
    data = RNG.integers(0, 256, (count, 4 * MIB), dtype="u1")
    settings: Any = {"chunks": (1, 4 * MIB), "compressors": None}
    zarr.create_array(memory, shape=data.shape, dtype="u1", **settings)[...] = data

    def reading(name: str) -> Timed:
        def timed() -> float:
            store = caches(bench, Limited(memory))[name]()
            with zarr.config.set({"codec_pipeline.path": PIPELINES["default"]}):
                array = zarr.open_array(store, mode="r")
                began = time.perf_counter()
                found = array[...]
                taken = (time.perf_counter() - began) * 1000
            expect(name, np.array_equal(found, data), expected=True)
            store.close()
            removed(bench)
            return taken

        return timed

    what = f"cold read of {count} chunks of 4 MiB, a source of 1 GB/s"
    figures = bench.in_turn({name: reading(name) for name in (OURS, ZARR, SOURCE)})
    return [Row(what, "ms", figures, OURS, SOURCE, 1.25)]


def values_rows(bench: Bench) -> list[Row]:
    """Values of 4 MB from a source that answers at once, twice as many as there is room for."""
    nbytes, count = 4_000_000, 2 * bench.scale.fast_chunks
    source = AtOnce(nbytes)

    async def read_all(store: Store) -> None:
        left = iter(range(count))

        async def reader() -> None:
            for key in left:
                found = await store.get(str(key), PROTOTYPE)
                expect("value", found and len(found), nbytes)

        await asyncio.gather(*(reader() for _ in range(AT_ONCE)))

    def reading(name: str) -> Timed:
        def timed() -> float:
            store = caches(bench, source, max_size=count * nbytes // 2)[name]()
            began = time.perf_counter()
            asyncio.run(read_all(store))
            taken = (time.perf_counter() - began) * 1000
            store.close()
            removed(bench)
            return taken

        return timed

    what = f"cold read of {count} values of 4 MB, a source that answers at once"
    figures = bench.in_turn({name: reading(name) for name in (OURS, ZARR)})
    return [Row(what, "ms", figures, OURS, ZARR, 1.3)]


def processor_rows(bench: Bench) -> list[Row]:
    """Processor time of keeping values of 1 MiB, in a cache that is full."""
    count = max(4, bench.scale.fast_chunks // 2)
    source = AtOnce(MIB)
    buffers = [RNG.bytes(MIB) for _ in range(8)]

    async def read_all(store: Store, first: int) -> None:
        for key in range(first, first + count):
            await store.get(str(key), PROTOTYPE)

    def keeping() -> float:
        store = caches(bench, source, max_size=count * MIB // 2)[OURS]()
        asyncio.run(read_all(store, 0))
        store.flush()
        alone = time.process_time()
        asyncio.run(read_all(source, count))
        began = time.process_time()
        asyncio.run(read_all(store, count))
        store.flush()
        ended = time.process_time()
        store.close()
        removed(bench)
        return ((ended - began) - (began - alone)) / count * 1e6

    def writing() -> float:
        folder = bench.folder / f"fast-{next(NUMBER)}"
        folder.mkdir()
        began = time.process_time()
        for number in range(count):
            with Path(folder, f"{number}").open("wb") as file:
                file.write(buffers[number % len(buffers)])
            if number >= count // 2:
                Path(folder, f"{number - count // 2}").unlink()
        taken = (time.process_time() - began) / count * 1e6
        removed(bench)
        return taken

    figures = bench.in_turn({OURS: keeping, WRITE: writing})
    what = "processor time of keeping a value of 1 MiB, with eviction"
    return [Row(what, "µs", figures, OURS, WRITE, 2.0)]


def rows(bench: Bench) -> list[Row]:
    """All of them."""
    return [*array_rows(bench), *values_rows(bench), *processor_rows(bench)]
