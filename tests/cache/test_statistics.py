"""Counts of hits, misses and evictions, in this process and over the life of the file."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from zarr.abc.store import RangeByteRequest
from zarr.experimental.cache_store import CacheStore as ZarrsCacheStore
from zarr.storage import LocalStore, MemoryStore

from tests.fakes import CountingStore, buffer, open_file, read, restart
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import HeldTime

LASTING = ["hits", "misses", "bytes_served", "bytes_fetched", "evictions", "expirations"]

LASTING_OF = """
SELECT hits, misses, bytes_served, bytes_fetched, evictions, expirations
FROM statistics
JOIN namespace ON namespace.id = statistics.namespace
WHERE namespace.name = ?
"""


def lasting(path: Path, namespace: str = "source") -> dict[str, int]:
    """What the file has added up."""
    with open_file(path) as db:
        return dict(zip(LASTING, db.execute(LASTING_OF, (namespace,)).fetchone(), strict=True))


def caching(path: Path, **options: Any) -> CacheStore:
    source = MemoryStore({key: buffer(key.encode() * 10) for key in "abcdef"})
    return CacheStore(source, cache_store=SqliteStore(path), **({"namespace": "source"} | options))


async def test_info_and_statistics_say_the_same_as_zarrs_own(path: Path) -> None:
    ours = caching(path)
    zarrs = ZarrsCacheStore(MemoryStore(dict(ours._store._store_dict)), cache_store=MemoryStore())  # type: ignore[attr-defined]
    for store in (ours, zarrs):
        for key in ["a", "b", "a", "c", "a"]:
            await read(store, key)
    reported = [{**store.cache_stats(), **store.cache_info()} for store in (ours, zarrs)]

    assert {name: reported[0][name] for name in reported[1]} == {
        **reported[1],
        "cache_store_type": "SqliteStore",
    }


def test_nothing_has_happened_at_first(path: Path) -> None:
    stats = caching(path).cache_stats()

    assert set(stats.values()) == {0}
    assert isinstance(stats["hit_rate"], float)


async def test_each_read_is_a_hit_or_a_miss(path: Path) -> None:
    store = caching(path)
    for key in ["a", "b", "a", "missing", "a"]:
        await read(store, key)
    stats = store.cache_stats()

    assert (stats["hits"], stats["misses"], stats["total_requests"]) == (2, 3, 5)
    assert stats["hit_rate"] == 2 / 5


async def test_bytes_are_those_served_from_the_cache_and_those_fetched(path: Path) -> None:
    store = caching(path)
    await read(store, "a")
    await read(store, "a", RangeByteRequest(2, 5))
    await read(store, "b", RangeByteRequest(0, 4))
    await read(store, "b", RangeByteRequest(1, 3))
    stats = store.cache_stats()

    assert (stats["bytes_fetched"], stats["bytes_served"]) == (10 + 4, 3 + 2)


async def test_what_is_removed_for_the_budget_is_an_eviction_ranges_too(path: Path) -> None:
    store = caching(path, max_size=20)
    await read(store, "a")
    await read(store, "b", RangeByteRequest(0, 10))
    await read(store, "c")
    await read(store, "d")

    assert store.cache_stats()["evictions"] == 2
    assert store.cache_info()["current_size"] == 20


async def test_what_is_removed_for_its_age_is_an_expiration(
    path: Path, held_time: HeldTime
) -> None:
    store = caching(path, max_age_seconds=10)
    await read(store, "a")
    await read(store, "b")
    held_time.step(11)
    store.cache_info()
    stats = store.cache_stats()

    assert (stats["expirations"], stats["evictions"]) == (2, 0)


async def test_a_cached_absence_is_a_hit_of_its_own_kind(path: Path) -> None:
    store = caching(path, read_only=True)
    await read(store, "missing")
    await read(store, "missing")
    stats = store.cache_stats()

    assert (stats["hits"], stats["absent_hits"], stats["misses"]) == (1, 1, 1)
    assert store.cache_info()["absent_keys"] == 1


async def test_a_view_counts_with_the_store_that_it_is_of(path: Path) -> None:
    store = caching(path)
    view = store.with_read_only(read_only=True)
    await read(store, "a")
    await read(view, "a")

    assert view.cache_stats() == store.cache_stats()
    assert store.cache_stats()["hits"] == 1


async def test_counts_add_up_in_the_file_over_restarts(path: Path, held_time: HeldTime) -> None:
    totals = dict.fromkeys(LASTING, 0)
    for session in range(4):
        store = caching(path, max_size=25, max_age_seconds=100)
        for key in ["a", "b", "a", "c", "b", "missing"][session:]:
            await read(store, key)
            await read(store, key, RangeByteRequest(0, 5))
        held_time.step(60)
        store.cache_info()
        stats = store.cache_stats()
        totals = {name: total + stats[name] for name, total in totals.items()}
        restart(store)

    assert lasting(path) == totals
    assert min(totals.values()) > 0


async def test_counts_are_written_with_the_responses_before_the_file_is_closed(path: Path) -> None:
    store = caching(path)
    for key in ["a", "a", "b"]:
        await read(store, key)
    store._view.values.flush()

    assert (lasting(path)["hits"], lasting(path)["misses"]) == (1, 2)
    restart(store)
    assert (lasting(path)["hits"], lasting(path)["misses"]) == (1, 2)


async def test_each_source_has_its_own_counts(path: Path) -> None:
    one, other = caching(path, namespace="one"), caching(path, namespace="other")
    await read(one, "a")
    await read(one, "a")
    await read(other, "a")
    restart(one, other)

    assert [lasting(path, name)["misses"] for name in ("one", "other")] == [1, 1]
    assert [lasting(path, name)["hits"] for name in ("one", "other")] == [1, 0]


def test_no_count_is_lost_between_threads(path: Path) -> None:
    store = caching(path)
    store.get_sync("a")

    def hit() -> None:
        for _ in range(500):
            store.get_sync("a")

    threads = [threading.Thread(target=hit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    restart(store)

    assert store.cache_stats()["hits"] == 2_000
    assert lasting(path)["hits"] == 2_000


async def test_current_size_is_that_of_one_source_and_file_size_of_all(path: Path) -> None:
    one, other = caching(path, namespace="one"), caching(path, namespace="other")
    await read(one, "a")
    await read(other, "a")
    await read(other, "b")
    sizes = [
        (info["current_size"], info["file_size"]) for info in (one.cache_info(), other.cache_info())
    ]

    assert sizes == [(10, 30), (20, 30)]


async def test_another_store_as_cache_store_reports_the_same(path: Path, tmp_path: Path) -> None:
    stores = [
        caching(path),
        CacheStore(caching(path)._store, cache_store=LocalStore(tmp_path / "local")),
        CacheStore(caching(path)._store, cache_store=MemoryStore()),
    ]
    for store in stores:
        for key in ["a", "b", "a", "missing"]:
            await read(store, key)
    reported = [store.cache_stats() for store in stores]
    sizes = [store.cache_info()["current_size"] for store in stores]

    assert reported[0] == reported[1] == reported[2]
    assert sizes == [20, 20, 20]


async def test_counting_does_not_read_the_source(path: Path) -> None:
    source = CountingStore(MemoryStore())
    store = CacheStore(source, cache_store=SqliteStore(path))
    store.cache_info()
    store.cache_stats()

    assert source.requests.total() == 0


async def test_statistics_are_not_kept_alive_by_their_counts(path: Path) -> None:
    for _ in range(20):
        store = caching(path)
        await read(store, "a")
        del store
    kept = caching(path)
    counted = kept._view.values.pending.counted

    assert len(counted) <= 1
    kept.close()
    assert lasting(path)["hits"] == 19
    assert lasting(path)["misses"] == 1
