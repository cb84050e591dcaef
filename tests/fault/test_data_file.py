"""The data file deleted, replaced, cut, overwritten, or somebody else's, while open or not."""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import MemoryStore

from tests.fakes import (
    PROTOTYPE,
    CountingStore,
    assert_accounts,
    buffer,
    cached_keys,
    close_everything,
    leave_process,
    open_file,
    read,
    restart,
)
from tests.fault.real import immutable, mounted
from tests.fault.sources import drain, new_cache, told
from tests.systems import needs_data_file
from zarr_cache import CacheWarning, SqliteStore
from zarr_cache.core import checksum
from zarr_cache.disk import data_read
from zarr_cache.disk.data_file import HEADER, MAGIC
from zarr_cache.index import lookup

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from warnings import WarningMessage

    from zarr_cache import CacheStore

pytestmark = needs_data_file

SIZE = 300_000
KEYS = [f"c/{n}" for n in range(6)]
NEW = "c/new"
"""A key that is written to when something has happened."""
VALUES = {key: random.Random(key).randbytes(SIZE) for key in KEYS}  # noqa: S311 - the same each time
SMALL = {"c/smaller": b"{}", "c/small": bytes(range(256))}

SECRET = b"somebody else's"


def new_source() -> CountingStore:
    values = VALUES | SMALL
    return CountingStore(MemoryStore({key: buffer(data) for key, data in values.items()}))


def data_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-data")


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


def put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def sync_read(store: CacheStore, key: str) -> bytes | None:
    found = store.get_sync(key)
    return None if found is None else found.to_bytes()


def link(path: Path, name: Path) -> None:
    os.link(path, name)


def rename(path: Path, name: Path) -> None:
    path.rename(name)


def set_mode(path: Path, mode: int) -> None:
    path.chmod(mode)


def remove(path: Path) -> None:
    path.unlink()


def identity(path: Path) -> bytes:
    """What the cache file says that its data file begins with."""
    with open_file(path) as db:
        (found,) = db.execute("SELECT identity FROM data_file").fetchone()
    return bytes(found)


async def filled(path: Path) -> CacheStore:
    """A cache in which all of the source is, and which has the file open."""
    store = new_cache(new_source(), path)
    for key in VALUES | SMALL:
        await read(store, key)
    drain(store)
    return store


async def assert_goes_on(store: CacheStore, path: Path) -> None:
    """Every read is right, and after some rounds all is cached, in a data file that is ours."""
    await store.set(NEW, buffer(VALUES[KEYS[0]]))
    for _ in range(3):
        for key, expected in (VALUES | SMALL).items():
            assert await read(store, key) == expected
        drain(store)
    source = store._store
    assert isinstance(source, CountingStore)
    source.reset()
    for key, expected in (VALUES | SMALL).items():
        assert await read(store, key) == expected
    assert source.requests.total() == 0
    assert cached_keys(path) == {*VALUES, *SMALL, NEW}
    assert data_of(path).read_bytes()[:HEADER].startswith(MAGIC + identity(path))
    assert stat.S_IMODE(data_of(path).stat().st_mode) == 0o600


def delete(path: Path) -> None:
    data_of(path).unlink()


def empty(path: Path) -> None:
    os.truncate(data_of(path), 0)


