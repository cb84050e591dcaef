"""A path that leads elsewhere by and by: no place has the bytes of another."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import FsspecStore, LocalStore, LoggingStore, MemoryStore

from tests.fakes import PROTOTYPE, HeldStore, buffer, read
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.abc.store import ByteRequest, Store

    from zarr_cache.clock import PersistentClock

PLACES = ("one", "other")
KEYS = ("before", "after")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders with the same keys."""
    for place in PLACES:
        (tmp_path / place / "data").mkdir(parents=True)
        for key in KEYS:
            (tmp_path / place / "data" / key).write_bytes(f"{key} in {place}".encode())
    return tmp_path


def turn(link: Path, place: str) -> None:
    """Let the link lead to another place, at once."""
    new = link.with_name("new")
    new.symlink_to(link.parent / place, target_is_directory=True)
    new.replace(link)


def cached(source: Store, folder: Path) -> CacheStore:
    return CacheStore(source, cache_store=SqliteStore(folder / "cache.sqlite"))


async def there(folder: Path, place: str) -> list[bytes | None]:
    """What a CacheStore of the place itself answers."""
    store = cached(LocalStore(folder / place / "data"), folder)
    return [await read(store, key) for key in KEYS]


def told(place: str) -> list[bytes]:
    return [f"{key} in {place}".encode() for key in KEYS]


OPEN: dict[str, Callable[[Path], Store]] = {
    "LocalStore": LocalStore,
    "wrapped": lambda path: LoggingStore(LocalStore(path)),
    "fsspec": lambda path: FsspecStore.from_url(f"file://{path}"),
}


@pytest.mark.parametrize("open_source", OPEN.values(), ids=OPEN)
async def test_a_link_that_is_turned_gives_no_place_the_bytes_of_another(
    folder: Path, open_source: Callable[[Path], Store]
) -> None:
    link = folder / "current"
    turn(link, "one")
    store = cached(open_source(link / "data"), folder)
    first = await read(store, "before")
    turn(link, "other")
    second = await read(store, "after")

    assert (first, second) == (b"before in one", b"after in other")
    assert await there(folder, "one") == told("one")
    assert await there(folder, "other") == told("other")
    # Since then it is known where the link leads.
    assert await read(store, "before") == b"before in other"


async def test_a_write_through_a_link_that_was_turned_is_seen_where_it_leads(folder: Path) -> None:
    link = folder / "current"
    turn(link, "one")
    store = cached(LocalStore(link / "data"), folder)
    await read(store, "before")
    assert await there(folder, "other") == told("other")
    turn(link, "other")
    await store.set("before", buffer(b"written"))

    assert await there(folder, "other") == [b"written", b"after in other"]
    assert await there(folder, "one") == told("one")


async def test_a_relative_path_is_read_where_the_working_directory_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "one")
    store = cached(LocalStore(Path("data")), folder)
    answers = {}
    for place in (*PLACES, *PLACES):
        monkeypatch.chdir(folder / place)
        answers[place] = [await read(store, key) for key in KEYS]

    assert answers == {place: told(place) for place in PLACES}
    for place in PLACES:
        assert await there(folder, place) == told(place)


async def test_what_two_had_asked_for_when_the_link_was_turned_is_kept_of_neither_place(
    folder: Path,
) -> None:
    link = folder / "current"
    turn(link, "one")
    source = HeldStore(LocalStore(link / "data"))
    store = cached(source, folder)
    gates = [source.hold_after("get") for _ in KEYS]
    reading = [asyncio.create_task(read(store, key)) for key in KEYS]
    for gate in gates:
        await gate.reached()
    turn(link, "other")
    answers = []
    for gate, task in zip(gates, reading, strict=True):
        gate.open()
        answers.append(await task)

    assert answers == told("one")
    assert await there(folder, "other") == told("other")
    assert await there(folder, "one") == told("one")


