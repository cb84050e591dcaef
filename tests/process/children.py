"""What a child process does with the store that its parent hands it.

Apart from the tests, since a spawned child imports the module of its function, and pytest with it
if that is a module of tests.
"""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.fakes import buffer, read, values

if TYPE_CHECKING:
    from collections.abc import Iterable

    import zarr
    from zarr.abc.store import Store

    from zarr_cache import CacheStore

KEYS = "abcd"


class Told(NamedTuple):
    """What a reader got, and what its CacheStore counted meanwhile."""

    values: list[bytes | None]
    hits: int
    misses: int


async def _read_all(store: Store, keys: Iterable[str]) -> list[bytes | None]:
    return [await read(store, key) for key in keys]


def read_all(store: CacheStore, keys: Iterable[str] = KEYS) -> Told:
    """Read each key on the sync surface, and then in an event loop."""
    before = store.cache_stats()
    found = [store.get_sync(key) for key in keys]
    values = [None if each is None else each.to_bytes() for each in found]
    values += asyncio.run(_read_all(store, keys))
    after = store.cache_stats()
    return Told(values, after["hits"] - before["hits"], after["misses"] - before["misses"])


def tell(store: CacheStore, responses: Any) -> None:
    """Put into the queue what `read_all` tells. A warning ends the process with exit code 1."""
    warnings.simplefilter("error")
    responses.put(read_all(store))


def write(store: CacheStore, key: str, value: bytes) -> None:
    """Write a value."""
    warnings.simplefilter("error")
    store.set_sync(key, buffer(value))


def load(array: zarr.Array[Any], indices: Any, batches: Any) -> None:
    """Put a batch into the queue for each index that comes, until None comes."""
    warnings.simplefilter("error")
    while (index := indices.get()) is not None:
        batches.put((index, values(array, index)))
