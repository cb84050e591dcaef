"""All that zarr calls on a store is overridden by our stores, or passed on with a reason.

`WrapperStore` passes what a later zarr adds on to the source, past the cache, and nothing fails. So
these tests compare our classes with those of the zarr that is installed, and with what its source
text calls on stores: https://github.com/zarr-developers/zarr-python/pull/4112 is one to come.
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zarr
from zarr.abc import store as abc
from zarr.abc.store import Store
from zarr.storage import MemoryStore, WrapperStore

from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator

ZARR = Path(zarr.__file__).parent

OWN: dict[type[Store], dict[str, str]] = {
    CacheStore: {
        "__eq__": "WrapperStore: two are equal if their sources are",
        "_check_writable": "the source says whether it is read-only",
        "_read_only": "an attribute of Store; WrapperStore has it only in its source",
        "_store": "the source",
        "read_only": "the source says it",
        "supports_deletes": "deletes reach the source",
        "supports_partial_writes": "Store: always false, as no store writes parts",
        "supports_writes": "writes reach the source",
    },
    SqliteStore: {
        "__enter__": "Store: returns the store, which opens at its first use",
        "__exit__": "Store: closes it",
        "_check_writable": "Store: by read_only",
        "_ensure_open": "Store: calls _open",
        "_get_many": "Store: one get after another, which are not worth a transaction for all",
        "_is_open": "an attribute of Store",
        "_read_only": "an attribute of Store",
        "_store": "an attribute of wrappers, and it is none",
        "_supports_sync_io": "absent: its sync methods always work",
        "_with_store": "of wrappers, and it is none",
        "is_empty": "Store: ends at the first key that list_prefix yields",
        "open": "Store: makes the store and calls _open",
        "read_only": "Store: as it was given",
        "supports_consolidated_metadata": "Store: true, as for any plain store",
        "supports_partial_writes": "Store: always false, as no store writes parts",
    },
}
"""What each class does not override, and what does it instead."""

OF_ONE_CLASS = {
    "_name": "MemoryStore, of another MemoryStore",
    "_state": "zarr's CacheStore, of a view of itself",
    "_store_dict": "MemoryStore, of another MemoryStore",
    "path": "MemoryStore, of another MemoryStore",
}
"""What zarr calls on a store whose class it has checked."""


def members(cls: type) -> Iterator[str]:
    """The names of what a class defines or declares itself: methods, properties, attributes."""
    for name, value in vars(cls).items():
        is_special = name.startswith("__") and not inspect.isfunction(value)
        if not is_special and not name.startswith("_abc_"):
            yield name
    yield from inspect.get_annotations(cls)


def protocols() -> Iterator[type]:
    """What zarr asks whether a store is: ``SupportsGetSync`` and others."""
    for name, value in vars(abc).items():
        if name.startswith("Supports") and inspect.isclass(value):
            yield value


def promised() -> set[str]:
    """Public and special names of what a store is, for zarr's callers."""
    named = {name for cls in (Store, WrapperStore, *protocols()) for name in members(cls)}
    # Every protocol has that one, which is none of its members.
    named.discard("__subclasshook__")
    return {name for name in named if not name.startswith("_") or name.endswith("__")}


def is_store(node: ast.expr) -> bool:
    """Whether an expression is called a store: ``store``, ``self._store``, ``cache_store``."""
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name.endswith("store")


def is_itself(node: ast.expr) -> bool:
    return ast.unparse(node) in {"self", "cls", "super()"}


