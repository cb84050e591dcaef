"""A value for which there is no memory costs a warning and a request, and nobody else anything."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.fault.children import run_child

if TYPE_CHECKING:
    from pathlib import Path

READ_ON = """
import resource

HUGE = bytes(64 * 2**20)
surface = SURFACES[arguments[0]]

def limit_memory(more):
    # As much as is taken already, and so many bytes.
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    nbytes = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (nbytes, resource.RLIM_INFINITY))

async def main():
    source = CountingStore(MemoryStore({key: buffer(HUGE) for key in ("kept", "new")}))
    await source._store.set("small", buffer(b"small"))
    store = new_cache(source, path)
    await surface(store, "kept")
    drain(store)
    source.reset()
    limit_memory(24 * 2**20)
    found = [await ask(store, key) for key in ("kept", "new", "small", "kept", "new", "small")]
    asked = source.keys.copy()
    drain(store)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    again = [await ask(store, key) for key in ("kept", "new", "small")]
    drain(store)
    source.reset()
    again += [await ask(store, key) for key in ("kept", "new", "small")]
    tell(
        right=found == [len(HUGE), len(HUGE), 5] * 2,
        asked=asked,
        right_again=again == [len(HUGE), len(HUGE), 5] * 2,
        asked_again=source.keys,
        faults=store.cache_stats()["faults"],
    )
    store.close()

async def ask(store, key):
    # A copy of the value would take memory that there is not.
    found = await store.get(key, PROTOTYPE) if arguments[0] == "async" else store.get_sync(key)
    return len(found)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and limits all memory")
@pytest.mark.parametrize("surface", ["async", "sync"])
def test_a_value_that_is_too_large_for_the_memory_comes_from_the_source(
    path: Path, surface: str
) -> None:
    ended = run_child(path, READ_ON, surface)

    assert ended.code == 0, ended.errors
    assert ended.facts["right"]
    assert ended.facts["right_again"]
    assert ended.facts["asked_again"] == []
    assert ended.facts["asked"].count("small") == 1
    assert "kept" in ended.facts["asked"]
    assert len(ended.facts["warned"]) == 1
    assert f"{path}: no memory" in ended.facts["warned"][0]
    assert ended.facts["faults"] >= 1


READ_MUCH = """
import resource

KEYS = [f"c/{number}" for number in range(64)]

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()

async def main():
    value = bytes(2**20)
    store = new_cache(CountingStore(MemoryStore({key: buffer(value) for key in KEYS})), path)
    for key in KEYS:
        store.get_sync(key)
    store.close()
    await SURFACES[arguments[0]](store, KEYS[0])
    before = resident()
    for key in KEYS:
        await SURFACES[arguments[0]](store, key)
    tell(grown=resident() - before, hits=store.cache_stats()["hits"])
    store.close()

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="tells what is resident in /proc")
@pytest.mark.parametrize("surface", ["async", "sync"])
def test_what_is_read_of_a_file_does_not_count_as_memory_of_the_process(
    path: Path, surface: str
) -> None:
    ended = run_child(path, READ_MUCH, surface)

    assert ended.code == 0, ended.errors
    assert ended.facts["hits"] == 65
    # Of 64 MiB. Dask stops a worker whose resident memory comes near its limit.
    assert ended.facts["grown"] < 16 * 2**20
