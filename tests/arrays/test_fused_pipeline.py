"""zarr's fused pipeline reads without an event loop where both stores have sync methods."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.storage import LoggingStore, MemoryStore

from tests.arrays.hierarchies import (
    format_2,
    plain,
    sharded,
    sharded_with_a_margin,
    sparse,
    sparse_sharded,
)
from tests.fakes import AsyncOnlyStore, CountingStore, values
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zarr.abc.store import Store

    from tests.arrays.hierarchies import BackgroundWorker

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


@pytest.mark.pairs
@pytest.mark.parametrize("cache_store", [in_a_file, in_memory])
@pytest.mark.parametrize("wrap", [lambda store: store, LoggingStore], ids=["bare", "wrapped"])
@pytest.mark.parametrize("where", [np.s_[:], np.s_[3:9, 4:7], np.s_[:, 25]], ids=str)
@pytest.mark.parametrize(
    "write", [plain, format_2, sharded, sharded_with_a_margin, sparse, sparse_sharded]
)
def test_the_second_read_makes_no_trip_through_an_event_loop(
    cache_store: Callable[[Path], Store],
    wrap: Callable[[Store], Store],
    where: Any,
    write: BackgroundWorker,
    path: Path,
    no_async_read: Callable[[], None],
) -> None:
    source = MemoryStore()
    write(source)
    store = CacheStore(source, cache_store=cache_store(path), max_age_seconds=60)
    array = opened(wrap(store))
    expected = values(array, where)
    no_async_read()

    assert values(array, where) == expected


@pytest.fixture
def no_sync_surface(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, nothing may come through the threads of the pipeline."""

    def forbid() -> None:
        for name in ("get_sync", "get_ranges_sync", "set_sync", "delete_sync"):
            monkeypatch.setattr(CacheStore, name, forbidden)

    return forbid


@pytest.mark.parametrize(
    ("source_kind", "cache_kind"),
    [
        (AsyncOnlyStore, CountingStore),
        (CountingStore, AsyncOnlyStore),
        (AsyncOnlyStore, AsyncOnlyStore),
    ],
    ids=["source", "cache store", "both"],
)
@pytest.mark.parametrize("write", [plain, sharded, sparse])
def test_a_store_that_is_async_only_is_always_used_through_the_event_loop(
    source_kind: type[CountingStore],
    cache_kind: type[CountingStore],
    write: BackgroundWorker,
    no_sync_surface: Callable[[], None],
) -> None:
    source = MemoryStore()
    write(source)
    store = CacheStore(source_kind(source), cache_store=cache_kind(MemoryStore()))
    array = opened(store, mode="r+")
    no_sync_surface()

    expected = values(opened(source))
    assert [values(array) for _ in range(3)] == [expected] * 3
    array[:2] = 3
    assert values(array, np.s_[:2]) == values(opened(source), np.s_[:2])


def test_a_shard_is_read_concurrently(path: Path) -> None:
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
import asyncio
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import zarr
from zarr.core.codec_pipeline import FusedCodecPipeline
from zarr.storage import FsspecStore, LocalStore

from zarr_cache import CacheStore, SqliteStore, warm

folder, kind, kept = sys.argv[1:]
fused = "zarr.core.codec_pipeline.FusedCodecPipeline"
zarr.config.set({"codec_pipeline.path": fused, "threading.max_workers": 1})
data = np.arange(512, dtype="i4")
zarr.create_array(f"{folder}/source", data=data, chunks=(8,), compressors=None)
begun, in_a_thread = threading.Event(), Future()


class Held(LocalStore):
    async def get(self, key, prototype, byte_range=None):
        if key == "c/40":
            begun.set()
            await asyncio.wrap_future(in_a_thread)
        # Needs the one thread, which a batch of the pipeline holds by now.
        return await super().get(key, prototype, byte_range)


read_sync = FusedCodecPipeline.read_sync


def noted(*args, **kwargs):
    if not in_a_thread.done():
        in_a_thread.set_result(None)
    return read_sync(*args, **kwargs)


FusedCodecPipeline.read_sync = noted
if kind == "local":
    source = Held(f"{folder}/source", read_only=True)
else:
    # Reads in the one thread as well. Never is a batch given to it.
    source = FsspecStore.from_url(f"file://{folder}/source", read_only=True)
    begun.set()
kept = LocalStore(f"{folder}/kept") if kept == "local" else SqliteStore(f"{folder}/cache.sqlite")
array = zarr.open_array(CacheStore(source, cache_store=kept, namespace="source"), mode="r")
with ThreadPoolExecutor(13) as threads:
    warming = threads.submit(warm, array)
    begun.wait()
    read = list(threads.map(lambda _: np.asarray(array[3:500]), range(12)))
    warming.result()
assert all((each == data[3:500]).all() for each in read)
print("read")
"""


@pytest.mark.parametrize("kept", ["file", "local"])
@pytest.mark.parametrize("source", ["local", "fsspec"])
def test_readers_beside_warm_are_served_with_one_thread_in_the_executor(
    source: str, kept: str, tmp_path: Path
) -> None:
    # They would wait for ever.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", ONE_THREAD, str(tmp_path), source, kept],
        check=True,
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.stdout == "read\n"
