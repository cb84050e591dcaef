"""The installed wheel opens a cache file and reads from it, away from any checkout."""

import re
import tempfile
from importlib.metadata import entry_points, metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import zarr
from zarr.storage import LocalStore

import zarr_cache
from zarr_cache import CacheStore, SqliteStore

with tempfile.TemporaryDirectory() as folder:
    data = np.arange(12)
    zarr.create_array(f"{folder}/source.zarr", data=data, chunks=(4,))
    for expected_misses in (True, False):
        store = CacheStore(
            LocalStore(f"{folder}/source.zarr", read_only=True),
            cache_store=SqliteStore(f"{folder}/cache.sqlite"),
        )
        found = zarr.open_array(store, mode="r")[...]
        stats = store.cache_stats()
        store.close()
        assert np.array_equal(found, data), found  # noqa: S101 - a script that fails, no library
        assert bool(stats["misses"]) == expected_misses, stats  # noqa: S101
    with zarr_cache.open_store(
        f"{folder}/source.zarr", max_size="1 MiB", cache_file=f"{folder}/cache.sqlite"
    ) as store:
        found = zarr.open_array(store, mode="r")[...]
        assert np.array_equal(found, data), found  # noqa: S101
        assert not store.cache_stats()["misses"], store.cache_stats()  # noqa: S101
    (engine,) = entry_points(group="xarray.backends", name="zarr_cache")
    assert find_spec(engine.module) is not None, engine  # noqa: S101
    # What the package index shows. A relative link leads nowhere there.
    page = metadata("zarr-cache").json["description"]
    links = re.findall(r"\]\(([^)]+)\)", str(page))
    assert links, page  # noqa: S101
    assert all(link.startswith("https://") for link in links), links  # noqa: S101
    print(f"{Path(zarr_cache.__file__).parent}: {stats}")
