"""What each process does that reads values and ranges through one small cache file.

Apart from the test, since a child imports the module of its function.
"""

from __future__ import annotations

import random
import warnings
from typing import TYPE_CHECKING, Any

from zarr.abc.store import RangeByteRequest
from zarr.storage import LocalStore

from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import ByteRequest

MAX_SIZE = 600_000

KEYS = [f"{number}" for number in range(12)]


def value(key: str) -> bytes:
    """Of 30 to 360 kB: inner chunks of it are on both sides of what is large."""
    return bytes([int(key) + 1]) * 100 + key.encode() * (30_000 * (int(key) + 1) // len(key))


def requests(key: str) -> list[ByteRequest | None]:
    """Parts of the value that overlap, and all of it."""
    size = len(value(key))
    spans = [(0, 500), (300, 9000), (size // 3, size // 2), (size // 2, size), (0, size - 1)]
    return [None, *(RangeByteRequest(start, stop) for start, stop in spans)]


def work(path: Path, source: Path, number: int, operations: int, start: Any) -> None:
    """Read at random. What is wrong, and any warning, ends the process with exit code 1."""
    warnings.simplefilter("error")
    chance = random.Random(number)  # noqa: S311 - to be the same each time
    store = CacheStore(
        LocalStore(source),
        cache_store=SqliteStore(path),
        namespace="source",
        max_size=MAX_SIZE,
        # One of four has ranges in memory, and shares those in the file.
        persist_ranges=number != 0,
        max_memory=MAX_SIZE // 4,
    )
    start.wait()
    for _ in range(operations):
        key = chance.choice(KEYS)
        # A whole value replaces the ranges of its key.
        request = chance.choice(requests(key)[chance.random() < 0.8 :])
        found = store.get_sync(key, byte_range=request)
        whole = value(key)
        part = whole if request is None else whole[request.start : request.end]  # type: ignore[union-attr] # of one kind
        assert found is not None
        assert found.to_bytes() == part, (key, request)
    info, stats = store.cache_info(), store.cache_stats()
    store.close()

    assert info["file_size"] + info["range_size"] <= MAX_SIZE, info
    assert (stats["faults"], stats["damaged"]) == (0, 0), stats
    assert stats["hits"] > 0
