"""A file that is deleted, moved or replaced while it is open is begun anew, or used as it is."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.fakes import (
    assert_accounts,
    buffer,
    close_everything,
    is_cache_file,
    leave_process,
    restart,
)
from tests.fault.sources import (
    KEYS,
    LONGEST_SECONDS,
    VALUES,
    drain,
    each_surface,
    filled_cache,
    new_cache,
    new_source,
    read_all,
    told,
)
from tests.systems import needs_removal_of_open_files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fakes import HeldTime
    from tests.fault.sources import Read

pytestmark = [each_surface, needs_removal_of_open_files]

THEIRS = b"a,b\n1,2\n" * 10_000


def wal_of(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]


def replaced_by_theirs(path: Path) -> None:
    theirs = path.with_name("theirs")
    theirs.write_bytes(THEIRS)
    theirs.replace(path)


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


def deleted(path: Path) -> None:
    path.unlink()


def deleted_with_its_log(path: Path) -> None:
    for file in (path, *wal_of(path)):
        file.unlink()


def deleted_with_its_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def moved(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def moved_with_its_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


WAYS = [deleted, deleted_with_its_log, deleted_with_its_folder, moved, moved_with_its_folder]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "cache.sqlite"


@pytest.mark.parametrize("go", WAYS, ids=lambda way: way.__name__)
async def test_a_deleted_file_is_created_again(
    path: Path, surface: Read, go: Callable[[Path], None], warned: list[WarningMessage]
) -> None:
    source, store = await filled_cache(path, surface)
    go(path)
    source.reset()
    first = await read_all(surface, store)
    drain(store)
    second = await read_all(surface, store)
    store.close()

    assert [first, second] == [VALUES, VALUES]
    assert source.keys == KEYS
    assert is_cache_file(path)
    assert_accounts(path)
    assert len(told(warned)) <= 1


@pytest.mark.parametrize("go", WAYS, ids=lambda way: way.__name__)
async def test_no_file_is_created_for_what_was_still_to_be_written(
    path: Path, surface: Read, go: Callable[[Path], None], warned: list[WarningMessage]
) -> None:
    _, store = await filled_cache(path, surface)
    # Uses and counts wait.
    await read_all(surface, store)
    go(path)
    close_everything()
    left = [file for file in (path, *wal_of(path)) if file.exists()]
    found = await read_all(surface, store)

    assert left == []
    assert found == VALUES
    assert told(warned) == []


@pytest.mark.parametrize("go", WAYS, ids=lambda way: way.__name__)
async def test_a_write_is_never_followed_by_what_was_before_it(
    path: Path, surface: Read, go: Callable[[Path], None], warned: list[WarningMessage]
) -> None:
    _, store = await filled_cache(path, surface)
    go(path)
    await store.set(KEYS[0], buffer(b"written"))
    found = [await surface(store, KEYS[0]) for _ in range(3)]

    assert found == [b"written"] * 3
    assert len(told(warned)) <= 1


async def test_another_cache_file_in_its_place_is_used_as_it_is(
    path: Path, surface: Read, warned: list[WarningMessage]
) -> None:
    new_values = {key: b"newer " + data for key, data in VALUES.items()}
    source = new_source()
    newer = new_source()
    for key, data in new_values.items():
        await newer._store.set(key, buffer(data))
    other = new_cache(newer, path.with_name("other.sqlite"))
    await read_all(surface, other)
    restart(other)
    store = new_cache(source, path)
    await read_all(surface, store)
    drain(store)
    path.with_name("other.sqlite-data").replace(path.with_name(f"{path.name}-data"))
    path.with_name("other.sqlite").replace(path)
    source.reset()
    found = await read_all(surface, store)

    # The log of the file that was there must not be taken for that of this one.
    assert found == new_values
    assert source.requests.total() == 0
    assert len(told(warned)) <= 1


async def test_a_foreign_file_in_its_place_is_left_as_it_is(
    path: Path, surface: Read, short_waits: HeldTime, warned: list[WarningMessage]
) -> None:
    _, store = await filled_cache(path, surface)
    replaced_by_theirs(path)
    found = []
    for _ in range(3):
        found.append(await read_all(surface, store))
        short_waits.step(LONGEST_SECONDS)
    store.close()

    assert found == [VALUES] * 3
    assert bytes_of(path) == THEIRS
    assert len(warned) == 1
    assert "not an SQLite database" in told(warned)[0]


async def test_two_processes_whose_file_was_deleted_share_the_new_one(
    path: Path, surface: Read, warned: list[WarningMessage]
) -> None:
    source, store = await filled_cache(path, surface)
    leave_process(store)
    other = new_cache(source, path)
    await read_all(surface, other)
    deleted(path)
    await read_all(surface, store)
    drain(store)
    source.reset()
    found = await read_all(surface, other)

    assert found == VALUES
    assert source.requests.total() == 0
    assert len(told(warned)) <= 2


async def test_a_write_after_the_wal_alone_was_deleted_is_kept(
    path: Path, surface: Read, warned: list[WarningMessage]
) -> None:
    source, store = await filled_cache(path, surface)
    wal_of(path)[0].unlink()
    await store.set(KEYS[0], buffer(b"written"))
    found = await surface(store, KEYS[0])
    restart(store)
    source.reset()
    after = await read_all(surface, new_cache(source, path))

    assert found == b"written"
    assert after == {**VALUES, KEYS[0]: b"written"}
    assert source.requests.total() == 0
    assert told(warned) == []
