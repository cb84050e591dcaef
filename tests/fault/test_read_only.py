"""Where nothing can be written, what is in the file is served and nothing is kept."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.fakes import buffer, leave_process, restart
from tests.fault.children import run_child
from tests.fault.real import mode, read_only_disk
from tests.fault.sources import (
    KEYS,
    LONGEST_SECONDS,
    SURFACES,
    VALUES,
    drain,
    each_surface,
    new_cache,
    new_source,
    read_all,
    read_until_kept,
    told,
    write_some,
)
from zarr_cache import SqliteStore, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fakes import HeldTime, Statements
    from tests.fault.sources import Read

KEPT, OTHERS = KEYS[:4], KEYS[4:]


class Fault(NamedTuple):
    """What cannot be written, and whether there is a log beside the file."""

    begin: Callable[[Path], AbstractContextManager[None]]
    has_log: bool


def wal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


FAULTS = {
    "the file": Fault(lambda path: mode(path, 0o400), has_log=False),
    "the file, with a log": Fault(lambda path: mode(path, 0o400), has_log=True),
    "the log": Fault(lambda path: mode(wal_of(path), 0o400), has_log=True),
    "the folder": Fault(lambda path: mode(path.parent, 0o500), has_log=False),
    "the disk": Fault(lambda path: read_only_disk(path.parent), has_log=False),
    "the disk, with a log": Fault(lambda path: read_only_disk(path.parent), has_log=True),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "cache.sqlite"


@pytest.fixture(params=FAULTS.values(), ids=list(FAULTS))
async def fault(request: pytest.FixtureRequest, path: Path) -> Fault:
    """A file with some values, and what is to become of it."""
    found: Fault = request.param
    store = new_cache(new_source(), path)
    # Threads that an event loop has started already could write as root.
    await read_all(SURFACES["sync"], store, KEPT)
    drain(store)
    if found.has_log:
        # As a process leaves it that was killed, but for the locks: SQLite asks for none to read.
        leave_process(store)
    else:
        restart(store)
    return found


@each_surface
@pytest.mark.usefixtures("short_waits")
async def test_cached_values_are_served_nothing_is_cached_and_one_warning_is_given(
    path: Path,
    fault: Fault,
    surface: Read,
    statements: Statements,
    warned: list[WarningMessage],
) -> None:
    source = new_source()
    with fault.begin(path):
        store = new_cache(source, path)
        found = await read_until_kept(surface, store)
        tried = statements.number("connect") + statements.number("BEGIN IMMEDIATE")
        found += [await read_all(surface, store) for _ in range(20)]
        drain(store)
        tried_again = statements.number("connect") + statements.number("BEGIN IMMEDIATE")
        restart(store)

    assert found == [VALUES] * 22
    assert set(source.keys) == set(OTHERS)
    assert tried_again == tried
    assert len(warned) == 1, told(warned)
    assert str(path) in told(warned)[0]
    assert re.search("readonly|cannot be written", told(warned)[0])


@each_surface
async def test_values_are_cached_again_when_the_file_can_be_written(
    path: Path,
    fault: Fault,
    surface: Read,
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    source = new_source()
    store = new_cache(source, path)
    with fault.begin(path):
        await read_all(surface, store)
        drain(store)
    short_waits.step(LONGEST_SECONDS)
    found = await read_until_kept(surface, store)
    source.reset()
    found.append(await read_all(surface, store))

    assert found == [VALUES] * 3
    assert source.requests.total() == 0
    assert len(told(warned)) == 1


async def test_a_write_during_a_fault_reaches_the_source_and_no_read_returns_the_old_value(
    path: Path,
    fault: Fault,
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    source = new_source()
    store = new_cache(source, path)
    with fault.begin(path):
        expected = await write_some(store)
        during = [await read_all(surface, store) for surface in SURFACES.values()]
        drain(store)
    short_waits.step(LONGEST_SECONDS)
    after = await read_until_kept(SURFACES["async"], store)

    assert during == [expected] * 2
    assert after == [expected] * 2
    assert len(told(warned)) == 1


WRITE = """
store = new_cache(new_source(), path)
store.set_sync(KEYS[0], buffer(b"written"))
tell()
"""

ENDS = {"closed": "store.close()", "killed": "os._exit(0)"}


@pytest.mark.parametrize("end", ENDS.values(), ids=list(ENDS))
@each_surface
@pytest.mark.parametrize("fault", [FAULTS["the folder"], FAULTS["the disk"]], indirect=True)
async def test_what_a_process_that_can_write_has_written_is_read_while_the_file_is_open(
    path: Path, fault: Fault, surface: Read, end: str, warned: list[WarningMessage]
) -> None:
    store = new_cache(new_source(), path)
    with fault.begin(path):
        before = await surface(store, KEYS[0])
    assert run_child(path, WRITE + end).code == 0
    with fault.begin(path):
        after = await surface(store, KEYS[0])

    assert before == VALUES[KEYS[0]]
    assert after == b"written"
    assert len(told(warned)) <= 1


@pytest.mark.parametrize("fault", [FAULTS["the folder"]], indirect=True)
async def test_a_wal_that_cannot_be_read_without_its_shared_memory_is_reported(
    path: Path, fault: Fault
) -> None:
    leave_process(new_cache(new_source(), path))
    assert run_child(path, WRITE + "os._exit(0)").code == 0
    path.with_name(f"{path.name}-shm").unlink()

    with fault.begin(path), pytest.raises(StorageError, match="open and close it once"):
        SqliteStore(path).get_sync("k")


def test_a_file_that_is_read_only_is_read_without_anything_beside_it(path: Path) -> None:
    SqliteStore(path).set_sync("k", buffer(b"value"))
    restart(SqliteStore(path))
    with mode(path, 0o400):
        found = SqliteStore(path).get_sync("k")
        beside = [each.name for each in path.parent.iterdir()]
        SqliteStore(path).close()

    assert found == buffer(b"value")
    assert beside == [path.name]