@pytest.mark.parametrize("requests", [None, [RangeByteRequest(0, 50), RangeByteRequest(2, 50)]])
async def test_who_asks_for_the_same_of_the_place_itself_gets_its_bytes(
    folder: Path, requests: list[ByteRequest | None] | None
) -> None:
    link = folder / "current"
    turn(link, "one")
    source = HeldStore(LocalStore(link / "data"))
    by_link = cached(source, folder)
    itself = cached(LocalStore(folder / "one" / "data"), folder)
    method = "get" if requests is None else "get_ranges"
    gate = source.hold_before(method)

    async def read_of(store: CacheStore) -> list[bytes | None]:
        if requests is None:
            return [await read(store, "before")]
        batches = [
            batch async for batch in store.get_ranges("before", requests, prototype=PROTOTYPE)
        ]
        pieces = dict(piece for batch in batches for piece in batch)
        return [found.to_bytes() for _, found in sorted(pieces.items()) if found is not None]

    first = asyncio.create_task(read_of(by_link))
    await gate.reached()
    turn(link, "other")
    second = asyncio.create_task(read_of(itself))
    flight, *_ = itself._cached.values.flights._under_way.values()
    while flight._future is None:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)
    gate.open()
    await first

    whole = b"before in one"
    assert await second == ([whole] if requests is None else [whole, whole[2:]])


async def test_nor_is_it_when_one_thread_comes_while_another_notices(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = folder / "current"
    turn(link, "one")
    source = HeldStore(LocalStore(link / "data"))
    store = cached(source, folder)
    gates = [source.hold_after("get_sync") for _ in KEYS]
    threads = []
    for key, gate in zip(KEYS, gates, strict=True):
        threads.append(threading.Thread(target=store.get_sync, args=[key]))
        threads[-1].start()
        gate.wait_until_reached()
    turn(link, "other")
    kept = store._cached.values
    clock = kept.clock

    def another_comes() -> PersistentClock:
        monkeypatch.undo()
        for gate, thread in zip(gates[1:], threads[1:], strict=True):
            gate.open()
            thread.join()
        return clock()

    # What is asked for while the one that notices gives the source its new name.
    monkeypatch.setattr(kept, "clock", another_comes)
    gates[0].open()
    threads[0].join()

    assert await there(folder, "other") == told("other")
    assert await there(folder, "one") == told("one")


@pytest.mark.parametrize("is_noticed", [False, True], ids=["unnoticed", "noticed by a reader"])
async def test_a_write_that_began_before_the_link_was_turned_is_seen_where_it_went(
    folder: Path, is_noticed: bool
) -> None:
    link = folder / "current"
    turn(link, "one")
    source = HeldStore(LocalStore(link / "data"))
    store = cached(source, folder)
    for place in PLACES:
        assert await there(folder, place) == told(place)
    begun = source.hold_before("set")
    writing = asyncio.create_task(store.set("before", buffer(b"written")))
    await begun.reached()
    turn(link, "other")
    if is_noticed:
        (folder / "other" / "data" / "third").write_bytes(b"third")
        assert await read(store, "third") == b"third"
    begun.open()
    await writing

    assert await there(folder, "other") == [b"written", b"after in other"]
    assert await there(folder, "one") == told("one")


async def test_what_another_store_held_before_is_not_taken_for_what_another_place_put_there(
    folder: Path,
) -> None:
    for place in PLACES:
        (folder / place / "data" / "after").write_bytes(place[:3].encode())
    link = folder / "current"
    turn(link, "one")
    kept = MemoryStore({"after": buffer(b"one")})
    store = CacheStore(LocalStore(link / "data"), cache_store=kept)
    seen = [await read(store, "after")]
    for place in ("other", "one"):
        turn(link, place)
        # A miss notices that.
        await read(store, f"none in {place}")
        seen.append(await read(store, "after"))

    assert seen == [b"one", b"oth", b"one"]
