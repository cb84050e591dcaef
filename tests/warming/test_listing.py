"""What is cached below a prefix is found by one walk along the index of the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from tests.fakes import buffer, file_cache
from tests.warming.arrays import cached, rows
from zarr_cache import CacheStore, coverage, warm
from zarr_cache.core.flow import run
from zarr_cache.index import listing
from zarr_cache.warming.cached_chunks import list_cached
from zarr_cache.warming.coverage import source_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from zarr_cache.file.connection import Connection

# Nothing is kept in another store under the name of a folder.
KEYS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4).filter(
    lambda key: not key.endswith("/")
)


def test_only_the_keys_below_the_prefix_are_walked(path: Path) -> None:
    plans: list[str] = []

    def explain(connection: Connection) -> None:
        parameters = dict.fromkeys(
            ("namespace", "prefix", "end", "fresh_after", "absent_fresh_after"), 0
        )
        rows = connection.execute(f"EXPLAIN QUERY PLAN {listing.LIST_CACHED}", parameters)
        plans.extend(detail for *_, detail in rows)

    _, store, _ = cached(rows(1), path)
    file_cache(store)._database.run(explain)

    walks = [plan for plan in plans if plan.startswith(("SEARCH entry", "SCAN entry"))]
    assert "(namespace=? AND key>? AND key<?)" in walks[0]
    assert walks[1:] == ["SEARCH entry USING INTEGER PRIMARY KEY (rowid=?)"]


def test_coverage_takes_one_query(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, array = cached(rows(50), path)
    warm(array)
    calls: list[tuple[Any, ...]] = []

    def count(*arguments: Any) -> Any:
        calls.append(arguments)
        return original(*arguments)

    original = listing.list_cached
    monkeypatch.setattr(listing, "list_cached", count)

    assert coverage(array).all()
    assert len(calls) == 1


@given(st.sets(KEYS, max_size=12), st.text(st.characters(exclude_categories=["Cs"]), max_size=2))
def test_the_keys_found_are_those_that_begin_with_the_prefix(keys: set[str], prefix: str) -> None:
    source = MemoryStore({key: buffer(key.encode()) for key in keys})
    store = CacheStore(source, cache_store=MemoryStore())
    for key in keys:
        store.get_sync(key)

    found = run(list_cached(source_of(store), prefix))

    expected = {key: len(key.encode()) for key in keys if key.startswith(prefix)}
    assert {key: size for key, (_, size) in found.items()} == expected


def test_an_array_at_the_root_has_coverage(path: Path) -> None:
    memory = MemoryStore()
    zarr.create_array(memory, shape=4, chunks=1, dtype="u1")[:] = 1
    store = CacheStore(memory, cache_store=MemoryStore())
    array = zarr.open_array(store, mode="r")
    array[1:3]

    assert coverage(array).tolist() == [False, True, True, False]
    assert not path.exists()
