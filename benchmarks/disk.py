"""What a cache larger than memory lives on: filling it, and hits that come from the disk.

Ours beside zarr's LocalStore, which holds the same values as files. The source answers at once, out
of memory. Values are random bytes, so nothing compresses. The cache is *worn* before anything is
read of it: four times its size has run through it in random order.

Needs Linux, which tells what goes to the disk and what comes from it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from measuring import MIB, Row, expect
from systems import LOCAL, OURS, PROTOTYPE, ours_at
from zarr.core.buffer import cpu
from zarr.storage import LocalStore, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from measuring import Bench
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache import CacheStore

RNG = np.random.default_rng(0)

GENERATIONS = 4
"""So many times the size of the cache runs through it."""

HITS = 400
"""At most so many are read in a round."""

TICK_SECONDS = 0.001


class Size(NamedTuple):
    """A size of values, how many there are of it, and what their warm hits are to reach."""

    nbytes: int
    count: int
    warm_at_most: float

    def __str__(self) -> str:
        return "1 MiB" if self.nbytes == MIB else f"{self.nbytes // 1000:,} kB"


SIZES = (Size(200_000, 4000, 0.6), Size(MIB, 2000, 0.8), Size(4_000_000, 500, 1.1))


class Windows(MemoryStore):
    """A source whose value `i` is the window of so many bytes that begins at byte `i` of a blob."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.nbytes = size.nbytes
        self.blob = RNG.integers(0, 256, size.nbytes + size.count, dtype="u1").tobytes()
        self.asked = 0

    def value(self, key: str) -> bytes:
        """What the key holds."""
        return self.blob[int(key) : int(key) + self.nbytes]

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The window."""
        _ = byte_range
        self.asked += 1
        return prototype.buffer.from_bytes(self.value(key))


def disk_bytes() -> tuple[int, int]:
    """Bytes that this process has had written to disks and read from them, see proc_pid_io(5)."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    found = dict(line.split(": ") for line in lines)
    return int(found["write_bytes"]), int(found["read_bytes"])


def forget_pages(folder: Path) -> None:
    """Take every page of the files below out of memory. Needs no root."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def cache(folder: Path, source: Windows, count: int) -> CacheStore:
    """A cache with room for so many of the values."""
    max_size = source.nbytes * count
    return ours_at(folder / "cache.sqlite", source, max_size=max_size, namespace="disk")


async def fill_cache(store: CacheStore, count: int, nbytes: int) -> tuple[float, float]:
    """Milliseconds to keep a value, and bytes written to the disk for each byte that was kept."""
    order = random.Random(1)  # noqa: S311 - the same each time
    written, began = disk_bytes()[0], time.perf_counter()
    keys = [str(number) for number in range(count)]
    for _ in range(GENERATIONS):
        order.shuffle(keys)
        for key in keys:
            await store.get(key, PROTOTYPE)
    store.flush()
    misses = store.cache_stats()["misses"]
    store.close()
    os.sync()
    taken = time.perf_counter() - began
    return taken / misses * 1000, (disk_bytes()[0] - written) / (misses * nbytes)


async def fill_files(store: LocalStore, source: Windows, keys: Sequence[str]) -> float:
    """Milliseconds to keep a value as a file."""
    began = time.perf_counter()
    for key in keys:
        await store.set(key, cpu.Buffer.from_bytes(source.value(key)))
    os.sync()
    return (time.perf_counter() - began) / len(keys) * 1000


class Reading(NamedTuple):
    """Milliseconds for each hit, and the longest time that the event loop stood still."""

    taken: float
    stall: float


async def read(store: Store, keys: Sequence[str], at_once: int, source: Windows) -> Reading:
    """Read the keys, so many at a time."""
    left, stall = iter(keys), 0.0

    async def tick() -> None:
        nonlocal stall
        last = time.perf_counter()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = time.perf_counter()
            stall, last = max(stall, now - last - TICK_SECONDS), now

    async def reader() -> None:
        for key in left:
            found = await store.get(key, PROTOTYPE)
            begin = found and (len(found), found.to_bytes()[:64])
            expect(f"{store}: {key}", begin, (source.nbytes, source.value(key)[:64]))

    ticker, began = asyncio.create_task(tick()), time.perf_counter()
    await asyncio.gather(*(reader() for _ in range(at_once)))
    taken = (time.perf_counter() - began) / len(keys)
    ticker.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ticker
    return Reading(taken * 1000, stall * 1000)


class Round:
    """What was measured of one size, by row and system."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, list[float]]] = {}

    def add(self, what: str, system: str, figure: float) -> None:
        """Note a figure."""
        self.figures.setdefault(what, {}).setdefault(system, []).append(figure)


