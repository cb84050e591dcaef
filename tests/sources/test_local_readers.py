"""Reading local files with validators, through each store that zarr has for them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import fsspec
import obstore.store
import pytest
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, LoggingStore, MemoryStore, ObjectStore

from tests.fakes import PROTOTYPE, buffer
from tests.sources.reading import (
    DATA,
    KEY,
    REQUESTS,
    data_of,
    each_part,
    fetch,
    known_version,
    listed,
    outcome,
    outcome_of_plain,
    reader_for,
    version,
)
from zarr_cache.sources import local_reads
from zarr_cache.sources.readers import reader_of
from zarr_cache.sources.source_reader import ChangedError, Fetched

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store

    from tests.fakes import HeldTime

OTHER = DATA[::-1]
LONG_AGO_NS = 1_700_000_000_000_000_123


def put(folder: Path, data: bytes, modified_ns: int = LONG_AGO_NS, key: str = KEY) -> Path:
    """Write in place, with this time of modification."""
    file = folder / key
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("r+b" if file.exists() else "wb") as opened:
        opened.write(data)
        opened.truncate()
    os.utime(file, ns=(modified_ns, modified_ns))
    return file


def in_a_folder_of_fsspec(folder: Path) -> Store:
    local = DirFileSystem(str(folder.parent), fsspec.filesystem("file"))
    return FsspecStore(AsyncFileSystemWrapper(local, asynchronous=True), path=folder.name)


def in_a_folder_around_fsspec(folder: Path) -> Store:
    local = AsyncFileSystemWrapper(fsspec.filesystem("file"), asynchronous=True)
    return FsspecStore(
        DirFileSystem(str(folder.parent), local, asynchronous=True), path=folder.name
    )


OPENERS: dict[str, Callable[[Path], Store]] = {
    "LocalStore": LocalStore,
    "fsspec": lambda folder: FsspecStore.from_url(folder.as_uri()),
    "in a folder of fsspec": in_a_folder_of_fsspec,
    "in a folder around fsspec": in_a_folder_around_fsspec,
    "obstore": lambda folder: ObjectStore(obstore.store.LocalStore(folder)),
}
each_store = pytest.mark.parametrize("opener", OPENERS.values(), ids=OPENERS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file, which was written long ago."""
    folder = tmp_path / "data.zarr"
    put(folder, DATA)
    return folder


@each_store
@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_a_fetch_has_the_bytes_of_the_plain_store(
    request_: ByteRequest | None, opener: Callable[[Path], Store], folder: Path
) -> None:
    source = opener(folder)
    plain, known = outcome_of_plain(source, request_), known_version(source)

    assert outcome(source, request_) == plain
    assert outcome(source, request_, with_version=False) == plain
    assert outcome(source, request_, only=known) == plain


@each_store
def test_a_version_is_the_same_however_it_is_asked_for(
    opener: Callable[[Path], Store], folder: Path
) -> None:
    source = opener(folder)
    known = known_version(source)

    assert fetch(source, SuffixByteRequest(2)).validator == known
    assert version(source) == known
    assert listed(source)[KEY] == (KEY, known, len(DATA), listed(source)[KEY].modified_ns)
    assert (listed(source)[KEY].modified_ns or 0) // 1000 == LONG_AGO_NS // 1000
    assert fetch(source, unless=known) == Fetched(None, known, is_unchanged=True)


@each_store
@each_part
def test_a_version_is_read_while_it_is_the_only_one(
    request_: ByteRequest | None, part: bytes, opener: Callable[[Path], Store], folder: Path
) -> None:
    source = opener(folder)
    known = known_version(source)
    found = fetch(source, request_, only=known)
    put(folder, OTHER, LONG_AGO_NS + 1000)
    changed = fetch(source, request_, unless=known)

    assert (data_of(found), found.validator) == (part, known)
    assert changed.validator == version(source) != known
    assert not changed.is_unchanged
    with pytest.raises(ChangedError):
        fetch(source, request_, only=known)


@each_store
def test_a_file_that_was_replaced_is_another_version_whatever_its_time(
    opener: Callable[[Path], Store], folder: Path
) -> None:
    source = opener(folder)
    known = known_version(source)
    put(folder, OTHER, key="beside it").replace(folder / KEY)

    assert data_of(fetch(source, unless=known)) == OTHER
    with pytest.raises(ChangedError):
        fetch(source, only=known)


