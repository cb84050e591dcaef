"""What is read through a CacheStore is sampled, off the path of the hits."""

from __future__ import annotations

import os
import sqlite3
import warnings
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from zarr.abc.store import OffsetByteRequest, RangeByteRequest
from zarr.storage import MemoryStore

from benchmarks import traces
from tests.fakes import (
    Statements,
    buffer,
    file_cache,
    leave_process,
    open_file,
    outputs_at_once,
    read,
    read_ranges,
)
from tests.sampling.reads_of_traces import rate, sample_of
from tests.systems import needs_removal_of_open_files
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.file import connection
from zarr_cache.sampling.curve import curve_of
from zarr_cache.sampling.reads import DUE, DUE_TO_DECIDE
from zarr_cache.sampling.stored import Sampled

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from zarr_cache.sampling.sample import Batch

SIZE = 1000

EPOCHS = """
import sys
from pathlib import Path
from zarr.storage import MemoryStore
from tests.fakes import buffer
from zarr_cache import CacheStore, SqliteStore

first = int(sys.argv[2])
keys = [str(number) for number in range(first, first + 100)]
source = MemoryStore({key: buffer(bytes(1000)) for key in keys})
store = CacheStore(source, cache_store=SqliteStore(Path(sys.argv[1])), namespace="source")
sys.stdin.readline()
for _ in range(20):
    for key in keys:
        store.get_sync(key)
    store.flush()
    store._view.values.write_pending_now()
store.close()
"""


def source_of(keys: Iterable[int | str]) -> MemoryStore:
    return MemoryStore({str(key): buffer(bytes(SIZE)) for key in keys})


def cache(path: Path, source: MemoryStore, **settings: int) -> CacheStore:
    return CacheStore(source, cache_store=SqliteStore(path), namespace="source", **settings)  # type: ignore[arg-type] # each an integer


def waiting(store: CacheStore) -> Batch | None:
    return store._view.values.pending.reads.take()


def sampled_reads(path: Path) -> float:
    with open_file(path) as db:
        (reads,) = db.execute("SELECT reads FROM sampling").fetchone()
    return float(reads)


@pytest.mark.parametrize("max_size", [None, 100 * SIZE])
def test_the_curve_is_that_of_what_was_read(path: Path, max_size: int | None) -> None:
    trace = traces.popular_regions(0)[:6000] % 500
    sizes = np.full(500, SIZE)
    settings = {} if max_size is None else {"max_size": max_size}
    store = cache(path, source_of(range(500)), **settings)
    for key in trace.tolist():
        store.get_sync(str(key))
    store.close()
    curve = SqliteStore(path).database.run(curve_of)

    assert curve is not None
    for number in (10, 50, 100, 300):
        hits = traces.lru(trace, sizes, number * SIZE)
        assert curve.at(number * SIZE) == pytest.approx(rate(hits, trace, sizes), abs=0.03)
    assert curve.reads == pytest.approx(sample_of(trace, sizes).reads)


async def test_hits_and_misses_of_values_and_ranges_are_recorded(path: Path) -> None:
    store = cache(path, source_of("ab"))
    requests = [RangeByteRequest(0, 10), RangeByteRequest(500, 600)]
    for _ in range(2):
        await read(store, "a")
        await read_ranges(store, "b", requests)
        store.get_sync("b", byte_range=OffsetByteRequest(900))
    batch = waiting(store)

    assert batch is not None
    assert batch.sizes.tolist() == [1000, 10, 100, 100] * 2
    assert batch.is_hit.tolist() == [False] * 4 + [True] * 4
    assert batch.ids[:4].tolist() == batch.ids[4:].tolist()
    assert len(set(batch.ids.tolist())) == 4


async def test_what_is_not_cached_is_not_recorded(path: Path) -> None:
    store = cache(path, source_of("a"))
    for _ in range(2):
        await read(store, "absent")
        await store.exists("a")
        store.get_sync("\ud800")

    assert waiting(store) is None


