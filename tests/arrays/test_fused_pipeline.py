"""zarr's fused pipeline reads what is cached without an event loop."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.core.sync import sync
from zarr.storage import LocalStore, LoggingStore, MemoryStore

from tests.arrays.hierarchies import (
    RAMP,
    format_2,
    plain,
    sharded,
    sharded_with_a_margin,
    sparse,
    sparse_sharded,
)
from tests.fakes import AsyncOnlyStore, CountingStore, open_file, restart, values
from zarr_cache import CacheStore, CacheWarning, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zarr.abc.store import Store

    from tests.arrays.hierarchies import Writer
    from tests.fakes import HeldTime

pytestmark = pytest.mark.usefixtures("held_time")


@pytest.fixture(autouse=True)
def _fused_pipeline() -> Iterator[None]:
    fused = "zarr.core.codec_pipeline.FusedCodecPipeline"
    with zarr.config.set({"codec_pipeline.path": fused}):
        yield


@pytest.fixture
def no_async_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, no read may come through an event loop."""

    def forbid() -> None:
        monkeypatch.setattr(CacheStore, "get", forbidden)
        monkeypatch.setattr(CacheStore, "get_ranges", forbidden)

    return forbid


def forbidden(*_: Any, **__: Any) -> Any:
    msg = "the other surface was called"
    raise AssertionError(msg)


def in_a_file(path: Path) -> Store:
    return SqliteStore(path)


def in_memory(path: Path) -> Store:  # noqa: ARG001 - as `in_a_file`
    return MemoryStore()


@pytest.mark.parametrize("cache_store", [in_a_file, in_memory])
@pytest.mark.parametrize("kind", [CountingStore, AsyncOnlyStore])
@pytest.mark.parametrize("wrap", [lambda store: store, LoggingStore], ids=["bare", "wrapped"])
@pytest.mark.parametrize("where", [np.s_[:], np.s_[3:9, 4:7], np.s_[:, 25]], ids=str)
@pytest.mark.parametrize(
    "write", [plain, format_2, sharded, sharded_with_a_margin, sparse, sparse_sharded]
)
def test_the_second_read_makes_no_trip_through_an_event_loop(
    cache_store: Callable[[Path], Store],
    kind: type[CountingStore],
    wrap: Callable[[Store], Store],
    where: Any,
    write: Writer,
    path: Path,
    no_async_read: Callable[[], None],
) -> None:
    source = MemoryStore()
    write(source)
    store = CacheStore(kind(source), cache_store=cache_store(path), max_age_seconds=60)
    array = opened(wrap(store))
    expected = values(array, where)
    no_async_read()

    assert values(array, where) == expected


@pytest.mark.parametrize("where", [np.s_[:], np.s_[3:9, 4:7]], ids=["whole", "window"])
@pytest.mark.parametrize("write", [plain, format_2, sparse])
def test_the_first_read_of_another_process_makes_none(
    write: Writer, where: Any, path: Path, tmp_path: Path, no_async_read: Callable[[], None]
) -> None:
    write(LocalStore(tmp_path / "source"))
    settings: dict[str, Any] = {"namespace": "source"}
    source = AsyncOnlyStore(LocalStore(tmp_path / "source"))
    store = CacheStore(source, cache_store=SqliteStore(path), **settings)
    expected = values(opened(store), where)
    restart(store)
    store = CacheStore(source, cache_store=SqliteStore(path), **settings)
    array = opened(store)
    no_async_read()

    assert values(array, where) == expected


def test_a_window_makes_none_after_others_have_missed(
    path: Path, no_async_read: Callable[[], None]
) -> None:
    source = MemoryStore()
    plain(source)
    store = CacheStore(AsyncOnlyStore(source), cache_store=SqliteStore(path))
    array = opened(store)
    expected = values(array, np.s_[:20])
    values(array, np.s_[20:40])
    no_async_read()

    assert values(array, np.s_[:20]) == expected


async def asked_on_a_loop(store: CacheStore) -> bool:
    return store._supports_sync_io


def test_who_does_not_say_what_is_read_gets_the_async_surface_of_an_async_source(
    path: Path,
) -> None:
    source = MemoryStore()
    plain(source)
    store = CacheStore(AsyncOnlyStore(source), cache_store=SqliteStore(path))
    array = opened(store)
    for _ in range(2):
        values(array)

    assert not sync(asked_on_a_loop(store))


