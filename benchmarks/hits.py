"""One hit: a value that is at hand and fresh, on the sync and on the async surface."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from measuring import MIB, Row, expect
from systems import (
    DISKCACHE,
    FILE,
    LOCAL,
    OURS,
    PROTOTYPE,
    SELECT,
    ZARR,
    cache_stores,
    ours,
    sync_reads,
    to_bytes,
    write_source,
)

if TYPE_CHECKING:
    from measuring import Bench, Timed
    from systems import Read
    from zarr.abc.store import Store

    from zarr_cache import CacheStore

RNG = np.random.default_rng(1)

SYNC = {
    "one hit, sync, 2 kB": (2000, SELECT, 3.0),
    "one hit, sync, 1 MiB": (MIB, FILE, 1.7),
    "one hit, sync, 1 kB, against diskcache's LRU": (1000, DISKCACHE, 0.3),
}
ASYNC = {
    "one hit, async, 2 kB": (2000, 0.6),
    "one hit, async, 100 kB": (100_000, 0.4),
    "one hit, async, 2 MB": (2_000_000, 0.8),
}
SAMPLED, UNSAMPLED = "zarr_cache, reads sampled", "zarr_cache, not sampled"

BYTES_OF_A_SIZE = 32 * MIB
"""So that not one value is read again and again out of the processor's cache."""


def values(size: int) -> dict[str, bytes]:
    """Random bytes by key, at most 64."""
    count = max(2, min(64, BYTES_OF_A_SIZE // size))
    return {f"array/c/{number}": RNG.bytes(size) for number in range(count)}


def sync_row(bench: Bench, what: str, size: int, peer: str, at_most: float) -> Row:
    """The systems that read without an event loop."""
    held = values(size)
    keys = list(held)
    reads = sync_reads(bench, f"sync-{size}", held)
    for name, read in reads.items():
        expect(f"{name}: {what}", {key: to_bytes(read(key)) for key in keys}, held)

    def rotating(read: Read) -> Timed:
        return bench.calls(lambda number: read(keys[number * 7 % len(keys)]))

    systems = {name: rotating(read) for name, read in reads.items()}
    return Row(what, "µs", bench.in_turn(systems), OURS, peer, at_most)


def async_row(bench: Bench, runner: asyncio.Runner, what: str, size: int, at_most: float) -> Row:
    """The systems that are stores, all on one event loop."""
    held = values(size)
    keys = list(held)
    source = write_source(bench, f"async-{size}-source", held)
    stores: dict[str, Store] = cache_stores(bench, source, f"async-{size}") | {LOCAL: source}

    async def read(store: Store, number: int) -> object:
        return await store.get(keys[number * 7 % len(keys)], PROTOTYPE)

    async def read_all(store: Store) -> dict[str, bytes | None]:
        return {key: to_bytes(await store.get(key, PROTOTYPE)) for key in keys}

    for name, store in stores.items():
        expect(f"{name}: {what}", runner.run(read_all(store)), held)
        if name == OURS:
            store.close()  # what waited in memory is in the file, and a hit opens it again
        expect(f"{name}: {what}", runner.run(read_all(store)), held)

    def rotating(store: Store) -> Timed:
        return lambda: runner.run(bench.awaited(partial(read, store)))

    systems = {name: rotating(store) for name, store in stores.items()}
    return Row(what, "µs", bench.in_turn(systems), OURS, ZARR, at_most)


def sampling_row(bench: Bench) -> Row:
    """A hit of one of 500 values, the reads of which are sampled, beside one that is not recorded.

    The sample is made in the background, while both are read in turn.
    """
    held = {f"array/c/{number}": RNG.bytes(2000) for number in range(500)}
    source = write_source(bench, "sampled-source", held)
    stores = {name: ours(bench, source, name.replace(" ", "-")) for name in (SAMPLED, UNSAMPLED)}
    # No setting turns the sample off.
    reads = stores[UNSAMPLED]._view.values.pending.reads  # noqa: SLF001 - for this reason
    reads.add = lambda *_: None  # type: ignore[method-assign] # the same
    for store in stores.values():
        expect("hits to be sampled", {key: to_bytes(store.get_sync(key)) for key in held}, held)
        store.flush()
    keys = list(held)

    def rotating(store: CacheStore) -> Timed:
        return bench.calls(lambda number: store.get_sync(keys[number * 7 % len(keys)]))

    systems = {name: rotating(store) for name, store in stores.items()}
    what = "one hit of 500 values in turn, sync, 2 kB"
    return Row(what, "µs", bench.in_turn(systems), SAMPLED, UNSAMPLED, 1.03)


def rows(bench: Bench) -> list[Row]:
    """All of them."""
    measured = [sync_row(bench, what, *row) for what, row in SYNC.items()]
    measured.append(sampling_row(bench))
    with asyncio.Runner() as runner:
        measured += [async_row(bench, runner, what, *row) for what, row in ASYNC.items()]
    return measured