@each_store
def test_a_file_that_is_gone_is_no_version(opener: Callable[[Path], Store], folder: Path) -> None:
    source = opener(folder)
    known = known_version(source)
    (folder / KEY).unlink()

    assert fetch(source) == fetch(source, unless=known) == Fetched(None, None)
    assert version(source) is None
    with pytest.raises(ChangedError):
        fetch(source, only=known)


@each_store
def test_a_file_that_was_just_written_has_no_validator_yet(
    opener: Callable[[Path], Store], folder: Path, held_time: HeldTime
) -> None:
    source = opener(folder)
    put(folder, DATA, held_time.wall_ns + 7_000_000)
    early = fetch(source), version(source), listed(source)[KEY].validator
    held_time.wall_ns += 30_000_000

    assert [data_of(early[0]), early[0].validator, *early[1:]] == [DATA, None, None, None]
    assert not early[0].is_torn
    assert fetch(source).validator == version(source) == listed(source)[KEY].validator
    assert version(source) is not None


def written_during_the_read(
    monkeypatch: pytest.MonkeyPatch, folder: Path, write: Callable[[Path, bytes], object]
) -> None:
    """Whatever reads the file, it is written to before that."""
    plain, of_fsspec = LocalStore.get_sync, FsspecStore.get

    def get_sync(store: LocalStore, key: str, **settings: Any) -> Any:
        write(folder, OTHER)
        return plain(store, key, **settings)

    async def get(store: FsspecStore, *args: Any) -> Any:
        write(folder, OTHER)
        return await of_fsspec(store, *args)

    async def get_async(*args: Any, **settings: Any) -> Any:
        response = await of_obstore(*args, **settings)
        write(folder, OTHER)
        return response

    of_obstore = obstore.get_async
    monkeypatch.setattr(LocalStore, "get_sync", get_sync)
    monkeypatch.setattr(FsspecStore, "get", get)
    monkeypatch.setattr(obstore, "get_async", get_async)


def write_in_place(folder: Path, data: bytes) -> None:
    put(folder, data, LONG_AGO_NS + 10**9)


