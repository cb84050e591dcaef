"""`open_store`: a path or a URL becomes a CacheStore, with the options of the class."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

from tests.sources.s3 import BUCKET, FOLDER, serving_s3
from zarr_cache import CacheStore, SqliteStore, open_store
from zarr_cache.cli.demo.server import DemoServer

if TYPE_CHECKING:
    from pathlib import Path

DATA = np.arange(12)

THREE_LINES = """
import sys, zarr, zarr_cache
url, cache_file, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
store = zarr_cache.open_store(url, max_size="1 GiB", cache_file=cache_file,
                              namespace="served", storage_options=options)
print(zarr.open_array(store, mode="r")[...].sum())
"""


def parameters_of(function: Any) -> dict[str, Any]:
    return {name: each.default for name, each in inspect.signature(function).parameters.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    zarr.create_array(tmp_path / "data.zarr", data=DATA, chunks=(4,))
    return tmp_path / "data.zarr"


def test_it_has_every_option_of_the_class_with_the_same_default_but_two() -> None:
    of_the_class = parameters_of(CacheStore)
    del of_the_class["store"], of_the_class["cache_store"]
    own = parameters_of(open_store)
    del own["url"], own["cache_file"], own["storage_options"]

    assert own == of_the_class | {
        "max_size": inspect.Parameter.empty,
        "persist_ranges": True,
        "read_only": True,
    }


def test_every_option_reaches_the_store(folder: Path, path: Path) -> None:
    options: dict[str, Any] = {
        "max_size": 10**6,
        "max_age_seconds": 7.0,
        "max_age_metadata_seconds": 6.0,
        "when_full": "keep",
        "cache_set_data": False,
        "max_age_absent_seconds": 5.0,
        "namespace": "named",
        "persist_ranges": False,
        "max_memory": 10**5,
        "stale_if_error_seconds": 4.0,
        "offline": True,
        "read_only": False,
    }
    store = open_store(folder, cache_file=path, **options)
    like = CacheStore(store._store, cache_store=SqliteStore(path), **options)

    assert set(options) == set(parameters_of(CacheStore)) - {"store", "cache_store"}
    assert store._view.settings == like._view.settings
    assert store.namespace == "named"
    assert store._cache == like._cache


def test_a_limit_must_be_named(folder: Path) -> None:
    with pytest.raises(TypeError, match="max_size"):
        open_store(folder)  # type: ignore[call-arg] # what the test is about


def test_a_folder_is_read_through_the_cache_also_in_another_process(
    folder: Path, path: Path
) -> None:
    with open_store(folder, max_size="1 GiB", cache_file=path) as store:
        assert np.array_equal(zarr.open_array(store, mode="r")[...], DATA)

    with pickle.loads(pickle.dumps(store)) as copy:  # noqa: S301 - our own
        assert np.array_equal(zarr.open_array(copy, mode="r")[...], DATA)
        assert copy.cache_stats()["misses"] == 0
        assert copy.read_only


def test_nothing_is_opened_before_the_first_use(tmp_path: Path, path: Path) -> None:
    store = open_store(tmp_path / "missing.zarr", max_size=None, cache_file=path)

    assert not path.exists()
    with pytest.raises(FileNotFoundError, match=r"missing\.zarr does not exist"):
        zarr.open_array(store, mode="r")
    assert not (tmp_path / "missing.zarr").exists()


def test_it_writes_where_it_may(tmp_path: Path, path: Path) -> None:
    store = open_store(tmp_path / "new.zarr", max_size=None, cache_file=path, read_only=False)
    zarr.create_array(store, data=DATA)

    assert np.array_equal(zarr.open_array(tmp_path / "new.zarr", mode="r")[...], DATA)


def test_a_store_is_not_a_url() -> None:
    with pytest.raises(TypeError, match=r"got MemoryStore: .* CacheStore\(store"):
        open_store(MemoryStore(), max_size=None)  # type: ignore[arg-type] # what the test is about


def test_read_only_is_true_or_false(folder: Path) -> None:
    with pytest.raises(TypeError, match="read_only must be True or False, got None"):
        open_store(folder, max_size=None, read_only=None)  # type: ignore[arg-type] # the same


# The HTTP client of fsspec hands options that it does not know to each request.
@pytest.mark.parametrize("options", [None, {"allow_redirects": True}], ids=["obstore", "fsspec"])
def test_a_script_of_three_lines_prints_nothing_else(
    folder: Path, path: Path, options: dict[str, Any] | None
) -> None:
    with DemoServer(folder) as server:
        script = [sys.executable, "-W", "always::ResourceWarning", "-c", THREE_LINES]
        run = subprocess.run(
            [*script, server.url, path, repr(options)], capture_output=True, text=True, check=False
        )

    assert (run.stdout, run.stderr) == (f"{DATA.sum()}\n", "")


@pytest.mark.parametrize(
    ("client", "account"),
    [
        ("FsspecStore", {"key": "key", "secret": "secret"}),
        (
            "ObjectStore",
            {"access_key_id": "key", "secret_access_key": "secret", "region": "us-east-1"},
        ),
    ],
)
def test_a_bucket_is_read_with_the_options_of_either_client(
    folder: Path, path: Path, client: str, account: dict[str, str]
) -> None:
    with serving_s3() as server:
        for file in folder.rglob("*"):
            if file.is_file():
                server.put(file.relative_to(folder).as_posix(), file.read_bytes())
        store = open_store(
            f"s3://{BUCKET}/{FOLDER}",
            max_size="1 GiB",
            cache_file=path,
            storage_options={**account, "endpoint_url": server.url},
        )

        assert np.array_equal(zarr.open_array(store, mode="r")[...], DATA)
        assert type(store._store).__name__ == client
        assert store.namespace == f"s3://{BUCKET}/{FOLDER} at {server.url}"
