"""Values in another store: what is deleted, and what stays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from zarr.storage import MemoryStore

from tests.fakes import FailingStore, buffer
from zarr_cache.backend.store_values import StoreValues
from zarr_cache.core.errors import StorageError
from zarr_cache.core.flow import run
from zarr_cache.file.database import MemoryDatabase
from zarr_cache.index import listing

if TYPE_CHECKING:
    from zarr.abc.store import Store


def values_in(store: Store, *with_entry: str) -> StoreValues:
    """The values of a store, of which those named have an entry."""
    index = MemoryDatabase()
    index.run(listing.adopt, "source", [(key, 1) for key in with_entry])
    values = StoreValues(store, index)
    run(values.sizes())
    return values


def of(*keys: str) -> MemoryStore:
    return MemoryStore({key: buffer(b"v") for key in keys})


def test_a_value_without_an_entry_is_deleted() -> None:
    store = of("a", "b")
    run(values_in(store, "b").delete(["a", "b"]))

    assert set(store._store_dict) == {"b"}


def test_a_value_that_is_being_written_is_not_deleted() -> None:
    store = of("a")
    values = values_in(store)
    with values.writing(["a"]):
        run(values.delete(["a"]))

    assert set(store._store_dict) == {"a"}
    run(values.delete([]))
    assert set(store._store_dict) == set()


def test_what_is_not_known_to_be_a_value_is_not_deleted() -> None:
    store = of("a", "b/c")
    run(StoreValues(store, MemoryDatabase()).delete(["", "a", "b", "b/"]))

    assert set(store._store_dict) == {"a", "b/c"}


def test_a_value_that_could_not_be_deleted_is_deleted_with_the_next() -> None:
    held = of("a", "b")
    store = FailingStore(held)
    store.fail("delete", "delete_sync")
    values = values_in(store)
    with pytest.raises(StorageError, match="failed, as the test asked"):
        run(values.delete(["a"]))
    run(values.delete(["b"]))

    assert set(held._store_dict) == set()


def test_what_a_failed_write_has_left_is_deleted_with_the_next() -> None:
    held = of()
    store = FailingStore(held)
    store.fail("set", "set_sync", is_done_first=True)
    values = values_in(store)
    with pytest.raises(StorageError), values.writing(["a"]):
        run(values.set("a", np.zeros(1, np.uint8)))
    run(values.delete([]))

    assert set(held._store_dict) == set()
