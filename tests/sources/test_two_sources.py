"""Two sources with the same keys over one file, for every store class that zarr has."""

from __future__ import annotations

import importlib
import json
import pkgutil
from typing import TYPE_CHECKING, NamedTuple

import obstore.store
import pytest
import zarr.experimental
import zarr.storage
import zarr.testing
from zarr.abc.store import RangeByteRequest, Store
from zarr.experimental.cache_store import CacheStore as ZarrCacheStore
from zarr.storage import (
    FsspecStore,
    GpuMemoryStore,
    LocalStore,
    LoggingStore,
    ManagedMemoryStore,
    MemoryStore,
    ObjectStore,
    WrapperStore,
    ZipStore,
)
from zarr.testing.buffer import StoreExpectingTestBuffer
from zarr.testing.store import LatencyStore

from tests.fakes import CountingStore, buffer, read, restart
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.private import is_private

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEYS = ("zarr.json", "a/zarr.json", "a/c/0")


class Kind(NamedTuple):
    """A kind of source."""

    cls: type[Store]
    open: Callable[[Path], Store]
    """Opens the one of a path, which is there if it lasts, and new otherwise."""
    lasts: bool = True
    """Whether it is there for the next process."""


def folder(path: Path) -> LocalStore:
    return LocalStore(path)


def obstore_folder(path: Path) -> Store:
    path.mkdir(exist_ok=True)
    return ObjectStore(obstore.store.LocalStore(path))


KINDS = {
    "LocalStore": Kind(LocalStore, folder),
    "ZipStore": Kind(ZipStore, lambda path: ZipStore(path, mode="a" if path.exists() else "w")),
    "FsspecStore": Kind(
        FsspecStore,
        lambda path: FsspecStore.from_url(path.as_uri(), storage_options={"auto_mkdir": True}),
    ),
    "FsspecStore in memory": Kind(
        FsspecStore, lambda path: FsspecStore.from_url(f"memory:/{path}"), lasts=False
    ),
    "ObjectStore": Kind(ObjectStore, obstore_folder),
    "ObjectStore in memory": Kind(
        ObjectStore, lambda _: ObjectStore(obstore.store.MemoryStore()), lasts=False
    ),
    "MemoryStore": Kind(MemoryStore, lambda _: MemoryStore(), lasts=False),
    "ManagedMemoryStore": Kind(ManagedMemoryStore, lambda _: ManagedMemoryStore(), lasts=False),
    "WrapperStore": Kind(WrapperStore, lambda path: WrapperStore(folder(path))),
    "LoggingStore": Kind(LoggingStore, lambda path: LoggingStore(folder(path))),
    "LoggingStore of a MemoryStore": Kind(
        LoggingStore, lambda _: LoggingStore(MemoryStore()), lasts=False
    ),
    "LatencyStore": Kind(LatencyStore, lambda path: LatencyStore(folder(path))),
    "zarr's CacheStore": Kind(
        ZarrCacheStore, lambda path: ZarrCacheStore(folder(path), cache_store=MemoryStore())
    ),
    "CacheStore": Kind(
        CacheStore,
        lambda path: CacheStore(folder(path), cache_store=SqliteStore(f"{path}.sqlite")),
    ),
    "SqliteStore": Kind(SqliteStore, lambda path: SqliteStore(f"{path}.sqlite")),
}
LASTING = {name: kind for name, kind in KINDS.items() if kind.lasts}
PASSING = {name: kind for name, kind in KINDS.items() if not kind.lasts}


def value_of(path: Path, key: str) -> bytes:
    """What the source of a path holds: as long as any other's, and other bytes."""
    return json.dumps({"zarr_format": 3, "of": f"{path.name} has {key}"}).encode()


