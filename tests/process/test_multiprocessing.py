"""A store in the children that multiprocessing starts, in each of its ways to start them."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from tests.fakes import IS_WINDOWS, HeldStore, buffer, open_file, preload, values
from tests.process import children
from tests.process.children import KEYS, Told, read_all
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.context import ForkContext
    from pathlib import Path

METHODS = ["spawn"] if IS_WINDOWS else multiprocessing.get_all_start_methods()

preload(children)

pytestmark = [
    # Python warns of any fork beside threads, and zarr and aiosqlite have theirs.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]

needs_fork = pytest.mark.skipif("fork" not in METHODS, reason="the system cannot fork")

VALUES: list[bytes | None] = [key.encode() * 1000 for key in KEYS]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a value for each of `KEYS`."""
    folder = tmp_path / "source"
    folder.mkdir()
    for key in KEYS:
        (folder / key).write_bytes(key.encode() * 1000)
    return folder


def cached(source: Path, path: Path) -> CacheStore:
    return CacheStore(LocalStore(source), cache_store=SqliteStore(path))


def remove(source: Path) -> None:
    """From here on only the cache has an answer."""
    source.rename(source.with_name("gone"))


def lasting(path: Path) -> tuple[int, int]:
    """Hits and misses over the life of the file."""
    with open_file(path) as db:
        hits, misses = db.execute("SELECT TOTAL(hits), TOTAL(misses) FROM statistics").fetchone()
    return int(hits), int(misses)


