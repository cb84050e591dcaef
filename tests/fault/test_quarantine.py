"""A file is never left without its log, which has the last transactions and fences among them."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from zarr.storage import LocalStore

from tests.fakes import IS_WINDOWS, buffer, restart
from tests.fault.children import run_child
from tests.fault.real import held, is_root, modes_that_apply, mounted_file
from tests.fault.sources import (
    VALUES,
    drain,
    each_surface,
    new_cache,
    new_source,
    read_all,
    told,
)
from zarr_cache.disk.paths import file_id_of, wal_of
from zarr_cache.file.quarantine import quarantine

if TYPE_CHECKING:
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fault.sources import Read

pytestmark = pytest.mark.skipif(IS_WINDOWS, reason="no open file is renamed there")

WRITE = """
from zarr.storage import LocalStore
store = new_cache(LocalStore(path.parent / "source"), path)
store.set_sync("k", buffer(arguments[0].encode()))
tell()
os._exit(0)
"""

SET_ASIDE = """
import signal
from zarr_cache.file.quarantine import quarantine
from zarr_cache.disk.paths import file_id_of

renamed, rename = [], Path.rename

def rename_and_die(self, target):
    rename(self, target)
    renamed.append(self.name)
    if len(renamed) == int(arguments[0]):
        os.kill(os.getpid(), signal.SIGKILL)

Path.rename = rename_and_die
quarantine(path, file_id_of(path))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with an old value, whose log has the newer one."""
    path = tmp_path / "cache.sqlite"
    store = new_cache(LocalStore(tmp_path / "source"), path)
    store.set_sync("k", buffer(b"old"))
    restart(store)
    assert run_child(path, WRITE, "new").code == 0
    assert wal_of(path).stat().st_size > 0
    return path


def contents(folder: Path) -> dict[str, bytes]:
    files = (each for each in folder.iterdir() if each.is_file())
    return {file.name: file.read_bytes() for file in files}


def moved(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def give_away(path: Path) -> None:
    """Let the folder be somebody else's who keeps their files, and the log be theirs."""
    path.parent.chmod(0o1777)
    for each in (path.parent, wal_of(path)):
        os.chown(each, 65534, 65534)


@pytest.mark.parametrize("renames", [1, 2, 3])
@each_surface
async def test_a_process_killed_during_a_quarantine_brings_no_old_value_back(
    path: Path, surface: Read, renames: int, warned: list[WarningMessage]
) -> None:
    child = run_child(path, SET_ASIDE, str(renames))
    store = new_cache(LocalStore(path.parent / "source"), path)
    found = [await surface(store, "k") for _ in range(2)]

    assert child.code == -signal.SIGKILL
    assert found == [b"new"] * 2
    assert told(warned) == []


def test_a_file_that_cannot_be_renamed_keeps_its_wal(path: Path) -> None:
    with mounted_file(path):
        before = contents(path.parent)
        with pytest.raises(OSError, match="busy"):
            quarantine(path, file_id_of(path))
        after = contents(path.parent)

    assert after == before


@pytest.mark.skipif(not is_root(), reason="only root can give files away")
def test_a_wal_that_cannot_be_renamed_keeps_its_file(path: Path) -> None:
    give_away(path)
    before = contents(path.parent)
    with modes_that_apply(), pytest.raises(PermissionError):
        quarantine(path, file_id_of(path))

    assert contents(path.parent) == before


@pytest.mark.skipif(IS_WINDOWS, reason="no open file is renamed there")
@each_surface
async def test_a_new_file_shares_no_memory_with_one_that_another_process_has_open(
    path: Path, surface: Read, warned: list[WarningMessage]
) -> None:
    source = new_source()
    store = new_cache(source, path)
    with held(path, "CREATE TABLE theirs (a)"):
        moved(path)
        await read_all(surface, store)
        drain(store)
        source.reset()
        found = await read_all(surface, store)
        faults = store.cache_stats()["faults"]

    assert found == VALUES
    assert (faults, source.requests.total()) == (0, 0)
    assert told(warned) == []
