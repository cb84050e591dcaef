"""Keys that are not quite like others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zarr.storage import LocalStore, LoggingStore, MemoryStore

from tests.fakes import buffer, read
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.errors import UnstorableKeyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from zarr.abc.store import Store

NO_TEXT = "a\udcff"
"""What a file name is whose bytes are no UTF-8."""

KEEPERS: dict[str, Callable[[Path], Store]] = {
    "SqliteStore": SqliteStore,
    "MemoryStore": lambda _: MemoryStore(),
}


@pytest.mark.parametrize("keeper", KEEPERS.values(), ids=KEEPERS)
async def test_a_key_that_is_no_text_passes_by(keeper: Callable[[Path], Store], path: Path) -> None:
    source = MemoryStore({NO_TEXT: buffer(b"one"), "b": buffer(b"b")})
    store = CacheStore(source, cache_store=keeper(path))
    await read(store, "b")

    assert await read(store, NO_TEXT) == b"one"
    assert await store.exists(NO_TEXT)
    assert await store.getsize(NO_TEXT) == 3
    await store.set(NO_TEXT, buffer(b"other"))
    assert await read(store, NO_TEXT) == b"other"
    await store.delete(NO_TEXT)
    await store.delete_dir(NO_TEXT)
    assert await read(store, NO_TEXT) is None
    stats = store.cache_stats()
    await read(store, "b")
    assert store.cache_stats()["hits"] == stats["hits"] + 1
    assert stats["faults"] == 0


@pytest.mark.parametrize("surface", ["get", "set", "delete"])
async def test_sqlite_store_says_that_a_key_is_no_text(surface: str, path: Path) -> None:
    store = SqliteStore(path)
    asked: dict[str, Callable[[], Awaitable[object]]] = {
        "get": lambda: read(store, NO_TEXT),
        "set": lambda: store.set(NO_TEXT, buffer(b"one")),
        "delete": lambda: store.delete(NO_TEXT),
    }
    with pytest.raises(UnstorableKeyError, match=r"a\\udcff"):
        await asked[surface]()


@pytest.mark.parametrize("wrap", [lambda store: store, LoggingStore], ids=["bare", "wrapped"])
@pytest.mark.parametrize("is_sync", [False, True], ids=["async", "sync"])
async def test_a_folder_that_a_local_source_deletes_is_gone_with_all_that_is_in_it(
    wrap: Callable[[Store], Store], is_sync: bool, tmp_path: Path, path: Path
) -> None:
    source = LocalStore(tmp_path / "source")
    store = CacheStore(wrap(source), cache_store=SqliteStore(path))
    for key in ("a/k", "a/b/k", "ab"):
        await store.set(key, buffer(key.encode()))
    if is_sync:
        store.delete_sync("a")
    else:
        await store.delete("a")

    assert [await read(store, key) for key in ("a/k", "a/b/k", "ab")] == [None, None, b"ab"]


def test_a_cache_store_does_not_take_the_namespace_of_its_source(path: Path) -> None:
    inner = CacheStore(MemoryStore(), cache_store=SqliteStore(path), namespace="source")

    with pytest.raises(ValueError, match="'source' is that of the CacheStore"):
        CacheStore(LoggingStore(inner), cache_store=SqliteStore(path), namespace="source")
