"""Sharded arrays that are written again while they are read: each window is of one version."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from tests.fakes import restart, values
from tests.freshness.origins import caching
from zarr_cache import SourceChangedError

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import Store

    from tests.fakes import HeldTime
    from tests.freshness.origins import Origin

METADATA_AGE = 10

ONE = np.arange(64 * 64, dtype="i4").reshape(64, 64)
TWO = np.random.default_rng(3).integers(0, 50, (64, 64), dtype="i4")
"""Its inner chunks have other lengths than those of `ONE`, and so other places in their shards."""

WINDOWS = [np.s_[0:8, 0:8], np.s_[0:16, 4:20], np.s_[30:40, 30:50]]


def encoded(data: Any, *, index_at: Any = "end") -> dict[str, bytes]:
    """The values of an array of two by two shards."""
    store = MemoryStore()
    shards: Any = {"shape": (32, 32), "index_location": index_at}
    zarr.create_array(store, data=data, shards=shards, chunks=(8, 8))
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


def read(cache: Store, window: Any) -> Any:
    return np.asarray(zarr.open_array(cache, mode="r", zarr_format=3)[window])


def is_change(error: BaseException) -> bool:
    """Whether a reader is told by this that the value was changed."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_change, error.exceptions))
    return isinstance(error, SourceChangedError)


@pytest.mark.pairs
@pytest.mark.parametrize(
    ("persist", "is_restarted", "index_at"),
    [
        pytest.param(False, False, "end", id="in memory-one process-end"),
        pytest.param(True, False, "start", id="persisted-one process-start"),
        pytest.param(True, True, "end", id="persisted-two processes-end"),
    ],
)
@pytest.mark.usefixtures("pipeline")
def test_a_window_of_a_shard_that_was_replaced_is_of_one_version(
    origin: Origin,
    path: Path,
    held_time: HeldTime,
    persist: bool,
    index_at: str,
    is_restarted: bool,
) -> None:
    settings = {"persist_ranges": persist, "max_age_metadata_seconds": METADATA_AGE}
    origin.copy(encoded(ONE, index_at=index_at))
    cache = caching(origin, path, **settings)
    first, *others = WINDOWS
    assert read(cache, first).tolist() == ONE[first].tolist()
    origin.copy(encoded(TWO, index_at=index_at))
    held_time.step(METADATA_AGE + 1)
    if is_restarted:
        restart(cache)
        cache = caching(origin, path, **settings)

    # Where the version is asked for first, nothing of the earlier one is served any more.
    is_mixed = not origin.asks_first and (persist or not is_restarted)
    with pytest.raises((SourceChangedError, ExceptionGroup)) if is_mixed else nullcontext() as told:
        read(cache, others[0])
    assert told is None or is_change(told.value)
    windows = [others[0], *WINDOWS]
    assert [read(cache, each).tolist() for each in windows] == [
        TWO[each].tolist() for each in windows
    ]
    restart(cache)


@pytest.mark.usefixtures("pipeline")
def test_a_version_is_asked_for_once_a_process_and_once_the_age_of_metadata_has_passed(
    origin: Origin, path: Path, held_time: HeldTime
) -> None:
    origin.copy(encoded(ONE))
    settings = {"persist_ranges": True, "max_age_metadata_seconds": METADATA_AGE}
    before = caching(origin, path, **settings)
    read(before, np.s_[0:8, 0:8])
    restart(before)
    cache = caching(origin, path, **settings)
    array = zarr.open_array(cache, mode="r", zarr_format=3)
    asked = []
    for seconds in (0, 0, METADATA_AGE + 1, METADATA_AGE - 1):
        held_time.step(seconds)
        origin.reset()
        assert values(array, np.s_[0:8, 0:8]) == ONE[0:8, 0:8].tolist()
        asked.append(origin.asked().requests)

    # A response of obstore's tells its version, and nothing is missing here.
    once = ["HEAD"] if origin.asks_first else []
    assert asked == [once, [], once, []]
    restart(cache)
