"""Byte ranges: a sharded array in a new process, a first reading, many ranges, memory."""

from __future__ import annotations

import itertools
import time
import zlib
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import zarr
from measuring import KIB, Row, expect, text
from processes import fresh_process
from systems import LOCAL, OURS, PIPELINES, PROTOTYPE, SOURCE, RemoteStore, ours, ours_at
from zarr.abc.store import RangeByteRequest
from zarr.codecs import ZstdCodec
from zarr.core.buffer import cpu
from zarr.storage import LocalStore, MemoryStore

from zarr_cache.file.connection import Connection as FileConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

    from measuring import Bench, Timed
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer

    type Windows = list[tuple[slice, slice]]

RNG = np.random.default_rng(1)

INNER = (64, 128)
"""Sides of the inner chunks of a shard of 1024²."""

NEW_PROCESS_AT_MOST = 1.0
FIRST_AT_MOST = 1.15
HIT_AT_MOST = 1.5
TRANSACTIONS_AT_MOST = 300
MEMORY_AT_MOST_MB = 200 + 2**30 / 1e6
"""And what `max_memory` is by default."""

LATENCY = 0.005
NUMBER = itertools.count()
ALL = f"{OURS}, which persists"
IN_MEMORY = f"{OURS}, in memory"

type Shape = tuple[int, int]


def write_array(store: Store, side: int, chunks: Shape, shards: Shape | None) -> None:
    """An array of elevations, as it were: smooth, with some noise."""
    rows, columns = np.mgrid[:side, :side]
    smooth = 1000 * (np.sin(rows / 301) + np.cos(columns / 173)) + 3000
    data = (smooth + RNG.integers(16, size=(side, side))).astype("u2")
    array = zarr.create_array(
        store, shape=data.shape, chunks=chunks, shards=shards, dtype="u2", compressors=ZstdCodec()
    )
    array[...] = data


def windows_in(side: int, count: int) -> Windows:
    """Windows of 100 to 256 numbers a side, anywhere."""
    sizes = RNG.integers(100, 257, size=(count, 2)).tolist()
    return [
        (slice(y, y + height), slice(x, x + width))
        for height, width in sizes
        for y, x in [RNG.integers((side - height, side - width)).tolist()]
    ]


def read_windows(store: Store, windows: Windows) -> tuple[float, int]:
    """Milliseconds to open the array and read the windows one by one, and a checksum of them."""
    began = time.perf_counter()
    array = zarr.open_array(store, mode="r")
    found = [np.asarray(array[window]) for window in windows]
    taken = (time.perf_counter() - began) * 1000
    checksum = 0
    for each in found:
        checksum = zlib.crc32(np.ascontiguousarray(each), checksum)
    return taken, checksum


def read_in_process(
    pipe: Connection, folder: Path, name: str, pipeline: str, windows: Windows
) -> None:
    """Read the windows as the system, and tell the time, a checksum and the number of requests."""
    with zarr.config.set({"codec_pipeline.path": PIPELINES[pipeline]}):
        # What zarr imports and starts at its first read is no part of the reading.
        other = MemoryStore()
        write_array(other, 128, (32, 32), (128, 128))
        read_windows(other, [(slice(5, 70), slice(5, 70))])
        source = LocalStore(folder / "source.zarr", read_only=True)
        if name == LOCAL:
            pipe.send((*read_windows(source, windows), 0))
            return
        counting = RemoteStore(source)
        store = ours_at(
            folder / "ranges.sqlite",
            counting if name == ALL else source,
            namespace="source",
            persist_ranges=True,
        )
        taken, checksum = read_windows(store, windows)
        pipe.send((taken, checksum, len(counting.requested)))
        store.close()


