"""zarr's fused pipeline reads what is cached without an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from tests.arrays.hierarchies import format_2, plain, sharded, sparse
from tests.fakes import AsyncOnlyStore, CountingStore, restart, values
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.arrays.hierarchies import Writer
    from tests.fakes import HeldTime

pytestmark = pytest.mark.usefixtures("held_time")


@pytest.fixture(autouse=True)
def _fused_pipeline() -> Iterator[None]:
    fused = "zarr.core.codec_pipeline.FusedCodecPipeline"
    with zarr.config.set({"codec_pipeline.path": fused}):
        yield


def no_event_loop(*_: Any, **__: Any) -> Any:
    msg = "the async surface was called"
    raise AssertionError(msg)


@pytest.mark.parametrize("kind", [CountingStore, AsyncOnlyStore])
@pytest.mark.parametrize("where", [np.s_[:], np.s_[3:9, 4:7]], ids=["whole", "window"])
@pytest.mark.parametrize("write", [plain, sharded, sparse])
def test_a_warm_read_makes_no_trip_through_an_event_loop(
    kind: type[CountingStore],
    where: Any,
    write: Writer,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = MemoryStore()
    write(source)
    store = CacheStore(kind(source), cache_store=SqliteStore(path))
    array = zarr.open_array(store, mode="r")
    # It takes some hits until a source without a sync surface is read through this one.
    expected = [values(array, where) for _ in range(10)]
    monkeypatch.setattr(CacheStore, "get", no_event_loop)
    monkeypatch.setattr(CacheStore, "get_ranges", no_event_loop)

    again = values(array, where)

    assert [again] * 10 == expected


@pytest.mark.parametrize("age", ["infinity", 60])
@pytest.mark.parametrize("write", [plain, sharded, format_2], ids=["plain", "sharded", "format 2"])
def test_an_array_that_is_kept_whole_makes_none_from_the_second_read_on(
    write: Writer, age: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemoryStore()
    write(source)
    store = CacheStore(AsyncOnlyStore(source), cache_store=SqliteStore(path), max_age_seconds=age)
    array = opened(store)
    expected = values(array, np.s_[:])
    monkeypatch.setattr(CacheStore, "get", no_event_loop)

    assert values(array, np.s_[:]) == expected


def test_an_array_of_which_a_part_is_stale_is_asked_for_on_the_event_loop(
    path: Path, held_time: HeldTime
) -> None:
    source = MemoryStore()
    plain(source)
    store = CacheStore(AsyncOnlyStore(source), cache_store=SqliteStore(path), max_age_seconds=60)
    array = opened(store)
    values(array, np.s_[:])
    store.flush()
    before = sync(asked_on_a_loop(store))
    held_time.step(61)

    assert (before, sync(asked_on_a_loop(store))) == (True, False)


async def asked_on_a_loop(store: CacheStore) -> bool:
    return store._supports_sync_io


def test_a_shard_is_asked_for_at_once_also_when_hits_were_expected(path: Path) -> None:
    source = MemoryStore()
    for name in ("read", "cold"):
        array = zarr.create_array(
            source, name=name, shape=(64, 64), shards=(64, 64), chunks=(8, 8), dtype="i8"
        )
        array[:] = np.arange(64 * 64).reshape(64, 64)
    counted = AsyncOnlyStore(source)
    store = CacheStore(counted, cache_store=SqliteStore(path))
    group = zarr.open_group(store, mode="r")
    arrays = {name: group[name] for name in ("read", "cold")}
    for _ in range(10):
        values(arrays["read"], np.s_[:, :32])
    assert sync(asked_on_a_loop(store))
    counted.reset()

    values(arrays["cold"], np.s_[:, :32])

    # The index of the shard, and all parts of it together, which zarr merges or not.
    assert counted.requests["get"] + counted.requests["get_sync"] == 1
    assert set(counted.keys) == {"cold/c/0/0"}


@pytest.mark.parametrize("write", [plain, sharded, format_2], ids=["plain", "sharded", "format 2"])
def test_an_array_that_is_kept_whole_makes_none_in_another_process(
    write: Writer, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(LocalStore(tmp_path / "source"))
    settings: dict[str, Any] = {"namespace": "source"}
    source = AsyncOnlyStore(LocalStore(tmp_path / "source"))
    store = CacheStore(source, cache_store=SqliteStore(path), **settings)
    expected = values(opened(store), np.s_[:])
    restart(store)
    store = CacheStore(source, cache_store=SqliteStore(path), **settings)
    array = opened(store)
    monkeypatch.setattr(CacheStore, "get", no_event_loop)

    assert values(array, np.s_[:]) == expected


def opened(store: CacheStore) -> zarr.Array[Any]:
    """The only array of the store, at its root or in the group there."""
    node = zarr.open(store, mode="r")
    return node if isinstance(node, zarr.Array) else next(iter(dict(node.arrays()).values()))
