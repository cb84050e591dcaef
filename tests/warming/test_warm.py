"""Warming fetches what a selection touches and is not cached, and nothing else."""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import zarr
from zarr.api.asynchronous import open_array, open_group
from zarr.storage import LocalStore, MemoryStore, ZipStore

from tests.arrays.hierarchies import (
    WRITERS,
    contents,
    sharded_with_a_margin,
    sparse,
    sparse_sharded,
)
from tests.fakes import (
    AsyncOnlyStore,
    CountingStore,
    FailingStore,
    HeldStore,
    cached_bytes,
    cached_keys,
    file_cache,
    restart,
    values,
)
from tests.warming.arrays import CHUNK, cached, chunk_keys, rows
from zarr_cache import CacheStore, CacheWarning, SqliteStore, WarmReport, warm, warm_async

if TYPE_CHECKING:
    from pathlib import Path

    from tests.arrays.hierarchies import BackgroundWorker
    from tests.fakes import Call, HeldTime

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")

# Of the array "a/b": its own, and those of the groups above it. The first is read as it is opened.
DOCUMENTS = ["zarr.json", "a/zarr.json"]


def test_the_chunks_that_a_selection_touches_are_fetched_once_each(path: Path) -> None:
    source, _, array = cached(rows(10), path)

    report = warm(array, np.s_[2:5, 7])

    assert sorted(source.keys) == sorted([*DOCUMENTS, "a/b/c/2/0", "a/b/c/3/0", "a/b/c/4/0"])
    assert source.requests == {"get": 5}
    assert report == WarmReport(
        chunks=3,
        cached=0,
        fetched=3,
        absent=0,
        left=0,
        bytes_fetched=report.bytes_fetched,
        stopped=None,
        arrays=("a/b",),
    )
    assert 3 * CHUNK < report.bytes_fetched < 4 * CHUNK


def test_what_is_cached_is_neither_fetched_nor_read(path: Path) -> None:
    source, store, array = cached(rows(10), path)
    warm(array, np.s_[:4])
    source.reset()
    before = store.cache_stats()

    report = warm(array, np.s_[2:6])

    after = store.cache_stats()
    assert chunk_keys(source) == ["a/b/c/4/0", "a/b/c/5/0"]
    assert (report.chunks, report.cached, report.fetched) == (4, 2, 2)
    assert (after["bytes_served"], after["hits"]) == (before["bytes_served"], before["hits"])


def test_an_array_that_is_warm_makes_no_request(path: Path) -> None:
    source, store, array = cached(rows(10), path)
    warm(array)
    restart(store)
    source.reset()
    again = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    array = zarr.open_array(again, path="a/b", mode="r", zarr_format=3)

    report = warm(array)

    assert (report.cached, report.fetched, report.is_complete) == (10, 0, True)
    assert source.requests == {}


def test_what_is_stale_is_fetched_again(path: Path, held_time: HeldTime) -> None:
    source, _, array = cached(rows(3), path, max_age_seconds=100)
    warm(array)
    held_time.step(seconds=101)
    source.reset()

    report = warm(array)

    assert (report.cached, report.fetched) == (0, 3)
    assert len(chunk_keys(source)) == 3


@pytest.mark.parametrize("write", WRITERS)
def test_every_hierarchy_is_read_without_a_request_once_it_is_warm(
    write: BackgroundWorker, path: Path, held_time: HeldTime
) -> None:
    held_time.step(seconds=1)
    memory = MemoryStore()
    write(memory)
    source = AsyncOnlyStore(memory)
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    report = warm(zarr.open(store, mode="r"))
    source.reset()

    found = contents(zarr.open(store, mode="r"))

    assert found == contents(zarr.open(memory, mode="r"))
    # Which keys there are below a group is for the source to say.
    assert not set(source.requests) - {"list_dir"}, source.keys
    assert report.is_complete


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_metadata_of_all_groups_above_and_below_is_warmed(
    path: Path, zarr_format: Literal[2, 3]
) -> None:
    memory = MemoryStore()
    root = zarr.create_group(memory, zarr_format=zarr_format)
    root.create_group("a/b").create_array("ramp", shape=3, dtype="u1")[:] = 1
    source = CountingStore(memory)
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")

    warm(zarr.open_group(store, path="a", mode="r"))

    documents = {"zarr.json"} if zarr_format == 3 else {".zgroup", ".zattrs"}
    of_array = {"zarr.json"} if zarr_format == 3 else {".zarray", ".zattrs"}
    groups = {f"{folder}{name}" for folder in ("", "a/", "a/b/") for name in documents}
    arrays = {f"a/b/ramp/{name}" for name in of_array}
    chunk = "a/b/ramp/c/0" if zarr_format == 3 else "a/b/ramp/0"
    kept = {key for key in groups | arrays | {chunk} if key in memory._store_dict}
    assert cached_keys_when_closed(store, path) == kept