def new_process_rows(bench: Bench, inner: int) -> list[Row]:
    """Windows that another process has read, by both pipelines."""
    side, count = bench.scale.side, max(4, bench.scale.windows // 20)
    folder = bench.folder / f"inner-{inner}"
    write_array(LocalStore(folder / "source.zarr"), side, (inner, inner), (1024, 1024))
    windows = windows_in(side, count)

    def reading(name: str, pipeline: str) -> tuple[float, int, int]:
        with fresh_process(read_in_process, folder, name, pipeline, windows) as (_, pipe):
            told: tuple[float, int, int] = pipe.recv()
            return told

    _, checksum, _ = reading(LOCAL, "default")
    expect("first reading", reading(ALL, "default")[1], checksum)

    def timed(name: str, pipeline: str) -> Timed:
        def time_one() -> float:
            taken, found, _ = reading(name, pipeline)
            expect(f"{name}: windows in a new process", found, checksum)
            return taken

        return time_one

    what = f"{count} windows of 100² to 256² in shards of 1024², inner chunks {inner}², read before"
    measured = []
    for pipeline in PIPELINES:
        requests = {OURS: [float(reading(ALL, pipeline)[2])]}
        systems = {name: timed(name, pipeline) for name in (OURS, LOCAL)}
        measured += [
            Row(
                f"requests in a new process: {what}, {pipeline} pipeline",
                "requests",
                requests,
                OURS,
                at_most=0,
            ),
            Row(
                f"in a new process: {what}, {pipeline} pipeline",
                "ms",
                bench.in_turn(systems, warms_up=False),
                OURS,
                LOCAL,
                NEW_PROCESS_AT_MOST,
            ),
        ]
    return measured


def windows_at(across: int, side: int, count: int) -> Windows:
    """A window in each of so many squares of an array that is `across` of them wide and high."""
    corners = (RNG.permutation(across**2)[:count, None] // [across, 1] % across * side).tolist()
    return [(slice(y + 5, y + 25), slice(x + 5, x + 25)) for y, x in corners]


def first_rows(bench: Bench) -> list[Row]:
    """Windows that nobody has read, from a slow source.

    Where a shard has many windows, its index is asked for once: fewer requests than without a
    cache. So there is also one window in each of many shards, of which no request is saved.
    """
    count = bench.scale.windows
    many, few = MemoryStore(), MemoryStore()
    across = int(np.ceil(count**0.5))
    write_array(many, across * 64, (32, 32), (64, 64))
    write_array(few, bench.scale.side, (32, 32), (bench.scale.side // 2,) * 2)
    cases = {
        "each in another shard": (many, windows_at(across, 64, count)),
        "each in another inner chunk": (few, windows_at(bench.scale.side // 32, 32, count)),
    }
    measured = []
    for what, (memory, windows) in cases.items():
        checksum = read_windows(memory, windows)[1]

        def timed(name: str, memory: Store, windows: Windows, checksum: int) -> float:
            source = RemoteStore(memory, LATENCY)
            store: Store = source
            if name == OURS:
                store = ours(bench, source, f"first-{next(NUMBER)}", persist_ranges=True)
            taken, found = read_windows(store, windows)
            expect(f"{name}: first reading", found, checksum)
            store.close()
            return taken

        systems: dict[str, list[float]] = {OURS: [], SOURCE: []}
        for _ in range(min(3, bench.scale.rounds)):
            for name, figures in systems.items():
                figures.append(timed(name, memory, windows, checksum))
        measured.append(
            Row(
                f"first reading of {count:,} windows, {what}, one by one, source of 5 ms",
                "ms",
                systems,
                OURS,
                SOURCE,
                FIRST_AT_MOST,
            )
        )
    return measured


class EndlessSource(MemoryStore):
    """A source that has every key, and makes the bytes of any range up."""

    def get_sync(
        self,
        key: str,
        *,
        prototype: object = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer:
        """Bytes that say where they are."""
        _ = prototype
        assert isinstance(byte_range, RangeByteRequest)  # noqa: S101 - nothing else is asked for
        return cpu.Buffer.from_bytes(made_up(key, byte_range.start, byte_range.end))

    def get_ranges_sync(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], **settings: Any
    ) -> list[tuple[int, Buffer | None]]:
        """Each by itself."""
        _ = settings
        return [(n, self.get_sync(key, byte_range=each)) for n, each in enumerate(byte_ranges)]


def made_up(key: str, start: int, end: int) -> bytes:
    """The bytes ``[start, end)`` of the value of a key."""
    return f"{key} {start} ".encode().ljust(end - start, b".")


LARGE_RANGE = 20_000
SMALL_RANGE = 200
LARGE_RANGES = 100
IN_A_SHARD = 1_000
"""Small ranges; so many shards have a large one as well, in their middle."""


def large_range(number: int) -> tuple[str, RangeByteRequest]:
    """A shard, and the inner chunk of 20 kB in it."""
    start = IN_A_SHARD * SMALL_RANGE // 2
    return f"array/c/{number}", RangeByteRequest(start, start + LARGE_RANGE)


def small_ranges() -> list[RangeByteRequest]:
    """The inner chunks of 200 bytes of a shard, around the large one."""
    _, large = large_range(0)
    starts = [number * SMALL_RANGE for number in range(IN_A_SHARD)]
    return [
        RangeByteRequest(start, start + SMALL_RANGE)
        for start in (each if each < large.start else each + LARGE_RANGE for each in starts)
    ]


def fill_ranges(path: Path, count: int) -> None:
    """Read so many small ranges through a cache, and the large ones, which go last."""
    store = ours_at(path, EndlessSource(), namespace="source", persist_ranges=True)
    shards = max(LARGE_RANGES, count // IN_A_SHARD)
    for number in range(shards):
        few = small_ranges()[: count // shards]
        if few:
            store.get_ranges_sync(f"array/c/{number}", few, prototype=PROTOTYPE)
    for number in range(LARGE_RANGES):
        key, request = large_range(number)
        store.get_sync(key, byte_range=request)
    store.close()
    expect("ranges in the file", store.cache_info()["file_ranges"], count + LARGE_RANGES)
    store.close()


def hit_row(bench: Bench) -> Row:
    """A hit of an inner chunk of 20 kB, whatever else is in the file."""
    counts = {"small": 0, "large": bench.scale.entries}
    names = {which: f"{count + LARGE_RANGES:,} ranges" for which, count in counts.items()}
    systems = {}
    for which, count in counts.items():
        path = bench.folder / f"hits-{which}.sqlite"
        began = time.perf_counter()
        fill_ranges(path, count)
        print(f"  {names[which]} written in {text(time.perf_counter() - began)} s")
        settings = {"namespace": "source", "persist_ranges": True}
        store = ours(bench, EndlessSource(), f"hits-{which}", **settings)
        systems[names[which]] = hits(bench, store.get_sync)
        for number in range(LARGE_RANGES):
            key, request = large_range(number)
            found = store.get_sync(key, byte_range=request)
            expect(
                "range",
                found.to_bytes() if found else None,
                made_up(key, request.start, request.end),
            )
        expect("hits", store.cache_stats()["misses"], 0)
    what = f"a hit of an inner chunk of 20 kB, {names['large']} in the file"
    return Row(what, "µs", bench.in_turn(systems), names["large"], names["small"], HIT_AT_MOST)


def hits(bench: Bench, read: Callable[..., object]) -> Timed:
    """Microseconds of a hit of one of the large ranges."""
    wanted = [large_range(number * 7 % LARGE_RANGES) for number in range(LARGE_RANGES)]

    def call(number: int) -> object:
        key, request = wanted[number % LARGE_RANGES]
        return read(key, byte_range=request)

    return bench.calls(call)


PIECE = 50_000
"""Of the ranges that are read to see what they take of memory."""


def resident_mb() -> float:
    """Resident memory of this process, with the pages of files that it maps."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * KIB / 1e6


def read_much(pipe: Connection, path: Path, nbytes: int, persist_ranges: bool) -> None:  # noqa: FBT001 - positional, through a process
    """Read so many bytes of inner chunks, and tell how much memory that took."""
    settings = {"namespace": "source", "max_size": "50 GiB", "persist_ranges": persist_ranges}
    with closing(ours_at(path, EndlessSource(), **settings)) as store:
        store.get_sync("array/c/0", byte_range=RangeByteRequest(0, PIECE))
        before = resident_mb()
        in_a_shard = 1000
        for number in range(1, nbytes // PIECE):
            shard, chunk = divmod(number, in_a_shard)
            start = chunk * PIECE
            store.get_sync(f"array/c/{shard}", byte_range=RangeByteRequest(start, start + PIECE))
        pipe.send(resident_mb() - before)


def memory_rows(bench: Bench) -> list[Row]:
    """Resident memory after many inner chunks were read, with a budget that holds all of them."""
    nbytes = bench.scale.read_bytes
    systems = {}
    for name, persist_ranges in ((IN_MEMORY, False), (ALL, True)):
        path = bench.folder / f"memory-{persist_ranges}.sqlite"
        with fresh_process(read_much, path, nbytes, persist_ranges) as (_, pipe):
            systems[name] = [float(pipe.recv())]
        for each in bench.folder.glob(f"{path.name}*"):
            each.unlink()
    what = f"memory after {nbytes / 1e9:g} GB of inner chunks were read, max_size of 50 GiB"
    return [
        Row(f"{what}, {how}", "MB", systems, name, at_most=round(MEMORY_AT_MOST_MB))
        for name, how in ((IN_MEMORY, "kept in memory"), (ALL, "kept in the file"))
    ]


class Transactions:
    """Counts the write transactions of this process.

    Not as another connection sees them: when the file is closed, many follow one another.
    """

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count those that end while the block runs, in every thread."""
        writing = FileConnection.writing

        @contextmanager
        def counting(connection: FileConnection) -> Iterator[None]:
            with writing(connection):
                yield
            self.count += 1

        with patch.object(FileConnection, "writing", counting):
            yield


def one_by_one(store: Any, count: int) -> None:
    """Read inner chunks of 2 kB one by one."""
    for number in range(count):
        request = RangeByteRequest(number * 2000, number * 2000 + 2000)
        found = store.get_sync("array/c/0", byte_range=request)
        expect("range", found.to_bytes(), made_up("array/c/0", request.start, request.end))


def through_windows(store: Any, count: int) -> None:
    """Read them in windows of 16, through zarr; each window has others."""
    array = zarr.open_array(store, mode="r")
    for number in range(count // 16):
        y, x = divmod(number, array.shape[1] // 128)
        window = (slice(y * 128, y * 128 + 128), slice(x * 128, x * 128 + 128))
        expect("window", int(np.asarray(array[window]).sum()), 128 * 128 * 7)


def transactions_rows(bench: Bench) -> list[Row]:
    """Write transactions that new inner chunks of 2 kB make."""
    count = bench.scale.hits
    memory = MemoryStore()
    # 32² numbers are 2 kB, uncompressed.
    side = 32 * 4 * int(np.ceil((count / 16) ** 0.5))
    array = zarr.create_array(
        memory,
        shape=(side, side),
        chunks=(32, 32),
        shards=(side, side),
        dtype="u2",
        compressors=None,
    )
    array[...] = 7
    cases = {
        "one by one": (EndlessSource(), one_by_one),
        "in windows of 16": (memory, through_windows),
    }
    measured = []
    for how, (source, read) in cases.items():
        path = bench.folder / f"transactions-{next(NUMBER)}.sqlite"
        store = ours_at(path, source, namespace="source", persist_ranges=True)
        store.get_sync("another", byte_range=RangeByteRequest(0, 10))  # makes the file
        store.close()
        transactions = Transactions()
        with transactions.counted():
            read(store, count)
            store.close()  # what waits is written, and counts
        kept = store.cache_info()["file_ranges"]
        store.close()
        expect(f"{how}: ranges in the file", kept >= count // 16 * 16, expected=True)
        what = f"write transactions of {count:,} new inner chunks of 2 kB, {how}"
        figures = {OURS: [float(transactions.count)]}
        measured.append(Row(what, "transactions", figures, OURS, at_most=TRANSACTIONS_AT_MOST))
    return measured


def rows(bench: Bench) -> list[Row]:
    """All of them; the resident memory of a process is only known on Linux."""
    has_proc = Path("/proc/self/status").exists()
    return [
        *(row for inner in INNER[: bench.scale.rounds] for row in new_process_rows(bench, inner)),
        *first_rows(bench),
        hit_row(bench),
        *(memory_rows(bench) if has_proc else []),
        *transactions_rows(bench),
    ]
