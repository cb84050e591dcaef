"""Where the time goes: a hit and a miss, layer upon layer."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from typing import TYPE_CHECKING

from hits import values
from measuring import MIB, Row, expect
from systems import (
    DISKCACHE,
    FILE,
    OURS,
    PROTOTYPE,
    SELECT,
    SOURCE,
    RemoteStore,
    ours,
    sync_reads,
    to_bytes,
)
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from zarr_cache.core import ages, checksum
from zarr_cache.core import buffers as core_buffers
from zarr_cache.disk.data_file import Extent
from zarr_cache.disk.data_read import Read
from zarr_cache.file.file_database import FileDatabase
from zarr_cache.index import extents, lookup

if TYPE_CHECKING:
    from collections.abc import Callable

    from measuring import Bench, Timed
    from zarr.abc.store import Store

    from zarr_cache.file.connection import Connection

STATEMENT = "the statement of a look-up"
READ = "a read of the data file"
CHECKED = "read and XXH3"
LOOKUP = "look-up in an open file"
OPERATION = "the same, as an operation"
BUFFERED = "SELECT and zarr's buffer"
LAYERS = "{what}, layer upon layer"

AT_ONCE = 10
"""So many chunks zarr reads at a time."""


def hit(bench: Bench, what: str, size: int, floor: str) -> Row:
    """A hit of `size` bytes, from the least that there could be to the whole of it."""
    held = values(size)
    keys = list(held)
    reads = sync_reads(bench, f"layers-{size}", held)
    store_read = reads[OURS]
    database = FileDatabase.of(bench.folder / f"layers-{size}.sqlite")
    expect(what, {key: to_bytes(store_read(key)) for key in keys}, held)
    (namespace,) = database.run(
        lambda connection: connection.execute("SELECT name FROM namespace").fetchone()
    )

    def statement(connection: Connection, key: str) -> object:
        parameters = (
            lookup.MAX_INLINE_BYTES,
            namespace,
            key,
            ages.EVER,
            extents.MIN_BYTES,
            ages.EVER,
        )
        return connection.execute(lookup.LOOKUP, parameters).fetchone()

    def look_up(connection: Connection, key: str) -> lookup.EntryState:
        return lookup.lookup(connection, namespace, key)

    found = {key: database.run(look_up, key) for key in keys}

    def read(connection: Connection, key: str) -> object:
        each, array = found[key], core_buffers.array(size)
        assert connection.data_file  # noqa: S101 - it is what is read
        file = connection.data_file.opened(connection)
        return os.preadv(file.descriptor, [array], each.offset or 0)

    def checked(connection: Connection, key: str) -> object:
        each = found[key]
        assert connection.data_file  # noqa: S101 - it is what is read
        file = connection.data_file.opened(connection)
        where = [Extent(each.offset or 0, size)]
        seed = each.checksum ^ checksum.of_version(each.validator, each.confirmed_at)
        return Read(file, where, seed, 0, each.checksums or b"", 0, size).wait()

    def rotating(read: Callable[[str], object]) -> Timed:
        return bench.calls(lambda number: read(keys[number * 7 % len(keys)]))

    def inside(read: Callable[[Connection, str], object]) -> Timed:
        # One operation, however many reads: its own time is a layer further up.
        return lambda: database.run(
            lambda connection: rotating(lambda key: read(connection, key))()
        )

    large = {READ: inside(read), CHECKED: inside(checked)} if size >= extents.MIN_BYTES else {}
    systems = {
        floor: rotating(reads[floor]),
        STATEMENT: inside(statement),
        **large,
        LOOKUP: inside(look_up),
        OPERATION: rotating(lambda key: database.run(look_up, key)),
        OURS: rotating(store_read),
    }
    return Row(LAYERS.format(what=what), "µs", bench.in_turn(systems), OURS)


def buffered(bench: Bench) -> Row:
    """The least that a store of zarr on SQLite could take, against diskcache."""
    held = values(1000)
    keys = list(held)
    reads = sync_reads(bench, "layers-buffer", held)
    reads[BUFFERED] = lambda key: PROTOTYPE.buffer.from_bytes(reads[SELECT](key))
    systems = {
        name: bench.calls(lambda number, read=reads[name]: read(keys[number * 7 % len(keys)]))
        for name in (BUFFERED, SELECT, DISKCACHE)
    }
    return Row("the least of a hit of 1 kB", "µs", bench.in_turn(systems), BUFFERED, DISKCACHE)


def misses(bench: Bench) -> list[Row]:
    """Processor time of the thread that reads, for each chunk of 16 KiB that is missed.

    With a source that answers at once nothing but the work is measured; after a wait of 5 ms the
    same work takes longer, of the source alone too: the processor has done something else since.
    """
    held = {f"array/c/{number}": bytes(16 * 1024) for number in range(bench.scale.chunks)}
    memory = MemoryStore({key: cpu.Buffer.from_bytes(data) for key, data in held.items()})
    number = itertools.count()

    async def read_all(store: Store) -> dict[str, bytes | None]:
        found = {}
        for keys in itertools.batched(held, AT_ONCE):
            buffers = await asyncio.gather(*(store.get(key, PROTOTYPE) for key in keys))
            found |= dict(zip(keys, map(to_bytes, buffers), strict=True))
        return found

    async def thread_time(store: Store) -> float:
        await store.get("zarr.json", PROTOTYPE)  # opens the file
        began = time.thread_time_ns()
        for keys in itertools.batched(held, AT_ONCE):
            await asyncio.gather(*(store.get(key, PROTOTYPE) for key in keys))
        taken = (time.thread_time_ns() - began) / 1000 / len(held)
        expect("misses", await read_all(store), held)
        return taken

    def reading(name: str, latency: float) -> Timed:
        def timed() -> float:
            source: Store = RemoteStore(memory, latency)
            store = source if name == SOURCE else ours(bench, source, f"misses-{next(number)}")
            taken = asyncio.run(thread_time(store))
            store.close()
            return taken

        return timed

    return [
        Row(
            f"processor time of a miss, {what}",
            "µs",
            bench.in_turn({name: reading(name, latency) for name in (SOURCE, OURS)}),
            OURS,
        )
        for what, latency in {"source without latency": 1e-9, "source of 5 ms": 0.005}.items()
    ]


def rows(bench: Bench) -> list[Row]:
    """All of them. Nothing is to be reached: they tell what holds the other rows."""
    return [
        hit(bench, "one hit, sync, 2 kB", 2000, SELECT),
        hit(bench, "one hit, sync, 1 MiB", MIB, FILE),
        buffered(bench),
        *misses(bench),
    ]
