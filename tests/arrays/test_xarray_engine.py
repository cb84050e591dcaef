"""xarray's engine "zarr_cache": xarray's own Zarr engine, over the store of `open_store`."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray
from zarr.storage import LocalStore

from tests.arrays.test_xarray import temperatures
from tests.docs.entry_points import write_entry_points, xarray_engines
from tests.fakes import cached_keys
from zarr_cache import SqliteStore
from zarr_cache.cache.xarray_engine import OPTIONS, ZarrCacheEntrypoint

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    temperatures().chunk(time=5).to_zarr(tmp_path / "root.zarr", zarr_format=3)
    temperatures().drop_vars("station").to_zarr(
        tmp_path / "root.zarr", group="north", mode="a", zarr_format=3, consolidated=False
    )
    return tmp_path / "root.zarr"


@pytest.fixture
def options(path: Path) -> dict[str, Any]:
    """The engine by its class: a checkout that is not installed has no entry point."""
    return {"engine": ZarrCacheEntrypoint, "max_size": "1 GiB", "cache_file": path}


def test_the_entry_point_is_the_class() -> None:
    loaded = {
        name: EntryPoint(name, place, "xarray.backends").load()
        for name, place in xarray_engines().items()
    }

    assert loaded == {"zarr_cache": ZarrCacheEntrypoint}


def test_the_engine_is_found_by_its_name(folder: Path, tmp_path: Path, path: Path) -> None:
    write_entry_points(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(f"""
import xarray
xarray.open_dataset({str(folder)!r}, engine="zarr_cache", max_size=None, cache_file={str(path)!r})
""")
    # What the tests import, as they do.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

    subprocess.run([sys.executable, script], env=environment, check=True)

    assert "zarr.json" in cached_keys(path)


def test_a_dataset_is_read_through_the_cache(
    folder: Path, path: Path, options: dict[str, Any]
) -> None:
    with xarray.open_dataset(folder, **options) as opened:
        xarray.testing.assert_identical(opened.load(), temperatures())

    assert {"zarr.json", "temperature/c/0/0", "temperature/c/1/0"} <= cached_keys(path)


def test_options_of_the_cache_and_of_xarray_reach_their_own(
    folder: Path, path: Path, options: dict[str, Any]
) -> None:
    opened = xarray.open_dataset(
        folder,
        group="north",
        consolidated=False,
        decode_times=False,
        drop_variables=["height"],
        namespace="named",
        **options,
    )
    opened.close()
    with SqliteStore(path) as store:
        names = store.database.run(
            lambda connection: connection.execute("SELECT name FROM namespace").fetchall()
        )

    assert set(opened.variables) == {"temperature", "time"}
    assert opened["time"].dtype == np.int64
    assert ("named",) in names


def test_decode_cf_reaches_xarray(folder: Path, options: dict[str, Any]) -> None:
    opened = xarray.open_dataset(folder, decode_cf=False, **options)

    assert opened["time"].dtype == np.int64


def test_storage_options_reach_the_client(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="storage_options are for a client"):
        xarray.open_dataset("folder.zarr", storage_options={"anon": True}, **options)


def test_several_are_opened_together(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    temperatures().to_zarr(tmp_path / "other.zarr", zarr_format=3)

    with xarray.open_mfdataset(
        [folder, tmp_path / "other.zarr"], combine="nested", concat_dim="run", **options
    ) as opened:
        assert opened["temperature"].sizes == {"run": 2, "time": 10, "height": 3}
        xarray.testing.assert_equal(opened.isel(run=1).load(), temperatures())


def test_groups_are_opened_as_a_tree_and_by_their_paths(
    folder: Path, options: dict[str, Any]
) -> None:
    with xarray.open_datatree(folder, consolidated=False, **options) as tree:
        xarray.testing.assert_identical(
            tree["north"].to_dataset().load(), temperatures().drop_vars("station")
        )
    groups = xarray.open_groups(folder, consolidated=False, **options)

    assert set(groups) == {"/", "/north"}
    for group in groups.values():
        group.close()


def test_dask_reads_in_other_processes(folder: Path, options: dict[str, Any]) -> None:
    opened = pickle.loads(pickle.dumps(xarray.open_dataset(folder, chunks={}, **options)))  # noqa: S301 - our own

    mean = opened["temperature"].mean().compute(scheduler="processes", num_workers=1)
    opened.close()

    assert mean == temperatures()["temperature"].mean()


def test_the_store_is_closed_with_the_dataset(
    folder: Path, path: Path, options: dict[str, Any]
) -> None:
    opened = xarray.open_dataset(folder, **options)
    opened.load()
    database = SqliteStore(path).database
    assert database.is_open

    opened.close()

    assert not database.is_open


def test_a_store_is_closed_that_holds_no_dataset(
    tmp_path: Path, path: Path, options: dict[str, Any]
) -> None:
    (tmp_path / "empty.zarr").mkdir()

    with pytest.raises(FileNotFoundError):
        xarray.open_dataset(tmp_path / "empty.zarr", **options)
    assert not SqliteStore(path).database.is_open


def test_a_limit_must_be_named(folder: Path) -> None:
    with pytest.raises(TypeError, match="needs max_size"):
        xarray.open_dataset(folder, engine=ZarrCacheEntrypoint)


def test_a_wrong_option_is_refused(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="maxsize"):
        xarray.open_dataset(folder, maxsize=1, **options)


def test_a_store_is_not_a_url(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"got LocalStore: .* CacheStore\(store"):
        xarray.open_dataset(LocalStore(folder), **options)  # type: ignore[arg-type] # what the test is about


def test_it_is_used_only_by_name(folder: Path) -> None:
    assert not ZarrCacheEntrypoint().guess_can_open(str(folder))


def test_it_takes_the_options_of_both() -> None:
    found = ZarrCacheEntrypoint.open_dataset_parameters
    assert found is not None

    assert OPTIONS | {"filename_or_obj", "decode_times", "group"} <= set(found)
    assert len(found) == len(set(found))


def test_importing_the_package_imports_no_xarray() -> None:
    code = "import sys, zarr_cache; sys.exit('xarray' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
