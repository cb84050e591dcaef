"""A file of more than one name is not used: each name would have a log of its own."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.fakes import buffer, is_cache_file, leave_process, restart
from tests.fault.sources import (
    KEYS,
    LONGEST_SECONDS,
    VALUES,
    each_surface,
    filled_cache,
    new_cache,
    read_all,
    read_until_kept,
    told,
)
from zarr_cache import HardLinkedFileError, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fakes import HeldTime
    from tests.fault.sources import Read


@contextmanager
def linked(path: Path) -> Iterator[Path]:
    """Another name of the file while the block runs."""
    other = path.with_name("another name.sqlite")
    other.hardlink_to(path)
    try:
        yield other
    finally:
        other.unlink()


def put_a_copy_in_its_place(path: Path) -> None:
    copy = path.with_name("copy.sqlite")
    copy.write_bytes(path.read_bytes())
    copy.replace(path)


@each_surface
async def test_a_write_by_one_name_is_never_followed_by_what_was_before_by_another(
    path: Path, surface: Read, warned: list[WarningMessage]
) -> None:
    source, first = await filled_cache(path, surface)
    restart(first)
    with linked(path) as other:
        stores = [new_cache(source, path), new_cache(source, other)]
        before = [await surface(store, KEYS[0]) for store in stores]
        await stores[0].set(KEYS[0], buffer(b"written"))
        after = [await surface(store, KEYS[0]) for store in stores]

    assert before == [VALUES[KEYS[0]]] * 2
    assert after == [b"written"] * 2
    assert len(warned) == 2
    assert all("2 names" in each and "put the copy in its place" in each for each in told(warned))


@each_surface
async def test_a_copy_in_its_place_is_used(
    path: Path, surface: Read, short_waits: HeldTime, warned: list[WarningMessage]
) -> None:
    source, first = await filled_cache(path, surface)
    restart(first)
    store = new_cache(source, path)
    with linked(path):
        await read_all(surface, store)
        put_a_copy_in_its_place(path)
    short_waits.step(LONGEST_SECONDS)
    await read_until_kept(surface, store)
    source.reset()
    found = await read_all(surface, store)

    assert found == VALUES
    assert source.requests.total() == 0
    assert len(told(warned)) == 1


@each_surface
async def test_a_process_that_has_it_open_continues_when_a_backup_gives_it_another_name(
    path: Path, surface: Read, warned: list[WarningMessage]
) -> None:
    source, store = await filled_cache(path, surface)
    source.reset()
    with linked(path):
        found = await read_all(surface, store)

    assert found == VALUES
    assert source.requests.total() == 0
    assert told(warned) == []


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="the system has no modes")
@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_another_name_of_a_file_beside_the_cache_file_keeps_its_bytes_and_its_mode(
    path: Path, suffix: str
) -> None:
    SqliteStore(path).get_sync("k")
    restart(SqliteStore(path))
    path.chmod(0o666)
    victim = path.with_name("id_ed25519")
    victim.touch(0o600)
    path.with_name(path.name + suffix).hardlink_to(victim)

    with pytest.raises(HardLinkedFileError, match=f"{path.name}{suffix}: a file of 2 names"):
        SqliteStore(path).get_sync("k")
    assert victim.read_bytes() == b""
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    path.with_name(path.name + suffix).unlink()
    leave_process(SqliteStore(path))
    assert is_cache_file(path)
