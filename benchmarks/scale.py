"""A file of 1,000 entries and a large one: opening, a hit, an admission that evicts, memory."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from measuring import Row, expect, text
from processes import fresh_process
from systems import fill, ours, ours_at
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.connection import Connection

    from measuring import Bench, Timed
    from zarr.core.buffer import Buffer

SMALL = 1_000
VALUE = bytes(range(200))
AT_MOST = 1.5
WITHIN_MS = 1.0
OPENING_AT_MOST_MS = 20.0
MEMORY_AT_MOST_MB = 20.0
RNG = np.random.default_rng(1)


class EndlessStore(MemoryStore):
    """A source that has every key."""

    def get_sync(self, key: str, **settings: object) -> Buffer:
        """The same for each."""
        _ = key, settings
        return cpu.Buffer.from_bytes(VALUE)


def key_of(number: int) -> str:
    """Of an entry that is in the file."""
    return f"array/c/{number}"


def name_of(entries: int) -> str:
    """Of a file with so many entries, as a system."""
    return f"{entries:,} entries"


def path_of(folder: Path, entries: int) -> Path:
    """Of that file."""
    return folder / f"{entries}.sqlite"


def opening(bench: Bench, entries: int) -> Timed:
    """Milliseconds from the constructor to the end of the first hit; nobody has the file open."""
    keys = itertools.cycle(RNG.permutation(entries).tolist())
    path = path_of(bench.folder, entries)

    def timed() -> float:
        taken = []
        for _ in range(bench.scale.calls):
            began = time.perf_counter()
            store = ours_at(path, MemoryStore(), namespace="source")
            found = store.get_sync(key_of(next(keys)))
            taken.append((time.perf_counter() - began) * 1000)
            expect("opening", found and found.to_bytes(), VALUE)
            store.close()
        return sorted(taken)[len(taken) // 2]

    return timed


def hit(bench: Bench, entries: int) -> Timed:
    """Microseconds of a hit of any of the entries."""
    store = ours(bench, MemoryStore(), str(entries), namespace="source")
    keys = [key_of(number) for number in RNG.integers(entries, size=10_000).tolist()]
    return bench.calls(lambda number: store.get_sync(keys[number % len(keys)]))


def admissions(bench: Bench, entries: int) -> Timed:
    """Microseconds of a miss that is kept in the place of another entry, till all is in the file.

    Closing the file, which writes the log back into it, is among it.
    """
    count = 100 * bench.scale.calls
    max_size = entries * len(VALUE)
    settings = {"namespace": "source", "max_size": max_size}
    store = ours(bench, EndlessStore(), str(entries), **settings)
    fresh = itertools.count()

    def timed() -> float:
        store.get_sync(key_of(0))  # opens the file
        evicted = store.cache_stats()["evictions"]
        began = time.perf_counter()
        for _ in range(count):
            store.get_sync(f"new/c/{next(fresh)}")
        store.close()
        taken = time.perf_counter() - began
        expect("bytes kept", store.cache_info()["file_size"] <= max_size, expected=True)
        evicted = store.cache_stats()["evictions"] - evicted
        # Where pages are what lacks, some tens go at a time.
        expect("admissions evict", evicted >= count // 2, expected=True)
        return taken / count * 1e6

    return timed


def live(pipe: Connection, path: Path, entries: int) -> None:
    """Open the file, read and keep some, and tell how much private memory that took in all."""
    max_size = entries * len(VALUE)
    store = ours_at(path, EndlessStore(), namespace="source", max_size=max_size)
    for number in range(2_000):
        store.get_sync(key_of(number * 7919 % entries))
    for number in range(200):
        store.get_sync(f"live/c/{number}")
    store.cache_info()
    rollup = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    (line,) = (line for line in rollup.splitlines() if line.startswith("Anonymous:"))
    pipe.send(int(line.split()[1]) * 1024 / 1e6)
    store.close()


def memory(bench: Bench, entries: int) -> Timed:
    """Megabytes of private memory, without the pages of files, of a new process that uses it."""

    def timed() -> float:
        with fresh_process(live, path_of(bench.folder, entries), entries) as (_, pipe):
            used: float = pipe.recv()
            return used

    return timed


def rows(bench: Bench) -> list[Row]:
    """All of them; the private memory of a process is only known on Linux."""
    large = bench.scale.entries
    for entries in (SMALL, large):
        began = time.perf_counter()
        fill(path_of(bench.folder, entries), dict.fromkeys(map(key_of, range(entries)), VALUE))
        print(f"  {entries:,} entries written in {text(time.perf_counter() - began)} s")
    small, many = name_of(SMALL), name_of(large)

    def in_turn(
        make: Callable[[Bench, int], Timed], *, warms_up: bool = True
    ) -> dict[str, list[float]]:
        systems = {name_of(entries): make(bench, entries) for entries in (SMALL, large)}
        return bench.in_turn(systems, warms_up=warms_up)

    opened = in_turn(opening)
    measured = [
        Row(f"opening with a hit, {many}", "ms", opened, many, small, AT_MOST, or_within=WITHIN_MS),
        Row(f"opening with a hit, {many}, in all", "ms", opened, many, at_most=OPENING_AT_MOST_MS),
        Row(f"a hit, {many}", "µs", in_turn(hit), many, small, AT_MOST),
        Row(
            f"an admission with an eviction, {many}",
            "µs",
            in_turn(admissions),
            many,
            small,
            AT_MOST,
        ),
    ]
    if Path("/proc/self/smaps_rollup").exists():
        used = in_turn(memory, warms_up=False)
        more = [b - a for a, b in zip(used[small], used[many], strict=True)]
        used["more"] = more
        what = f"memory of the process at {many} over {SMALL:,}"
        measured.append(Row(what, "MB", used, "more", at_most=MEMORY_AT_MOST_MB))
    return measured
