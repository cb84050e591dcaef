"""Arrays and groups, written and read through our stores, equal the same without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from tests.arrays.hierarchies import RAMP, WRITERS, contents, plain
from tests.fakes import AsyncOnlyStore, CountingStore, open_file, restart, values
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import Store

    from tests.arrays.hierarchies import BackgroundWorker

pytestmark = [
    pytest.mark.usefixtures("pipeline"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part"),
]


def over_sqlite(path: Path) -> Store:
    return CacheStore(MemoryStore(), cache_store=SqliteStore(path))


def over_sqlite_with_a_small_budget(path: Path) -> Store:
    return CacheStore(MemoryStore(), cache_store=SqliteStore(path), max_size=1500)


def over_sqlite_without_written_data(path: Path) -> Store:
    return CacheStore(MemoryStore(), cache_store=SqliteStore(path), cache_set_data=False)


def over_sqlite_of_an_async_source(path: Path) -> Store:
    return CacheStore(AsyncOnlyStore(MemoryStore()), cache_store=SqliteStore(path))


def over_memory(_: Path) -> Store:
    return CacheStore(MemoryStore(), cache_store=MemoryStore())


def over_local(path: Path) -> Store:
    return CacheStore(MemoryStore(), cache_store=LocalStore(path.with_suffix("")))


STORES = [
    SqliteStore,
    over_sqlite,
    over_sqlite_with_a_small_budget,
    over_sqlite_without_written_data,
    over_sqlite_of_an_async_source,
    over_memory,
    over_local,
]
of_each_store = pytest.mark.parametrize("make_store", STORES)
of_each_hierarchy = pytest.mark.parametrize("write", WRITERS)


def expected_of(write: BackgroundWorker) -> dict[str, Any]:
    """What a reader sees without any store of ours."""
    store = MemoryStore()
    write(store)
    return contents(zarr.open(store, mode="r"))


# The others differ from these in what the tests below are about.
@pytest.mark.pairs
@pytest.mark.parametrize(
    "make_store", [SqliteStore, over_sqlite_with_a_small_budget, over_sqlite_of_an_async_source]
)
@of_each_hierarchy
def test_what_is_written_is_read(
    make_store: Callable[[Path], Store], write: BackgroundWorker, path: Path
) -> None:
    store = make_store(path)
    write(store)

    first, second = (contents(zarr.open(store, mode="r")) for _ in range(2))

    assert first == second == expected_of(write)


@of_each_hierarchy
def test_the_source_holds_what_it_would_hold_without_a_cache(
    write: BackgroundWorker, path: Path
) -> None:
    source, alone = MemoryStore(), MemoryStore()
    write(CacheStore(source, cache_store=SqliteStore(path)))

    write(alone)

    assert source == alone


@of_each_hierarchy
def test_a_sqlite_store_holds_what_another_store_would_hold(
    write: BackgroundWorker, path: Path
) -> None:
    store, alone = SqliteStore(path), MemoryStore()
    write(store)

    write(alone)
    with open_file(path) as db:
        held = dict(db.execute("SELECT key, size FROM entry WHERE kind = 'stored'"))

    assert held == {key: len(value) for key, value in alone._store_dict.items()}


@of_each_hierarchy
def test_what_is_in_a_sqlite_store_is_read_after_a_restart(
    write: BackgroundWorker, path: Path
) -> None:
    store = SqliteStore(path)
    write(store)
    restart(store)

    assert contents(zarr.open(SqliteStore(path), mode="r")) == expected_of(write)


@of_each_store
def test_an_array_saved_after_clearing_is_read(
    make_store: Callable[[Path], Store], path: Path
) -> None:
    store = make_store(path)
    zarr.save(store, np.zeros((30, 30)))
    before = values(zarr.load(store))
    sync(store.clear())

    zarr.save(store, RAMP)  # type: ignore[arg-type] # numpy is newer than zarr

    assert before == np.zeros((30, 30)).tolist()
    assert values(zarr.load(store)) == RAMP.tolist()


@of_each_store
def test_a_resized_array_has_its_new_shape_and_the_old_values(
    make_store: Callable[[Path], Store], path: Path
) -> None:
    store = make_store(path)
    plain(store)
    array = zarr.open_array(store, mode="r+")
    assert values(array) == RAMP.tolist()

    array.resize((20, 16))
    array.resize((40, 16))

    again = zarr.open_array(store, mode="r")
    assert again.shape == (40, 16)
    assert values(again, slice(20)) == RAMP[:20, :16].tolist()
    assert values(again, slice(20, None)) == np.zeros((20, 16)).tolist()


@of_each_store
def test_a_chunk_that_is_rewritten_in_part_keeps_the_rest(
    make_store: Callable[[Path], Store], path: Path
) -> None:
    store = make_store(path)
    plain(store)
    array = zarr.open_array(store, mode="r+")
    assert values(array) == RAMP.tolist()
    expected = RAMP.copy()
    expected[7:33, 3] = -1

    array[7:33, 3] = -1

    assert values(zarr.open_array(store, mode="r")) == expected.tolist()


@of_each_store
def test_changed_attributes_are_read(make_store: Callable[[Path], Store], path: Path) -> None:
    store = make_store(path)
    root = zarr.create_group(store, attributes={"version": 1})
    before = dict(zarr.open_group(store, mode="r").attrs)

    root.attrs["version"] = 2

    assert before == {"version": 1}
    assert dict(zarr.open_group(store, mode="r").attrs) == {"version": 2}


def test_a_source_changed_by_another_program_is_read_when_it_is_stale(path: Path) -> None:
    source = CountingStore(MemoryStore())
    plain(source)
    store = CacheStore(source, cache_store=SqliteStore(path), max_age_seconds=0)
    before = values(zarr.open_array(store, mode="r"))

    zarr.open_array(source, mode="r+")[:] = 0

    assert before == RAMP.tolist()
    assert values(zarr.open_array(store, mode="r")) == np.zeros_like(RAMP).tolist()