def cached_keys_when_closed(store: CacheStore, path: Path) -> set[str]:
    store.close()
    return cached_keys(path)


def test_all_arrays_below_a_group_are_warmed(path: Path) -> None:
    memory = MemoryStore()
    root = zarr.create_group(memory)
    for name in ("x", "deep/y"):
        root.create_array(name, shape=4, chunks=2, dtype="u1")[:] = 1
    source = CountingStore(memory)
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    group = zarr.open_group(store, mode="r")

    report = warm(group)

    assert (report.chunks, report.fetched) == (4, 4)
    assert chunk_keys(source) == ["deep/y/c/0", "deep/y/c/1", "x/c/0", "x/c/1"]


def test_shards_are_fetched_whole(path: Path) -> None:
    memory = MemoryStore()
    sharded_with_a_margin(memory)
    source, _, array = cached(memory, path, name="")

    report = warm(array, np.s_[21, 3])

    assert (report.chunks, source.requests) == (1, {"get": 1})
    assert report.bytes_fetched == len(memory._store_dict["c/1/0"])


@pytest.mark.parametrize("write", [sparse, sparse_sharded])
def test_chunks_that_the_source_does_not_have_are_no_error(
    write: BackgroundWorker, path: Path
) -> None:
    memory = MemoryStore()
    write(memory)
    _, _, array = cached(memory, path, name="")
    there = [key for key in memory._store_dict if key.startswith("c/")]

    report = warm(array)

    assert report.fetched == len(there)
    assert report.absent == report.chunks - len(there)
    assert report.is_complete


def test_chunks_that_are_known_to_be_absent_are_not_requested(
    path: Path, held_time: HeldTime
) -> None:
    memory = MemoryStore()
    sparse(memory)
    source, _, array = cached(memory, path, name="")
    first = warm(array)
    source.reset()
    second = warm(array)
    requests = source.requests.total()
    held_time.step(seconds=61)
    third = warm(array)

    assert (second.absent, requests) == (first.absent, 0)
    assert (third.absent, source.requests.total()) == (first.absent, first.absent)


def test_a_writable_view_that_ignores_cached_absences_is_complete_as_well(path: Path) -> None:
    memory = MemoryStore()
    sparse(memory)
    store = CacheStore(memory, cache_store=SqliteStore(path), namespace="source")

    report = warm(zarr.open_array(store, mode="r+"))

    assert report.absent > 0
    assert report.is_complete


# Within the budget


@pytest.mark.parametrize("max_concurrency", [1, 3, 10])
def test_it_stops_before_it_would_evict_what_it_has_fetched(
    path: Path, max_concurrency: int
) -> None:
    source, store, array = cached(rows(10), path, max_size=6 * CHUNK)

    report = warm(array, max_concurrency=max_concurrency)

    # The sixth chunk has no room beside the metadata.
    assert (report.fetched, report.left, report.stopped) == (5, 5, "budget")
    assert not report.is_complete
    assert store.cache_stats()["evictions"] == 0
    assert source.requests["get"] == 5 + len(DOCUMENTS)
    store.close()
    assert 5 * CHUNK < cached_bytes(path) < 6 * CHUNK


def of_sizes(*sizes: int) -> MemoryStore:
    """An array "a/b" of compressed chunks, encoded in so many bytes or a few more."""
    memory = MemoryStore()
    shape = (len(sizes), 10_000)
    array = zarr.create_array(memory, name="a/b", shape=shape, chunks=(1, 10_000), dtype="u1")
    random = np.random.default_rng(0)
    for row, size in enumerate(sizes):
        array[row, :size] = random.integers(1, 256, size, "u1")
    return memory


def test_the_largest_chunk_so_far_decides_whether_there_is_room_for_another(path: Path) -> None:
    _, store, array = cached(of_sizes(1000, 3000, *[1000] * 4), path, max_size=10_000)

    report = warm(array, max_concurrency=1)

    # The last one has 1000 bytes: there was room for it, and none for another of 3000.
    assert (report.fetched, report.left, report.stopped) == (5, 1, "budget")
    assert store.cache_stats()["evictions"] == 0
    assert store.cache_info()["current_size"] < 9000


