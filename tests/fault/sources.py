"""A source of a few values, a cache of it, and both surfaces called alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import PROTOTYPE, CountingStore, buffer, file_cache, read
from zarr_cache import CacheStore, CacheWarning, SqliteStore

if TYPE_CHECKING:
    import warnings
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path
    from typing import Any

    from zarr.abc.store import ByteRequest, Store

type Read = Callable[..., Awaitable[bytes | None]]

KEYS = [f"key-{number}" for number in range(12)]

LONGEST_SECONDS = 61
"""After so long each fault is looked at again."""


def value(key: str) -> bytes:
    """What the source holds: of two to some pages, and of bytes that no other key has."""
    return f"{key}/".encode() * (4000 + 4000 * (KEYS.index(key) % 3))


VALUES = {key: value(key) for key in KEYS}


def new_source() -> CountingStore:
    """A source with all the values."""
    return CountingStore(MemoryStore({key: buffer(data) for key, data in VALUES.items()}))


def new_cache(source: Store, path: Path, **settings: Any) -> CacheStore:
    """A cache of the source in the file."""
    return CacheStore(source, cache_store=SqliteStore(path), namespace="source", **settings)


def drain(store: CacheStore) -> None:
    """Wait until what waits to be kept is, or cannot be, and nothing is being written."""
    file_cache(store)._writer.stop()
    store._view.values.flush()


async def read_sync(store: Any, key: str, byte_range: ByteRequest | None = None) -> bytes | None:
    """As `read`, through the sync surface."""
    found = store.get_sync(key, prototype=PROTOTYPE, byte_range=byte_range)
    return None if found is None else found.to_bytes()


SURFACES: dict[str, Read] = {"async": read, "sync": read_sync}

each_surface = pytest.mark.parametrize("surface", SURFACES.values(), ids=SURFACES)


async def read_all(surface: Read, store: Store, keys: Iterable[str] = KEYS) -> dict[str, Any]:
    """What the store answers, by key."""
    return {key: await surface(store, key) for key in keys}


async def filled_cache(
    path: Path, surface: Read = read, keys: Iterable[str] = KEYS
) -> tuple[CountingStore, CacheStore]:
    """A source, and a cache of it that holds the values of the keys."""
    source = new_source()
    store = new_cache(source, path)
    await read_all(surface, store, keys)
    drain(store)
    return source, store


async def write_some(store: Any) -> dict[str, Any]:
    """Write through both surfaces and delete a key; what the source holds then."""
    await store.set(KEYS[0], buffer(b"written"))
    store.set_sync(KEYS[1], buffer(b"written"))
    await store.delete(KEYS[2])
    return VALUES | {KEYS[0]: b"written", KEYS[1]: b"written", KEYS[2]: None}


async def read_until_kept(surface: Read, store: CacheStore) -> list[dict[str, Any]]:
    """What the store answers while it finds that a fault is over, and keeps everything again."""
    found = []
    # One operation tries, and what comes meanwhile is kept the next time.
    for _ in range(2):
        found.append(await read_all(surface, store))
        drain(store)
    return found


def told(warned: Iterable[warnings.WarningMessage]) -> list[str]:
    """What the cache has warned of. No other warning is expected."""
    assert {each.category for each in warned} <= {CacheWarning}, list(map(str, warned))
    return [str(each.message) for each in warned]
