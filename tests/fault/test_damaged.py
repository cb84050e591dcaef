"""A damaged file of ours is set aside under a name that says so, and another is begun."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import MemoryStore

from tests.fakes import PROTOTYPE, buffer, cached_bytes, is_cache_file, open_file, restart
from tests.fault.children import run_child
from tests.fault.sources import (
    LONGEST_SECONDS,
    SURFACES,
    VALUES,
    drain,
    each_surface,
    filled_cache,
    new_cache,
    new_source,
    read_all,
    told,
    write_some,
)
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.errors import FileDamagedError
from zarr_cache.file import connection

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fakes import HeldTime
    from tests.fault.sources import Read

PAGE = connection.PAGE_SIZE


def overwrite(path: Path, start: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(data)


def noise_after_the_header(path: Path) -> None:
    overwrite(path, 100, os.urandom(path.stat().st_size - 100))


def noise_after_the_schema(path: Path) -> None:
    overwrite(path, PAGE, os.urandom(path.stat().st_size - PAGE))


def zeros_after_the_schema(path: Path) -> None:
    overwrite(path, PAGE, bytes(path.stat().st_size - PAGE))


def noise_in_the_magic(path: Path) -> None:
    overwrite(path, 0, b"no SQLite at all")


def unknown_write_version(path: Path) -> None:
    # SQLite reads such a file, and does not write to it.
    overwrite(path, 18, b"\xfd")


def unknown_schema_format(path: Path) -> None:
    overwrite(path, 44, b"\xff\xff\xff\xfb")


def no_application_id(path: Path) -> None:
    overwrite(path, 68, bytes(4))


def cut_in_the_header(path: Path) -> None:
    os.truncate(path, 60)


def cut_in_the_schema(path: Path) -> None:
    os.truncate(path, PAGE // 2)


def cut_after_the_schema(path: Path) -> None:
    os.truncate(path, PAGE)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def every_index_page_of_another_kind(path: Path) -> None:
    # The first byte of a page says what it is: 0x0a, a leaf of an index, becomes one of a table.
    for start in range(PAGE, path.stat().st_size, PAGE):
        with path.open("rb") as file:
            file.seek(start)
            kind = file.read(1)
        if kind == b"\x0a":
            overwrite(path, start, b"\x0d")


DAMAGES = [
    noise_after_the_header,
    noise_after_the_schema,
    zeros_after_the_schema,
    noise_in_the_magic,
    unknown_schema_format,
    no_application_id,
    cut_in_the_header,
    cut_in_the_schema,
    cut_after_the_schema,
    cut_in_half,
    every_index_page_of_another_kind,
]
each_damage = pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)


async def kept_file(path: Path) -> None:
    """Make a file that holds all values, and that nobody has open."""
    _, store = await filled_cache(path)
    restart(store)


def others_in(folder: Path) -> list[str]:
    """Names of the files beside the cache file, without the logs and the data files of any."""
    beside = ("-wal", "-shm", "-data")
    names = {file.name for file in folder.iterdir() if not file.name.endswith(beside)}
    return sorted(names - {"cache.sqlite"})


@each_surface
@each_damage
async def test_reads_succeed_and_a_new_file_replaces_the_damaged_one(
    path: Path,
    tmp_path: Path,
    surface: Read,
    damage: Callable[[Path], None],
    warned: list[WarningMessage],
) -> None:
    await kept_file(path)
    damage(path)
    source = new_source()
    store = new_cache(source, path)
    found = []
    for _ in range(2):
        found.append(await read_all(surface, store))
        drain(store)
    source.reset()
    found.append(await read_all(surface, store))
    aside = others_in(tmp_path)

    assert found == [VALUES] * 3
    assert source.requests.total() == 0
    assert is_cache_file(path)
    assert [re.fullmatch(r"cache\.sqlite\.damaged-[0-9T.]+Z", name) for name in aside] != [None]
    assert len(aside) == 1
    assert len(warned) == 1, told(warned)
    assert str(path) in told(warned)[0]
    assert aside[0] in told(warned)[0]


@each_damage
async def test_a_quarantined_file_is_as_it_was_found(
    path: Path, tmp_path: Path, damage: Callable[[Path], None], warned: list[WarningMessage]
) -> None:
    await kept_file(path)
    damage(path)
    before = bytes_of(path)
    store = new_cache(new_source(), path)
    await read_all(SURFACES["async"], store)
    store.close()
    (aside,) = others_in(tmp_path)

    assert bytes_of(tmp_path / aside) == before
    assert len(told(warned)) == 1


async def test_a_file_that_sqlite_reads_and_does_not_write_is_quarantined_at_the_first_write(
    path: Path, tmp_path: Path, warned: list[WarningMessage]
) -> None:
    await kept_file(path)
    unknown_write_version(path)
    source = new_source()
    store = new_cache(source, path)
    found = await read_all(SURFACES["async"], store)
    requests = source.requests.total()
    await store.set("another", buffer(b"written"))
    store.close()
    (aside,) = others_in(tmp_path)

    assert (found, requests) == (VALUES, 0)
    assert aside in told(warned)[0]


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


@each_damage
async def test_a_write_reaches_the_source_and_is_never_followed_by_what_was_before(
    path: Path, damage: Callable[[Path], None], warned: list[WarningMessage]
) -> None:
    await kept_file(path)
    damage(path)
    source = new_source()
    store = new_cache(source, path)
    expected = await write_some(store)
    found = [await read_all(surface, store) for surface in SURFACES.values()]
    in_source = await read_all(SURFACES["async"], source)

    assert in_source == expected
    assert found == [expected] * 2
    assert len(told(warned)) <= 1, told(warned)


@each_surface
@pytest.mark.leaves_damage
async def test_a_damaged_file_with_stored_values_stays_where_it_is(
    path: Path,
    tmp_path: Path,
    surface: Read,
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    stored = SqliteStore(path)
    stored.set_sync("theirs", buffer(b"not to be lost"))
    await kept_file(path)
    every_index_page_of_another_kind(path)
    before = bytes_of(path)
    store = new_cache(new_source(), path)
    found = []
    for _ in range(3):
        found.append(await read_all(surface, store))
        short_waits.step(LONGEST_SECONDS)
    restart(store)

    assert found == [VALUES] * 3
    assert others_in(tmp_path) == []
    assert bytes_of(path) == before
    assert len(told(warned)) == 1


@each_surface
async def test_a_total_that_is_too_small_does_not_let_the_file_grow(
    path: Path, surface: Read, warned: list[WarningMessage]
) -> None:
    await kept_file(path)
    with open_file(path) as db:
        db.execute("UPDATE total SET bytes = 1 WHERE kind = 'value'")
        db.commit()
    budget = max(map(len, VALUES.values()))
    store = new_cache(new_source(), path, max_size=budget)
    found = await read_all(surface, store)
    drain(store)

    assert found == VALUES
    assert cached_bytes(path) <= budget
    assert len(told(warned)) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM total",
        "DELETE FROM total WHERE kind = 'stored'",
        "UPDATE total SET entries = 0 WHERE kind = 'stored'; DELETE FROM counter",
    ],
)
async def test_a_total_of_zero_stored_values_is_checked_before_a_quarantine(
    path: Path, tmp_path: Path, statement: str, warned: list[WarningMessage]
) -> None:
    stored = SqliteStore(path)
    stored.set_sync("theirs", buffer(b"not to be lost"))
    await kept_file(path)
    with open_file(path) as db:
        db.executescript(statement)
    _, store = await filled_cache(path)
    restart(store)
    others = others_in(tmp_path)
    list(SqliteStore(path).verify(repair=True))

    assert others == []
    assert (await SqliteStore(path).get("theirs", PROTOTYPE)) is not None
    assert len(told(warned)) == 1


def test_sqlite_store_itself_says_that_its_file_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "damaged.db"
    store = SqliteStore(path)
    store.set_sync("k", buffer(b"value"))
    restart(store)
    noise_after_the_schema(path)

    with pytest.raises(FileDamagedError, match=str(path)):
        SqliteStore(path).get_sync("k")
    assert others_in(tmp_path) == [path.name]


async def test_one_damaged_value_is_removed_and_the_file_stays(
    path: Path, tmp_path: Path, warned: list[WarningMessage]
) -> None:
    await kept_file(path)
    with open_file(path) as db:
        db.execute("UPDATE value SET data = zeroblob(length(data)) WHERE rowid = 2")
        db.commit()
    source = new_source()
    store = new_cache(source, path)
    found = await read_all(SURFACES["async"], store)

    assert found == VALUES
    assert source.requests.total() == 1
    assert store.cache_stats()["damaged"] == 1
    assert store.cache_stats()["faults"] == 0
    assert others_in(tmp_path) == []
    assert told(warned) == []


@pytest.mark.parametrize("persist_ranges", [False, True])
def test_a_damaged_entry_counts_once_however_many_ranges_are_read(
    path: Path, *, persist_ranges: bool
) -> None:
    source = MemoryStore({"k": buffer(b"0123456789")})
    cache = SqliteStore(path)
    store = CacheStore(source, cache_store=cache, persist_ranges=persist_ranges, namespace="s")
    store.get_sync("k")
    store.flush()
    with open_file(path) as db:
        db.execute("UPDATE entry SET stored_at = stored_at - 1 WHERE kind = 'value'")
        db.commit()
    wanted = [RangeByteRequest(start, start + 2) for start in (0, 4, 8)]
    found = store.get_ranges_sync("k", wanted, prototype=PROTOTYPE)

    assert {index: piece and piece.to_bytes() for index, piece in found} == {
        0: b"01",
        1: b"45",
        2: b"89",
    }
    assert store.cache_stats()["damaged"] == 1


CUT_WHILE_OPEN = """
async def main():
    source = new_source()
    store = new_cache(source, path)
    await read_all(read, store)
    # Out of the log and into the file, which is what is cut.
    store.close()
    at_first = await read_all(read, store) | await read_all(read_sync, store)
    # By another process: this one would drop its own locks when it closes the file.
    subprocess.run(["truncate", "-s", arguments[0], path], check=True)
    found = []
    for surface in (read, read_sync, read, read_sync):
        found.append(await read_all(surface, store))
        drain(store)
    source.reset()
    found.append(await read_all(read, store))
    tell(right=[each == VALUES for each in (at_first, *found)], asked=source.requests.total())
asyncio.run(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps an open file as long as it is")
@pytest.mark.parametrize("nbytes", ["0", "60", "-20000"])
def test_a_file_that_is_cut_while_it_is_open_ends_no_process(path: Path, nbytes: str) -> None:
    ended = run_child(path, CUT_WHILE_OPEN, nbytes)

    assert ended.code == 0, ended.errors
    assert ended.facts["right"] == [True] * 6
    assert ended.facts["asked"] == 0
    assert len(ended.facts["warned"]) <= 1
