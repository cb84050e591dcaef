"""How much longer a cold read takes through a CacheStore than from the source alone.

The source has only async methods and answers each request after a stated latency, as every remote
store does. Systems are taken in turn inside each round; medians, and the ratio to the source alone
with the same pipeline, are printed.

    python benchmarks/cold_read.py --rounds 7
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.experimental.cache_store import CacheStore as ZarrCacheStore
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.abc.store import Store

PIPELINES = {
    "default": "zarr.core.codec_pipeline.BatchedCodecPipeline",
    "fused": "zarr.core.codec_pipeline.FusedCodecPipeline",
}


class RemoteStore(WrapperStore[MemoryStore]):
    """Answers after `latency` seconds, and on the async surface only."""

    latency = 0.005
    _supports_sync_io = False  # type: ignore[assignment] # a fact of the class

    async def get(self, *args: Any, **kwargs: Any) -> Any:
        """As the wrapped store, later."""
        await asyncio.sleep(self.latency)
        return await super().get(*args, **kwargs)


def read(store: Store, pipeline: str) -> float:
    """Seconds to open the array and read it whole."""
    with zarr.config.set({"codec_pipeline.path": PIPELINES[pipeline]}):
        began = time.perf_counter()
        zarr.open_array(store, mode="r")[...]
        return time.perf_counter() - began


def half(store: Store, pipeline: str) -> float:
    """Seconds to read it whole when the upper half of the chunks is at hand."""
    with zarr.config.set({"codec_pipeline.path": PIPELINES[pipeline]}):
        array = zarr.open_array(store, mode="r")
        array[: array.shape[0] // 2]
        began = time.perf_counter()
        array[...]
        return time.perf_counter() - began


def main() -> None:
    """Run the comparison and print it as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunks", type=int, default=256)
    parser.add_argument("--latency-ms", type=float, default=5)
    arguments = parser.parse_args()
    RemoteStore.latency = arguments.latency_ms / 1000
    memory = MemoryStore()
    side = int(arguments.chunks**0.5)
    array = zarr.create_array(
        memory, shape=(side * 64,) * 2, chunks=(64, 64), dtype="f4", compressors=None
    )
    array[...] = np.arange(array.size, dtype="f4").reshape(array.shape)
    times: dict[tuple[str, str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        number = iter(range(10_000))
        systems: dict[str, Callable[[], Store]] = {
            "source": lambda: RemoteStore(memory),
            "zarr_cache": lambda: CacheStore(
                RemoteStore(memory), cache_store=SqliteStore(Path(folder, f"{next(number)}.sqlite"))
            ),
            "zarr CacheStore": lambda: ZarrCacheStore(
                RemoteStore(memory), cache_store=LocalStore(Path(folder, f"{next(number)}"))
            ),
        }
        for _ in range(arguments.rounds):
            for pipeline in PIPELINES:
                for name, make in systems.items():
                    for kind, timed in (("cold", read), ("half warm", half)):
                        store = make()
                        times.setdefault((kind, pipeline, name), []).append(timed(store, pipeline))
                        store.close()
    print(f"{'read':10} {'pipeline':9} {'system':16} {'ms':>8} {'to source':>10}")
    for (kind, pipeline, name), seconds in times.items():
        ratio = statistics.median(seconds) / statistics.median(times[kind, pipeline, "source"])
        milliseconds = statistics.median(seconds) * 1000
        print(f"{kind:10} {pipeline:9} {name:16} {milliseconds:8.1f} {ratio:10.2f}")


if __name__ == "__main__":
    main()
