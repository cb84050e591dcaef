"""What is no file is never opened: to read it may take for ever, or do something."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from tests.fakes import IS_WINDOWS, leave_process, restart
from tests.fault.sources import (
    VALUES,
    each_surface,
    filled_cache,
    new_cache,
    new_source,
    read_all,
    told,
)
from zarr_cache import ForeignFileError, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fault.sources import Read

pytestmark = [
    pytest.mark.skipif(IS_WINDOWS, reason="all that has a name there is a file"),
    # Who looks what it is must not open it either.
    pytest.mark.leaves_damage,
]


def named_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    # By its name: the path of a socket has at most 104 bytes on macOS.
    with socket.socket(socket.AF_UNIX) as listening, contextlib.chdir(path.parent):
        listening.bind(path.name)


def a_terminal(path: Path) -> None:
    path.symlink_to("/dev/ptmx")


def full_device(path: Path) -> None:
    path.symlink_to("/dev/full")


def null_device(path: Path) -> None:
    path.symlink_to("/dev/null")


KINDS = [named_pipe, a_socket, a_terminal, null_device]
if os.path.exists("/dev/full"):  # noqa: PTH110 - Path is imported for types alone
    KINDS.append(full_device)


def facts(path: Path) -> tuple[int, ...]:
    """What a change of the file would change. To follow a link is a read, which sets `st_atime`."""
    found = path.lstat()
    owner = (found.st_mode, found.st_nlink, found.st_uid, found.st_gid)
    return (found.st_dev, found.st_ino, *owner, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


each_kind = pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)


def put_in_place(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink()
    make(path)


def forge_link(path: Path, suffix: str, victim: Path) -> None:
    """Let the file have a link to somebody's own beside it."""
    victim.write_bytes(b"a key")
    victim.chmod(0o600)
    path.with_name(path.name + suffix).symlink_to(victim)


@each_surface
@each_kind
async def test_reads_are_the_sources_and_a_special_file_is_left_as_it_is(
    path: Path, surface: Read, make: Callable[[Path], None], warned: list[WarningMessage]
) -> None:
    make(path)
    before = facts(path)
    store = new_cache(new_source(), path)
    found = [await read_all(surface, store) for _ in range(2)]
    # A device has one path, by which this process would remember it for the next test.
    leave_process(store)

    assert found == [VALUES] * 2
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    assert facts(path) == before
    assert len(warned) == 1
    assert "not a regular file" in told(warned)[0]


@each_surface
@each_kind
async def test_reads_are_the_sources_when_a_special_file_replaces_the_open_one(
    path: Path, surface: Read, make: Callable[[Path], None], warned: list[WarningMessage]
) -> None:
    _, store = await filled_cache(path, surface)
    put_in_place(path, make)
    before = facts(path)
    found = [await read_all(surface, store) for _ in range(2)]

    assert found == [VALUES] * 2
    assert facts(path) == before
    assert len(warned) == 1
    assert "not a regular file" in told(warned)[0]


@each_surface
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
async def test_a_pipe_with_the_name_of_a_wal_is_not_opened(
    path: Path, surface: Read, suffix: str, warned: list[WarningMessage]
) -> None:
    _, store = await filled_cache(path, surface)
    restart(store)
    named_pipe(path.with_name(path.name + suffix))
    found = await read_all(surface, new_cache(new_source(), path))

    assert found == VALUES
    assert f"{path.name}{suffix}: not a regular file" in told(warned)[0]


@each_surface
@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
async def test_what_a_link_beside_the_file_leads_to_keeps_its_bytes_and_its_mode(
    path: Path, surface: Read, suffix: str, warned: list[WarningMessage]
) -> None:
    _, store = await filled_cache(path, surface)
    restart(store)
    victim = path.with_name("id_ed25519")
    forge_link(path, suffix, victim)
    found = await read_all(surface, new_cache(new_source(), path))

    assert found == VALUES
    assert victim.read_bytes() == b"a key"
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600
    assert f"{path.name}{suffix}: a symbolic link" in told(warned)[0]


def test_a_store_says_what_it_found(path: Path) -> None:
    named_pipe(path)

    with pytest.raises(ForeignFileError, match=f"^{path}: not a regular file, .*name another"):
        SqliteStore(path).get_sync("k")
