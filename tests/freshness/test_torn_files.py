"""A local file that changes while it is read is returned as it was read, and not cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import zarr.storage._local as zarr_local
from zarr.abc.store import RangeByteRequest
from zarr.core.sync import sync
from zarr.storage import LocalStore

from tests.fakes import PROTOTYPE, read, read_ranges
from tests.freshness.origins import settle, version
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

KEY = "c0"
PART = RangeByteRequest(0, 100)

READS: dict[str, Any] = {
    "get": lambda store: sync(read(store, KEY)),
    "get of a range": lambda store: sync(read(store, KEY, PART)),
    "get_sync": lambda store: store.get_sync(KEY).to_bytes(),
    "get_ranges": lambda store: sync(read_ranges(store, KEY, [PART]))[0],
    "get_ranges_sync": lambda store: store.get_ranges_sync(KEY, [PART], prototype=PROTOTYPE)[0][
        1
    ].to_bytes(),
}


@pytest.mark.parametrize("ask", READS.values(), ids=READS)
def test_it_is_not_cached(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, ask: Any
) -> None:
    file = tmp_path / "source" / KEY
    file.parent.mkdir()
    file.write_bytes(version(1))
    settle(file, 0)
    cache = CacheStore(
        LocalStore(file.parent, read_only=True), cache_store=SqliteStore(path), persist_ranges=True
    )
    original = zarr_local._get

    def read_and_change(*arguments: Any) -> Any:
        monkeypatch.undo()
        found = original(*arguments)
        file.write_bytes(version(2))
        settle(file, 1)
        return found

    monkeypatch.setattr(zarr_local, "_get", read_and_change)
    first, again = ask(cache), ask(cache)

    assert (set(first), set(again)) == ({1}, {2})
