"""A path that leads elsewhere when the source is opened: no folder has the bytes of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from zarr.storage import FsspecStore, LocalStore, LoggingStore

from tests.fakes import buffer, read
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zarr.abc.store import Store

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
    """What a CacheStore of the folder itself reads."""
    store = cached(LocalStore(folder / place / "data"), folder)
    return [await read(store, key) for key in KEYS]


def values_of(place: str) -> list[bytes]:
    return [f"{key} in {place}".encode() for key in KEYS]


OPEN: dict[str, Callable[[Path], Store]] = {
    "LocalStore": LocalStore,
    "wrapped": lambda path: LoggingStore(LocalStore(path)),
    "fsspec": lambda path: FsspecStore.from_url(f"file://{path}"),
}


@pytest.mark.parametrize("open_source", OPEN.values(), ids=OPEN)
async def test_a_link_that_is_turned_before_the_first_read_is_followed(
    folder: Path, open_source: Callable[[Path], Store]
) -> None:
    link = folder / "current"
    turn(link, "one")
    store = cached(open_source(link / "data"), folder)
    turn(link, "other")

    assert [await read(store, key) for key in KEYS] == values_of("other")
    assert store.namespace == (folder / "other" / "data").as_uri()
    assert await there(folder, "one") == values_of("one")


WRITES: dict[str, Callable[[CacheStore], Awaitable[None]]] = {
    "set": lambda store: store.set("before", buffer(b"written")),
    "delete": lambda store: store.delete("before"),
    "delete_dir": lambda store: store.delete_dir(""),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_a_first_write_is_seen_where_the_link_leads(
    folder: Path, write: Callable[[CacheStore], Awaitable[None]]
) -> None:
    link = folder / "current"
    turn(link, "one")
    store = cached(LocalStore(link / "data"), folder)
    assert await there(folder, "other") == values_of("other")
    turn(link, "other")
    await write(store)

    itself = LocalStore(folder / "other" / "data")
    assert await there(folder, "other") == [await read(itself, key) for key in KEYS]
    assert await there(folder, "other") != values_of("other")
    assert await there(folder, "one") == values_of("one")


async def test_clear_cache_as_the_first_use_removes_entries_of_where_the_link_leads(
    folder: Path,
) -> None:
    link = folder / "current"
    turn(link, "one")
    store = cached(LocalStore(link / "data"), folder)
    for place in PLACES:
        await there(folder, place)
        (folder / place / "data" / "before").unlink()
    turn(link, "other")
    await store.clear_cache()

    assert await there(folder, "other") == [None, b"after in other"]
    assert await there(folder, "one") == values_of("one")


async def test_a_link_that_is_turned_later_is_noticed_at_the_next_opening(folder: Path) -> None:
    link = folder / "current"
    turn(link, "one")
    store = cached(LocalStore(link / "data"), folder)
    first = [await read(store, key) for key in KEYS]
    store.close()
    turn(link, "other")
    second = [await read(store, key) for key in KEYS]
    store.close()
    turn(link, "one")
    another = cached(LocalStore(link / "data"), folder)
    third = [await read(another, key) for key in KEYS]

    assert [first, second, third] == [values_of("one"), values_of("other"), values_of("one")]


async def test_a_relative_path_begins_where_the_working_directory_is_at_the_first_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "one")
    store = cached(LocalStore(Path("data")), folder)
    monkeypatch.chdir(folder / "other")

    assert [await read(store, key) for key in KEYS] == values_of("other")
    assert await there(folder, "one") == values_of("one")


async def test_a_folder_that_is_not_there_yet_has_its_name(folder: Path) -> None:
    place = folder / "new" / "data"
    store = cached(LocalStore(place), folder)
    await store.set("before", buffer(b"written"))

    assert store.namespace == place.as_uri()
    assert await there(folder, "new") == [b"written", None]