@pytest.fixture
def no_sync_surface(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, nothing may come through the threads of the pipeline."""

    def forbid() -> None:
        for name in ("get_sync", "get_ranges_sync", "set_sync", "delete_sync"):
            monkeypatch.setattr(CacheStore, name, forbidden)

    return forbid


@pytest.mark.parametrize("kind", [CountingStore, AsyncOnlyStore])
@pytest.mark.parametrize("write", [plain, sharded, sparse])
def test_an_async_cache_store_is_always_read_through_the_event_loop(
    kind: type[CountingStore], write: Writer, no_sync_surface: Callable[[], None]
) -> None:
    source = MemoryStore()
    write(source)
    store = CacheStore(kind(source), cache_store=AsyncOnlyStore(MemoryStore()))
    array = opened(store)
    no_sync_surface()

    assert values(array) == values(array) == values(opened(source))


class TestMissesOfAnAsyncSource:
    """They wait together in the event loop, not one by one in the threads of the pipeline."""

    @pytest.fixture
    def source(self) -> CountingStore:
        source = MemoryStore()
        plain(source)
        return AsyncOnlyStore(source)

    @pytest.fixture
    def array(self, source: CountingStore, path: Path) -> zarr.Array[Any]:
        store = CacheStore(source, cache_store=SqliteStore(path), max_age_seconds=60)
        return opened(store, mode="r+")

    def test_of_what_was_never_read(
        self, array: zarr.Array[Any], no_sync_surface: Callable[[], None]
    ) -> None:
        no_sync_surface()

        assert values(array) == RAMP.tolist()

    def test_after_any_number_of_hits(
        self, array: zarr.Array[Any], no_sync_surface: Callable[[], None]
    ) -> None:
        for _ in range(20):
            values(array, np.s_[:20])
        no_sync_surface()

        assert values(array, np.s_[20:]) == RAMP[20:].tolist()

    def test_of_what_is_kept_but_for_one_chunk(
        self, array: zarr.Array[Any], no_sync_surface: Callable[[], None]
    ) -> None:
        values(array, np.s_[:40])
        values(array, np.s_[:, :32])
        no_sync_surface()

        assert values(array) == RAMP.tolist()

    def test_of_what_is_stale(
        self,
        array: zarr.Array[Any],
        no_sync_surface: Callable[[], None],
        held_time: HeldTime,
    ) -> None:
        values(array)
        held_time.step(61)
        no_sync_surface()

        assert values(array) == RAMP.tolist()

    def test_of_what_was_written_by_another(
        self,
        array: zarr.Array[Any],
        source: CountingStore,
        path: Path,
        no_sync_surface: Callable[[], None],
    ) -> None:
        values(array)
        other = CacheStore(source, cache_store=SqliteStore(path), cache_set_data=False)
        opened(other, mode="r+")[:] = -RAMP
        no_sync_surface()

        assert values(array) == (-RAMP).tolist()

    def test_of_a_file_that_is_damaged(
        self, array: zarr.Array[Any], path: Path, no_sync_surface: Callable[[], None]
    ) -> None:
        values(array)
        with open_file(path) as db:
            db.execute("DELETE FROM counter")
            db.commit()
        no_sync_surface()

        with pytest.warns(CacheWarning, match="a revision or a total is missing"):
            assert values(array) == RAMP.tolist()

    def test_and_its_writes(
        self,
        array: zarr.Array[Any],
        source: CountingStore,
        no_sync_surface: Callable[[], None],
    ) -> None:
        values(array)
        no_sync_surface()

        array[:] = -RAMP

        assert values(opened(source)) == (-RAMP).tolist()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (np.s_[:, :4], np.s_[:, 4:8]),
        (([0, 20, 40, 60], slice(None)), ([5, 25, 45, 61], slice(None))),
        (([0, 20, 40], [0, 20, 40]), ([5, 25, 45], [0, 20, 40])),
    ],
    ids=["windows", "rows", "points"],
)
def test_other_parts_of_shards_come_through_the_event_loop_once(
    first: Any, second: Any, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The index of each shard is at hand by then, and it may be that none of the chunks is."""
    source = MemoryStore()
    shape = (64, 64)
    array = zarr.create_array(source, shape=shape, shards=(16, 16), chunks=(4, 4), dtype="i8")
    array[:] = np.arange(64 * 64).reshape(shape)
    array = opened(CacheStore(AsyncOnlyStore(source), cache_store=SqliteStore(path)))
    asked: set[str] = set()
    for name in ("get", "get_sync"):
        monkeypatch.setattr(CacheStore, name, noted(asked, name, getattr(CacheStore, name)))

    def surfaces(where: Any) -> set[str]:
        asked.clear()
        found = values(array.vindex if isinstance(where[1], list) else array.oindex, where)
        expected = np.arange(64 * 64).reshape(shape)
        assert found == expected[where].tolist()
        return set(asked)

    assert surfaces(first) == {"get"}
    assert surfaces(second) == {"get"}
    assert surfaces(second) == surfaces(first) == {"get_sync"}


def noted[**P, T](asked: set[str], name: str, method: Callable[P, T]) -> Callable[P, T]:
    """The method, which adds its name to `asked` at each call."""

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        asked.add(name)
        return method(*args, **kwargs)

    return call


def test_one_of_many_chunks_that_is_not_kept_may_be_overlooked_and_is_read_all_the_same(
    path: Path, no_async_read: Callable[[], None]
) -> None:
    source = MemoryStore()
    zarr.create_array(source, shape=1000, chunks=1, dtype="i2")[:] = np.arange(1000)
    counted = AsyncOnlyStore(source)
    store = CacheStore(counted, cache_store=SqliteStore(path))
    array = opened(store)
    values(array)
    with open_file(path) as db:
        db.execute("DELETE FROM entry WHERE key = 'c/501'")
        db.commit()
    counted.reset()
    no_async_read()

    assert values(array) == list(range(1000))
    assert counted.keys == ["c/501"]


def test_a_shard_is_asked_for_at_once(path: Path) -> None:
    source = MemoryStore()
    array = zarr.create_array(source, shape=(64, 64), shards=(64, 64), chunks=(8, 8), dtype="i8")
    array[:] = np.arange(64 * 64).reshape(64, 64)
    counted = AsyncOnlyStore(source)
    array = opened(CacheStore(counted, cache_store=SqliteStore(path)))
    values(array, np.s_[:, :16])
    counted.reset()

    values(array, np.s_[:, 16:48])

    # All parts of it together, which zarr merges or not.
    assert counted.requests["get"] == 0
    assert set(counted.keys) == {"c/0/0"}


def opened(store: Store, mode: Any = "r") -> zarr.Array[Any]:
    """The only array of the store, at its root or in the group there."""
    node = zarr.open(store, mode=mode)
    return node if isinstance(node, zarr.Array) else next(iter(dict(node.arrays()).values()))


ONE_THREAD = """
import sys

import numpy as np
import zarr
from zarr.abc.store import RangeByteRequest
from zarr.storage import FsspecStore

from zarr_cache import CacheStore, SqliteStore

folder = sys.argv[1]
fused = "zarr.core.codec_pipeline.FusedCodecPipeline"
zarr.config.set({"codec_pipeline.path": fused, "threading.max_workers": 1})
data = np.arange(512, dtype="i4")
zarr.create_array(f"{folder}/source", data=data, chunks=(8,), shards=(64,), compressors=None)
# fsspec reads local files in the thread that a batch of the pipeline would hold.
source = FsspecStore.from_url(f"file://{folder}/source", read_only=True)
store = CacheStore(source, cache_store=SqliteStore(f"{folder}/cache.sqlite"))
array = zarr.open_array(store, mode="r")
for _ in range(2):
    assert (array[3:500] == data[3:500]).all()
# As if evicted: of each shard the index is left, so that what is asked for is taken to be at hand.
ranges = store._cached.values.ranges
for entry in list(ranges._by_use):
    if isinstance(entry.request, RangeByteRequest):
        ranges._remove(entry)
assert (array[3:500] == data[3:500]).all()
print("read")
"""


def test_a_source_that_needs_the_only_thread_of_the_executor_is_read(tmp_path: Path) -> None:
    # It would wait for ever.
    done = subprocess.run(
        [sys.executable, "-c", ONE_THREAD, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.stdout == "read\n"
