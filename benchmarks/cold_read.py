"""Reads of what is cold, over the source alone, which is async and answers after 5 ms."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from measuring import Row, expect
from systems import OURS, PIPELINES, SOURCE, ZARR, RemoteStore, ours
from zarr.experimental.cache_store import CacheStore as ZarrCacheStore
from zarr.storage import LocalStore, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from measuring import Bench, Timed
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

LATENCY = 0.005
AT_MOST = 1.15
NUMBER = itertools.count()
CLOSED = f"{OURS}, and closed"
"""With what is left to do when the read has returned: answers are kept off its path."""
HALF_AT_HAND = "the source, half of it in memory"
"""What zarr itself takes to read what is warm, beside the requests: no cache could be faster."""
HALF = "metadata and half the chunks warm"


class HalfRemote(RemoteStore):
    """Answers at once for what is asked for first."""

    def __init__(self, store: Store, latency: float, cached: set[str] | None = None) -> None:
        super().__init__(store, latency)
        self.cached = set() if cached is None else cached

    def _with_store(self, store: Store) -> HalfRemote:
        return HalfRemote(store, self.latency, self.cached)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As the wrapped store, later unless it has been asked before."""
        if key in self.cached:
            return await self._store.get(key, prototype, byte_range)
        self.cached.add(key)
        return await super().get(key, prototype, byte_range)


def everything(store: Store, data: Any, *, is_alone: bool) -> float:
    """Milliseconds to open the array and read it, nothing of which is warm."""
    _ = is_alone
    began = time.perf_counter()
    found = zarr.open_array(store, mode="r")[...]
    taken = (time.perf_counter() - began) * 1000
    expect("cold read", np.array_equal(found, data), expected=True)
    return taken


def chunks(store: Store, data: Any, *, is_alone: bool) -> float:
    """Milliseconds to open the array, whose metadata is warm, and read it; alone: to read it."""
    array = zarr.open_array(store, mode="r")
    began = time.perf_counter()
    if not is_alone:
        array = zarr.open_array(store, mode="r")
    found = array[...]
    taken = (time.perf_counter() - began) * 1000
    expect("cold read of chunks", np.array_equal(found, data), expected=True)
    return taken


def half(store: Store, data: Any, *, is_alone: bool) -> float:
    """Milliseconds to read all of it, the upper half warm; alone: to read the lower half."""
    array = zarr.open_array(store, mode="r")
    middle = len(data) // 2
    if not is_alone:
        array[:middle]
    first = middle if is_alone else 0
    began = time.perf_counter()
    found = array[first:]
    taken = (time.perf_counter() - began) * 1000
    expect("cold read of half", np.array_equal(found, data[first:]), expected=True)
    return taken


def other_half(store: Store, data: Any, *, is_alone: bool) -> float:
    """Milliseconds to read the lower half, which is cold, after hits of the upper one."""
    array = zarr.open_array(store, mode="r")
    middle = len(data) // 2
    for _ in range(1 if is_alone else 3):
        array[:middle]
    began = time.perf_counter()
    found = array[middle:]
    taken = (time.perf_counter() - began) * 1000
    expect("cold read of the other half", np.array_equal(found, data[middle:]), expected=True)
    return taken


CASES = {
    "all of it cold": everything,
    "metadata warm": chunks,
    HALF: half,
    "the cold half of them, after hits of the others": other_half,
}


def rows(bench: Bench) -> list[Row]:
    """All of them: each read has a cache of its own."""
    side = int(bench.scale.chunks**0.5) * 64
    data = np.arange(side * side, dtype="f4").reshape(side, side)
    memory = MemoryStore()
    array = zarr.create_array(
        memory, shape=data.shape, chunks=(64, 64), dtype="f4", compressors=None
    )
    array[...] = data

    def make_ours(source: Store) -> Store:
        return ours(bench, source, f"cold-{next(NUMBER)}")

    makers: dict[str, Callable[[Store], Store]] = {
        OURS: make_ours,
        CLOSED: make_ours,
        ZARR: lambda source: ZarrCacheStore(
            source, cache_store=LocalStore(bench.folder / f"cold-{next(NUMBER)}")
        ),
        SOURCE: lambda source: source,
        HALF_AT_HAND: lambda _: HalfRemote(memory, LATENCY),
    }

    def reading(pipeline: str, case: Any, name: str) -> Timed:
        def timed() -> float:
            store = makers[name](RemoteStore(memory, LATENCY))
            with zarr.config.set({"codec_pipeline.path": PIPELINES[pipeline]}):
                taken: float = case(store, data, is_alone=name == SOURCE)
            began = time.perf_counter()
            store.close()
            return taken + (time.perf_counter() - began) * 1000 * (name == CLOSED)

        return timed

    return [
        Row(
            f"cold read of {bench.scale.chunks} chunks, {what}, {pipeline} pipeline",
            "ms",
            bench.in_turn(
                {
                    name: reading(pipeline, case, name)
                    for name in makers
                    if name != HALF_AT_HAND or what == HALF
                }
            ),
            OURS,
            SOURCE,
            AT_MOST,
        )
        for what, case in CASES.items()
        for pipeline in PIPELINES
    ]