def measure(bench: Bench, folder: Path, size: Size) -> Round:
    """All figures of values of one size."""
    count = max(8, int(size.count * bench.scale.disk))
    source, found = Windows(size._replace(count=count)), Round()
    store = cache(folder, source, count // 2)
    seconds, written = asyncio.run(fill_cache(store, count, size.nbytes))
    store = cache(folder, source, count // 2)
    asyncio.run(store.exists("0"))  # opens it
    kept = sorted(cached_keys(store))
    store.close()
    files = LocalStore(folder / "files")
    found.add("fill", OURS, seconds)
    found.add("fill", LOCAL, asyncio.run(fill_files(files, source, kept)))
    found.add("written", OURS, written)
    order = random.Random(2)  # noqa: S311 - the same each time
    for number in range(max(1, bench.scale.rounds // 2)):
        for at_once in (1, 10):
            keys = order.sample(kept, min(HITS, len(kept)))
            for name in (OURS, LOCAL) if number % 2 else (LOCAL, OURS):
                with opened(name, folder, source, count) as reading:
                    forget_pages(folder)
                    source.asked, before = 0, disk_bytes()[1]
                    cold = asyncio.run(read(reading, keys, at_once, source))
                    nbytes = disk_bytes()[1] - before
                    found.add(f"cold {at_once}", name, cold.taken)
                    if at_once > 1:
                        found.add("read", name, nbytes / (len(keys) * size.nbytes))
                        found.add("stall", name, cold.stall)
                    warm = asyncio.run(read(reading, keys, at_once, source))
                    found.add(f"warm {at_once}", name, warm.taken)
                    expect("hits that asked the source", source.asked, 0)
    return found


def cached_keys(store: CacheStore) -> set[str]:
    """The keys that are cached."""
    operation = "SELECT key FROM entry WHERE kind = 'value'"
    run: Any = store._view.values._database.run  # noqa: SLF001 - what is in the file
    return {key for (key,) in run(lambda connection: connection.execute(operation).fetchall())}


@contextlib.contextmanager
def opened(name: str, folder: Path, source: Windows, count: int) -> Iterator[Store]:
    """Either system, opened anew."""
    if name == LOCAL:
        yield LocalStore(folder / "files")
        return
    store = cache(folder, source, count // 2)
    try:
        yield store
    finally:
        store.close()


def size_rows(bench: Bench, size: Size) -> list[Row]:
    """The rows of values of one size."""
    folder = bench.folder / "disk"
    folder.mkdir()
    try:
        figures = measure(bench, folder, size).figures
    finally:
        shutil.rmtree(folder)
    of = f"of {size}"
    rows = [
        Row(f"keeping a value {of}, to the disk", "ms", figures["fill"], OURS, LOCAL, 1.0),
        Row(
            f"bytes written for each byte kept, values {of}",
            "bytes",
            figures["written"],
            OURS,
            at_most=1.1,
        ),
    ]
    for at_once, how in ((1, "one at a time"), (10, "ten at a time")):
        cold, warm = figures[f"cold {at_once}"], figures[f"warm {at_once}"]
        at_most = size.warm_at_most
        rows += [
            Row(f"a hit {of} from the disk, {how}", "ms", cold, OURS, LOCAL, 1.2),
            Row(f"a hit {of} out of memory, {how}", "ms", warm, OURS, LOCAL, at_most),
        ]
    what = f"bytes read for each byte asked for, values {of}"
    stall = f"the longest time the event loop stood still meanwhile, values {of}"
    return [
        *rows,
        Row(what, "bytes", figures["read"], OURS, at_most=1.25),
        Row(stall, "ms", figures["stall"], OURS, at_most=20.0),
    ]


def rows(bench: Bench) -> list[Row]:
    """All of them."""
    if not (Path("/proc/self/io").exists() and hasattr(os, "posix_fadvise")):
        return []
    return [row for size in SIZES for row in size_rows(bench, size)]
