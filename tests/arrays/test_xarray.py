"""xarray's own way in: what it writes it reads, and a second look makes no request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, restart
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import Store

pytestmark = [
    pytest.mark.usefixtures("pipeline", "held_time"),
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part"),
]

of_each_format = pytest.mark.parametrize("zarr_format", [2, 3])


def cached(path: Path) -> Store:
    return CacheStore(MemoryStore(), cache_store=SqliteStore(path))


def temperatures() -> xarray.Dataset:
    """Two variables over coordinates, one with missing values, with attributes."""
    days, heights = np.arange("2024-01-01", "2024-01-11", dtype="M8[D]"), [0.0, 10.0, 100.0]
    values = np.linspace(-5, 30, 30).reshape(10, 3)
    values[4, 1] = np.nan
    return xarray.Dataset(
        {
            "temperature": (("time", "height"), values, {"units": "degC"}),
            "station": ("time", [f"station {number}" for number in range(10)]),
        },
        coords={"time": days.astype("M8[ns]"), "height": heights},
        attrs={"title": "ten days"},
    )


@of_each_format
@pytest.mark.parametrize("make_store", [SqliteStore, cached])
def test_a_dataset_is_read_as_it_was_written(
    make_store: Callable[[Path], Store], zarr_format: Any, path: Path
) -> None:
    store = make_store(path)
    temperatures().to_zarr(store, zarr_format=zarr_format)

    with xarray.open_zarr(store) as opened:
        xarray.testing.assert_identical(opened.load(), temperatures())


@of_each_format
@pytest.mark.parametrize("make_store", [SqliteStore, cached])
def test_what_is_appended_is_read(
    make_store: Callable[[Path], Store], zarr_format: Any, path: Path
) -> None:
    store = make_store(path)
    data = temperatures().drop_vars("station")
    data.isel(time=slice(0, 4)).to_zarr(store, zarr_format=zarr_format)
    with xarray.open_zarr(store) as opened:
        assert opened.load().sizes["time"] == 4

    data.isel(time=slice(4, None)).to_zarr(store, append_dim="time")

    with xarray.open_zarr(store) as opened:
        xarray.testing.assert_equal(opened.load(), data)


@of_each_format
def test_a_dataset_that_was_read_is_read_in_a_new_process_without_a_request(
    zarr_format: Any, path: Path
) -> None:
    source = CountingStore(MemoryStore())
    temperatures().to_zarr(source, zarr_format=zarr_format)
    first = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    with xarray.open_zarr(first) as opened:
        opened.load()
    restart(first)
    source.reset()

    second = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    with xarray.open_zarr(second) as opened:
        xarray.testing.assert_identical(opened.load(), temperatures())

    assert source.requests == {}, source.keys
