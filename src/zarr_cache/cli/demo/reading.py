"""One reading of an array, with or without a cache."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.api.asynchronous import open_array

from zarr_cache import CacheStore, SqliteStore
from zarr_cache.cli.demo.source import open_source

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from zarr_cache.cli.demo.server import Traffic

MAX_BYTES = 2**28
"""At most this many bytes of an array are read: the demo holds them in memory several times."""


@dataclass(frozen=True)
class Reading:
    """The data of one reading, and its measurements.

    Parameters
    ----------
    data
        The array, or its leading part if it is larger than `MAX_BYTES`.
    shape
        Shape of the whole array.
    seconds
        Time to open the cache file and the array, and to read the data.
    traffic
        Requests and bytes as the HTTP client counted them; None if the source is not HTTP.
    hits, misses
        What the cache counted; both 0 without a cache.
    """

    data: npt.NDArray[Any]
    shape: tuple[int, ...]
    seconds: float
    traffic: Traffic | None
    hits: int = 0
    misses: int = 0


def leading_part(
    shape: tuple[int, ...], chunks: tuple[int, ...], itemsize: int, max_bytes: int = MAX_BYTES
) -> tuple[slice, ...]:
    """Selection of whole chunks from the origin that holds at most `max_bytes`, or one chunk."""
    counts = [math.ceil(length / chunk) for length, chunk in zip(shape, chunks, strict=True)]
    chunk_bytes = itemsize * math.prod(chunks)
    while chunk_bytes * math.prod(counts) > max_bytes and math.prod(counts) > 1:
        longest = counts.index(max(counts))
        counts[longest] = math.ceil(counts[longest] / 2)
    return tuple(
        slice(0, min(length, count * chunk))
        for length, count, chunk in zip(shape, counts, chunks, strict=True)
    )


async def read(
    url: str, array: str, cache_file: Path | None = None, namespace: str | None = None
) -> Reading:
    """Open the array at path `array` of the Zarr at `url` and read it, through a cache if named.

    `namespace` is the name under which the cache has it; None for that of the URL.

    Each reading has connections of its own, so that no reading profits from an earlier one. It runs
    on the caller's event loop: the one behind zarr's blocking functions would continue to read
    after an interruption.
    """
    # Before the clock starts: the first reading of a process imports the HTTP client here.
    async with open_source(url) as (source, client):
        began = time.perf_counter()
        cache = None
        if cache_file is not None:
            cache_store = SqliteStore(cache_file)
            cache = CacheStore(source, cache_store=cache_store, namespace=namespace)
        try:
            opened = await open_array(store=cache or source, path=array, mode="r")
            selection = leading_part(opened.shape, opened.chunks, opened.dtype.itemsize)
            data = np.asarray(await opened.getitem(selection))
            seconds = time.perf_counter() - began
            stats: dict[str, Any] = cache.cache_stats() if cache is not None else {}
        finally:
            if cache is not None:
                cache.close()
    return Reading(
        data,
        opened.shape,
        seconds,
        client.traffic if client is not None else None,
        hits=stats.get("hits", 0),
        misses=stats.get("misses", 0),
    )
