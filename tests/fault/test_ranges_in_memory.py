"""While the file cannot be written, ranges that were to be persisted are served from memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import RangeByteRequest, SuffixByteRequest

from tests.fakes import buffer, cached_ranges, read_ranges, restart
from tests.fault.real import held, mode
from tests.fault.sources import (
    KEYS,
    LONGEST_SECONDS,
    VALUES,
    drain,
    each_surface,
    new_cache,
    new_source,
    told,
)
from zarr_cache.core.byte_range import span

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path
    from warnings import WarningMessage

    from zarr.abc.store import ByteRequest, Store

    from tests.fakes import HeldTime
    from tests.fault.sources import Read
    from zarr_cache import CacheStore

REQUESTS: list[ByteRequest] = [
    RangeByteRequest(5, 500),
    SuffixByteRequest(100),
    RangeByteRequest(600, 9000),
]
ASKED = [(key, request) for key in KEYS[:6] for request in REQUESTS]
RIGHT = [VALUES[key][slice(*span(request, len(VALUES[key])))] for key, request in ASKED]

FAULTS: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "read-only": lambda path: mode(path, 0o400),
    "locked": lambda path: held(path, "BEGIN IMMEDIATE"),
}
each_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A cache file that is there, and that no process has open."""
    path = tmp_path / "cache.sqlite"
    store = new_cache(new_source(), path)
    store.get_sync(KEYS[-1])
    restart(store)
    return path


def persisting(source: Store, path: Path) -> CacheStore:
    return new_cache(source, path, persist_ranges=True)


async def read_all(surface: Read, store: CacheStore) -> list[Any]:
    found = [await surface(store, key, request) for key, request in ASKED]
    drain(store)
    return found


@each_surface
@each_fault
async def test_ranges_are_served_from_memory_and_go_to_the_file_when_it_can_be_written(
    path: Path,
    fault: Callable[[Path], AbstractContextManager[None]],
    surface: Read,
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    source = new_source()
    store = persisting(source, path)
    with fault(path):
        found = [await read_all(surface, store)]
        requests = [source.requests.total()]
        found += [await read_all(surface, store) for _ in range(3)]
        # The circuit is tried again, and the file still cannot be written.
        short_waits.step(LONGEST_SECONDS)
        found += [await read_all(surface, store) for _ in range(3)]
        during = store.cache_info()
        requests.append(source.requests.total())
    short_waits.step(LONGEST_SECONDS)
    # One operation tries, and what comes meanwhile is kept the next time.
    found += [await read_all(surface, store) for _ in range(2)]
    after = store.cache_info()
    restart(store)
    store = persisting(source, path)
    found.append(await read_all(surface, store))

    assert found == [RIGHT] * 10
    assert requests == [len(ASKED)] * 2
    assert source.requests.total() == len(ASKED)
    assert (during["ranges"], during["file_ranges"]) == (len(ASKED), 0)
    assert (after["ranges"], after["file_ranges"]) == (0, len(ASKED))
    assert len(told(warned)) == 1
    assert str(path) in told(warned)[0]


@each_fault
async def test_get_ranges_is_served_from_memory_as_well(
    path: Path,
    fault: Callable[[Path], AbstractContextManager[None]],
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    source = new_source()
    store = persisting(source, path)
    found = []
    with fault(path):
        for _ in range(3):
            found.append(await read_ranges(store, KEYS[0], REQUESTS))
            drain(store)
        requests = source.requests.total()
    short_waits.step(LONGEST_SECONDS)
    for _ in range(2):
        found.append(await read_ranges(store, KEYS[0], REQUESTS))
        drain(store)

    assert found == [RIGHT[:3]] * 5
    # The two ranges in one, and the end.
    assert requests == source.requests.total() == 2
    assert len(cached_ranges(path)) == 3
    assert len(told(warned)) == 1


@each_fault
async def test_no_range_of_before_a_write_is_served_after_it(
    path: Path,
    fault: Callable[[Path], AbstractContextManager[None]],
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    source = new_source()
    store = persisting(source, path)
    new = b"written" * 1000
    right = [new[slice(*span(request, len(new)))] for request in REQUESTS]
    found = []
    with fault(path):
        for _ in range(2):
            await read_ranges(store, KEYS[0], REQUESTS)
            drain(store)
        await store.set(KEYS[0], buffer(new))
        found.append(await read_ranges(store, KEYS[0], REQUESTS))
        drain(store)
    for _ in range(3):
        short_waits.step(LONGEST_SECONDS)
        found.append(await read_ranges(store, KEYS[0], REQUESTS))
        drain(store)

    assert found == [right] * 4
    assert len(told(warned)) == 1


@each_fault
async def test_what_is_in_the_file_is_served_beside_what_is_in_memory(
    path: Path,
    fault: Callable[[Path], AbstractContextManager[None]],
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    source = new_source()
    store = persisting(source, path)
    await read_ranges(store, KEYS[0], REQUESTS[:1])
    restart(store)
    store = persisting(source, path)
    source.reset()
    with fault(path):
        found = []
        for _ in range(3):
            found.append(await read_ranges(store, KEYS[0], REQUESTS))
            drain(store)
        info = store.cache_info()
    # The lock is gone, and the process may end.
    short_waits.step(LONGEST_SECONDS)

    assert found == [RIGHT[:3]] * 3
    assert (info["ranges"], info["file_ranges"]) == (2, 1)
    assert source.requests.total() == 2
    assert len(told(warned)) == 1
