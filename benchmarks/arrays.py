"""Warm reads of real arrays with each of zarr's codec pipelines."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from measuring import Row, expect
from systems import LOCAL, MEMORY, OURS, PIPELINES, ZARR, RemoteStore, cache_stores
from zarr.storage import LocalStore, MemoryStore

if TYPE_CHECKING:
    from measuring import Bench, Timed
    from zarr.abc.store import Store

    type Windows = list[tuple[slice, slice]]

RNG = np.random.default_rng(1)

WHOLE = {"default": 0.6, "fused": 0.6}
WINDOWS = 41
SHARDED = {
    "source in memory": (None, 0, 1.0),
    "source on the disk": ("sharded.zarr", 0, 1.0),
    "source of 5 ms": (None, 0.005, 0.35),
}
"""By what the source is: its folder, its latency in seconds, and what is to be reached."""


def open_array(store: Store, pipeline: str) -> zarr.Array[Any]:
    """The array in the store, to be read with the pipeline."""
    with zarr.config.set({"codec_pipeline.path": PIPELINES[pipeline]}):
        return zarr.open_array(store, mode="r")


def reading(array: zarr.Array[Any], pipeline: str, windows: Windows | None = None) -> Timed:
    """Milliseconds to read the array whole, or each of the windows."""

    def timed() -> float:
        with zarr.config.set({"codec_pipeline.path": PIPELINES[pipeline]}):
            began = time.perf_counter()
            if windows is None:
                array[...]
            else:
                for window in windows:
                    array[window]
            return (time.perf_counter() - began) * 1000

    return timed


def whole_rows(bench: Bench) -> list[Row]:
    """An array of float32 in chunks of 256², uncompressed."""
    folder, side = bench.folder / "whole.zarr", bench.scale.side
    data = RNG.random((side, side), "f4")
    memory = MemoryStore()
    written: Store
    for written in (LocalStore(folder), memory):
        array = zarr.create_array(
            written, shape=data.shape, chunks=(256, 256), dtype="f4", compressors=None
        )
        array[...] = data
    source = LocalStore(folder, read_only=True)
    measured = []
    for pipeline, at_most in WHOLE.items():
        what = f"warm read of {side}² float32, chunks 256², {pipeline} pipeline"
        stores = cache_stores(bench, source, f"whole-{pipeline}")
        systems: dict[str, Timed] = {}
        for name, store in (stores | {LOCAL: source, MEMORY: memory}).items():
            array = open_array(store, pipeline)
            systems[name] = reading(array, pipeline)
            for _ in range(2):  # missed, then hit
                with zarr.config.set({"codec_pipeline.path": PIPELINES[pipeline]}):
                    expect(f"{name}: {what}", np.array_equal(array[...], data), expected=True)
                if name == OURS:
                    store.close()  # what waited in memory is in the file
        measured.append(Row(what, "ms", bench.in_turn(systems), OURS, ZARR, at_most))
    return measured


def sharded_rows(bench: Bench) -> list[Row]:
    """Small windows, each inside one inner chunk of a shard."""
    memory, side = MemoryStore(), bench.scale.side
    data = RNG.random((side, side), "f4")
    written: Store
    for written in (memory, LocalStore(bench.folder / "sharded.zarr")):
        array = zarr.create_array(
            written,
            shape=data.shape,
            chunks=(32, 32),
            shards=(256, 256),
            dtype="f4",
            compressors=None,
        )
        array[...] = data
    corners = (RNG.integers(side // 32, size=(WINDOWS, 2)) * 32 + 8).tolist()
    windows = [(slice(y, y + 8), slice(x, x + 8)) for y, x in corners]
    measured = []
    for which, (folder, latency, at_most) in SHARDED.items():
        what = f"{WINDOWS} windows in a sharded array, warm, {which}"
        store = memory if folder is None else LocalStore(bench.folder / folder, read_only=True)
        systems: dict[str, Timed] = {}
        sources: dict[str, RemoteStore] = {}
        for name in (OURS, ZARR):
            sources[name] = RemoteStore(store, latency)
            stores = cache_stores(bench, sources[name], f"{which}, {name}")
            array = open_array(stores[name], "default")
            systems[name] = reading(array, "default", windows)
            for _ in range(2):
                for window in windows:
                    expect(what, np.asarray(array[window]).tolist(), data[window].tolist())
        if folder is None and not latency:
            # What zarr itself takes: no cache could be faster.
            systems[MEMORY] = reading(open_array(memory, "default"), "default", windows)
        requests = {}
        for name, source in sources.items():
            source.requested.clear()
            systems[name]()
            requests[name] = [float(len(source.requested))]
        measured += [
            Row(f"requests of {what}", "requests", requests, OURS, at_most=0),
            Row(what, "ms", bench.in_turn(systems), OURS, ZARR, at_most),
        ]
    return measured


def rows(bench: Bench) -> list[Row]:
    """All of them."""
    return whole_rows(bench) + sharded_rows(bench)