def cut_in_half(path: Path) -> None:
    os.truncate(data_of(path), data_of(path).stat().st_size // 2)


def overwrite_the_header(path: Path) -> None:
    with data_of(path).open("r+b") as file:
        file.write(bytes(HEADER))


def flip_the_magic(path: Path) -> None:
    with data_of(path).open("r+b") as file:
        file.write(b"Z")


def flip_the_identity(path: Path) -> None:
    with data_of(path).open("r+b") as file:
        file.seek(len(MAGIC))
        file.write(bytes(4))


def overwrite_all_but_the_header(path: Path) -> None:
    length = data_of(path).stat().st_size
    with data_of(path).open("r+b") as file:
        file.seek(HEADER)
        file.write(bytes(length - HEADER))


def replace_by_that_of_another(path: Path) -> None:
    other = path.with_name("other.sqlite")
    store = new_cache(new_source(), other)
    for key in VALUES:
        store.get_sync(key)
    drain(store)
    store.close()
    shutil.copy(data_of(other), path.with_name("copy"))
    path.with_name("copy").rename(data_of(path))


def replace_by_nothing(path: Path) -> None:
    data_of(path).unlink()
    data_of(path).touch()


ACCIDENTS = [
    delete,
    empty,
    cut_in_half,
    overwrite_the_header,
    flip_the_magic,
    flip_the_identity,
    overwrite_all_but_the_header,
    replace_by_that_of_another,
    replace_by_nothing,
]


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
@pytest.mark.parametrize("happens", ACCIDENTS, ids=lambda each: each.__name__)
async def test_reads_are_right_and_the_cache_works_after_an_accident(
    path: Path, happens: Callable[[Path], None], is_open: bool
) -> None:
    store = await filled(path)
    if not is_open:
        restart(store)
        store = new_cache(new_source(), path)
    happens(path)

    await assert_goes_on(store, path)
    assert store.cache_stats()["faults"] == 0


@pytest.mark.parametrize("happens", ACCIDENTS, ids=lambda each: each.__name__)
async def test_the_cache_of_another_process_works_after_an_accident_too(
    path: Path, happens: Callable[[Path], None]
) -> None:
    store = await filled(path)
    leave_process(store)
    other = new_cache(new_source(), path)
    for key in KEYS:
        await read(other, key)
    happens(path)

    await assert_goes_on(other, path)
    await assert_goes_on(store, path)


async def test_the_data_file_of_another_cache_is_quarantined_and_not_written_to(path: Path) -> None:
    store = await filled(path)
    restart(store)
    replace_by_that_of_another(path)
    before = data_of(path).read_bytes()
    await assert_goes_on(new_cache(new_source(), path), path)
    (aside,) = path.parent.glob("cache.sqlite.damaged-*")

    assert aside.name.endswith("-data")
    assert aside.read_bytes() == before


async def test_the_data_file_of_a_deleted_cache_file_is_started_over(path: Path) -> None:
    restart(await filled(path))
    before = identity(path)
    remove(path)
    store = new_cache(new_source(), path)
    await assert_goes_on(store, path)

    assert identity(path) != before
    assert [each.name for each in path.parent.glob("cache.sqlite*-data")] == [data_of(path).name]


@pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
async def test_both_files_deleted_are_created_again(path: Path, is_open: bool) -> None:
    store = await filled(path)
    if not is_open:
        restart(store)
        store = new_cache(new_source(), path)
    for each in path.parent.glob("cache.sqlite*"):
        each.unlink()

    await assert_goes_on(store, path)


async def test_an_older_cache_file_beside_the_data_file_gives_no_wrong_bytes(path: Path) -> None:
    store = await filled(path)
    restart(store)
    copy = bytes_of(path)
    store = new_cache(new_source(), path)
    for key in KEYS:
        await store.set(key, buffer(VALUES[key][::-1]))
    restart(store)
    put(path, copy)

    await assert_goes_on(new_cache(new_source(), path), path)


async def test_moved_together_they_are_what_they_were(path: Path) -> None:
    restart(await filled(path))
    moved = path.with_name("moved.sqlite")
    rename(path, moved)
    rename(data_of(path), data_of(moved))
    source = new_source()
    store = new_cache(source, moved)
    found = {key: await read(store, key) for key in VALUES}

    assert found == VALUES
    assert source.requests.total() == 0


async def test_a_damaged_cache_file_is_quarantined_with_its_data_file(
    path: Path, warned: list[WarningMessage]
) -> None:
    restart(await filled(path))
    data = data_of(path).read_bytes()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(20_000))
    store = new_cache(new_source(), path)
    await read(store, KEYS[0])
    await assert_goes_on(store, path)
    aside = sorted(each.name.rpartition("Z")[2] for each in path.parent.glob("*.damaged-*"))
    (data_aside,) = path.parent.glob("*.damaged-*-data")

    assert {"", "-data"} <= set(aside)
    assert len(told(warned)) == 1
    assert data_aside.read_bytes() == data