async def opened(kind: Kind, path: Path) -> CountingStore:
    """The source of a path, filled if it is new."""
    source = CountingStore(kind.open(path))
    if not await source.exists(KEYS[0]):
        for key in KEYS:
            await source.set(key, buffer(value_of(path, key)))
        await source.set(f"only-{path.name}/zarr.json", buffer(b"{}"))
    if isinstance(source._store, ZipStore):
        source.close()
        source = CountingStore(await ZipStore.open(path, mode="r"))
    source.reset()
    return source


def cached(source: Store, path: Path) -> CacheStore:
    return CacheStore(
        source if source.read_only else source.with_read_only(read_only=True),
        cache_store=SqliteStore(path),
    )


async def assert_answers_are_of(store: CacheStore, path: Path, other: Path) -> None:
    """Each read of every kind returns what the source of a path holds."""
    for key in KEYS:
        value = value_of(path, key)

        assert await read(store, key, RangeByteRequest(0, 3)) == value[:3]
        assert await read(store, key) == value
        assert await store.getsize(key) == len(value)
    assert await read(store, f"only-{path.name}/zarr.json") == b"{}"
    assert await store.exists(f"only-{path.name}/zarr.json")
    assert not await store.exists(f"only-{other.name}/zarr.json")
    assert await read(store, f"only-{other.name}/zarr.json") is None


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
async def test_neither_of_two_sources_is_served_for_the_other(
    kind: Kind, tmp_path: Path, path: Path
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    of_a, of_b = await opened(kind, a), await opened(kind, b)
    stores = cached(of_a, path), cached(of_b, path)
    for _ in range(2):
        await assert_answers_are_of(stores[0], a, b)
        await assert_answers_are_of(stores[1], b, a)
    restart(*stores)

    await assert_answers_are_of(cached(of_b, path), b, a)
    await assert_answers_are_of(cached(of_a, path), a, b)


@pytest.mark.parametrize("kind", LASTING.values(), ids=list(LASTING))
async def test_a_source_that_lasts_is_known_again(kind: Kind, tmp_path: Path, path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    before = cached(await opened(kind, a), path)
    await assert_answers_are_of(before, a, b)
    restart(before)
    source = await opened(kind, a)
    again = cached(source, path)

    await assert_answers_are_of(again, a, b)
    assert again.namespace == before.namespace
    assert not is_private(again.namespace)
    assert source.requests == {}


@pytest.mark.parametrize("kind", PASSING.values(), ids=list(PASSING))
async def test_a_source_that_does_not_last_is_one_as_long_as_it_lives(
    kind: Kind, tmp_path: Path, path: Path
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    source = await opened(kind, a)
    before = cached(source, path)
    await assert_answers_are_of(before, a, b)
    source.reset()
    again = cached(source, path)

    await assert_answers_are_of(again, a, b)
    assert again.namespace == before.namespace
    assert is_private(again.namespace)
    assert source.requests == {}


async def test_a_write_through_one_view_of_a_memory_is_seen_by_the_other(path: Path) -> None:
    source = MemoryStore()
    one = CacheStore(source, cache_store=SqliteStore(path))
    other = CacheStore(MemoryStore(source._store_dict), cache_store=SqliteStore(path))
    await one.set("key", buffer(b"before"))
    before = await read(other, "key")
    await one.set("key", buffer(b"after"))

    assert before == b"before"
    assert await read(other, "key") == b"after"


def test_every_store_class_of_zarr_is_tried() -> None:
    for package in (zarr.experimental, zarr.storage, zarr.testing):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    found = {cls for cls in every_subclass(Store) if cls.__module__.startswith("zarr.")}
    # Both are a MemoryStore that takes buffers of one class alone: of the memory of a GPU, which a
    # machine may lack, and of zarr's own tests.
    found -= {GpuMemoryStore, StoreExpectingTestBuffer}

    assert found == {kind.cls for kind in KINDS.values()} - {CacheStore, SqliteStore}


def every_subclass(cls: type) -> set[type]:
    """The classes below one, however far."""
    below: set[type] = set(cls.__subclasses__())
    return below.union(*map(every_subclass, below))