@each_store
def test_bytes_that_were_read_during_a_write_are_torn_and_have_no_validator(
    opener: Callable[[Path], Store], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opener(folder)
    known = known_version(source)
    written_during_the_read(monkeypatch, folder, write_in_place)
    fetched = fetch(source, RangeByteRequest(10, 20))
    put(folder, DATA)

    assert (data_of(fetched), fetched.validator, fetched.is_torn) == (OTHER[10:20], None, True)
    with pytest.raises(ChangedError):
        fetch(source, RangeByteRequest(10, 20), only=known)


@each_store
def test_a_file_that_is_unchanged_is_not_read(
    opener: Callable[[Path], Store], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = opener(folder)
    known = known_version(source)
    written_during_the_read(monkeypatch, folder, lambda *_: pytest.fail("it was read"))
    if isinstance(source, ObjectStore):
        monkeypatch.undo()  # it opens the file, and reads the bytes only when asked for them

    assert fetch(source, unless=known).is_unchanged


@each_store
def test_a_listing_has_the_files_of_a_folder_and_below_it(
    opener: Callable[[Path], Store], folder: Path
) -> None:
    for key in ("zarr.json", "group/a/zarr.json", "group/a/c/0/1", "group/ab/c/0"):
        put(folder, b"{}", key=key)
    source = opener(folder)

    assert set(listed(source, "group/a/")) == {"group/a/zarr.json", "group/a/c/0/1"}
    assert set(listed(source)) == {
        *("zarr.json", KEY, "group/a/zarr.json", "group/a/c/0/1", "group/ab/c/0")
    }
    assert listed(source, "nothing/") == {}
    for key, (_, validator, _, _) in listed(source).items():
        assert validator == version(source, key)


@pytest.mark.parametrize("name", ["LocalStore", "fsspec"])
def test_a_listing_follows_links_as_reads_do_and_comes_to_an_end(name: str, folder: Path) -> None:
    source = OPENERS[name](folder)
    put(folder.parent / "elsewhere", b"linked", key="c/0")
    (folder / "group" / "linked").symlink_to(folder.parent / "elsewhere")
    (folder / "group" / "again").symlink_to(folder.parent / "elsewhere")
    (folder / "group" / "endless").symlink_to(folder)
    (folder / "group" / "dangling").symlink_to(folder / "nothing")
    found = listed(source)

    assert set(found) == {KEY, "group/linked/c/0", "group/again/c/0"}
    assert found["group/linked/c/0"].validator == version(source, "group/linked/c/0")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("name", ["LocalStore", "fsspec"])
def test_a_listing_leaves_out_what_is_no_file(name: str, folder: Path) -> None:
    source = OPENERS[name](folder)
    os.mkfifo(folder / "group" / "pipe")

    assert set(listed(source)) == {KEY}


def test_a_listing_has_every_file_of_several_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_reads, "BATCH", 2)
    keys = {f"group/c/{number}" for number in range(5)}
    for key in keys:
        put(folder, b"c", key=key)

    assert set(listed(LocalStore(folder))) == {KEY, *keys}


def test_the_sync_surface_of_a_local_store_is_that_of_the_event_loop(folder: Path) -> None:
    source = LocalStore(folder)
    reader = reader_for(source)
    fetched, known = reader.fetch_sync(KEY, RangeByteRequest(1, 5)), known_version(source)

    assert (reader.is_sync, reader.can_match, reader.asks_more) == (True, True, False)
    assert (data_of(fetched), fetched.validator) == (DATA[1:5], known)
    assert reader.version_sync(KEY) == known
    assert reader.fetch_sync(KEY, unless=known).is_unchanged
    put(folder, OTHER, LONG_AGO_NS + 1)
    with pytest.raises(ChangedError):
        reader.fetch_sync(KEY, only=known)


@pytest.mark.parametrize("key", ["group", "group/chunk/below", "\0", "x" * 300])
def test_what_is_no_file_is_what_the_plain_store_takes_it_for(key: str, folder: Path) -> None:
    source = LocalStore(folder)
    reader = reader_for(source)

    def of_plain() -> object:
        return source.get_sync(key, prototype=PROTOTYPE)

    def of_reader() -> object:
        return reader.fetch_sync(key).buffer

    outcomes: list[object] = []
    for call in (of_plain, of_reader):
        try:
            outcomes.append(call())
        except (OSError, ValueError) as error:
            outcomes.append(type(error))

    assert outcomes[0] == outcomes[1]
    assert reader.version_sync(key) is None


def test_a_store_without_its_folder_fails_as_the_plain_store_does(tmp_path: Path) -> None:
    source = LocalStore(tmp_path / "nothing", read_only=True)

    assert outcome(source, None) is outcome_of_plain(source, None) is FileNotFoundError
    assert outcome(source, None, only="f1") is FileNotFoundError


def test_each_put_into_the_memory_of_obstore_is_another_version() -> None:
    source = ObjectStore(obstore.store.MemoryStore())
    sync(source.set(KEY, buffer(DATA)))
    known = known_version(source)
    part = fetch(source, RangeByteRequest(1, 5), only=known)
    same = fetch(source, unless=known)
    sync(source.set(KEY, buffer(DATA)))

    assert (data_of(part), part.validator, same.is_unchanged) == (DATA[1:5], known, True)
    assert known_version(source) == listed(source)[KEY].validator != known
    with pytest.raises(ChangedError):
        fetch(source, only=known)


class OwnStore(LocalStore):
    """A store that may change the bytes."""


def test_stores_that_tell_no_validators_have_no_reader(folder: Path) -> None:
    fake = FsspecStore.from_url("memory://data.zarr")
    cached = fsspec.filesystem(
        "simplecache", target_protocol="file", cache_storage=str(folder.parent / "cache")
    )
    through_a_cache = FsspecStore(
        AsyncFileSystemWrapper(cached, asynchronous=True), path=str(folder)
    )
    sources: list[Store] = [
        *(MemoryStore(), OwnStore(folder), LoggingStore(LocalStore(folder))),
        *(fake, through_a_cache),
    ]

    assert [reader_of(each) for each in sources] == [None] * 5
