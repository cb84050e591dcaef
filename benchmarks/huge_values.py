"""Values of a gigabyte: 64 KiB out of one, and how often its bytes are in memory."""

from __future__ import annotations

import asyncio
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measuring import KIB, MIB, Row, expect
from processes import fresh_process
from systems import FILE, OURS, PROTOTYPE, ZARR, ours, ours_at, write_source
from zarr.abc.store import RangeByteRequest
from zarr.experimental.cache_store import CacheStore as ZarrCacheStore
from zarr.storage import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from measuring import Bench, Timed

    from zarr_cache import CacheStore

PIECE = 64 * KIB
RANGE_AT_MOST = 2.0
COPIES_AT_MOST = 1.25
RNG = np.random.default_rng(1)
OURS_ASYNC = f"{OURS}, async"
SMALL = 32
"""Values of 1 MiB: not one that stays in the processor's cache."""


def range_rows(bench: Bench) -> list[Row]:
    """64 KiB anywhere in a value, at no boundary of anything."""
    huge = bench.scale.huge
    values = {"huge": RNG.bytes(huge)} | {f"small/{n}": RNG.bytes(MIB) for n in range(SMALL)}
    store = ours(bench, write_source(bench, "source", values), "ranges")
    for key in values:
        store.get_sync(key)
    store.close()  # what waited in memory is in the file
    anywhere = [("huge", start) for start in RNG.integers(huge - PIECE, size=512).tolist()]
    ends = [("huge", huge - PIECE - number) for number in range(512)]
    small = [
        (f"small/{number % SMALL}", start)
        for number, start in enumerate(RNG.integers(MIB - PIECE, size=512).tolist())
    ]
    places = {"in a huge value": anywhere, "at its end": ends, "in values of 1 MiB": small}
    for name, where in places.items():
        for key, start in where:
            found = read_range(store, key, start)
            expect(name, found.to_bytes(), values[key][start : start + PIECE])
    figures = bench.in_turn({name: reading(bench, store, where) for name, where in places.items()})
    what, peer = f"64 KiB out of a value of {huge // MIB:,} MiB", "in values of 1 MiB"
    return [
        Row(f"{what}, anywhere", "µs", figures, "in a huge value", peer, RANGE_AT_MOST),
        Row(f"{what}, at its end", "µs", figures, "at its end", peer, RANGE_AT_MOST),
    ]


def read_range(store: CacheStore, key: str, start: int) -> Any:
    """64 KiB of the value from there on."""
    return store.get_sync(key, byte_range=RangeByteRequest(start, start + PIECE))


def reading(bench: Bench, store: CacheStore, where: list[tuple[str, int]]) -> Timed:
    """Microseconds to read 64 KiB, another place each time."""
    return bench.calls(lambda number: read_range(store, *where[number % len(where)]))


def read_huge(pipe: Connection, folder: Path, name: str) -> None:
    """Read a small value, and the huge one when told to."""
    source = LocalStore(folder / "copies-source", read_only=True)
    with asyncio.Runner() as runner:
        store = ours_at(folder / "copies.sqlite", source)
        zarrs = ZarrCacheStore(source, cache_store=LocalStore(folder / "copies-zarr"))
        reads: dict[str, Callable[[str], Any]] = {
            OURS: store.get_sync,
            OURS_ASYNC: lambda key: runner.run(store.get(key, PROTOTYPE)),
            # Its bookkeeping is empty in a new process; it asks the cache store all the same.
            ZARR: lambda key: runner.run(zarrs.get(key, PROTOTYPE)),
            FILE: lambda key: PROTOTYPE.buffer.from_bytes(
                (folder / "copies-source" / key).read_bytes()
            ),
        }
        reads[name]("small")
        pipe.send("ready")
        pipe.recv()
        found = reads[name]("huge")
        pipe.send("read")
        pipe.recv()
        pipe.send(zlib.crc32(found.as_numpy_array()))
        store.close()


def anonymous_bytes(pid: int) -> int:
    """Private memory of a process, without the pages of files that it maps."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("RssAnon:"))
    return int(line.split()[1]) * KIB


def peak(folder: Path, name: str, nbytes: int, checksum: int) -> float:
    """By how many times the size of the value a process grows, at most, while it reads it."""
    with fresh_process(read_huge, folder, name) as (pid, pipe):
        pipe.recv()
        before = most = anonymous_bytes(pid)
        pipe.send("read")
        while not pipe.poll():
            most = max(most, anonymous_bytes(pid))
        pipe.recv()
        most = max(most, anonymous_bytes(pid))
        pipe.send("verify")
        expect(f"{name}: huge value", pipe.recv(), checksum)
    return (most - before) / nbytes


def copies_rows(bench: Bench) -> list[Row]:
    """Private memory that one hit of a huge value needs, over its size."""
    nbytes = bench.scale.huge // 4
    values = {"huge": RNG.bytes(nbytes), "small": b"small"}
    source = write_source(bench, "copies-source", values)
    store = ours(bench, source, "copies")
    zarrs = ZarrCacheStore(source, cache_store=LocalStore(bench.folder / "copies-zarr"))
    for key in values:
        store.get_sync(key)
        asyncio.run(zarrs.get(key, PROTOTYPE))
    store.close()
    checksum = zlib.crc32(values["huge"])
    figures = {
        name: [
            peak(bench.folder, name, nbytes, checksum) for _ in range(min(3, bench.scale.rounds))
        ]
        for name in (OURS, OURS_ASYNC, ZARR, FILE)
    }
    what = f"peak of private memory over N, a hit of N = {nbytes // MIB} MiB"
    return [
        Row(f"{what}, {surface}", "N", figures, name, at_most=COPIES_AT_MOST)
        for name, surface in ((OURS, "sync"), (OURS_ASYNC, "async"))
    ]


def rows(bench: Bench) -> list[Row]:
    """All of them; the private memory of a process is only known on Linux."""
    has_proc = Path("/proc/self/status").exists()
    return range_rows(bench) + (copies_rows(bench) if has_proc else [])