def test_the_first_chunk_is_fetched_also_if_it_is_larger_than_the_budget_before_it_is_encoded(
    path: Path,
) -> None:
    _, _, array = cached(of_sizes(1000, 1000), path, max_size=5000)

    assert warm(array).is_complete


@pytest.mark.parametrize("max_concurrency", [1, 3, 10])
def test_no_chunk_is_requested_without_room_beside_those_in_flight(
    path: Path, max_concurrency: int
) -> None:
    _, store, array = cached(of_sizes(*[1000] * 30), path, max_size=15_000)

    report = warm(array, max_concurrency=max_concurrency)

    assert (report.stopped, store.cache_stats()["evictions"]) == ("budget", 0)
    assert 12 <= report.fetched <= 14
    assert report.fetched + report.left == 30


def test_a_chunk_that_is_larger_than_all_before_ends_the_run_and_what_it_displaced_is_left(
    path: Path,
) -> None:
    _, store, array = cached(of_sizes(*[1000] * 5, 8000, 1000), path, max_size=11_000)

    report = warm(array, max_concurrency=1)
    store.flush()

    assert (report.fetched, report.stopped) == (6, "budget")
    assert store.cache_info()["current_size"] <= 11_000


def test_chunks_of_unknown_size_are_fetched_one_by_one_until_one_has_arrived(
    path: Path,
) -> None:
    memory = MemoryStore()
    array = zarr.create_array(memory, name="a/b", shape=8, chunks=1, dtype="str")
    array[:] = np.array(["x" * 1000] * 8, dtype=object)
    source, store, array = cached(memory, path, max_size=2**20)

    report = warm(array, max_concurrency=4)

    assert report.is_complete
    assert len(chunk_keys(source)) == 8
    assert store.cache_stats()["evictions"] == 0


def test_it_makes_room_by_what_was_used_least_recently(path: Path) -> None:
    _, store, array = cached(rows(10), path, max_size=6 * CHUNK)
    warm(array, np.s_[:4])

    report = warm(array, np.s_[5:9])

    assert (report.fetched, report.stopped) == (4, None)
    assert cached_keys_when_closed(store, path) >= {f"a/b/c/{row}/0" for row in (3, 5, 6, 7, 8)}


def test_what_is_cached_of_the_selection_is_not_evicted_for_the_rest_of_it(path: Path) -> None:
    _, store, array = cached(rows(10), path, max_size=6 * CHUNK)
    warm(array, np.s_[:2])
    warm(array, np.s_[7:10])

    report = warm(array, np.s_[:4])

    assert (report.cached, report.fetched, report.left, report.stopped) == (2, 2, 0, None)
    assert cached_keys_when_closed(store, path) >= {f"a/b/c/{row}/0" for row in range(4)}


def test_warming_a_larger_selection_again_evicts_nothing(path: Path) -> None:
    source, store, array = cached(rows(10), path, max_size=6 * CHUNK)
    warm(array)
    source.reset()

    report = warm(array)

    assert (report.cached, report.fetched, report.stopped) == (5, 0, "budget")
    assert source.requests == {}
    assert store.cache_stats()["evictions"] == 0


def test_absent_chunks_take_no_room(path: Path) -> None:
    memory = MemoryStore()
    zarr.create_array(memory, name="a/b", shape=(5, CHUNK), chunks=(1, CHUNK), dtype="u1")
    _, _, array = cached(memory, path, max_size=3 * CHUNK)

    report = warm(array)

    assert (report.absent, report.is_complete) == (5, True)


# Interrupted


def test_a_chunk_that_failed_is_fetched_by_the_next_run(path: Path) -> None:
    source = FailingStore(rows(6))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    array = zarr.open_array(store, path="a/b", mode="r")
    source.fail("get", at=len(DOCUMENTS) + 4)
    first = warm(array, max_concurrency=1)
    source.reset()

    report = warm(array, max_concurrency=1)

    assert (first.fetched, first.left, first.stopped) == (5, 1, "failed")
    assert [each.key for each in first.failures] == ["a/b/c/3/0"]
    assert chunk_keys(source) == ["a/b/c/3/0"]
    assert (report.cached, report.fetched, report.is_complete) == (5, 1, True)


async def test_a_run_that_was_cancelled_leaves_whole_values_and_is_continued(path: Path) -> None:
    source = HeldStore(rows(6))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    array = await open_array(store=store, path="a/b", mode="r")
    await warm_async(array, np.s_[:2])
    gates = [source.hold_before("get") for _ in range(3)]
    run = asyncio.create_task(warm_async(array, max_concurrency=3))
    for gate in gates:
        await gate.reached()
    gates[1].open()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    source.reset()

    report = await warm_async(array)

    assert report.is_complete
    assert 2 <= report.cached <= 3
    assert len(chunk_keys(source)) == 6 - report.cached
    assert values(zarr.open_array(store, path="a/b"), np.s_[:, 0]) == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no thread is sent a signal there")
