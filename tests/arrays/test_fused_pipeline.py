"""zarr's fused pipeline reads what is cached without an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from tests.arrays.hierarchies import plain, sharded, sparse
from tests.fakes import AsyncOnlyStore, CountingStore, values
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.arrays.hierarchies import Writer

pytestmark = pytest.mark.usefixtures("held_time")


@pytest.fixture(autouse=True)
def _fused_pipeline() -> Iterator[None]:
    fused = "zarr.core.codec_pipeline.FusedCodecPipeline"
    with zarr.config.set({"codec_pipeline.path": fused}):
        yield


def no_event_loop(*_: Any, **__: Any) -> Any:
    msg = "the async surface was called"
    raise AssertionError(msg)


@pytest.mark.parametrize("kind", [CountingStore, AsyncOnlyStore])
@pytest.mark.parametrize("where", [np.s_[:], np.s_[3:9, 4:7]], ids=["whole", "window"])
@pytest.mark.parametrize("write", [plain, sharded, sparse])
def test_a_warm_read_makes_no_trip_through_an_event_loop(
    kind: type[CountingStore],
    where: Any,
    write: Writer,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = MemoryStore()
    write(source)
    store = CacheStore(kind(source), cache_store=SqliteStore(path))
    array = zarr.open_array(store, mode="r")
    # It takes some hits until a source without a sync surface is read through this one.
    expected = [values(array, where) for _ in range(10)]
    monkeypatch.setattr(CacheStore, "get", no_event_loop)
    monkeypatch.setattr(CacheStore, "get_ranges", no_event_loop)

    again = values(array, where)

    assert [again] * 10 == expected
