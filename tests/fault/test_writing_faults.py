"""While the file cannot be written, what is in it is served and the rest comes from the source."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import re
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.fakes import (
    HeldTime,
    Statements,
    assert_accounts,
    buffer,
    close_everything,
    leave_process,
    restart,
)
from tests.fault.real import filled, held, immutable, longest_file, mounted
from tests.fault.sources import (
    KEYS,
    LONGEST_SECONDS,
    SURFACES,
    VALUES,
    Read,
    drain,
    each_surface,
    filled_cache,
    new_cache,
    read_all,
    read_until_kept,
    told,
    write_some,
)
from zarr_cache import StorageError
from zarr_cache.file import connection
from zarr_cache.file.file_database import FileDatabase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from warnings import WarningMessage

KEPT, OTHERS = KEYS[:4], KEYS[4:]


class Fault(NamedTuple):
    """One that hits who writes.

    Attributes
    ----------
    begin
        Lets it last as long as a block.
    said
        What the warning says, after the name of the file.
    needs_small_disk
        Whether the file must be on a disk of its own.
    """

    begin: Callable[[Path, Statements], AbstractContextManager[None]]
    said: str
    needs_small_disk: bool = False


@contextlib.contextmanager
def no_more_pages(_: Path, statements: Statements) -> Iterator[None]:
    """Let no connection make the file longer."""
    pragmas = connection._PRAGMAS
    connection._PRAGMAS += "PRAGMA max_page_count = 1;"
    for each in statements.connections:
        each.execute("PRAGMA max_page_count = 1")
    try:
        yield
    finally:
        connection._PRAGMAS = pragmas
        for each in statements.connections:
            with contextlib.suppress(sqlite3.ProgrammingError):  # closed by now
                each.execute("PRAGMA max_page_count = 4294967294")


FAULTS = {
    "locked by another process": Fault(lambda path, _: held(path, "BEGIN IMMEDIATE"), "locked"),
    "exclusively locked": Fault(lambda path, _: held(path, "BEGIN EXCLUSIVE"), "locked"),
    "a full disk": Fault(lambda path, _: filled(path.parent), "full", needs_small_disk=True),
    "a full file": Fault(no_more_pages, "full"),
    "a disk that fails": Fault(lambda *_: longest_file(4096), "disk I/O error"),
    "an immutable file": Fault(
        lambda path, _: immutable(path, path.with_name(f"{path.name}-wal")), "disk I/O error"
    ),
}


@pytest.fixture(params=FAULTS.values(), ids=list(FAULTS))
def fault(request: pytest.FixtureRequest) -> Fault:
    found: Fault = request.param
    return found


@pytest.fixture
def path(tmp_path: Path, fault: Fault) -> Iterator[Path]:
    if not fault.needs_small_disk:
        yield tmp_path / "cache.sqlite"
        return
    with mounted(tmp_path, nbytes=4 * 2**20):
        yield tmp_path / "cache.sqlite"
        close_everything()
        assert_accounts(tmp_path / "cache.sqlite")


@each_surface
@pytest.mark.usefixtures("short_waits")
async def test_hits_are_served_misses_are_the_sources_and_one_warning_is_given(
    path: Path,
    fault: Fault,
    surface: Read,
    statements: Statements,
    warned: list[WarningMessage],
) -> None:
    source, store = await filled_cache(path, surface, KEPT)
    source.reset()
    with fault.begin(path, statements):
        found = await read_until_kept(surface, store)
        tried = statements.number("BEGIN IMMEDIATE")
        again = [await read_all(surface, store) for _ in range(20)]
        drain(store)
        tried_again = statements.number("BEGIN IMMEDIATE")

    assert [*found, *again] == [VALUES] * 22
    assert re.search(f"{path}.*{fault.said}", "".join(told(warned)))
    assert len(warned) == 1, told(warned)
    assert set(source.keys) == set(OTHERS)
    assert tried_again == tried
    assert store.cache_stats()["faults"] >= 1


@pytest.mark.usefixtures("short_waits")
async def test_cache_info_is_right_while_the_file_cannot_be_written(
    path: Path, fault: Fault, statements: Statements
) -> None:
    _, store = await filled_cache(path, keys=KEPT)
    before = store.cache_info()
    with fault.begin(path, statements):
        told_meanwhile = [store.cache_info() for _ in range(3)]

    assert before["cached_keys"] == len(KEPT)
    assert told_meanwhile == [before] * 3


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("fault", [FAULTS["locked by another process"]], indirect=True)
async def test_a_lock_is_waited_for_once_by_several_forks_and_once_by_close(
    path: Path, fault: Fault, statements: Statements
) -> None:
    _, store = await filled_cache(path, keys=KEPT)
    database = FileDatabase.of(path)
    numbers = []
    with fault.begin(path, statements):
        # Uses wait to be written.
        await read_all(SURFACES["async"], store, KEPT)
        numbers.append(statements.number("BEGIN IMMEDIATE"))
        for _ in range(3):
            database.pause()
            database.before_fork()
            database.after_fork_in_parent()
            await read_all(SURFACES["async"], store, KEPT)
        numbers.append(statements.number("BEGIN IMMEDIATE"))
        store.close()
        numbers.append(statements.number("BEGIN IMMEDIATE"))

    assert [after - before for before, after in itertools.pairwise(numbers)] == [1, 1]


@each_surface
async def test_the_cache_works_again_when_the_fault_is_over(
    path: Path,
    fault: Fault,
    surface: Read,
    statements: Statements,
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    source, store = await filled_cache(path, surface, KEPT)
    with fault.begin(path, statements):
        await read_all(surface, store)
        drain(store)
    short_waits.step(LONGEST_SECONDS)
    first = await read_until_kept(surface, store)
    source.reset()
    faults = store.cache_stats()["faults"]
    then = await read_all(surface, store)

    assert [*first, then] == [VALUES] * 3
    assert source.requests.total() == 0
    assert store.cache_stats()["faults"] == faults
    assert len(warned) == 1, told(warned)


@each_surface
async def test_while_a_fault_lasts_the_file_is_tried_with_back_off(
    path: Path,
    fault: Fault,
    surface: Read,
    statements: Statements,
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    _, store = await filled_cache(path, surface, KEPT)
    tried = []
    with fault.begin(path, statements):
        for _ in range(12):
            await read_all(surface, store)
            drain(store)
            tried.append(statements.number("BEGIN IMMEDIATE"))
            short_waits.step(10)
    trials = [later - earlier for earlier, later in itertools.pairwise(tried)]

    # In 110 s: the first after 1 s, and each after twice as long; what turns out to be read-only is
    # opened anew and tried once more, and a large value has up to three transactions. There are 96
    # misses.
    assert 3 <= sum(trials) <= 21
    assert len(warned) == 1, told(warned)


async def test_a_write_during_a_fault_reaches_the_source_and_no_read_returns_the_old_value(
    path: Path,
    fault: Fault,
    statements: Statements,
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    source, store = await filled_cache(path)
    with fault.begin(path, statements):
        expected = await write_some(store)
        during = [await read_all(surface, store) for surface in SURFACES.values()]
        in_source = await read_all(SURFACES["async"], source)
    short_waits.step(LONGEST_SECONDS)
    after = []
    for surface in SURFACES.values():
        after += await read_until_kept(surface, store)
    source.reset()
    after += [await read_all(surface, store) for surface in SURFACES.values()]

    assert in_source == expected
    assert during == [expected] * 2
    assert after == [expected] * 6
    # A store that takes writes asks each time for what is absent.
    assert set(source.keys) <= {KEYS[2]}
    # A full file has room for a fence where there was a value.
    assert len(told(warned)) <= 1


def marks(path: Path) -> list[Path]:
    return list(path.parent.glob(f"{path.name}-invalid-*"))


@each_surface
@pytest.mark.usefixtures("warned")
async def test_after_a_write_during_a_fault_another_process_reads_no_old_value(
    path: Path, fault: Fault, surface: Read, statements: Statements, short_waits: HeldTime
) -> None:
    source, store = await filled_cache(path, surface)
    leave_process(store)
    other = new_cache(source, path)
    await read_all(surface, other)
    with fault.begin(path, statements):
        expected = await write_some(store)
        during = [await read_all(surface, other) for _ in range(2)]
    short_waits.step(LONGEST_SECONDS)
    after = await read_until_kept(surface, other)
    left = marks(path)
    source.reset()
    after += [await read_all(surface, each) for each in (other, store)]

    assert during == [expected] * 2
    assert after == [expected] * 4
    assert left == []
    # A store that takes writes asks each time for what is absent.
    assert set(source.keys) <= {KEYS[2]}


@each_surface
@pytest.mark.usefixtures("warned")
async def test_after_a_write_during_a_fault_and_a_restart_no_old_value_is_read(
    path: Path, fault: Fault, surface: Read, statements: Statements, short_waits: HeldTime
) -> None:
    source, store = await filled_cache(path, surface)
    with fault.begin(path, statements):
        expected = await write_some(store)
        restart(store)
    short_waits.step(LONGEST_SECONDS)
    store = new_cache(source, path)
    found = await read_until_kept(surface, store)
    left = marks(path)
    source.reset()
    found.append(await read_all(surface, store))

    assert found == [expected] * 3
    assert left == []
    assert set(source.keys) <= {KEYS[2]}


LOCKED = "BEGIN IMMEDIATE"


def no_mark(*_: object) -> bool:
    raise StorageError("no mark can be made, as the test asked")


@pytest.mark.parametrize("is_marked", [True, False])
@pytest.mark.usefixtures("short_waits", "warned")
async def test_a_write_that_could_not_be_recorded_is_not_forgotten_with_its_cache_store(
    path: Path,
    is_marked: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # What is captured holds the error, and with it all that was at work.
    caplog.set_level(logging.CRITICAL, "zarr_cache")
    if not is_marked:
        monkeypatch.setattr(FileDatabase, "mark", no_mark)
    source, store = await filled_cache(path)
    with held(path, LOCKED):
        store.set_sync(KEYS[0], buffer(b"written"))
        store.close()
        del store
        gc.collect()
        during = await read_all(SURFACES["async"], new_cache(source, path))
    after = await read_all(SURFACES["async"], new_cache(source, path))

    assert during == after == VALUES | {KEYS[0]: b"written"}


@pytest.mark.usefixtures("short_waits", "warned")
async def test_a_write_that_cannot_be_marked_for_other_processes_is_logged_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, store = await filled_cache(path)
    with held(path, LOCKED), immutable(path.parent):
        for key in KEYS[:2]:
            await store.set(key, buffer(b"written"))
        during = await read_all(SURFACES["async"], store)

    assert during == VALUES | dict.fromkeys(KEYS[:2], b"written")
    told = [each for each in caplog.messages if "other processes may serve" in each]
    assert [str(path) in each for each in told] == [True]


@each_surface
@pytest.mark.usefixtures("short_waits")
async def test_hits_are_served_while_more_is_cached_than_the_budget(
    path: Path, surface: Read, warned: list[WarningMessage]
) -> None:
    source, store = await filled_cache(path, surface, KEPT)
    restart(store)
    source.reset()
    with held(path, LOCKED):
        smaller = new_cache(source, path, max_size=len(VALUES[KEPT[0]]))
        during = [await read_all(surface, smaller, KEPT) for _ in range(3)]
        requests = source.requests.total()

    assert during == [{key: VALUES[key] for key in KEPT}] * 3
    assert requests == 0
    assert len(warned) == 1, told(warned)