@cache
def accessed(folder: Path) -> frozenset[tuple[str, bool]]:
    """Names that the source text in the folder uses of anything, and whether of a store.

    Not those that a class uses of itself.
    """
    found = set()
    for path in folder.rglob("*.py"):
        if path.is_relative_to(folder / "testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Attribute(value, name) if not is_itself(value):
                    found.add((name, is_store(value)))
                case ast.Call(
                    ast.Name("getattr" | "hasattr"), [value, ast.Constant(str(name)), *_]
                ):
                    found.add((name, is_store(value)))
    return frozenset(found)


def called(folder: Path) -> set[str]:
    """Names that the source text in the folder uses of stores, from outside of their class.

    That is each name of something called a store, and each private name of Store or WrapperStore
    whatever it is of.
    """
    hooks = {name for cls in (Store, WrapperStore) for name in members(cls) if name[0] == "_"}
    names = {name for name, is_of_store in accessed(folder) if is_of_store or name in hooks}
    # `__class__` and others that every object has.
    return names - set(dir(object))


def overridden(cls: type[Store]) -> set[str]:
    """What the class, or one of ours above it, defines."""
    ours = [each for each in cls.__mro__ if each.__module__.partition(".")[0] == "zarr_cache"]
    return {name for each in ours for name in vars(each)}


def unaccounted(cls: type[Store], folder: Path = ZARR) -> set[str]:
    """What zarr may call on a store, and the class neither overrides nor is listed with."""
    names = promised() | called(folder)
    return names - overridden(cls) - set(OWN[cls]) - set(OF_ONE_CLASS)


OURS = pytest.mark.parametrize("cls", [CacheStore, SqliteStore])


@OURS
def test_nothing_that_zarr_calls_on_a_store_goes_past_ours(cls: type[Store]) -> None:
    assert unaccounted(cls) == set()


@OURS
def test_nothing_is_listed_that_is_overridden(cls: type[Store]) -> None:
    assert overridden(cls) & set(OWN[cls]) == set()


@OURS
def test_nothing_is_listed_that_zarr_does_not_have(cls: type[Store]) -> None:
    declared = set(members(Store)) | set(members(WrapperStore))

    assert set(OWN[cls]) <= declared
    assert set(OF_ONE_CLASS) <= called(ZARR)


@OURS
@pytest.mark.parametrize("base", [Store, WrapperStore])
def test_a_method_that_a_later_zarr_adds_is_found(
    cls: type[Store], base: type[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def get_many(self: Store, requests: Any, *, prototype: Any) -> None:
        """As proposed in zarr-python#4112."""

    monkeypatch.setattr(base, "get_many", get_many, raising=False)

    assert unaccounted(cls) == {"get_many"}


@OURS
def test_a_property_that_a_later_zarr_adds_is_found(
    cls: type[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "supports_batches", property(lambda _: True), raising=False)

    assert unaccounted(cls) == {"supports_batches"}


@OURS
def test_a_method_of_a_protocol_that_a_later_zarr_adds_is_found(
    cls: type[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    class SupportsCopySync:
        def copy_sync(self, key: str) -> None: ...

    monkeypatch.setattr(abc, "SupportsCopySync", SupportsCopySync, raising=False)

    assert unaccounted(cls) == {"copy_sync"}


@OURS
@pytest.mark.parametrize(
    "text",
    [
        "def read(store_path): return store_path.store._prefetch('c/0')",
        "def read(self): return self._store._prefetch('c/0')",
        "def read(store): return getattr(store, '_prefetch', None)",
        "if hasattr(store, '_prefetch'): pass",
    ],
)
def test_a_hook_that_a_later_zarr_calls_on_stores_is_found(
    cls: type[Store], text: str, tmp_path: Path
) -> None:
    (tmp_path / "pipeline.py").write_text(text)

    assert unaccounted(cls, tmp_path) == {"_prefetch"}


@OURS
def test_a_hook_that_a_later_zarr_gives_stores_is_found_where_it_is_called(
    cls: type[Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WrapperStore, "_prefetch", lambda *_: None, raising=False)
    (tmp_path / "pipeline.py").write_text("async def read(where): await where._prefetch('c/0')")

    assert unaccounted(cls, tmp_path) == {"_prefetch"}


class NoConsolidation(MemoryStore):
    """A store that keeps the metadata of a hierarchy together by itself, as Icechunk's does."""

    supports_consolidated_metadata = False


def test_zarr_consolidates_no_metadata_in_a_source_that_refuses_it(path: Path) -> None:
    store = CacheStore(NoConsolidation(), cache_store=SqliteStore(path))
    zarr.create_group(store)

    with pytest.raises(TypeError, match="doesn't support consolidated metadata"):
        zarr.consolidate_metadata(store)
