"""What the disk holds stays near ``max_size``: the data file, the cache file and its log."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from zarr.storage import MemoryStore

from tests.fakes import (
    PROTOTYPE,
    STRESS,
    CountingStore,
    buffer,
    cached_bytes,
    cached_keys,
    file_cache,
    read,
    restart,
)
from tests.fault.children import BEGIN, ROOT
from tests.fault.real import HANG_SECONDS, held
from tests.fault.sources import LONGEST_SECONDS, drain, new_cache, read_sync, told
from zarr_cache import SqliteStore
from zarr_cache.backend.counters import MAX_PENDING
from zarr_cache.core.flow import run
from zarr_cache.disk.data_file_opening import IS_SUPPORTED
from zarr_cache.file import connection
from zarr_cache.index import evict, invalidate, upkeep
from zarr_cache.index.admit import Admission, Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fakes import HeldTime, Statements
    from zarr_cache import CacheStore
    from zarr_cache.file.connection import Connection

MIB = 2**20

MAX_SIZE = 16 * MIB * STRESS

SIZES = [100, 5_000, 50_000, 300_000, 1_000_000]
"""Of the values, in turn."""

ONE_SIZE = [2 * MIB, 8 * MIB, 64 * MIB]
"""Of large values, of which one at a time has room."""

LARGEST = ONE_SIZE if STRESS > 1 else ONE_SIZE[-1:]
"""Those that four processes read."""

SHORT_OF_PAGES = 4 * MIB + upkeep.MAX_FREE_BYTES
"""What the cache file may have in tables that are all but empty, and in free pages."""

READ_THROUGH = """
from tests.fault.test_bounds import of_one_size, of_sizes

max_size, first, nbytes, size = map(int, arguments)

async def main():
    source, keys = of_one_size(first, nbytes, size) if size else of_sizes(first, nbytes)
    store = new_cache(source, path, max_size=max_size)
    for start in range(0, len(keys), 8):
        await asyncio.gather(*(store.get(key, PROTOTYPE) for key in keys[start : start + 8]))
    tell(faults=store.cache_stats()["faults"])
    store.close()