def test_ctrl_c_ends_the_run_and_its_requests(path: Path) -> None:
    source = HeldStore(rows(6))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    array = zarr.open_array(store, path="a/b", mode="r")
    warm(array, np.s_[:2])
    gate = source.hold_before("get")
    source.reset()

    def interrupt() -> None:
        gate.wait_until_reached()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        warm(array, max_concurrency=1)
    thread.join()
    begun = list(source.keys)
    gate.open()
    report = warm(array)

    assert begun == ["a/b/c/2/0"]
    assert (report.cached, report.fetched) == (2, 4)


def test_at_most_max_concurrency_requests_are_in_flight(path: Path) -> None:
    class MostStore(CountingStore):
        under_way = 0
        most = 0

        async def _ask(self, method: str, key: str, call: Any) -> Any:
            MostStore.under_way += 1
            MostStore.most = max(MostStore.most, MostStore.under_way)
            await asyncio.sleep(0)
            response = await super()._ask(method, key, call)
            MostStore.under_way -= 1
            return response

    _, _, array = cached(rows(20), path, MostStore)
    MostStore.most = 0

    warm(array, max_concurrency=3)

    assert MostStore.most == 3


class FlushingStore(CountingStore):
    """A source that answers a request for a chunk once what was fetched before has been written."""

    store: CacheStore | None = None

    async def _ask[T](self, method: str, key: str, call: Call[T]) -> T:
        if self.store is not None and "/c/" in key:
            await asyncio.to_thread(self.store.flush)
        return await super()._ask(method, key, call)


def test_a_cache_that_fails_stops_the_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, store, array = cached(rows(50), path, FlushingStore)
    store.flush()
    monkeypatch.setattr(FlushingStore, "store", store)

    def fail(*_: object, **__: object) -> None:
        raise sqlite_full()

    monkeypatch.setattr(file_cache(store)._queue, "_keep", fail)
    with pytest.warns(CacheWarning, match="the cache has failed"):
        report = warm_and_close(array, store)

    assert report.stopped == "fault"
    assert report.left == 50
    assert len(chunk_keys(source)) < 50


def warm_and_close(array: zarr.Array[Any], store: CacheStore) -> WarmReport:
    report = warm(array, max_concurrency=1)
    store.close()
    return report


def sqlite_full() -> Exception:
    import sqlite3  # noqa: PLC0415 - for its error alone

    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error


def test_what_another_process_removed_meanwhile_is_reported(path: Path) -> None:
    source = HeldStore(rows(4))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    array = zarr.open_array(store, path="a/b", mode="r")
    warm(array, np.s_[:3])
    gate = source.hold_before("get")
    reports: list[WarmReport] = []
    thread = threading.Thread(target=lambda: reports.append(warm(array)))
    thread.start()
    gate.wait_until_reached()
    zarr.core.sync.sync(store.delete("a/b/c/1/0"))
    gate.open()
    thread.join()

    assert (reports[0].left, reports[0].stopped) == (1, "gone")


# A dry run


def test_a_dry_run_makes_no_value_request(path: Path) -> None:
    source, _, array = cached(rows(10), path)

    plan = warm(array, np.s_[:3], dry_run=True)

    assert set(source.requests) == {"getsize"}
    assert (plan.chunks, plan.cached, plan.requests) == (3, 0, 3 + len(DOCUMENTS))
    assert (plan.nbytes, plan.is_exact, plan.sizes_asked) == (3 * CHUNK, True, 3)


def test_a_dry_run_reports_the_requests_that_the_run_makes(path: Path) -> None:
    memory = MemoryStore()
    sparse(memory)
    source, _, array = cached(memory, path, name="")
    warm(array, np.s_[:20])
    plan = warm(array, dry_run=True)
    source.reset()

    report = warm(array)

    assert source.requests.total() == plan.requests
    assert report.bytes_fetched == plan.nbytes
    assert report.cached == plan.cached == 1


def test_a_dry_run_requests_a_few_sizes_and_reports_an_estimate(path: Path) -> None:
    source, _, array = cached(rows(100), path)

    plan = warm(array, dry_run=True)

    assert source.requests == {"getsize": 32}
    assert (plan.nbytes, plan.is_exact, plan.sizes_asked) == (100 * CHUNK, False, 32)
    assert "about 97.7 KiB (from the sizes of 32)" in str(plan)


