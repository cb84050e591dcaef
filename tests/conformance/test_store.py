"""zarr's own tests of a store, unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from zarr.core.buffer import Buffer, cpu
from zarr.storage import LocalStore, MemoryStore
from zarr.testing.store import StoreTests

from tests.fakes import buffer, open_file
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import Store

PARTS = """
SELECT value.data
FROM entry
JOIN value ON value.entry = entry.id
WHERE entry.key = :key AND entry.kind = 'stored'
ORDER BY value.part
"""


class TestSqliteStore(StoreTests[SqliteStore, cpu.Buffer]):
    store_cls = SqliteStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, path: Path) -> dict[str, Any]:
        # A read-only store of a file that does not exist raises FileNotFoundError.
        with SqliteStore(path) as store:
            store.delete_sync("nothing")
        return {"path": path}

    async def set(self, store: SqliteStore, key: str, value: Buffer) -> None:
        # Only SqliteStore knows the checksums, so another one writes, as another program would.
        SqliteStore(store.path).set_sync(key, value)

    async def get(self, store: SqliteStore, key: str) -> Buffer:
        with open_file(store.path) as db:
            return buffer(b"".join(data for (data,) in db.execute(PARTS, {"key": key})))

    def test_store_repr(self, store: SqliteStore) -> None:
        assert repr(store) == f"SqliteStore({str(store.path)!r})"

    def test_store_supports_writes(self, store: SqliteStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: SqliteStore) -> None:
        assert store.supports_listing


class CacheStoreTests(StoreTests[CacheStore, cpu.Buffer]):
    """On a CacheStore: what zarr's tests set and get directly is set and gotten in the source."""

    store_cls = CacheStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def cache_store(self) -> Store:
        raise NotImplementedError

    @pytest.fixture
    def store_kwargs(self, cache_store: Store) -> dict[str, Any]:
        return {"store": MemoryStore(), "cache_store": cache_store}

    async def set(self, store: CacheStore, key: str, value: Buffer) -> None:
        source = store._store
        assert isinstance(source, MemoryStore)
        source._store_dict[key] = value

    async def get(self, store: CacheStore, key: str) -> Buffer:
        source = store._store
        assert isinstance(source, MemoryStore)
        return source._store_dict[key]

    def test_store_repr(self, store: CacheStore) -> None:
        named = f"CacheStore(store=<MemoryStore>, namespace={store.namespace!r}, cache_store="
        assert repr(store).startswith(named)

    def test_store_supports_writes(self, store: CacheStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: CacheStore) -> None:
        assert store.supports_listing


class TestCacheStoreOverSqliteStore(CacheStoreTests):
    @pytest.fixture
    def cache_store(self, path: Path) -> Store:
        return SqliteStore(path)


class TestCacheStoreOverMemoryStore(CacheStoreTests):
    @pytest.fixture
    def cache_store(self) -> Store:
        return MemoryStore()


class TestCacheStoreOverLocalStore(CacheStoreTests):
    @pytest.fixture
    def cache_store(self, tmp_path: Path) -> Store:
        return LocalStore(tmp_path / "cache")