@contextlib.contextmanager
def threads_that_read(store: CacheStore) -> Iterator[None]:
    """Two threads that read for as long as the block runs."""
    ended = threading.Event()

    def go_on() -> None:
        while not ended.is_set():
            assert read_all(store).values == 2 * VALUES

    threads = [threading.Thread(target=go_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def in_child(method: str, store: CacheStore) -> Told:
    """What a child tells that reads everything."""
    context: Any = multiprocessing.get_context(method)
    responses = context.SimpleQueue()
    child = context.Process(target=children.tell, args=(store, responses))
    child.start()
    child.join()

    assert child.exitcode == 0
    told: Told = responses.get()
    return told


@pytest.mark.parametrize("method", METHODS)
def test_a_child_started_while_threads_read_may_use_the_store(
    method: str, source: Path, path: Path
) -> None:
    store = cached(source, path)
    read_all(store)
    remove(source)

    with threads_that_read(store):
        told = in_child(method, store)

    assert told == Told(2 * VALUES, hits=8, misses=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_parent_reads_from_the_file_that_its_child_filled(
    method: str, source: Path, path: Path
) -> None:
    store = cached(source, path)
    told = in_child(method, store)
    remove(source)

    assert told == Told(2 * VALUES, hits=4, misses=4)
    assert read_all(store) == Told(2 * VALUES, hits=8, misses=0)


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_of_processes_reads_through_one_file(method: str, source: Path, path: Path) -> None:
    store = cached(source, path)
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        first = list(pool.map(read_all, [store] * 6))
    remove(source)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        second = list(pool.map(read_all, [store] * 2))
    store.close()

    assert [told.values for told in first] == [2 * VALUES] * 6
    assert second == [Told(2 * VALUES, hits=8, misses=0)] * 2
    told = first + second
    assert lasting(path) == (sum(each.hits for each in told), sum(each.misses for each in told))


def epoch(context: ForkContext, array: zarr.Array[Any], order: list[int]) -> dict[int, Any]:
    """What two workers load, started and fed as PyTorch's DataLoader does with its workers.

    They are forked, each has a queue of indices and all have one of batches, they are daemons, and
    None ends them. PyTorch itself would be the largest dependency of the tests by far.
    """
    batches = context.Queue()
    queues = [context.Queue() for _ in range(2)]
    workers = [
        context.Process(target=children.load, args=(array, indices, batches), daemon=True)
        for indices in queues
    ]
    for worker in workers:
        worker.start()
    for number, index in enumerate(order):
        queues[number % 2].put(index)
    loaded = dict(batches.get() for _ in order)
    for indices in queues:
        indices.put(None)
    for worker in workers:
        worker.join()
    for queue in [batches, *queues]:
        queue.close()

    assert [worker.exitcode for worker in workers] == [0, 0]
    return loaded


@needs_fork
def test_a_data_loader_s_forked_workers_share_what_they_load(tmp_path: Path, path: Path) -> None:
    folder = tmp_path / "array"
    data = np.arange(40).reshape(10, 4)
    zarr.create_array(folder, data=data, chunks=(1, 4))
    store = CacheStore(LocalStore(folder), cache_store=SqliteStore(path))
    array = zarr.open_array(store, mode="r")
    head = values(array, 0)
    context = multiprocessing.get_context("fork")

    first = epoch(context, array, list(range(10)))
    remove(folder)
    second = epoch(context, array, list(range(9, -1, -1)))

    expected = dict(enumerate(data.tolist()))
    assert (head, first, second) == (expected[0], expected, expected)


def test_a_pickle_holds_path_and_settings(source: Path, path: Path) -> None:
    store = CacheStore(
        LocalStore(source, read_only=True),
        cache_store=SqliteStore(path),
        max_size=10**6,
        max_age_seconds=3600,
        max_age_absent_seconds=10,
        cache_set_data=False,
    )
    read_all(store)
    pickled = pickle.dumps(store)
    again = pickle.loads(pickled)  # noqa: S301 - our own

    assert len(pickled) < 1000
    assert again.cache_info() == store.cache_info()
    assert again.read_only
    assert read_all(again) == Told(2 * VALUES, hits=8, misses=0)


def test_a_pickle_over_http_is_small_and_names_the_same_source(path: Path) -> None:
    source = FsspecStore.from_url("https://example.org/data.zarr", read_only=True)
    store = CacheStore(source, cache_store=SqliteStore(path), max_size=20 * 2**30)
    pickled = pickle.dumps(store)

    assert len(pickled) < 1000
    assert pickle.loads(pickled).namespace == store.namespace  # noqa: S301 - our own


def test_a_link_is_followed_where_a_pickle_is_loaded(tmp_path: Path) -> None:
    here, there, scratch = (tmp_path / name for name in ("here", "there", "scratch"))
    here.mkdir()
    there.mkdir()
    scratch.symlink_to(here)
    store = CacheStore(MemoryStore(), cache_store=SqliteStore(scratch / "cache.sqlite"))
    pickled = pickle.dumps(store)
    scratch.unlink()
    scratch.symlink_to(there)
    pickle.loads(pickled).cache_info()  # noqa: S301 - our own

    assert [(folder / "cache.sqlite").exists() for folder in (here, there)] == [False, True]


@pytest.mark.parametrize("method", METHODS)
def test_a_child_has_its_own_copy_of_a_source_in_memory(method: str, path: Path) -> None:
    store = CacheStore(MemoryStore({"a": buffer(b"old")}), cache_store=SqliteStore(path))
    assert read_all(store, "a").values == [b"old", b"old"]
    context: Any = multiprocessing.get_context(method)
    child = context.Process(target=children.write, args=(store, "a", b"of the child"))
    child.start()
    child.join()

    assert child.exitcode == 0
    assert read_all(store, "a").values == [b"old", b"old"]


def test_a_copy_of_a_source_in_memory_has_a_namespace_of_its_own(path: Path) -> None:
    store = CacheStore(MemoryStore(), cache_store=SqliteStore(path))
    named = CacheStore(MemoryStore(), cache_store=SqliteStore(path), namespace="era5")
    copies = [pickle.loads(pickle.dumps(each)) for each in (store, named)]  # noqa: S301 - our own

    assert copies[0].namespace != store.namespace
    assert copies[1].namespace == "era5"


@needs_fork
def test_a_forked_child_does_not_wait_for_what_a_thread_of_its_parent_was_asking_for(
    source: Path,
) -> None:
    held = HeldStore(LocalStore(source))
    store = CacheStore(held, cache_store=MemoryStore())
    asked = held.hold_before("get_sync")
    reading = threading.Thread(target=store.get_sync, args=(KEYS[0],))
    reading.start()
    asked.wait_until_reached()

    told = in_child("fork", store)
    asked.open()
    reading.join()

    assert told == Told(2 * VALUES, hits=4, misses=4)
    assert read_all(store) == Told(2 * VALUES, hits=5, misses=3)
