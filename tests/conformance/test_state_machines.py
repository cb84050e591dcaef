"""zarr's state machine of a hierarchy: it is in our stores what it is in memory.

Its machine of a store is run in tests/property: test_sqlite_store.py and test_truth.py.
The budgets are so small that eviction never stops. ``ZARR_CACHE_STRESS=n`` tries n times as many
sequences; on CI (``CI`` is set) they are the same each time.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, run_state_machine_as_test
from zarr.storage import MemoryStore
from zarr.testing.stateful import ZarrHierarchyStateMachine

from tests.fakes import STRESS, assert_accounts, cached_bytes, close_everything
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zarr.abc.store import Store

# zarr's strategies draw data types that have no specification in zarr format 3.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")

BUDGETS = pytest.mark.parametrize("max_size", [64, 1000])

MANY_OPERATIONS = settings(
    max_examples=4 * STRESS,
    stateful_step_count=25,
    derandomize="CI" in os.environ,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class FreshFile:
    """Gives each sequence of operations a file of its own, and takes it away afterwards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0

    @contextmanager
    def __call__(self) -> Iterator[Path]:
        self._number += 1
        path = self._folder / f"{self._number}.sqlite"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def run(
    folder: Path,
    make_store: Callable[[Path], Store],
    *,
    max_size: int | None = None,
) -> None:
    """Run zarr's machine on stores that `make_store` makes, each on a fresh file."""
    fresh_file = FreshFile(folder)

    class OnFreshFile(ZarrHierarchyStateMachine):
        def __init__(self) -> None:
            self._file: AbstractContextManager[Path] = fresh_file()
            self._path = self._file.__enter__()
            self._under_test = make_store(self._path)
            super().__init__(self._under_test)

        @invariant()
        def bytes_are_within_the_budget(self) -> None:
            limit = float("inf") if max_size is None else max_size
            in_file = cached_bytes(self._path)
            in_memory = range_bytes(self._under_test)

            assert in_file + in_memory <= limit

        def teardown(self) -> None:
            super().teardown()
            self._under_test.close()
            assert_accounts(self._path)
            # Windows removes no file that is open.
            close_everything()
            self._file.__exit__(None, None, None)

    run_state_machine_as_test(OnFreshFile, settings=MANY_OPERATIONS)


def range_bytes(store: Store) -> int:
    """Bytes of the parts of values in memory; a SqliteStore keeps none."""
    return int(store.cache_info()["range_size"]) if isinstance(store, CacheStore) else 0


def test_a_hierarchy_in_a_sqlite_store_is_one_in_memory(tmp_path: Path) -> None:
    run(tmp_path, SqliteStore)


@BUDGETS
def test_a_hierarchy_in_a_cache_store_that_evicts_all_the_time_is_one_in_memory(
    tmp_path: Path, max_size: int
) -> None:
    run(tmp_path, cached(max_size), max_size=max_size)


def cached(max_size: int) -> Callable[[Path], Store]:
    """Makes a CacheStore over an empty source, with that budget."""

    def make(path: Path) -> Store:
        return CacheStore(MemoryStore(), cache_store=SqliteStore(path), max_size=max_size)

    return make