def a_file_of_somebody(place: Path) -> None:
    place.write_bytes(SECRET * 1000)


def a_link(place: Path) -> None:
    elsewhere = place.with_name("elsewhere")
    elsewhere.write_bytes(b"")
    place.symlink_to(elsewhere)


def a_folder(place: Path) -> None:
    place.mkdir()


def a_pipe(place: Path) -> None:
    os.mkfifo(place)


def a_hard_link(place: Path) -> None:
    elsewhere = place.with_name("elsewhere")
    elsewhere.write_bytes(b"")
    os.link(elsewhere, place)


def facts(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What lies there and is not the cache's."""
    return {
        each.name: (
            each.lstat().st_mode,
            each.read_bytes() if stat.S_ISREG(each.lstat().st_mode) else b"",
        )
        for each in folder.iterdir()
        if each.name in {"elsewhere", "cache.sqlite-data"}
    }


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes and links there")
@pytest.mark.parametrize(
    "make", [a_file_of_somebody, a_link, a_folder, a_pipe, a_hard_link], ids=lambda x: x.__name__
)
async def test_what_is_not_ours_is_left_as_it_is_and_small_values_are_cached(
    path: Path,
    make: Callable[[Path], None],
    warned: list[WarningMessage],
) -> None:
    make(data_of(path))
    before = facts(path.parent)
    source = new_source()
    store = new_cache(source, path)
    # All of them in one transaction, if it were not for that.
    found = {key: await read(store, key) for key in VALUES | SMALL}
    drain(store)
    await store.set("c/small", buffer(SMALL["c/small"]))
    await store.set(KEYS[0], buffer(VALUES[KEYS[0]]))
    source.reset()
    again = {key: await read(store, key) for key in VALUES | SMALL}
    store.close()

    assert found == again == VALUES | SMALL
    assert facts(path.parent) == before
    assert source.keys == KEYS
    assert len(told(warned)) == 1
    assert "cache.sqlite-data" in told(warned)[0]


async def test_what_is_stored_with_sqlite_store_is_in_one_file(path: Path) -> None:
    store = SqliteStore(path)
    for key, value in VALUES.items():
        await store.set(key, buffer(value))
    store.close()

    assert [each.name for each in path.parent.iterdir()] == [path.name]


async def test_a_data_file_has_the_mode_of_the_cache_file(path: Path) -> None:
    store = new_cache(new_source(), path)
    await read(store, "c/smaller")
    drain(store)
    set_mode(path, 0o660)
    await read(store, KEYS[0])
    drain(store)

    assert stat.S_IMODE(data_of(path).stat().st_mode) == 0o660


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES])
async def test_what_is_in_a_data_file_that_cannot_be_opened_stays(
    path: Path, code: int, monkeypatch: pytest.MonkeyPatch, warned: list[WarningMessage]
) -> None:
    restart(await filled(path))
    source = new_source()
    store = new_cache(source, path)
    open_ = os.open

    def refuse(name: Path, *arguments: int) -> int:
        if str(name).endswith("-data"):
            raise OSError(code, os.strerror(code))
        return open_(name, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        found = [{key: await read(store, key) for key in VALUES | SMALL}]
        asked = list(source.keys)
        drain(store)
    source.reset()
    found.append({key: await read(store, key) for key in VALUES | SMALL})

    assert found == [VALUES | SMALL] * 2
    assert asked == KEYS
    assert source.requests.total() == 0
    assert store.cache_stats()["damaged"] == 0
    assert len(told(warned)) == 1


async def test_a_data_file_that_may_not_be_written_to_is_read(path: Path) -> None:
    restart(await filled(path))
    with immutable(data_of(path)):
        source = new_source()
        store = new_cache(source, path)
        found = {key: await read(store, key) for key in VALUES}
        store.close()

    assert found == VALUES
    assert source.requests.total() == 0


def flip(data: bytearray, place: int) -> None:
    data[place] ^= 0x10


@pytest.mark.parametrize("seed", range(3))
async def test_flipped_bytes_are_a_miss_and_never_others(path: Path, seed: int) -> None:
    restart(await filled(path))
    chosen = random.Random(seed)  # noqa: S311 - the same each time
    whole = data_of(path).read_bytes()
    for _ in range(20):
        data = bytearray(whole)
        for _ in range(chosen.randrange(1, 5)):
            flip(data, chosen.randrange(len(data)))
        data_of(path).write_bytes(bytes(data))
        store = new_cache(new_source(), path)
        for key, expected in VALUES.items():
            assert await read(store, key) == expected
        drain(store)
        restart(store)
        assert_accounts(path)
        whole = data_of(path).read_bytes()


@pytest.mark.parametrize("which", ["the data file", "the cache file"])
@pytest.mark.parametrize("seed", range(4))
async def test_after_a_power_cut_each_value_is_right_or_missing(
    path: Path, which: str, seed: int
) -> None:
    """One of the files is back to what it was some time before, all of it or some blocks."""
    chosen = random.Random(seed)  # noqa: S311 - the same each time
    source = new_source()
    store = new_cache(source, path, max_size=4 * SIZE)
    for key in KEYS[:4]:
        await read(store, key)
    drain(store)
    restart(store)
    before = {each: each.read_bytes() for each in (path, data_of(path))}
    store = new_cache(source, path, max_size=4 * SIZE)
    for key in chosen.sample(KEYS, 6):
        await read(store, key)
        drain(store)
    restart(store)
    if which == "the cache file":
        put(path, before[path])
    else:
        now = bytearray(data_of(path).read_bytes())
        old = before[data_of(path)]
        for place in range(HEADER, min(len(now), len(old)), 4096):
            if chosen.random() < 0.5:
                now[place : place + 4096] = old[place : place + 4096]
        data_of(path).write_bytes(bytes(now))
    store = new_cache(source, path, max_size=4 * SIZE)
    for _ in range(2):
        for key, expected in VALUES.items():
            assert await read(store, key) == expected
        drain(store)
    restart(store)
    assert_accounts(path)


async def test_a_part_of_the_disk_that_cannot_be_read_is_a_miss(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await filled(path)
    source = store._store
    assert isinstance(source, CountingStore)
    source.reset()
    preadv = os.preadv

    def fail(*_: object) -> int:
        monkeypatch.setattr(os, "preadv", preadv)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    found = await read(store, KEYS[0])

    # It was tried again, as after another value has taken its place.
    assert found == VALUES[KEYS[0]]
    assert source.requests.total() == 0


@pytest.mark.parametrize("nowait", ["memory", "disk", "unknown"])
@pytest.mark.parametrize("size", [checksum.BLOCK + 1, 3 * 2**20])
async def test_bytes_come_out_of_memory_or_off_the_loop(
    path: Path, nowait: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = random.Random(0).randbytes(size)  # noqa: S311 - the same each time
    source = CountingStore(MemoryStore({"k": buffer(value)}))
    store = new_cache(source, path)
    await read(store, "k")
    drain(store)
    source.reset()
    preadv = os.preadv
    waited = []

    def tell(descriptor: int, buffers: list[memoryview], place: int, flags: int = 0) -> int:
        if flags and nowait == "disk":
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        if flags and nowait == "unknown":
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        if not flags:
            waited.append(threading.current_thread() is threading.main_thread())
        return preadv(descriptor, buffers, place, flags)

    monkeypatch.setattr(os, "preadv", tell)
    found = [await read(store, "k")]
    is_on_loop = {
        "memory": [],
        "disk": [False],
        "unknown": [size <= data_read.MAX_ON_LOOP],
    }[nowait]
    assert waited == (is_on_loop if data_read.NOWAIT else waited)
    found.append(store.get_sync("k").to_bytes())  # type: ignore[union-attr]

    assert found == [value] * 2
    assert source.requests.total() == 0


@pytest.fixture(autouse=True)
def _closed() -> object:
    yield
    close_everything()


async def test_a_data_file_that_was_moved_away_is_not_cut(path: Path) -> None:
    store = await filled(path)
    moved = path.with_name("backup")
    rename(data_of(path), moved)
    before = bytes_of(moved)
    await store.clear_cache()
    drain(store)
    store.close()

    assert bytes_of(moved) == before


async def test_a_data_file_that_has_another_name_by_now_is_not_written_to(
    path: Path, warned: list[WarningMessage]
) -> None:
    store = await filled(path)
    link(data_of(path), path.with_name("backup"))
    before = bytes_of(data_of(path))
    await store.set(NEW, buffer(VALUES[KEYS[0]]))
    found = {key: await read(store, key) for key in VALUES}
    store.close()
    after = bytes_of(data_of(path))
    remove(path.with_name("backup"))

    assert found == VALUES
    assert after == before
    assert "2 names" in told(warned)[0]


async def test_large_values_that_cannot_be_kept_evict_nothing(
    path: Path, warned: list[WarningMessage]
) -> None:
    a_link(data_of(path))
    small = {f"s/{n}": bytes([n]) * 1000 for n in range(100)}
    values = VALUES | small
    source = MemoryStore({key: buffer(data) for key, data in values.items()})
    store = new_cache(source, path, max_size=400_000)
    for key in [*small, *VALUES]:
        assert await read(store, key) == values[key]
        drain(store)
    await store.set(NEW, buffer(VALUES[KEYS[0]]))

    assert cached_keys(path) == set(small)
    assert len(told(warned)) == 1


async def test_a_full_disk_has_room_again_for_what_was_not_kept(tmp_path: Path) -> None:
    with mounted(tmp_path, nbytes=16 * 2**20):
        path = tmp_path / "cache.sqlite"
        values = {f"{n}": bytes([n]) * 2**20 for n in range(40)}
        source = MemoryStore({key: buffer(data) for key, data in values.items()})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CacheWarning)
            store = new_cache(source, path)
            for key, value in values.items():
                assert await read(store, key) == value
            drain(store)
            store.close()
        with open_file(path) as db:
            (length,) = db.execute("SELECT length FROM data_file").fetchone()
            reserved = db.execute("SELECT * FROM reservation").fetchall()
        size = data_of(path).stat().st_size if data_of(path).exists() else length
        close_everything()

    assert reserved == []
    assert size <= length


async def test_many_ranges_of_a_value_are_looked_up_off_the_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await filled(path)
    loop_thread = threading.current_thread()
    on_loop = []
    original = lookup.lookup

    def tell(*arguments: Any, **settings: Any) -> Any:
        on_loop.append(threading.current_thread() is loop_thread)
        return original(*arguments, **settings)

    monkeypatch.setattr(lookup, "lookup", tell)
    ranges = [RangeByteRequest(n * 100, n * 100 + 50) for n in range(1000)]
    found: dict[int, bytes] = {}
    async for batch in store.get_ranges(KEYS[0], ranges, prototype=PROTOTYPE):
        found |= {place: piece.to_bytes() for place, piece in batch if piece is not None}

    assert found == {n: VALUES[KEYS[0]][n * 100 : n * 100 + 50] for n in range(1000)}
    assert len(on_loop) == 1000
    assert not any(on_loop)
