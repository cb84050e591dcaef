"""Sharded arrays of many kinds, windows of them, and a process that reads these through a cache.

Apart from the tests, since a child imports the module of its function.
"""

from __future__ import annotations

import hashlib
import warnings
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import aiohttp  # noqa: F401 - imported once, and not by each child
import fsspec.implementations.http  # noqa: F401 - the same
import numpy as np
import obstore.store
import zarr
from zarr.storage import FsspecStore, ObjectStore

from tests.fakes import STRESS
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import Store

NAMESPACE = "sharded"


@cache
def content(shard: tuple[int, int], inner: tuple[int, int]) -> Any:
    """Numbers for two by two shards: one shard is absent, and of another the first inner chunk."""
    (rows, columns), (height, width) = shard, inner
    data = np.random.default_rng(7).integers(1, 2**31, (2 * rows, 2 * columns), dtype="i4")
    data[:rows, columns:] = 0
    data[rows : rows + height, columns : columns + width] = 0
    return data


class Kind(NamedTuple):
    """How an array of 4-byte numbers is sharded: into two by two shards.

    Attributes
    ----------
    index_at
        Where the index of a shard is.
    inner, shard
        The shapes of an inner chunk and of a shard.
    is_compressed
        Whether by zstd, which finds little to compress here.
    """

    index_at: str
    inner: tuple[int, int]
    shard: tuple[int, int]
    is_compressed: bool

    def __str__(self) -> str:
        nbytes = 4 * self.inner[0] * self.inner[1]
        return f"index-at-{self.index_at}-{nbytes}-{'zstd' if self.is_compressed else 'raw'}"

    @property
    def data(self) -> Any:
        """What the array holds."""
        return content(self.shard, self.inner)

    @property
    def windows(self) -> list[tuple[slice, slice]]:
        """Parts of inner chunks, rows of them, across shards, what is absent, and a whole shard."""
        (rows, columns), (height, width) = self.shard, self.inner
        return [
            np.s_[3:9, 5:7],
            np.s_[1 : height + 1, 0:columns],
            np.s_[rows - 5 : rows + height + 3, columns - 5 : columns + width + 3],
            np.s_[2:5, columns + 1 : columns + 9],
            np.s_[rows + 1 : rows + 4, columns + 1 : columns + 4],
            np.s_[-3:, -3:],
            np.s_[rows:, :columns],
        ]

    def write(self, store: Store) -> None:
        """Write the array into a group."""
        shards: Any = {"shape": self.shard, "index_location": self.index_at}
        zarr.create_array(
            store,
            name=str(self),
            data=self.data,
            shards=shards,
            chunks=self.inner,
            compressors="auto" if self.is_compressed else None,
            fill_value=0,
            config={"write_empty_chunks": False},
        )


KINDS = [
    Kind(index_at, inner, shard, is_compressed)
    for index_at in ("start", "end")
    # Of 1 KiB, of 16 KiB, and of 80 KiB: these are in the data file.
    for inner, shard in (((16, 16), (64, 64)), ((64, 64), (256, 256)), ((128, 160), (384, 480)))
    for is_compressed in (True, False)
]


OVER_HTTP = KINDS if STRESS > 1 else [KINDS[number] for number in (0, 4, 7, 11)]
"""Of the smallest and the largest inner chunks, each index, each codec."""


def write_all(store: Store) -> None:
    """Write an array of each kind that is read over HTTP."""
    zarr.create_group(store)
    for kind in OVER_HTTP:
        kind.write(store)


def read_windows(store: Store, kind: Kind) -> list[Any]:
    """What the windows hold, read through zarr."""
    array = zarr.open_array(store, path=str(kind), mode="r")
    return [np.asarray(array[window]) for window in kind.windows]


def through_fsspec(url: str) -> Store:
    """A source over HTTP."""
    return FsspecStore.from_url(url, read_only=True)


def through_obstore(url: str) -> Store:
    """The same by another client."""
    retries: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=30)}
    options: Any = {"allow_http": True}
    http = obstore.store.HTTPStore(url, client_options=options, retry_config=retries)
    return ObjectStore(http, read_only=True)


CLIENTS = {"fsspec": through_fsspec, "obstore": through_obstore}


def digest(arrays: list[Any]) -> str:
    """One text for the content of all of them."""
    return hashlib.sha256(b"".join(each.tobytes() for each in arrays)).hexdigest()


def expected() -> dict[str, str]:
    """What `work` tells, by kind."""
    return {str(kind): digest([kind.data[each] for each in kind.windows]) for kind in OVER_HTTP}


def work(url: str, client: str, pipeline: str, path: Path, start: Any, told: Any) -> None:
    """Read all windows once `start` is passed, and put what they hold into `told`.

    A warning ends the process with exit code 1.
    """
    warnings.simplefilter("error")
    zarr.config.set({"codec_pipeline.path": pipeline})
    cache = SqliteStore(path)
    source = CLIENTS[client](url)
    store = CacheStore(source, cache_store=cache, namespace=NAMESPACE, persist_ranges=True)
    start.wait()
    found = {str(kind): digest(read_windows(store, kind)) for kind in OVER_HTTP}
    stats = store.cache_stats()
    store.close()
    told.put((found, stats["faults"], stats["damaged"]))
