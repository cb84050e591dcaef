"""Reads an array of a snapshot through a cache, in a process of its own, and prints what it was.

Arguments: the repository, the snapshot, the cache file, the array. Prints the values and the number
of requests of the source.
"""

from __future__ import annotations

import json
import sys

import icechunk
import zarr

from tests.fakes import CountingStore, values
from zarr_cache import CacheStore, SqliteStore

folder, snapshot, path, name = sys.argv[1:]
repository = icechunk.Repository.open(icechunk.local_filesystem_storage(folder))
source = CountingStore(repository.readonly_session(snapshot_id=snapshot).store)
store = CacheStore(source, cache_store=SqliteStore(path))
array = zarr.open_array(store, path=name, mode="r", zarr_format=3)
sys.stdout.write(json.dumps([values(array), sum(source.requests.values())]))
