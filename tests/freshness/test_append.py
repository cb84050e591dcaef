"""Two caches over one array, and appends through both: no row is lost (pydata/xarray#5878)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.storage import LocalStore

from tests.fakes import values
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

ORDER = [0, 1, 0, 1, 1, 0, 0]
"""Which of the two caches each append goes through."""


def caches(tmp_path: Path, **settings: Any) -> list[CacheStore]:
    """Two caches over one folder, each with a file of its own, as on two machines."""
    return [
        CacheStore(
            LocalStore(tmp_path / "source"),
            cache_store=SqliteStore(tmp_path / f"{name}.sqlite"),
            **settings,
        )
        for name in ("one", "other")
    ]


def append(stores: list[CacheStore], tmp_path: Path, *, rows: int, **array: Any) -> list[list[int]]:
    """The first column by the source and by each cache, after rows were appended in turn."""
    plain = LocalStore(tmp_path / "source")
    zarr.create_array(plain, shape=(0, 4), dtype="i4", **array)
    for number, which in enumerate(ORDER):
        data: Any = np.full((rows, 4), number)
        zarr.open_array(stores[which], mode="a").append(data)
    return [
        values(zarr.open_array(store, mode="r+"), np.s_[:, 0])  # in mode "r" it may be an old one
        for store in (plain, *stores)
    ]


@pytest.mark.parametrize(
    "array",
    [
        {"chunks": (2, 4), "zarr_format": 2},
        {"chunks": (2, 4), "zarr_format": 3},
        {"chunks": (2, 4), "shards": (6, 4)},
    ],
    ids=["format 2", "format 3", "shards"],
)
@pytest.mark.usefixtures("pipeline")
def test_rows_that_are_appended_through_two_caches_are_all_there(
    tmp_path: Path, array: Any
) -> None:
    expected = [number for number in range(len(ORDER)) for _ in range(6)]

    assert append(caches(tmp_path), tmp_path, rows=6, **array) == [expected] * 3


@pytest.mark.parametrize(
    "array",
    [{"chunks": (8, 4)}, {"chunks": (3, 4), "shards": (12, 4)}],
    ids=["chunks", "shards"],
)
@pytest.mark.usefixtures("pipeline")
def test_rows_in_chunks_that_both_fill_are_all_there_if_chunks_are_revalidated(
    tmp_path: Path, array: Any
) -> None:
    stores = caches(tmp_path, max_age_seconds=0)
    expected = [number for number in range(len(ORDER)) for _ in range(2)]

    assert append(stores, tmp_path, rows=2, **array) == [expected] * 3


@pytest.mark.filterwarnings("ignore:Consolidated metadata:zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("is_consolidated", [False, True], ids=["plain", "consolidated"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_xarray_appends_through_two_caches_is_all_there(
    tmp_path: Path, zarr_format: Any, is_consolidated: bool
) -> None:
    def day(number: int) -> xr.Dataset:
        return xr.Dataset({"t": (("day", "x"), np.full((1, 3), number))}, coords={"day": [number]})

    settings: Any = {"consolidated": is_consolidated, "zarr_format": zarr_format}
    plain, stores = LocalStore(tmp_path / "source"), caches(tmp_path)
    day(0).to_zarr(plain, encoding={"t": {"chunks": (1, 3)}, "day": {"chunks": (1,)}}, **settings)
    for number, which in enumerate(ORDER, start=1):
        day(number).to_zarr(stores[which], append_dim="day", **settings)

    with xr.open_zarr(plain, consolidated=is_consolidated, chunks=None) as found:
        assert found["day"].values.tolist() == list(range(len(ORDER) + 1))
        assert found["t"].values[:, 0].tolist() == list(range(len(ORDER) + 1))


def test_metadata_that_is_taken_for_fresh_loses_rows(tmp_path: Path) -> None:
    """What the tests above are about."""
    stores = caches(tmp_path, max_age_metadata_seconds="infinity")

    assert len(append(stores, tmp_path, rows=6, chunks=(2, 4))[0]) < 6 * len(ORDER)
