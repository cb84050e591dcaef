"""Readers race the eviction of what they read, over a data file that is far too small."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from zarr.abc.store import RangeByteRequest
from zarr.storage import MemoryStore

from tests.fakes import STRESS, buffer, file_cache, read
from tests.fault.children import BEGIN, ROOT
from tests.fault.sources import new_cache
from tests.systems import needs_data_file
from zarr_cache.disk import data_read
from zarr_cache.index import extents, upkeep

if TYPE_CHECKING:
    from pathlib import Path

    from zarr_cache import CacheStore

HANG_SECONDS = 60

PROCESSES = 3
ROUNDS = 150 * STRESS
"""How many values each thread and task of a process reads."""

KEYS = [f"c/{n}" for n in range(24)]
MAX_SIZE = 1_000_000
"""For about six of them."""

SLOW_SECONDS = 0.002
"""For so long at most a reader has looked a value up and has not read it yet."""

RACE = """
import asyncio
from tests.stress.test_racing_readers import race
tell(**asyncio.run(race(path, int(arguments[0]))))
"""


def value(key: str) -> bytes:
    """Of 64 to 400 kB; no two have a block in common, and none is as long as another."""
    number = KEYS.index(key)
    return random.Random(number).randbytes(65_536 + 14_000 * number)  # noqa: S311 - to be told again


def new_source() -> MemoryStore:
    return MemoryStore({key: buffer(value(key)) for key in KEYS})


def be_late(chosen: random.Random) -> None:
    """Let others evict, and write over, what is about to be read."""
    wait, now = data_read.Read.wait, data_read.Read.now

    def wait_late(self: data_read.Read) -> Any:
        time.sleep(chosen.random() * SLOW_SECONDS)
        return wait(self)

    def now_or_later(self: data_read.Read) -> Any:
        # As if half of it were on a disk.
        return now(self) if chosen.random() < 0.5 else None

    data_read.Read.wait = wait_late  # type: ignore[method-assign]
    data_read.Read.now = now_or_later  # type: ignore[method-assign]


async def race(path: Path, seed: int) -> dict[str, int]:
    """Read with threads and tasks at once; tell how often the bytes were others, and the counts."""
    be_late(random.Random(seed))  # noqa: S311 - to be told again
    values = {key: value(key) for key in KEYS}
    store = new_cache(new_source(), path, max_size=MAX_SIZE)

    def read_in_thread(number: int) -> int:
        chosen = random.Random(seed * 100 + number)  # noqa: S311 - the same
        wrong = 0
        for _ in range(ROUNDS):
            key = chosen.choice(KEYS)
            found = store.get_sync(key)
            wrong += found is None or found.to_bytes() != values[key]
        return wrong

    async def read_in_task(number: int) -> int:
        chosen = random.Random(seed * 100 + 50 + number)  # noqa: S311 - the same
        wrong = 0
        for _ in range(ROUNDS):
            key = chosen.choice(KEYS)
            start = chosen.randrange(len(values[key]) - 1000)
            request = RangeByteRequest(start, start + 1000) if chosen.random() < 0.3 else None
            found = await read(store, key, request)
            wrong += found != (values[key][start : start + 1000] if request else values[key])
        return wrong

    with ThreadPoolExecutor(2) as threads:
        reading = [threads.submit(read_in_thread, number) for number in range(2)]
        wrong = [await read_in_task(number) for number in range(2)]
        wrong += [each.result() for each in reading]
    counts = store.cache_stats()
    store.close()
    return {"wrong": sum(wrong)} | {name: counts[name] for name in ("hits", "faults", "damaged")}


def test_a_reader_has_the_right_bytes_or_a_miss_and_takes_nothing_for_damaged(path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN + RACE, str(path), str(seed)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for seed in range(PROCESSES)
    ]
    responses = [process.communicate(timeout=HANG_SECONDS * STRESS) for process in processes]
    assert [process.returncode for process in processes] == [0] * PROCESSES, responses
    told = [json.loads(out) for out, _ in responses]
    hits = sum(each.pop("hits") for each in told)

    assert told == [{"wrong": 0, "faults": 0, "damaged": 0, "warned": []}] * PROCESSES
    assert hits > 0


@needs_data_file
async def test_what_is_moved_to_the_front_meanwhile_is_read_all_the_same(path: Path) -> None:
    store: CacheStore = new_cache(new_source(), path)
    for key in KEYS:
        await read(store, key)
    store.flush()
    run = file_cache(store)._database.run
    for key in KEYS[::2]:
        await store.delete(key)
    before = run(extents.length)
    moved = 0
    while run(upkeep.move_last, store._view.values.clock().now_ns()):
        moved += 1
        key = KEYS[1::2][moved % 12]
        assert await read(store, key) == value(key)
    after = run(extents.length)
    run(upkeep.cut)

    assert after < before * 0.7
    assert run(extents.free_bytes) == 0
    assert path.with_name(f"{path.name}-data").stat().st_size == after
    for key in KEYS[1::2]:
        assert await read(store, key) == value(key)
    assert store.cache_stats()["damaged"] == 0
