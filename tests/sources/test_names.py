"""Names of sources: the same for the same data, and different for others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import obstore.store
import pytest
from fsspec.asyn import AsyncFileSystem
from zarr.abc.store import Store
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
from zarr.testing.store import LatencyStore

from tests.fakes import read
from zarr_cache import CacheStore, SqliteStore, register_namespace
from zarr_cache.core.private import is_private
from zarr_cache.sources import names as namespace
from zarr_cache.sources.names import name_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Renaming(WrapperStore[Store]):
    """A wrapper of a user: what it does to the bytes is not known."""


class Folder(LocalStore):
    """A store with a folder, as LocalStore has: what it does with it is not known."""


class NewFileSystem(AsyncFileSystem):  # type: ignore[misc] # fsspec ships no types
    """A file system of which zarr-cache knows nothing."""

    protocol = "new"
    cachable = False


@pytest.fixture(autouse=True)
def _registrations_end_with_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "_registered", dict(namespace._registered))


def test_a_folder_is_named_by_its_absolute_path(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")

    assert name_of(LocalStore(tmp_path / "data")) == (tmp_path / "data").as_uri()
    assert name_of(LocalStore(tmp_path / "link")) == (tmp_path / "data").as_uri()


def test_a_folder_is_named_alike_whatever_reads_it(tmp_path: Path) -> None:
    stores: list[Store] = [
        LocalStore(tmp_path),
        FsspecStore.from_url(tmp_path.as_uri(), read_only=True),
        ObjectStore(obstore.store.LocalStore(tmp_path)),
    ]

    assert {name_of(store) for store in stores} == {tmp_path.as_uri()}


@pytest.mark.parametrize(
    "wrap",
    [
        LatencyStore,
        LoggingStore,
        WrapperStore,
        lambda source: ZarrCacheStore(source, cache_store=MemoryStore()),
        lambda source: source.with_read_only(read_only=True),
    ],
)
def test_what_changes_no_value_has_the_name_of_its_source(
    tmp_path: Path, wrap: Callable[[Store], Store]
) -> None:
    source = LocalStore(tmp_path)

    assert name_of(wrap(source)) == name_of(source)


def test_an_unknown_wrapper_has_a_name_of_its_own(tmp_path: Path) -> None:
    source = LocalStore(tmp_path)
    names = [name_of(Renaming(source)), name_of(Renaming(source)), name_of(source)]

    assert list(map(is_private, names)) == [True, True, False]
    assert len(set(names)) == 3


def test_a_subclass_of_a_store_has_a_name_of_its_own(tmp_path: Path) -> None:
    assert is_private(name_of(Folder(tmp_path)))


def test_stores_of_one_path_and_different_kinds_have_different_names(tmp_path: Path) -> None:
    path = tmp_path / "data"

    names = {name_of(source) for source in (LocalStore(path), ZipStore(path), SqliteStore(path))}

    assert len(names) == 3


async def test_a_cache_over_a_cache_in_one_file_is_read(tmp_path: Path, path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "key").write_bytes(b"value")
    cache_store = SqliteStore(path)
    inner = CacheStore(LocalStore(tmp_path / "data"), cache_store=cache_store)
    outer = CacheStore(LoggingStore(inner), cache_store=cache_store)

    assert await read(outer, "key") == b"value"
    assert outer.namespace != inner.namespace


# Sources that do not outlive the process


def test_views_of_one_memory_have_one_name() -> None:
    source = MemoryStore()
    views: list[Store] = [
        source,
        source.with_read_only(read_only=True),
        MemoryStore(source._store_dict),
        LoggingStore(source),
    ]

    assert {name_of(view) for view in views} == {name_of(source)}
    assert is_private(name_of(source))


def test_two_memories_have_two_names_also_when_they_hold_the_same() -> None:
    sources = MemoryStore(), MemoryStore()

    assert sources[0] == sources[1]
    assert name_of(sources[0]) != name_of(sources[1])


def test_views_of_one_memory_of_a_gpu_have_one_name() -> None:
    source = GpuMemoryStore()

    assert name_of(source) == name_of(source.with_read_only(read_only=True))
    assert name_of(source) != name_of(GpuMemoryStore())


def test_a_managed_memory_is_named_by_what_it_holds_and_where_in_it() -> None:
    source = ManagedMemoryStore(path="a")
    same = ManagedMemoryStore(name=source.name, path="a")
    other = ManagedMemoryStore(name=source.name, path="b")

    assert name_of(source) == name_of(same) != name_of(other)


def test_a_name_is_not_used_again_when_its_memory_has_gone() -> None:
    def name_of_another() -> str:
        return name_of(MemoryStore())

    assert len({name_of_another() for _ in range(50)}) == 50


def test_the_memory_of_obstore_has_one_name_for_its_views() -> None:
    source = ObjectStore(obstore.store.MemoryStore())

    assert name_of(source) == name_of(source.with_read_only(read_only=True))
    assert name_of(source) != name_of(ObjectStore(obstore.store.MemoryStore()))
    assert is_private(name_of(source))


def test_the_memory_of_fsspec_is_one_for_the_process() -> None:
    names = [
        name_of(FsspecStore.from_url(f"memory://{folder}", read_only=True))
        for folder in ("a", "a", "b")
    ]
    kept = FsspecStore.from_url("memory://a", read_only=True)

    assert name_of(kept) == name_of(FsspecStore.from_url("memory://a", read_only=True))
    assert name_of(kept) != names[2]
    assert all(map(is_private, names))


def test_an_unknown_file_system_has_a_name_of_its_own_for_each_path() -> None:
    file_system = NewFileSystem(asynchronous=True)
    a, same, b = (FsspecStore(file_system, path=path) for path in ("/a", "/a", "/b"))

    assert name_of(a) == name_of(same) != name_of(b)
    assert is_private(name_of(a))


# Registering


@pytest.mark.parametrize(
    ("cls", "name", "expected"),
    [
        (Renaming, lambda _: "lake://table@3", "lake://table@3"),
        (Renaming, lambda store: store._store, "file:///data"),
        # Which has a name without that.
        (LocalStore, lambda store: f"volume:{store.root.name}", "volume:data"),
        (LocalStore, lambda _: None, None),
    ],
)
def test_a_registered_function_names_the_sources_of_a_class(
    cls: type[Store], name: Callable[[Any], Any], expected: str | None
) -> None:
    register_namespace(cls, name)
    folder = LocalStore("/data")
    found = name_of(Renaming(folder) if cls is Renaming else folder)

    assert is_private(found) if expected is None else found == expected


def test_a_registration_holds_for_subclasses_that_have_none_themselves(tmp_path: Path) -> None:
    class Nearer(Folder):
        pass

    register_namespace(LocalStore, lambda store: f"local:{store.root.name}")
    far = name_of(Nearer(tmp_path / "data"))
    register_namespace(Folder, lambda store: f"folder:{store.root.name}")

    assert far == "local:data"
    assert name_of(Nearer(tmp_path / "data")) == "folder:data"


def test_a_registration_of_a_base_leaves_a_known_class_its_name(tmp_path: Path) -> None:
    register_namespace(Store, lambda _: "anything")  # type: ignore[type-abstract]

    assert name_of(LocalStore(tmp_path)) == tmp_path.as_uri()
    assert name_of(Folder(tmp_path)) == "anything"


def test_a_registered_file_system_names_its_root() -> None:
    register_namespace(NewFileSystem, lambda _: "new://host/")

    source = FsspecStore(NewFileSystem(asynchronous=True), path="/a b/c")

    assert name_of(source) == "new://host/a%20b/c"


@pytest.mark.parametrize(
    ("response", "error", "says"),
    [
        ("", ValueError, "must not be empty"),
        ("private:mine", ValueError, "begin with 'private:'"),
        (b"bytes", TypeError, "must be a string, a store or None, got bytes"),
        (3, TypeError, "must be a string, a store or None, got int"),
    ],
)
def test_what_is_no_name_is_refused(response: Any, error: type[Exception], says: str) -> None:
    register_namespace(Renaming, lambda _: response)

    with pytest.raises(error, match=re.escape(says)):
        name_of(Renaming(MemoryStore()))


def test_a_source_that_is_named_by_itself_is_refused() -> None:
    register_namespace(Renaming, lambda store: store)

    with pytest.raises(ValueError, match="the name registered for Renaming is the source itself"):
        name_of(Renaming(MemoryStore()))


def test_only_a_class_and_a_function_can_be_registered(tmp_path: Path) -> None:
    source: Any = LocalStore(tmp_path)
    name: Any = "name"

    with pytest.raises(TypeError, match="store_type must be a class"):
        register_namespace(source, lambda _: "name")
    with pytest.raises(TypeError, match="name must be a function"):
        register_namespace(LocalStore, name)
