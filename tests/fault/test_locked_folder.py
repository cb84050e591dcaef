"""Another process keeps the folder locked, suspended while it opens a file or sets one aside."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.fakes import assert_accounts, restart
from tests.fault.sources import (
    LONGEST_SECONDS,
    VALUES,
    drain,
    each_surface,
    filled_cache,
    new_cache,
    new_source,
    read_all,
    read_until_kept,
    told,
)
from zarr_cache.disk.paths import HAS_LOCKS
from zarr_cache.file.invalidation import Markers

if HAS_LOCKS:
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fakes import HeldTime, Statements
    from tests.fault.sources import Read

pytestmark = [
    pytest.mark.skipif(not HAS_LOCKS, reason="the system has no flock: see docs/sqlite.md"),
    each_surface,
]

PAGE = 16 * 1024


@contextmanager
def locked(folder: Path, how: int) -> Iterator[None]:
    """Locks of two descriptors exclude each other, as those of two processes do."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def names_in(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def deleted(path: Path) -> None:
    path.unlink()


def is_set_aside(path: Path) -> bool:
    return any(name.startswith(f"{path.name}.damaged-") for name in names_in(path.parent))


async def test_a_read_does_not_wait_for_a_process_that_is_suspended_during_a_quarantine(
    path: Path, surface: Read, short_waits: HeldTime, warned: list[WarningMessage]
) -> None:
    source = new_source()
    store = new_cache(source, path)
    with locked(path.parent, fcntl.LOCK_EX):
        found = await read_all(surface, store)
    short_waits.step(LONGEST_SECONDS)
    await read_all(surface, store)
    drain(store)
    source.reset()
    after = await read_all(surface, store)

    assert found == after == VALUES
    assert source.requests.total() == 0
    assert "keeps its folder locked" in told(warned)[0]
    assert_accounts(path)


async def test_a_deleted_file_is_created_again_when_a_suspended_process_continues(
    path: Path, surface: Read, short_waits: HeldTime, warned: list[WarningMessage]
) -> None:
    source, store = await filled_cache(path, surface)
    deleted(path)
    with locked(path.parent, fcntl.LOCK_SH):
        found = await read_all(surface, store)
        is_begun = path.name in names_in(path.parent)
    short_waits.step(LONGEST_SECONDS)
    await read_all(surface, store)
    drain(store)
    restart(store)
    source.reset()
    after = await read_all(surface, new_cache(source, path))

    assert found == after == VALUES
    assert not is_begun
    assert source.requests.total() == 0
    assert "keeps its folder locked" in told(warned)[0]
    assert_accounts(path)


async def test_a_damaged_file_is_quarantined_when_a_suspended_process_continues(
    path: Path, surface: Read, short_waits: HeldTime, warned: list[WarningMessage]
) -> None:
    source, store = await filled_cache(path, surface)
    restart(store)
    os.truncate(path, PAGE)
    store = new_cache(source, path)
    with locked(path.parent, fcntl.LOCK_SH):
        found = await read_all(surface, store)
        is_aside_meanwhile = is_set_aside(path)
    # The first round finds the damage, the second fills the new file.
    for _ in range(2):
        short_waits.step(LONGEST_SECONDS)
        await read_all(surface, store)
        drain(store)
    source.reset()
    after = await read_all(surface, store)

    assert found == after == VALUES
    assert not is_aside_meanwhile
    assert is_set_aside(path)
    assert source.requests.total() == 0
    assert "keeps its folder locked" in told(warned)[0]
    assert_accounts(path)


async def test_a_mark_that_cannot_be_removed_yet_costs_one_wait_and_is_removed_later(
    path: Path,
    surface: Read,
    statements: Statements,
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    source, store = await filled_cache(path, surface)
    # As another process leaves it that could not record a write.
    Markers(path).mark("source")
    with locked(path.parent, fcntl.LOCK_EX):
        during = [await read_all(surface, store) for _ in range(5)]
        fences = statements.number("UPDATE namespace")
    short_waits.step(LONGEST_SECONDS)
    after = await read_until_kept(surface, store)
    source.reset()
    after.append(await read_all(surface, store))

    assert [*during, *after] == [VALUES] * 8
    assert fences == 1
    assert source.requests.total() == 0
    assert Markers(path).marked_ns("source") is None
    assert len(told(warned)) == 1