def test_a_dry_run_requests_no_size_from_a_source_that_would_have_to_read_for_it(
    path: Path, tmp_path: Path
) -> None:
    with ZipStore(tmp_path / "a.zip", mode="w") as written:
        shape = (4, CHUNK)
        zarr.create_array(written, name="a/b", shape=shape, chunks=(1, CHUNK), dtype="u1")[:] = 7
    with ZipStore(tmp_path / "a.zip", read_only=True) as zipped:
        source, _, array = cached(zipped, path)

        plan = warm(array, dry_run=True)

    assert source.requests == {}
    assert (plan.nbytes, plan.is_exact, plan.sizes_asked) == (4 * CHUNK, False, 0)
    assert "about 3.9 KiB (before compression)" in str(plan)


@pytest.mark.parametrize(("max_size", "fits"), [(None, True), (10_000, True), (1500, False)])
def test_a_dry_run_reports_whether_the_budget_has_room(
    path: Path, max_size: int | None, fits: bool
) -> None:
    _, _, array = cached(rows(4), path, max_size=max_size)

    plan = warm(array, dry_run=True)

    assert plan.fits is fits
    assert ("more than max_size" in str(plan)) is not fits


def test_a_dry_run_of_a_warm_array_requests_nothing(path: Path) -> None:
    source, _, array = cached(rows(4), path)
    warm(array)
    source.reset()

    plan = warm(array, dry_run=True)

    assert source.requests == {}
    assert (plan.requests, plan.nbytes, plan.cached_bytes) == (0, 0, 4 * CHUNK)
    assert str(plan) == "4 chunks: 4 cached, 0 known to be absent; 0 requests for 0 B"


# What it is reported


def test_a_report_reads_as_a_line() -> None:
    report = WarmReport(
        chunks=96, cached=12, fetched=41, absent=3, left=40, bytes_fetched=10**9, stopped="budget"
    )

    assert str(report) == (
        "96 chunks: 12 were cached, 41 fetched (953.7 MiB), 3 absent; "
        "40 left: max_size has no room for more of them"
    )


def test_an_array_that_is_read_past_the_cache_is_refused() -> None:
    array = zarr.create_array(MemoryStore(), shape=3, dtype="u1")

    with pytest.raises(
        TypeError, match="caches nothing: open the array or group through a CacheSt"
    ):
        warm(array)


def test_a_group_has_no_selection(path: Path) -> None:
    memory = MemoryStore()
    zarr.create_group(memory)
    store = CacheStore(memory, cache_store=SqliteStore(path))

    with pytest.raises(ValueError, match="a selection needs one array"):
        warm(zarr.open_group(store, mode="r"), np.s_[:3])


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"max_age_seconds": 0}, {}, "a CacheStore with max_age_seconds=0 caches nothing"),
        ({}, {"max_concurrency": 0}, "max_concurrency must be at least 1, got 0"),
    ],
)
def test_what_can_warm_nothing_is_refused(
    path: Path, settings: dict[str, Any], arguments: dict[str, Any], message: str
) -> None:
    _, _, array = cached(rows(1), path, **settings)

    with pytest.raises(ValueError, match=message):
        warm(array, **arguments)


async def test_the_async_function_does_the_same(path: Path) -> None:
    source = CountingStore(rows(4))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    group = await open_group(store=store, mode="r")
    array = await open_array(store=store, path="a/b", mode="r")
    plan = await warm_async(array, np.s_[1:], dry_run=True)
    source.reset()

    of_array = await warm_async(array, np.s_[1:])
    of_group = await warm_async(group)

    assert (plan.chunks, of_array.fetched, of_group.cached, of_group.fetched) == (3, 3, 3, 1)
    assert len(chunk_keys(source)) == 4


async def test_the_sync_function_can_be_called_while_a_loop_runs(path: Path) -> None:
    _, _, array = cached(rows(4), path)

    assert warm(array).is_complete


def test_any_store_can_be_warmed(tmp_path: Path) -> None:
    source = CountingStore(rows(4))
    store = CacheStore(source, cache_store=LocalStore(tmp_path / "kept"))
    array = zarr.open_array(store, path="a/b", mode="r")
    first = warm(array, np.s_[:2])
    source.reset()

    second = warm(array)

    assert (first.fetched, second.cached, second.fetched) == (2, 2, 2)
    assert chunk_keys(source) == ["a/b/c/2/0", "a/b/c/3/0"]
