"""Warming a sharded array fetches the inner chunks that a selection touches, as zarr reads them."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import zarr
from zarr.abc.store import SuffixByteRequest
from zarr.codecs import TransposeCodec
from zarr.storage import MemoryStore

from tests.arrays.hierarchies import sparse_sharded
from tests.conftest import PIPELINES
from tests.fakes import FailingStore, HeldStore, restart
from tests.warming.arrays import UNMERGED, RecordingStore, persisting, sharded
from zarr_cache import CacheStore, SqliteStore, WarmReport, warm
from zarr_cache.index import listing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from tests.fakes import Call, HeldTime

INNER = 30
"""Bytes of an inner chunk."""

INDEX = 16 * 16 + 4
"""Bytes of an index: two numbers for each inner chunk, and a checksum."""

SELECTIONS: dict[str, Any] = {
    "one element": np.s_[21, 3],
    "a window over four shards": np.s_[15:25, 20:30],
    "one whole shard and parts of others": np.s_[:21, :30],
    "a step over inner chunks": np.s_[::11, 2::13],
    "indices": ([0, 39], [7, 30, 31, 59]),
    "a mask": (np.arange(40) % 19 == 0, slice(None)),
    "everything": ...,
    "nothing": np.s_[5:5],
}


def requests_of(memory: Store, selection: Any, config: Any = UNMERGED) -> list[Any]:
    """The requests for chunks by which zarr itself reads the selection."""
    source = RecordingStore(memory)
    array = zarr.open_array(source, mode="r").with_config(config)
    array.oindex[selection]
    return source.of_chunks()


@pytest.mark.pairs
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize("is_compressed", [False, True], ids=["uncompressed", "zstd"])
@pytest.mark.parametrize("index_location", ["start", "end"])
def test_the_requests_are_those_of_zarr(
    path: Path, index_location: Literal["start", "end"], is_compressed: bool, selection: Any
) -> None:
    memory = sharded(index_location=index_location, is_compressed=is_compressed)
    source, _, array = persisting(memory, path)

    warm(array, selection)

    assert source.of_chunks() == requests_of(memory, selection)


@pytest.mark.pairs
@pytest.mark.parametrize("pipeline", PIPELINES.values(), ids=PIPELINES)
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=SELECTIONS)
@pytest.mark.parametrize(
    ("chunks", "index_location", "is_compressed"),
    [((5, 6), "end", False), ((20, 8), "start", True), ((1, 24), "end", True)],
)
def test_the_next_process_reads_the_selection_without_a_request(
    path: Path,
    chunks: tuple[int, ...],
    index_location: Literal["start", "end"],
    is_compressed: bool,
    selection: Any,
    pipeline: str,
) -> None:
    memory = sharded(chunks=chunks, index_location=index_location, is_compressed=is_compressed)
    _, store, array = persisting(memory, path)
    report = warm(array, selection)
    restart(store)
    with zarr.config.set({"codec_pipeline.path": pipeline}):
        source, _, array = persisting(memory, path)

        found = array.oindex[selection]

    assert source.requests == {}
    assert np.array_equal(found, zarr.open_array(memory).oindex[selection])
    assert report.chunks == report.cached + report.fetched + report.absent


def test_ranges_are_merged_as_zarr_merges_them(path: Path) -> None:
    memory = sharded()
    config: Any = {"sharding_coalesce_max_gap_bytes": 100}
    source, _, array = persisting(memory, path, config)

    warm(array, np.s_[:20, 0])

    merged = requests_of(memory, np.s_[:20, 0], config)
    assert source.of_chunks() == merged
    assert len(merged) < len(requests_of(memory, np.s_[:20, 0]))


def test_a_window_of_one_percent_of_a_shard_does_not_fetch_the_shard(path: Path) -> None:
    memory = sharded((1000, 1000), (10, 10), (1000, 1000))
    source, _, array = persisting(memory, path)

    report = warm(array, np.s_[100:200, 300:400])

    index = 16 * 100 * 100 + 4
    (shard,) = [len(value) for key, value in memory._store_dict.items() if key.startswith("c/")]
    assert source.nbytes == report.bytes_fetched == 100 * 100 + index
    assert shard == 1000 * 1000 + index


def test_inner_chunks_are_counted(path: Path) -> None:
    _, _, array = persisting(sharded(), path)

    report = warm(array, np.s_[:21, :30])

    # A whole shard of 16, a column of 4 beside it, and a row of 5 below.
    assert report == WarmReport(
        chunks=25,
        cached=0,
        fetched=25,
        absent=0,
        left=0,
        bytes_fetched=report.bytes_fetched,
        stopped=None,
        inner_chunks=25,
        arrays=("",),
    )
    assert report.bytes_fetched == 25 * INNER + 4 * INDEX
    assert str(report).startswith("25 inner chunks: 0 were cached, 25 fetched (")


def test_what_is_cached_is_not_fetched_again(path: Path) -> None:
    memory = sharded()
    source, _, array = persisting(memory, path)
    warm(array, np.s_[:5, :12])
    source.reset()

    report = warm(array, np.s_[:10, :12])

    wanted = set(requests_of(memory, np.s_[:10, :12])) - set(requests_of(memory, np.s_[:5, :12]))
    assert source.of_chunks() == sorted(wanted, key=repr)
    assert (report.chunks, report.cached, report.fetched) == (4, 2, 2)


def test_a_warm_selection_is_neither_requested_nor_read(path: Path) -> None:
    source, store, array = persisting(sharded(), path)
    warm(array, np.s_[:10])
    source.reset()
    before = store.cache_stats()

    report = warm(array, np.s_[:10])

    assert (report.cached, report.fetched, report.bytes_fetched) == (20, 0, 0)
    assert source.requests == {}
    assert store.cache_stats() == before


def test_a_window_in_a_shard_that_is_cached_as_a_whole_is_cached(path: Path) -> None:
    source, _, array = persisting(sharded(), path)
    warm(array, np.s_[:20, :24])
    source.reset()

    report = warm(array, np.s_[3, 3])

    assert (report.cached, source.requests) == (1, {})


def test_a_whole_shard_is_fetched_also_if_its_inner_chunks_are_cached(path: Path) -> None:
    source, _, array = persisting(sharded(), path)
    warm(array, np.s_[:10, :24])
    warm(array, np.s_[10:20, :24])
    source.reset()

    report = warm(array, np.s_[:20, :24])

    # By their ranges, zarr would read it by a request.
    assert source.of_chunks() == [("c/0/0", None)]
    assert (report.cached, report.fetched) == (0, 16)


def test_a_window_lists_the_ranges_of_the_shards_that_it_touches(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, array = persisting(sharded((40, 200), (5, 5), (10, 10)), path)
    prefixes: list[str] = []

    def listed(connection: Any, namespace: str, prefix: str, fresh_after: int) -> Any:
        prefixes.append(prefix)
        return original(connection, namespace, prefix, fresh_after)

    original = listing.list_ranges
    monkeypatch.setattr(listing, "list_ranges", listed)
    warm(array, np.s_[3, 8:12], dry_run=True)
    warm(array, np.s_[3, :], dry_run=True)

    assert prefixes == ["c/0/0", "c/0/1", ""]


def test_what_is_stale_is_fetched_again(path: Path, held_time: HeldTime) -> None:
    memory = sharded()
    source, _, array = persisting(memory, path, max_age_seconds=100)
    warm(array, np.s_[3, 3])
    held_time.step(seconds=101)
    source.reset()

    report = warm(array, np.s_[3, 3])

    assert (report.cached, report.fetched) == (0, 1)
    assert source.of_chunks() == requests_of(memory, np.s_[3, 3])


def test_ranges_in_memory_are_moved_to_the_file_without_a_request(path: Path) -> None:
    memory = sharded()
    source, store, array = persisting(memory, path)
    array[3, 3]
    _, _, in_memory = persisting(source, path, persist_ranges=False)
    in_memory[9, 3]
    in_memory[25, 3]

    source.reset()

    report = warm(array, ([3, 9, 25], 3))
    restart(store)
    _, _, again = persisting(source, path)
    again.oindex[np.array([3, 9, 25]), 3]

    assert (report.chunks, report.cached, report.left, source.requests) == (3, 1, 0, {})


def test_a_store_that_does_not_persist_ranges_fetches_whole_shards(path: Path) -> None:
    source, store, array = persisting(sharded(), path, persist_ranges=False)

    plan = warm(array, np.s_[15:25, 3], dry_run=True)
    report = warm(array, np.s_[15:25, 3])

    assert source.of_chunks() == [("c/0/0", None), ("c/1/0", None)]
    assert (report.chunks, report.whole_shards, report.inner_chunks) == (2, 2, 0)
    assert str(plan).startswith("2 whole shards: 0 cached, ")
    assert store.cache_info()["file_ranges"] == 0


@pytest.mark.filterwarnings("ignore:Combining a `sharding_indexed` codec")
def test_stored_chunks_are_fetched_where_zarr_reads_no_part_of_them(path: Path) -> None:
    memory = sharded(chunks=(5, 5), shards=(20, 20), outer=[TransposeCodec(order=(1, 0))])
    source, _, array = persisting(memory, path)

    report = warm(array, np.s_[3, 3])
    array[3, 3]

    assert source.of_chunks() == [("c/0/0", None)]
    assert (report.chunks, report.whole_shards, report.inner_chunks) == (1, 0, 0)


def test_a_report_of_a_group_counts_each_kind(path: Path) -> None:
    memory = MemoryStore()
    root = zarr.create_group(memory)
    root.create_array("plain", shape=4, chunks=2, dtype="u1")[:] = 1
    root.create_array("sharded", shape=8, chunks=2, shards=4, dtype="u1")[:] = 1
    root.create_array("whole", shape=8, chunks=4, shards=4, dtype="u1")[:] = 1
    store = CacheStore(memory, cache_store=SqliteStore(path), persist_ranges=True)

    report = warm(zarr.open_group(store, mode="r"))

    assert (report.chunks, report.inner_chunks, report.whole_shards) == (8, 4, 2)
    assert str(report).startswith("8 chunks (4 inner chunks, 2 whole shards): 0 were cached, ")


# What is absent


def test_empty_inner_chunks_and_absent_shards_are_absent_and_not_requested_again(
    path: Path,
) -> None:
    memory = MemoryStore()
    sparse_sharded(memory)
    source, store, array = persisting(memory, path)
    report = warm(array, np.s_[:30, 20:40])
    requests = source.requests.total()
    again = warm(array, np.s_[:30, 20:40])
    restart(store)
    _, _, array = persisting(source, path)
    array[:30, 20:40]

    # The one shard that there is, of which one inner chunk is there; and half of an absent one.
    assert (report.chunks, report.fetched, report.absent) == (24, 16, 8)
    assert requests == 2
    assert (again.cached, again.absent, source.requests) == (16, 8, {})


def test_in_a_shard_that_is_there_empty_inner_chunks_are_absent(path: Path) -> None:
    memory = MemoryStore()
    sparse_sharded(memory)
    source, _, array = persisting(memory, path)

    report = warm(array, np.s_[10:20, 20:40])
    plan = warm(array, np.s_[10:20, 20:40], dry_run=True)

    assert (report.chunks, report.fetched, report.absent) == (8, 1, 7)
    assert source.requests.total() == 2
    assert (plan.cached, plan.absent, plan.requests) == (1, 7, 0)


class GoneStore(RecordingStore):
    """A source whose shards are deleted once their indexes have been read."""

    async def _ask[T](self, method: str, key: str, call: Call[T]) -> T:
        return None if method == "get_ranges" else await super()._ask(method, key, call)  # type: ignore[return-value]


def test_a_shard_that_is_deleted_meanwhile_is_absent(path: Path) -> None:
    _, _, array = persisting(GoneStore(sharded()), path)

    report = warm(array, np.s_[3:9, 3])

    assert (report.chunks, report.absent, report.left) == (2, 2, 0)


# Within the budget


@pytest.mark.parametrize("max_concurrency", [1, 4])
@pytest.mark.parametrize("has_room_for", [0, 1, 3, 7])
def test_it_stops_before_it_would_evict_what_it_has_fetched(
    path: Path, has_room_for: int, max_concurrency: int
) -> None:
    memory = sharded()
    documents = len(memory._store_dict["zarr.json"])
    max_size = documents + INDEX + has_room_for * INNER + INNER - 1
    source, store, array = persisting(memory, path, max_size=max_size)

    report = warm(array, np.s_[:10, :24], max_concurrency=max_concurrency)
    store.flush()
    again = warm(array, np.s_[:10, :24])

    info = store.cache_info()
    assert (report.fetched, report.left, report.stopped) == (
        has_room_for,
        8 - has_room_for,
        "budget",
    )
    assert store.cache_stats()["evictions"] == 0
    assert info["file_size"] + info["range_size"] <= max_size
    assert source.nbytes == INDEX + has_room_for * INNER
    assert (again.cached, again.fetched, again.stopped) == (has_room_for, 0, "budget")


def test_without_room_for_an_index_nothing_of_the_shard_is_fetched(path: Path) -> None:
    memory = sharded()
    documents = len(memory._store_dict["zarr.json"])
    source, _, array = persisting(memory, path, max_size=documents + INDEX - 1)

    report = warm(array, np.s_[3, 3])

    assert (report.left, report.stopped, source.of_chunks()) == (1, "budget", [])


@pytest.mark.parametrize("max_concurrency", [1, 3, 10])
def test_several_shards_keep_to_the_budget_together(path: Path, max_concurrency: int) -> None:
    memory = sharded()
    max_size = len(memory._store_dict["zarr.json"]) + 6 * INDEX + 9 * INNER
    _, store, array = persisting(memory, path, max_size=max_size)

    report = warm(array, np.s_[::6], max_concurrency=max_concurrency)
    store.flush()

    assert report.stopped == "budget"
    assert report.fetched >= 9
    assert store.cache_stats()["evictions"] == 0
    assert store.cache_info()["file_size"] <= max_size


def test_warming_more_shards_again_evicts_none(path: Path) -> None:
    memory = MemoryStore()
    zarr.create_array(memory, shape=4000, chunks=100, shards=1000, dtype="u1")[:] = 1
    shard = len(memory._store_dict["c/0"])
    max_size = len(memory._store_dict["zarr.json"]) + 3 * shard // 2
    source, store, array = persisting(memory, path, max_size=max_size)
    warm(array, np.s_[:1000])
    source.reset()

    report = warm(array)

    # Before encoding, a shard is larger than what is left.
    assert shard < 1000
    assert (report.cached, report.fetched, report.stopped) == (10, 0, "budget")
    assert source.requests == {}
    assert store.cache_stats()["evictions"] == 0


def test_what_was_warm_is_evicted_after_what_was_read_since(path: Path) -> None:
    memory = sharded((20, 240), (20, 20), (20, 240))
    inner, index = 400, 16 * 12 + 4
    documents = len(memory._store_dict["zarr.json"])
    _, store, array = persisting(memory, path, max_size=documents + index + 4 * inner)
    warm(array, np.s_[:, :40])
    array[:, 100]
    array[:, 120]

    again = warm(array, np.s_[:, :40])
    array[:, 140]
    array[:, 160]

    assert again.cached == 2
    assert warm(array, np.s_[:, :40]).fetched == 0
    assert store.cache_stats()["evictions"] == 2


def test_at_most_max_concurrency_requests_are_in_flight(path: Path) -> None:
    class MostStore(RecordingStore):
        under_way = 0
        most = 0

        async def _ask[T](self, method: str, key: str, call: Call[T]) -> T:
            MostStore.under_way += 1
            MostStore.most = max(MostStore.most, MostStore.under_way)
            await asyncio.sleep(0)
            response = await super()._ask(method, key, call)
            MostStore.under_way -= 1
            return response

    _, _, array = persisting(MostStore(sharded()), path)
    MostStore.most = 0

    report = warm(array, np.s_[::7, ::12], max_concurrency=9)

    # Six shards, each by one worker, and several requests for each.
    assert report.fetched > 20
    assert 2 < MostStore.most <= 9


def test_the_requests_for_one_shard_are_made_at_once(path: Path) -> None:
    source = HeldStore(sharded())
    store = CacheStore(source, cache_store=SqliteStore(path), persist_ranges=True)
    array = zarr.open_array(store, mode="r").with_config(UNMERGED)
    gates = [source.hold_before("get_ranges") for _ in range(3)]
    thread = threading.Thread(target=lambda: warm(array, np.s_[:5, :18], max_concurrency=3))
    thread.start()

    for gate in gates:
        gate.wait_until_reached()

    for gate in gates:
        gate.open()
    thread.join()
    assert source.requests["get_ranges"] == 3


# Interrupted


def test_inner_chunks_that_failed_are_fetched_by_the_next_run(path: Path) -> None:
    source = FailingStore(sharded())
    store = CacheStore(
        source, cache_store=SqliteStore(path), namespace="source", persist_ranges=True
    )
    array = zarr.open_array(store, mode="r", zarr_format=3).with_config(UNMERGED)
    source.fail("get_ranges", at=13)
    first = warm(array, np.s_[:, :18], max_concurrency=1)
    source.reset()

    report = warm(array, np.s_[:, :18], max_concurrency=1)

    assert (first.fetched, first.left, first.stopped) == (12, 12, "failed")
    assert [str(each) for each in first.failures] == ["'c/1/0' (OSError)"]
    assert (report.chunks, report.cached, report.fetched) == (24, 12, 12)
    assert source.requests == {"get_ranges": 12}


class StoppingStore(RecordingStore):
    """A source that sends three ranges of a shard and fails then."""

    async def get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        **_: Any,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        for index, request in enumerate(byte_ranges[:3]):
            yield [(index, await self.get(key, prototype, request))]
        raise ExceptionGroup("chunk read failed", [OSError("the connection was lost")])


def test_what_a_shard_sent_before_it_failed_stays_cached(path: Path) -> None:
    memory = sharded()
    _, store, array = persisting(StoppingStore(memory), path)
    first = warm(array, np.s_[:10, :24])
    restart(store)
    _, _, array = persisting(memory, path)

    report = warm(array, np.s_[:10, :24])

    assert (first.fetched, first.left, first.failed) == (3, 5, 1)
    assert (report.chunks, report.cached, report.fetched) == (8, 3, 5)


def test_an_index_that_cannot_be_decoded_is_a_failure_and_for_zarr_an_error(path: Path) -> None:
    memory = sharded()
    shard = memory._store_dict["c/0/0"]
    shard.as_numpy_array()[-1] ^= 1
    _, _, array = persisting(memory, path)

    report = warm(array, np.s_[3, 3])

    assert [str(each) for each in report.failures] == ["'c/0/0' (ValueError)"]
    assert (report.left, report.stopped) == (1, "failed")
    with pytest.raises(ValueError, match="checksum"):
        array[3, 3]


# A dry run


def test_a_dry_run_reads_indexes_and_reports_exactly_what_is_fetched(path: Path) -> None:
    source, _, array = persisting(sharded(), path)
    plan = warm(array, np.s_[15:25, 3:9], dry_run=True)
    planned = source.of_chunks()
    source.reset()

    report = warm(array, np.s_[15:25, 3:9])

    requests: list[tuple[str, ByteRequest]] = [
        ("c/0/0", SuffixByteRequest(INDEX)),
        ("c/1/0", SuffixByteRequest(INDEX)),
    ]
    assert planned == requests
    assert (plan.chunks, plan.cached, plan.inner_chunks) == (4, 0, 4)
    assert (plan.nbytes, plan.is_exact, plan.sizes_asked) == (4 * INNER, True, 4)
    assert plan.cached_bytes == 2 * INDEX
    assert source.requests.total() == plan.requests
    assert report.bytes_fetched == plan.nbytes
    assert str(plan) == ("4 inner chunks: 0 cached, 0 known to be absent; 4 requests for 120 B")


def test_a_dry_run_requests_the_sizes_of_shards_that_are_fetched_as_wholes(path: Path) -> None:
    memory = sharded()
    source, _, array = persisting(memory, path)

    plan = warm(array, np.s_[:20, :30], dry_run=True)

    assert source.requests == {"get": 1, "getsize": 1}
    assert plan.nbytes == len(memory._store_dict["c/0/0"]) + 4 * INNER
    assert (plan.is_exact, plan.sizes_asked, plan.requests) == (True, 20, 5)


def test_a_dry_run_of_many_shards_estimates_those_whose_indexes_it_does_not_read(
    path: Path,
) -> None:
    memory = sharded((400, 10), (2, 10), (4, 10))
    source, _, array = persisting(memory, path)
    plan = warm(array, np.s_[::4], dry_run=True)
    asked = source.requests.total()
    source.reset()

    report = warm(array, np.s_[::4])

    index = 16 * 2 + 4
    assert asked == 32
    assert (plan.is_exact, plan.sizes_asked) == (False, 32)
    assert plan.nbytes == report.bytes_fetched == 100 * 20 + 68 * index
    assert plan.requests == source.requests.total() == 100 + 68
    assert "about 4.3 KiB (from the sizes of 32)" in str(plan)


@pytest.mark.parametrize(("room", "fits"), [(0, True), (-1, False)])
def test_a_dry_run_reports_whether_the_budget_has_room(path: Path, room: int, fits: bool) -> None:
    memory = sharded((400, 10), (2, 10), (4, 10))
    max_size = 100 * (20 + 16 * 2 + 4) + room
    _, _, array = persisting(memory, path, max_size=max_size)
    warm(array, np.s_[:200:4])
    warm(array, np.s_[200::4], dry_run=True)

    plan = warm(array, np.s_[::4], dry_run=True)

    assert plan.cached == 50
    assert plan.fits is fits
