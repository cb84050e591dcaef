"""Fresh processes: what they hold in memory, and how much two read together."""

from __future__ import annotations

import multiprocessing
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from measuring import Row
from systems import LOCAL, OURS, ours_at, write_source
from zarr.storage import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from pathlib import Path

    from measuring import Bench, Timed

SPAWN = multiprocessing.get_context("spawn")

SIZES = {"2 kB": 2_000, "100 kB": 100_000}
COUNT = 64
AT_LEAST = 1.7


@contextmanager
def fresh_process(
    target: Callable[..., None], *arguments: object
) -> Iterator[tuple[int, Connection]]:
    """A new interpreter that runs ``target(pipe, *arguments)``: its id, and our end of the pipe."""
    mine, its = SPAWN.Pipe()
    process = SPAWN.Process(target=target, args=(its, *arguments))
    process.start()
    its.close()  # then its end is a broken pipe here, not a hang
    try:
        yield process.pid or 0, mine
    finally:
        mine.close()
        process.join()


def read_on(pipe: Connection, folder: Path, size: int) -> None:
    """Read hits of the system that is asked for, from one time to another, and tell how many."""
    keys = [f"array/c/{number}" for number in range(COUNT)]
    source = LocalStore(folder / f"{size}-source", read_only=True)
    store = ours_at(folder / f"{size}.sqlite", source)
    reads = {OURS: store.get_sync, LOCAL: source.get_sync}
    for read in reads.values():
        for key in keys:
            read(key)
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        name, begin, end = order
        read = reads[name]
        while time.perf_counter() < begin:
            pass
        number, used = 0, time.process_time()
        while not number or time.perf_counter() < end:
            read(keys[number * 7 % COUNT])
            number += 1
        pipe.send((number, time.process_time() - used))
    misses = store.cache_stats()["misses"]
    store.close()
    pipe.send(misses)


def together(pipes: list[Connection], name: str, seconds: float, *, by_cpu: bool) -> Timed:
    """Hits in a millisecond of all these processes, or in one that each has a processor.

    On a machine with other work to do two processes do not get two processors. By the time that
    they had one, it still shows what they cost each other, but for waiting.
    """

    def timed() -> float:
        # CLOCK_MONOTONIC is one for all processes, and so is perf_counter.
        begin = time.perf_counter() + 0.01
        for pipe in pipes:
            pipe.send((name, begin, begin + seconds))
        counts: list[tuple[int, float]] = [pipe.recv() for pipe in pipes]
        return sum(n / (used if by_cpu else seconds) for n, used in counts) / 1000

    return timed


def size_rows(bench: Bench, what: str, size: int) -> list[Row]:
    """Two processes over one, for hits of one size, with LocalStore beside it."""
    rng = np.random.default_rng(1)
    values = {f"array/c/{number}": rng.bytes(size) for number in range(COUNT)}
    source = write_source(bench, f"{size}-source", values)
    store = ours_at(bench.folder / f"{size}.sqlite", source)
    for key in values:
        store.get_sync(key)
    store.close()
    seconds = max(0.01, 3 * bench.scale.seconds)
    with (
        fresh_process(read_on, bench.folder, size) as (_, first),
        fresh_process(read_on, bench.folder, size) as (_, second),
    ):
        pipes = [first, second]
        for pipe in pipes:
            pipe.recv()
        figures = [
            bench.in_turn(
                {
                    f"{name}, {number}": together(some, name, seconds, by_cpu=by_cpu)
                    for name in (OURS, LOCAL)
                    for number, some in (("one process", pipes[:1]), ("two processes", pipes))
                }
            )
            for by_cpu in (False, True)
        ]
        for pipe in pipes:
            pipe.send(None)
            _expect_hits(pipe.recv())
    two, one = f"{OURS}, two processes", f"{OURS}, one process"
    return [
        Row(f"two processes, hits of {what}{how}", "hits/ms", each, two, one, at_least=AT_LEAST)
        for how, each in zip(("", ", by processor time"), figures, strict=True)
    ]


def _expect_hits(misses: Any) -> None:
    if misses:
        raise RuntimeError(f"{misses} of the hits were misses")


def rows(bench: Bench) -> list[Row]:
    """All of them."""
    return [row for what, size in SIZES.items() for row in size_rows(bench, what, size)]