asyncio.run(main())
"""


def of_sizes(first: int, nbytes: int) -> tuple[MemoryStore, list[str]]:
    """A source of so many bytes in values of all sizes, and its keys, numbered from `first`."""
    values = [buffer(bytes(size)) for size in SIZES]
    number = nbytes * len(SIZES) // sum(SIZES)
    source = MemoryStore({f"{first + n}": values[n % len(SIZES)] for n in range(number)})
    return source, list(source._store_dict)


def of_one_size(first: int, nbytes: int, size: int) -> tuple[MemoryStore, list[str]]:
    """As `of_sizes`, all of one size."""
    value = buffer(bytes(size))
    source = MemoryStore({f"{first + n}": value for n in range(nbytes // size)})
    return source, list(source._store_dict)


def read_by_four(
    path: Path, max_size: int, nbytes: int, size: int = 0
) -> tuple[int, list[subprocess.Popen[str]]]:
    """Let four processes read so many bytes each, and look at the disk all the while.

    Returns
    -------
    tuple of int and list of Popen
        The most bytes that were on the disk, and the processes, which have ended.
    """
    numbers = [(max_size, n * 10**6, nbytes, size) for n in range(4)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", BEGIN + READ_THROUGH, str(path), *map(str, each)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for each in numbers
    ]
    worst = watched(path, lambda: all(process.poll() is not None for process in processes))
    return worst, processes


def on_disk(path: Path, *suffixes: str) -> int:
    """Bytes of the file and what lies beside it, or of some of them, as ``du`` counts them."""
    nbytes = 0
    for suffix in suffixes or ("", "-data", "-wal", "-shm"):
        try:
            nbytes += 512 * os.stat(f"{path}{suffix}").st_blocks  # noqa: PTH116 - often and quick
        except FileNotFoundError:
            continue
    return nbytes


def most_data(max_size: int) -> int:
    """Bytes that the data file may have for values of `max_size` bytes."""
    return max_size * 107 // 100 + 16 * MIB


def most_beside(entries: int, small: int = 0) -> int:
    """Bytes that the cache file and its log may have for entries and bytes of small values."""
    log = connection.MAX_WAL_BYTES + MIB
    return 1024 * entries + 2 * small + SHORT_OF_PAGES + log


def most(max_size: int, least: int = 0) -> int:
    """Bytes that may be on the disk for values of `max_size` bytes, each of `least` at least."""
    entries = max_size // least if least else 1000
    small = max_size if least < 64 * 1024 or not IS_SUPPORTED else 0
    return most_data(max_size) + most_beside(entries, small)


def watched(path: Path, is_over: Callable[[], bool]) -> int:
    """The most bytes that were on the disk until it was over."""
    worst = 0
    while not is_over():
        worst = max(worst, on_disk(path))
        # Looked at some hundred times a second; nothing waits for this.
        time.sleep(0.003)
    return max(worst, on_disk(path))


def tell_worst(of: str, worst: int, max_size: int = MAX_SIZE) -> None:
    """Print what docs/operations.md says; ``pytest -rP`` shows it."""
    over = (worst - max_size) / MIB
    print(f"{of}: {worst / MIB:.1f} MiB on disk, {over:+.1f} MiB of {max_size / MIB:.1f}")  # noqa: T201


pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows does not tell blocks")


class Reads(NamedTuple):
    """What four processes read: so many bytes each, in values of one size or, with 0, of all."""

    max_size: int
    nbytes: int
    size: int = 0


OF_ONE_SIZE = [300, 10_000, 100_000, 4_000_000] if STRESS > 1 else [300]
FEW_AND_SMALL = MIB // 2 * STRESS
READS = [
    Reads(MAX_SIZE, 10 * MAX_SIZE // 4),
    # Ten times the budget.
    *(
        Reads(max_size, 10 * max_size // 4, size)
        for size in OF_ONE_SIZE
        for max_size in [FEW_AND_SMALL if size == 300 else MAX_SIZE]
    ),
    # Of which one has room.
    *(Reads(size * 5 // 4, max(2 * size, 16 * MIB), size) for size in LARGEST),
]


@pytest.mark.parametrize("reads", READS, ids=lambda reads: f"values of {reads.size or 'all sizes'}")
def test_the_disk_holds_little_more_than_the_budget_while_four_processes_read(
    path: Path, reads: Reads
) -> None:
    max_size, _, size = reads
    worst, processes = read_by_four(path, *reads)
    responses = [process.communicate(timeout=HANG_SECONDS) for process in processes]
    tell_worst(f"values of {size or 'all'} bytes, four processes", worst, max_size)

    assert [process.returncode for process in processes] == [0] * 4, responses
    assert [out for out, _ in responses] == ['{"faults": 0, "warned": []}\n'] * 4
    assert max_size // 2 <= cached_bytes(path) <= max_size
    assert on_disk(path, "-data") <= most_data(max_size)
    assert worst <= most(max_size, size)


@pytest.mark.parametrize("size", ONE_SIZE, ids=lambda size: f"{size // MIB} MiB")
def test_the_disk_holds_little_more_than_one_large_value_while_it_is_kept(
    path: Path, size: int
) -> None:
    max_size = size * 5 // 4
    source, keys = of_one_size(0, 3 * size, size)
    counting = CountingStore(source)
    store = new_cache(counting, path, max_size=max_size)
    is_over = threading.Event()
    with ThreadPoolExecutor() as threads:
        watching = threads.submit(watched, path, is_over.is_set)
        for key in keys:
            store.get_sync(key)
            drain(store)
        store.set_sync(keys[0], buffer(bytes(size)))
        is_over.set()
        worst = watching.result()
    tell_worst(f"values of {size // MIB} MiB", worst, max_size)
    counting.reset()
    found = store.get_sync(keys[0])

    assert found is not None
    assert found.to_bytes() == bytes(size)
    assert counting.requests.total() == 0
    assert worst <= most(max_size)


class Small(NamedTuple):
    """Answers that take more of the disk than their bytes."""

    max_size: int
    number: int
    value: bytes | None
    prefix: str = ""


SMALL = {
    "20 B": Small(MIB // 2, 28_000, bytes(20)),
    "300 B": Small(2 * MIB, 14_000, bytes(300)),
    "10 kB": Small(16 * MIB, 2_500, bytes(10_000)),
    "absent": Small(MIB, 20_000, None),
    "absent, long keys": Small(MIB, 10_000, None, "g" * 250),
}


@pytest.mark.parametrize(
    "small",
    SMALL.values() if STRESS > 1 else [SMALL[of] for of in ("300 B", "10 kB", "absent, long keys")],
    ids=lambda small: f"{small.number} answers",
)
def test_the_cache_file_has_about_a_kib_for_each_entry_and_twice_the_bytes_of_small_values(
    path: Path, small: Small
) -> None:
    keys = [f"{small.prefix}/c/{number}" for number in range(small.number)]
    value = None if small.value is None else buffer(small.value)
    source = CountingStore(MemoryStore({} if value is None else dict.fromkeys(keys, value)))
    settings = {"max_size": small.max_size, "max_age_absent_seconds": 3600}
    store = new_cache(source, path, **settings)
    worst = 0
    for number, key in enumerate(keys):
        store.get_sync(key)
        if number % 100 == 0:
            worst = max(worst, on_disk(path))
    drain(store)
    worst = max(worst, on_disk(path))
    size = small.value and len(small.value)
    tell_worst(f"{small.number} answers of {size}", worst, small.max_size)
    source.reset()
    for key in keys[-1000:]:
        store.get_sync(key)
    entries = small.max_size // size if size else small.number

    assert not path.with_name(f"{path.name}-data").exists()
    assert worst <= most_beside(entries, small.max_size)
    assert source.requests.total() == 0
    # Nor is less kept than there is room for.
    assert cached_bytes(path) == entries * (size or 0)


async def test_a_value_of_a_part_takes_the_place_of_many_small_ones_in_short_transactions(
    path: Path,
) -> None:
    keys = [f"{number}" for number in range(12_500)]
    source = MemoryStore(dict.fromkeys(keys, buffer(bytes(300))))
    source._store_dict["large"] = buffer(bytes(4 * MIB))
    store = new_cache(source, path, max_size=5 * MIB)
    for key in keys:
        store.get_sync(key)
    drain(store)
    found = await read(store, "large")
    drain(store)

    assert found == bytes(4 * MIB)
    assert "large" in cached_keys(path)
    assert cached_bytes(path) <= 5 * MIB
    assert on_disk(path) <= most(5 * MIB)
    assert wal_bytes(path) <= connection.MAX_WAL_BYTES


async def test_values_that_are_kept_once_more_take_no_room_from_others(path: Path) -> None:
    sizes = {f"{n}": 1000 for n in range(1000)} | {f"large/{n}": 60_000 for n in range(20)}
    source = MemoryStore({key: buffer(bytes(size)) for key, size in sizes.items()})
    store = new_cache(source, path, max_size=sum(sizes.values()))
    for key in sizes:
        await read(store, key)
    drain(store)
    values, limits = file_cache(store), store._view.limits()
    revision = run(values.lookup_metadata("source", "large/0")).revision
    # As two processes have them that missed at once, and one key twice.
    for key in [f"large/{n % 20}" for n in range(30)]:
        now = values.clock()
        response = Response(np.zeros(60_000, np.uint8), now.now_ns(), now.timestamp_ns(), revision)
        values._queue.add(Admission("source", key, response, limits, store._view.record_outcome))
    store.flush()

    assert cached_keys(path) == set(sizes)
    assert store.cache_stats()["evictions"] == 0


async def test_the_wal_stays_short_under_a_reader_that_does_not_end(
    path: Path, warned: list[WarningMessage]
) -> None:
    source, keys = of_sizes(0, 4 * MAX_SIZE)
    counting = CountingStore(source)
    store = new_cache(counting, path, max_size=MAX_SIZE)
    await read_sync(store, keys[0])
    drain(store)
    worst = 0
    with held(path, "BEGIN", "SELECT count(*) FROM entry"):
        for key in keys:
            found = await read(store, key)
            worst = max(worst, on_disk(path))
            assert found == bytes(SIZES[int(key) % len(SIZES)])
        drain(store)
        worst = max(worst, on_disk(path))
    tell_worst("a long reader", worst)
    for _ in range(3):
        for key in keys[:20]:
            await read(store, key)
        drain(store)
    counting.reset()
    again = [await read(store, key) for key in keys[:20]]
    length = on_disk(path)

    assert worst <= most(MAX_SIZE)
    assert length <= most(MAX_SIZE)
    assert again == [bytes(SIZES[int(key) % len(SIZES)]) for key in keys[:20]]
    assert counting.requests.total() == 0
    assert len(warned) <= 1, told(warned)


def wal_bytes(path: Path) -> int:
    """Length of the log."""
    return path.with_name(f"{path.name}-wal").stat().st_size


async def test_the_wal_stays_short_under_a_long_reader_whatever_is_written(
    path: Path, warned: list[WarningMessage], held_time: HeldTime
) -> None:
    source = MemoryStore({f"{number}": buffer(bytes(1000)) for number in range(3000)})
    counting = CountingStore(source)
    store = new_cache(counting, path, max_size=MAX_SIZE)
    for key in list(source._store_dict):
        await read(store, key)
    drain(store)
    longest = 0
    found, expected = [], []
    with held(path, "BEGIN", "SELECT count(*) FROM entry"):
        for number in range(1000):
            key = f"{number % 50}"
            await store.set(key, buffer(b"%d" % number))
            found += [await read_sync(store, key), await read(store, f"{number}")]
            expected += [b"%d" % number] * (1 if number >= 50 else 2)
            expected += [] if number < 50 else [bytes(1000)]
            longest = max(longest, wal_bytes(path))
    held_time.step(LONGEST_SECONDS)
    for _ in range(2):
        for number in range(50):
            await read(store, f"{number}")
        drain(store)
    counting.reset()
    again = [await read(store, f"{number}") for number in range(50)]

    assert found == expected
    assert connection.LONG_WAL_BYTES < longest <= connection.MAX_WAL_BYTES
    assert again == [b"%d" % (950 + number) for number in range(50)]
    assert counting.requests.total() == 0
    assert len(warned) <= 1, told(warned)


async def test_the_wal_stays_short_under_a_long_reader_when_there_are_only_hits(
    path: Path, held_time: HeldTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a file with many entries.
    monkeypatch.setattr(upkeep, "FEW_ENTRIES", 0)
    source = MemoryStore({f"{number}": buffer(bytes(100)) for number in range(3000)})
    counting = CountingStore(source)
    store = new_cache(counting, path, max_size=MAX_SIZE)
    for key in list(source._store_dict):
        store.get_sync(key)
    drain(store)
    counting.reset()
    longest = 0
    with held(path, "BEGIN", "SELECT count(*) FROM entry"):
        for number in range(10_000):
            # All over the file.
            store.get_sync(f"{number * 7919 % 3000}")
            if number % 1000 == 0:
                drain(store)
                longest = max(longest, wal_bytes(path))
    waiting = len(store._view.values.pending)
    held_time.step(LONGEST_SECONDS)
    store.get_sync("0")
    drain(store)

    assert counting.requests.total() == 0
    assert connection.LONG_WAL_BYTES < longest <= connection.MAX_WAL_BYTES
    assert waiting > MAX_PENDING
    assert len(store._view.values.pending) == 0


async def test_a_write_whose_end_the_wal_has_no_room_for_ends_without_its_value(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = CountingStore(MemoryStore())
    store = new_cache(counting, path)
    await read(store, "other")
    counting.reset()
    begin_write = invalidate.begin_write

    def begin_and_fill_the_log(db: Connection, *arguments: Any) -> None:
        begin_write(db, *arguments)
        SqliteStore(path).set_sync("long", buffer(bytes(connection.MAX_WAL_BYTES)))

    with held(path, "BEGIN", "SELECT count(*) FROM entry"):
        monkeypatch.setattr(invalidate, "begin_write", begin_and_fill_the_log)
        await store.set("k", buffer(b"value"))
    found = [await read(store, "k"), await read(store, "k")]

    assert found == [b"value"] * 2
    assert counting.requests == {"set": 1, "get": 1}


@pytest.mark.parametrize("is_large", [False, True])
async def test_many_uses_are_written_in_short_transactions_in_a_file_with_many_entries(
    is_large: bool, path: Path, statements: Statements, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_large:
        monkeypatch.setattr(upkeep, "FEW_ENTRIES", 0)
    # In a single one they would change most pages of a large file, and the log would hold them all.
    source = MemoryStore({f"{number}": buffer(bytes(10)) for number in range(MAX_PENDING - 1)})
    store = new_cache(source, path)
    for key in list(source._store_dict):
        store.get_sync(key)
    store.flush()
    for key in list(source._store_dict):
        store.get_sync(key)
    before = statements.number("BEGIN IMMEDIATE")
    store.flush()
    transactions = statements.number("BEGIN IMMEDIATE") - before

    assert len(store._view.values.pending) == 0
    least = MAX_PENDING / upkeep.MAX_USES if is_large else 1
    assert least <= transactions < 2 * least


async def test_space_comes_back_when_the_budget_is_lowered(path: Path) -> None:
    source, keys = of_sizes(0, 4 * MAX_SIZE)
    store = new_cache(source, path, max_size=4 * MAX_SIZE)
    for key in keys:
        await read(store, key)
    drain(store)
    before = on_disk(path)
    small = new_cache(source, path, max_size=MAX_SIZE // 4)
    for key in keys[-40:]:
        await read(small, key)
    drain(small)
    kept = cached_bytes(path)
    small.close()

    assert before >= 3 * MAX_SIZE
    assert kept <= MAX_SIZE // 4
    assert on_disk(path, "-data") <= most_data(MAX_SIZE // 4)
    assert on_disk(path) <= most(MAX_SIZE // 4)


@pytest.mark.parametrize(
    "operation",
    [
        lambda store: store.get("0", PROTOTYPE),
        lambda store: store.set("another", buffer(b"value")),
        lambda store: store.delete("0"),
        lambda store: store.delete_dir(""),
    ],
    ids=["get", "set", "delete", "delete_dir"],
)
async def test_a_thousand_values_are_evicted_in_short_transactions(
    path: Path, statements: Statements, operation: Callable[[CacheStore], Awaitable[object]]
) -> None:
    # In a single one the log would become as long as what goes, which may be the whole file.
    source = MemoryStore({f"{number}": buffer(bytes(10)) for number in range(1000)})
    store = new_cache(source, path)
    for key in list(source._store_dict):
        await read(store, key)
    restart(store)
    store = new_cache(source, path, max_size=100)
    before = statements.number("BEGIN IMMEDIATE")
    await operation(store)
    transactions = statements.number("BEGIN IMMEDIATE") - before

    assert cached_bytes(path) <= 100
    assert transactions >= 990 / evict.MAX_AT_ONCE


@pytest.mark.parametrize("is_known", [True, False], ids=["asked for before", "new"])
async def test_a_response_larger_than_the_budget_passes_through_and_evicts_nothing(
    path: Path, is_known: bool
) -> None:
    values = {key: buffer(key.encode() * 1000) for key in "abcdef"}
    source = CountingStore(MemoryStore(values | {"large": buffer(bytes(10_001))}))
    store = new_cache(source, path, max_size=10_000)
    for key in values:
        await read(store, key)
    if is_known:
        await read(store, "large")
    drain(store)
    before = cached_keys(path)
    source.reset()
    found = [await read(store, "large"), await read_sync(store, "large")]
    drain(store)
    asked = source.keys.copy()
    for key in values:
        await read(store, key)

    assert found == [bytes(10_001)] * 2
    assert before == cached_keys(path) == set(values)
    assert asked == source.keys == ["large", "large"]
    assert store.cache_stats()["evictions"] == 0