def test_ten_thousand_hits_of_different_keys_are_few_transactions(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements()
    statements.install(monkeypatch)
    keys = [str(number) for number in range(10_000)]
    store = cache(path, source_of(keys), max_size=10**9)
    for key in keys:
        store.get_sync(key)
    store.close()
    before = statements.number("BEGIN IMMEDIATE")
    # As a view with ``when_full="auto"`` does.
    store._view.values.keeps()
    for key in keys:
        store.get_sync(key)
    hits = store.cache_stats()["hits"]
    store.close()

    assert hits == len(keys)
    assert statements.number("BEGIN IMMEDIATE") - before <= 20
    assert sampled_reads(path) == pytest.approx(2 * len(keys), rel=0.2)


def test_few_hits_write_nothing(path: Path) -> None:
    store = cache(path, source_of("ab"))
    store.get_sync("a")
    store.flush()
    file_cache(store).write_pending_now()
    with closing(sqlite3.connect(path)) as other:  # noqa: TID251 - another program's
        before = other.execute("PRAGMA data_version").fetchone()
        for _ in range(DUE_TO_DECIDE // 2):
            store.get_sync("a")
        after = other.execute("PRAGMA data_version").fetchone()

    assert after == before


def test_reads_that_miss_are_sampled_though_nothing_is_admitted(path: Path) -> None:
    source = source_of(range(DUE + 1))
    store = cache(path, source, max_size=SIZE // 2)
    for key in range(DUE + 1):
        store.get_sync(str(key))
    file_cache(store)._writer.stop()

    assert sampled_reads(path) == pytest.approx(DUE, rel=0.05)


def test_processes_add_to_one_sample(path: Path) -> None:
    cache(path, source_of("a")).get_sync("a")
    outputs = outputs_at_once(EPOCHS, (str(path), "0"), (str(path), "50"))

    assert [errors for _, errors in outputs] == ["", ""]
    curve = SqliteStore(path).database.run(curve_of)
    assert curve is not None
    assert curve.reads == pytest.approx(4001, rel=0.04)
    # 150 different keys; each process reads its own 100 over and over.
    assert curve.at(150 * SIZE) == pytest.approx(1 - 150 / 4000, abs=0.01)
    assert curve.at(49 * SIZE) < 0.01


def test_what_one_process_decides_another_follows(path: Path) -> None:
    keys = range(3000)
    store = cache(path, source_of(keys), max_size=100 * SIZE)
    decided = store._view.values.keeps()
    for key in keys:
        store.get_sync(str(key))
    store.flush()
    file_cache(store).write_pending_now()
    leave_process(store)
    other = cache(path, source_of(keys), max_size=100 * SIZE)
    other.get_sync("0")

    assert not decided
    assert store._view.values.keeps()
    assert other._view.values.keeps()


def test_without_a_budget_nothing_is_decided(path: Path) -> None:
    store = cache(path, source_of(range(3000)))
    for key in range(3000):
        store.get_sync(str(key))
    store.close()
    store.get_sync("0")

    assert not store._view.values.keeps()
    assert sampled_reads(path) > 2900


def test_another_store_as_cache_store_decides_too() -> None:
    keys = range(3000)
    store = CacheStore(
        source_of(keys), cache_store=MemoryStore(), namespace="source", max_size=100 * SIZE
    )
    store._view.values.keeps()
    for key in keys:
        store.get_sync(str(key))
    store.close()
    store._view.values.pending.reads._look_at = 0

    assert store._view.values.keeps()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_does_not_record_what_its_parent_has_read(path: Path) -> None:
    store = cache(path, source_of("abc"), max_size=12_345)
    for key in "ab":
        store.get_sync(key)
    child = os.fork()
    if child == 0:
        warnings.simplefilter("error")
        store.get_sync("c")
        reads = store._view.values.pending.reads
        os._exit(0 if (len(reads), reads.max_size) == (1, 12_345) else 1)
    _, status = os.waitpid(child, 0)

    assert status == 0
    store.close()
    assert sampled_reads(path) == pytest.approx(2, rel=0.001)


@needs_removal_of_open_files
def test_another_file_in_its_place_has_a_sample_of_its_own(path: Path) -> None:
    store = cache(path, source_of("abc"))
    store.get_sync("a")
    store.flush()
    store.get_sync("a")
    for each in path.parent.iterdir():
        each.unlink()
    store.get_sync("b")
    store.close()

    assert sampled_reads(path) == pytest.approx(1)


def test_a_file_that_cannot_be_written_to_loses_reads_and_no_more(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_SECONDS", 0.05)
    store = cache(path, source_of("a"))
    store.get_sync("a")
    store.flush()
    file_cache(store).write_pending_now()
    reads = file_cache(store).pending.reads
    reads.learn(Sampled(keeps=True, scale=1))
    with open_file(path) as shell:
        shell.execute("BEGIN IMMEDIATE")
        store.get_sync("a")
        file_cache(store).write_pending_now()
        shell.execute("ROLLBACK")
    found = store.get_sync("a")

    assert found is not None
    assert len(reads) == 1
    store.close()
