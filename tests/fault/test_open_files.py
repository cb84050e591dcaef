"""Where no open file can be removed or renamed, as on Windows, reads go on and the file stays."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.fakes import IS_WINDOWS, close_everything
from tests.fault.real import held
from tests.fault.sources import (
    LONGEST_SECONDS,
    VALUES,
    drain,
    each_surface,
    filled_cache,
    new_cache,
    read_all,
    told,
)
from zarr_cache.disk.paths import shared_memory_of, wal_of
from zarr_cache.file import connection

if TYPE_CHECKING:
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fakes import HeldTime
    from tests.fault.sources import Read

pytestmark = pytest.mark.skipif(
    not IS_WINDOWS, reason="an open file is removed here; see tests/as_on_windows"
)


def damage(path: Path) -> None:
    """Write noise over all pages but that of the schema."""
    with path.open("r+b") as file:
        file.seek(connection.PAGE_SIZE)
        file.write(os.urandom(path.stat().st_size - connection.PAGE_SIZE))


def deleted(path: Path) -> None:
    path.unlink()


def quarantined(path: Path) -> list[Path]:
    return sorted(path.parent.glob("*.damaged-*Z"))


@each_surface
async def test_a_damaged_file_that_another_process_has_open_is_quarantined_later(
    path: Path, surface: Read, short_waits: HeldTime, warned: list[WarningMessage]
) -> None:
    source, _ = await filled_cache(path, surface)
    close_everything()
    with held(path, "SELECT 1"):
        damage(path)
        store = new_cache(source, path)
        meanwhile = await read_all(surface, store)
        left = quarantined(path)
    short_waits.step(LONGEST_SECONDS)
    later = await read_all(surface, store)

    assert meanwhile == later == VALUES
    assert left == []
    assert len(quarantined(path)) == 1
    assert any("it cannot be renamed" in each and path.name in each for each in told(warned))


@each_surface
async def test_a_damaged_file_that_no_other_process_has_open_is_quarantined_at_once(
    path: Path, surface: Read
) -> None:
    source, _ = await filled_cache(path, surface)
    close_everything()
    damage(path)
    with pytest.warns(match="damaged"):
        found = await read_all(surface, new_cache(source, path))

    assert found == VALUES
    assert len(quarantined(path)) == 1


@each_surface
async def test_an_open_file_can_be_deleted_when_its_store_was_closed(
    path: Path, surface: Read
) -> None:
    _, store = await filled_cache(path, surface)
    with pytest.raises(PermissionError):
        deleted(path)
    found = await read_all(surface, store)
    store.close()
    close_everything()
    beside = [each for each in (wal_of(path), shared_memory_of(path)) if each.exists()]
    deleted(path)

    assert found == VALUES
    assert beside == []


@each_surface
async def test_after_a_delete_while_closed_the_same_store_begins_another_file(
    path: Path, surface: Read
) -> None:
    source, store = await filled_cache(path, surface)
    close_everything()
    deleted(path)
    first = await read_all(surface, store)
    drain(store)
    source.reset()
    second = await read_all(surface, store)

    assert first == second == VALUES
    assert source.requests.total() == 0
