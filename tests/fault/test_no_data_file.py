"""Where the system does not read at a place, as on Windows, every value is in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import RangeByteRequest

from tests.fakes import buffer, read, restart
from tests.fault.sources import (
    KEYS,
    VALUES,
    drain,
    each_surface,
    filled_cache,
    new_cache,
    read_all,
    told,
)
from tests.systems import needs_data_file
from zarr_cache.disk import data_file_opening
from zarr_cache.disk.data_file import MAGIC
from zarr_cache.disk.paths import data_file_of
from zarr_cache.file import connection
from zarr_cache.index.extents import MIN_BYTES

if TYPE_CHECKING:
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fault.sources import Read

LARGE = [key for key in KEYS if len(VALUES[key]) >= MIN_BYTES]


@pytest.fixture
def no_data_file(monkeypatch: pytest.MonkeyPatch) -> None:
    for each in (connection, data_file_opening):
        monkeypatch.setattr(each, "IS_SUPPORTED", False)


@each_surface
@pytest.mark.usefixtures("no_data_file")
async def test_values_of_every_size_and_their_ranges_are_cached(path: Path, surface: Read) -> None:
    source, store = await filled_cache(path, surface)
    await store.set(LARGE[0], buffer(VALUES[LARGE[1]]))
    restart(store)
    store = new_cache(source, path)
    source.reset()
    found = await read_all(surface, store)
    part = await surface(store, LARGE[1], byte_range=RangeByteRequest(50_000, 70_000))

    assert found == VALUES | {LARGE[0]: VALUES[LARGE[1]]}
    assert part == VALUES[LARGE[1]][50_000:70_000]
    assert source.requests.total() == 0
    assert not data_file_of(path).exists()


@pytest.mark.parametrize("content", [b"theirs", MAGIC + bytes(4096)], ids=["theirs", "an orphan"])
@pytest.mark.usefixtures("no_data_file")
async def test_what_has_the_name_of_the_data_file_is_left_as_it_is(
    path: Path, warned: list[WarningMessage], content: bytes
) -> None:
    data_file_of(path).write_bytes(content)
    source, store = await filled_cache(path)
    restart(store)
    source.reset()
    found = await read_all(read, new_cache(source, path))

    assert found == VALUES
    assert source.requests.total() == 0
    assert data_file_of(path).read_bytes() == content
    assert told(warned) == []


@each_surface
@needs_data_file
async def test_large_values_of_a_file_that_was_brought_there_are_fetched_again(
    path: Path, surface: Read, request: pytest.FixtureRequest, warned: list[WarningMessage]
) -> None:
    source, store = await filled_cache(path, surface)
    restart(store)
    data = data_file_of(path).read_bytes()
    request.getfixturevalue("no_data_file")
    store = new_cache(source, path)
    source.reset()
    first = await read_all(surface, store)
    drain(store)
    fetched = source.keys.copy()
    second = await read_all(surface, store)

    assert [first, second] == [VALUES, VALUES]
    assert fetched == source.keys == LARGE
    assert data_file_of(path).read_bytes() == data
    assert told(warned) == []
