"""The name of a source is that of what is opened, not of what its path leads to at another time.

Seen with ``ZipStore("latest.zip")``, a link that a nightly job turns to the newest archive: the
store of a long process went on reading the one that it had opened, and its bytes were kept for good
under the name of the other.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from typing import IO, TYPE_CHECKING, Any

import fsspec
import obstore.store
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from zarr.storage import FsspecStore, LocalStore, LoggingStore, ObjectStore, ZipStore
from zarr.storage._fsspec import _make_async

from tests.fakes import buffer, read
from tests.systems import needs_removal_of_open_files
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.private import is_private
from zarr_cache.sources.names import folder_of, name_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import Store

KEY = "key"

READ_PICKLED = """
import asyncio, pickle, sys
from zarr.core.buffer import default_buffer_prototype
with open(sys.argv[1], "rb") as file:
    store = pickle.load(file)
value = asyncio.run(store.get("key", default_buffer_prototype()))
store.close()
print(store.namespace, value.to_bytes().decode())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two archives of one key, and a link to the first."""
    for name in ("one", "two"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr(KEY, name)
            archive.writestr(f"in/{KEY}", name)
    (tmp_path / "latest.zip").symlink_to(tmp_path / "one.zip")
    return tmp_path


def turn(link: Path, target: Path) -> None:
    """Let the path be a link to another place, at once."""
    new = link.with_name("new")
    new.symlink_to(target)
    new.replace(link)


def cached(source: Store, folder: Path, **settings: Any) -> CacheStore:
    return CacheStore(source, cache_store=SqliteStore(folder / "cache.sqlite"), **settings)


def read_in_another_process(pickled: Path) -> str:
    """The name of the source and the value, as a CacheStore has them that is unpickled there."""
    return subprocess.check_output([sys.executable, "-c", READ_PICKLED, str(pickled)], text=True)


def name_in(folder: Path, archive: str) -> str:
    return f"zip:{(folder / archive).as_uri()}"


async def assert_each_archive_has_its_own(folder: Path) -> None:
    """What is kept of an archive is what it holds, whichever name it was read by."""
    for name in ("one", "two"):
        store = cached(ZipStore(folder / f"{name}.zip"), folder)
        assert await read(store, KEY) == name.encode()
        assert store.namespace == name_in(folder, f"{name}.zip")


def opened_zip(file: Path | IO[bytes]) -> ZipStore:
    store = ZipStore(file)
    store._sync_open()
    return store


def fsspec_zip(path: Path) -> FsspecStore:
    """Whose archive is opened as soon as it is made."""
    return FsspecStore(_make_async(fsspec.filesystem("zip", fo=str(path))), read_only=True, path="")


OPENED: dict[str, Callable[[Path], Store]] = {
    "ZipStore": opened_zip,
    "wrapped": lambda path: LoggingStore(opened_zip(path)),
    "fsspec": fsspec_zip,
    "a folder of fsspec": lambda path: FsspecStore(
        DirFileSystem("in", fsspec_zip(path).fs, asynchronous=True), read_only=True, path=""
    ),
}


@pytest.mark.parametrize("wrap", [lambda source: source, LoggingStore], ids=["plain", "wrapped"])
async def test_an_archive_is_named_after_it_was_opened(
    folder: Path, wrap: Callable[[Store], Store]
) -> None:
    link = folder / "latest.zip"
    store = cached(wrap(ZipStore(link)), folder)
    turn(link, folder / "two.zip")

    assert await read(store, KEY) == b"two"
    assert store.namespace == name_in(folder, "two.zip")
    await assert_each_archive_has_its_own(folder)


@pytest.mark.parametrize("open_source", OPENED.values(), ids=OPENED)
async def test_an_open_archive_whose_link_was_turned_has_a_private_name(
    folder: Path, open_source: Callable[[Path], Store]
) -> None:
    link = folder / "latest.zip"
    source = open_source(link)
    turn(link, folder / "two.zip")
    store = cached(source, folder)

    assert await read(store, KEY) == b"one"
    assert is_private(store.namespace)
    await assert_each_archive_has_its_own(folder)


@pytest.mark.parametrize("open_source", OPENED.values(), ids=OPENED)
async def test_an_open_archive_whose_link_is_turned_before_the_first_read_has_a_private_name(
    folder: Path, open_source: Callable[[Path], Store]
) -> None:
    link = folder / "latest.zip"
    store = cached(open_source(link), folder)
    at_first = store.namespace
    turn(link, folder / "two.zip")

    assert await read(store, KEY) == b"one"
    assert at_first.startswith(name_in(folder, "one.zip"))
    assert is_private(store.namespace)
    await assert_each_archive_has_its_own(folder)


@needs_removal_of_open_files
@pytest.mark.parametrize("open_source", OPENED.values(), ids=OPENED)
async def test_an_open_archive_that_was_replaced_has_a_private_name(
    folder: Path, open_source: Callable[[Path], Store]
) -> None:
    source = open_source(folder / "one.zip")
    (folder / "two.zip").replace(folder / "one.zip")
    store = cached(source, folder)

    assert await read(store, KEY) == b"one"
    assert is_private(store.namespace)
    assert await read(cached(ZipStore(folder / "one.zip"), folder), KEY) == b"two"


@pytest.mark.parametrize("open_source", OPENED.values(), ids=OPENED)
async def test_an_open_archive_that_is_where_its_path_leads_has_that_name(
    folder: Path, open_source: Callable[[Path], Store]
) -> None:
    store = cached(open_source(folder / "latest.zip"), folder)

    assert await read(store, KEY) == b"one"
    assert store.namespace.startswith(name_in(folder, "one.zip"))


async def test_a_link_that_is_turned_later_is_noticed_when_the_archive_is_opened_again(
    folder: Path,
) -> None:
    link = folder / "latest.zip"
    store = cached(ZipStore(link), folder)
    first = await read(store, KEY)
    turn(link, folder / "two.zip")
    store.close()

    assert (first, await read(store, KEY)) == (b"one", b"two")
    assert store.namespace == name_in(folder, "two.zip")
    await assert_each_archive_has_its_own(folder)


async def test_an_archive_that_another_process_opens_is_named_there(folder: Path) -> None:
    link = folder / "latest.zip"
    store = cached(ZipStore(link), folder)
    assert await read(store, KEY) == b"one"
    (folder / "pickled").write_bytes(pickle.dumps(store))
    store.close()
    turn(link, folder / "two.zip")
    told = read_in_another_process(folder / "pickled")

    assert told.split() == [name_in(folder, "two.zip"), "two"]
    await assert_each_archive_has_its_own(folder)


async def test_an_archive_that_clear_has_replaced_is_named_anew(folder: Path) -> None:
    link = folder / "latest.zip"
    store = cached(ZipStore(link, mode="a"), folder)
    await store.clear()
    await store.set(KEY, buffer(b"new"))
    store.close()

    assert not link.is_symlink()
    assert store.namespace == name_in(folder, "latest.zip")
    await assert_each_archive_has_its_own(folder)
    assert await read(cached(ZipStore(link), folder), KEY) == b"new"


@needs_removal_of_open_files
async def test_what_was_kept_of_a_path_is_removed_when_clear_makes_a_file_there(
    folder: Path,
) -> None:
    link = folder / "latest.zip"
    link.unlink()
    with zipfile.ZipFile(link, "w") as archive:
        archive.writestr(KEY, "old")
    assert await read(cached(ZipStore(link), folder), KEY) == b"old"
    turn(link, folder / "one.zip")
    store = cached(ZipStore(link, mode="a"), folder)
    await store.clear()

    assert store.namespace == name_in(folder, "latest.zip")
    assert await read(cached(ZipStore(link, mode="a"), folder), KEY) is None


async def test_an_archive_that_is_not_there_is_reported_by_a_read(folder: Path) -> None:
    source = folder / "one.zip"
    filled = cached(ZipStore(source), folder)
    assert await read(filled, KEY) == b"one"
    filled.close()
    source.rename(folder / "away.zip")
    store = cached(ZipStore(source), folder)

    with pytest.raises(FileNotFoundError):
        await read(store, KEY)
    (folder / "away.zip").rename(source)
    assert await read(store, KEY) == b"one"
    assert store.cache_stats()["hits"] == 1


async def test_an_archive_is_not_opened_to_clear_the_cache_or_offline(folder: Path) -> None:
    source = folder / "one.zip"
    filled = cached(ZipStore(source), folder)
    assert await read(filled, KEY) == b"one"
    filled.close()
    source.unlink()

    offline = cached(ZipStore(source), folder, offline=True)
    assert await read(offline, KEY) == b"one"
    offline.close()
    await cached(ZipStore(source), folder).clear_cache()
    assert not source.exists()
    (folder / "two.zip").rename(source)
    assert await read(cached(ZipStore(source), folder), KEY) == b"two"


async def test_an_archive_given_as_an_open_file_has_a_private_name(folder: Path) -> None:
    with (folder / "one.zip").open("rb") as file:
        store = cached(opened_zip(file), folder)

        assert await read(store, KEY) == b"one"
    assert is_private(store.namespace)


# Others that open a local path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two folders with one key."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / KEY).write_bytes(name.encode())
    return tmp_path


async def test_a_cache_over_a_cache_is_named_after_what_the_inner_one_reads(data: Path) -> None:
    link = data / "link"
    turn(link, data / "one")
    inner = CacheStore(LocalStore(link), cache_store=SqliteStore(data / "inner.sqlite"))
    store = cached(inner, data)
    turn(link, data / "two")

    assert await read(store, KEY) == b"two"
    assert store.namespace == f"cached:{(data / 'two').as_uri()}"


async def test_a_database_is_named_by_where_its_path_leads_when_it_is_first_read(
    data: Path,
) -> None:
    files = [data / "one.sqlite", data / "two.sqlite"]
    for file in files:
        with SqliteStore(file) as filled:
            await filled.set(KEY, buffer(file.stem.encode()))
    source = SqliteStore(files[0])
    store = cached(source, data)
    files[0].rename(data / "moved.sqlite")
    turn(files[0], files[1])

    assert await read(store, KEY) == b"two"
    assert store.namespace == f"sqlite:{files[1].as_uri()}"


async def test_a_folder_of_obstore_that_a_link_has_replaced_has_a_private_name(data: Path) -> None:
    folder = data / "one"
    store = cached(ObjectStore(obstore.store.LocalStore(folder)), data)
    at_first = store.namespace
    folder.rename(data / "moved")
    turn(folder, data / "two")

    assert await read(store, KEY) == b"two"
    assert (at_first, is_private(store.namespace)) == (folder.as_uri(), True)


@pytest.mark.parametrize("cache", ["simplecache", "filecache", "blockcache"])
def test_a_cache_of_fsspec_over_local_files_has_a_private_name(data: Path, cache: str) -> None:
    file_system = fsspec.filesystem(cache, target_protocol="file", cache_storage=str(data / "c"))

    # Its copies are found by the path alone, and may be of where a link led earlier.
    assert is_private(name_of(FsspecStore(_make_async(file_system), path=str(data / "one"))))


def test_the_folder_of_a_source_is_found_below_a_folder_of_fsspec(data: Path) -> None:
    local = _make_async(fsspec.filesystem("file"))
    source = FsspecStore(DirFileSystem(str(data), local, asynchronous=True), path="one")

    assert folder_of(source) == data / "one"
