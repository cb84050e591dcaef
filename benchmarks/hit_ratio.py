"""Which part of the reads of a trace are hits, by the order in which what is cached makes room.

The real CacheStore, over a source in memory, beside other orders as simulations.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
from measuring import Row, expect
from systems import RemoteStore, ours_at, to_bytes
from traces import ORDERS, TRACES, equal_sizes
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

    from measuring import Bench
    from traces import Hits, Trace

PARTS = (10, 50)
"""Sizes of the cache, in hundredths of the bytes that the trace reads."""

NBYTES = 200
"""Of each value."""

WHEN_FULL = ("auto", "evict", "keep")
SIMULATED = ("LRU", "SIEVE", "S3-FIFO", "best")
"""Not `keep`: it is the rule of the real one."""

UNIT = "hit ratio"
BETTER = "the better of evict and keep"
AT_LEAST = 0.95

MISSES_AT_ONCE = 10
"""After so many misses what waits is written, as it is while the source of a program is waited for.

Here the source has no latency. Responses that wait in memory are hits beyond `max_size`, and with a
cache of some hundred values they would count.
"""


def sampled(trace: Trace, share: float) -> Trace:
    """The reads of a share of the keys, which are numbered anew."""
    keys = np.unique(trace)
    chosen = np.random.default_rng(0).choice(keys, round(share * len(keys)), replace=False)
    return np.unique(trace[np.isin(trace, chosen)], return_inverse=True)[1]


def real(path: Path, trace: Trace, capacity: int, when_full: str) -> Hits:
    """Read the trace through a CacheStore with room for so many values."""
    values = [number.to_bytes(8) * (NBYTES // 8) for number in range(int(trace.max()) + 1)]
    source = RemoteStore(
        MemoryStore(
            {f"array/c/{key}": cpu.Buffer.from_bytes(data) for key, data in enumerate(values)}
        )
    )
    hits = np.zeros(len(trace), bool)
    store = ours_at(
        path, source, namespace="source", max_size=capacity * NBYTES, when_full=when_full
    )
    with closing(store):
        for position, key in enumerate(trace.tolist()):
            name = f"array/c/{key}"
            before = len(source.requested)
            expect(name, to_bytes(store.get_sync(name)), values[key])
            hits[position] = len(source.requested) == before
            if not hits[position] and len(source.requested) % MISSES_AT_ONCE == 0:
                store.flush()
    return hits


def rows_of(bench: Bench, name: str, trace: Trace, part: int) -> list[Row]:
    """One trace with one size of the cache: what hits of all reads, and what `auto` has to reach.

    It needs the first quarter of a trace to find out what the trace is.
    """
    sizes = equal_sizes(trace)
    capacity = len(sizes) * part // 100
    hits = {
        when_full: real(bench.folder / f"{when_full}.sqlite", trace, capacity, when_full)
        for when_full in WHEN_FULL
    } | {order: ORDERS[order](trace, sizes, capacity) for order in SIMULATED}
    for file in bench.folder.iterdir():
        file.unlink()
    what = f"{name}, room for {part} %"
    ratios = {system: [float(found.mean())] for system, found in hits.items()}
    later = {system: float(hits[system][len(trace) // 4 :].mean()) for system in WHEN_FULL}
    decided = {"auto": [later["auto"]], BETTER: [max(later["evict"], later["keep"])]}
    return [
        Row(what, UNIT, ratios, "auto"),
        Row(f"{what}, after the first quarter", UNIT, decided, "auto", BETTER, at_least=AT_LEAST),
    ]


def rows(bench: Bench) -> list[Row]:
    """Each trace with each size of the cache."""
    return [
        row
        for name, make in TRACES.items()
        for part in PARTS
        for row in rows_of(bench, name, sampled(make(0), bench.scale.trace), part)
    ]
