"""While the file cannot be opened, every read is the source's, at once and with one warning."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest
from zarr.storage import MemoryStore

from tests.fakes import assert_accounts, buffer, close_everything, is_cache_file, open_file, restart
from tests.fault.real import filled, held, longest_file, mode, mounted
from tests.fault.sources import (
    KEYS,
    LONGEST_SECONDS,
    SURFACES,
    VALUES,
    each_surface,
    new_cache,
    new_source,
    read_all,
    read_until_kept,
    told,
    write_some,
)
from zarr_cache import CacheStore, CacheWarning, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fakes import HeldTime, Statements
    from tests.fault.sources import Read

KEPT = KEYS[:4]


class Fault(NamedTuple):
    """One that hits who opens the file.

    Attributes
    ----------
    begin
        Lets it last as long as a block.
    said
        What the warning says, after the name of the file.
    needs_file
        Whether there is a cache file before, which is as it was afterwards.
    needs_small_disk
        Whether the file must be on a disk of its own.
    """

    begin: Callable[[Path], AbstractContextManager[None]]
    said: str
    needs_file: bool = True
    needs_small_disk: bool = False


def locked_out(path: Path) -> AbstractContextManager[None]:
    """Let another process take the file for itself alone."""
    take = "UPDATE counter SET revision = revision"
    return held(path, "PRAGMA locking_mode = EXCLUSIVE", "BEGIN IMMEDIATE", take, "COMMIT")


@contextlib.contextmanager
def something_else(path: Path, make: Callable[[Path], None]) -> Iterator[None]:
    """Let another file be in its place, which nobody touches."""
    away = path.with_name("away")
    with contextlib.suppress(FileNotFoundError):
        path.rename(away)
    make(path)
    before = path.read_bytes()
    yield
    close_everything()
    assert path.read_bytes() == before
    path.unlink()
    with contextlib.suppress(FileNotFoundError):
        away.rename(path)


def noise(path: Path) -> None:
    path.write_bytes(os.urandom(50_000))


def text(path: Path) -> None:
    path.write_text("a,b\n1,2\n" * 1000)


def other_database(path: Path) -> None:
    with open_file(path) as db:
        db.execute("CREATE TABLE theirs (a)")


def full_from_the_start(path: Path) -> AbstractContextManager[None]:
    return filled(path.parent)


FAULTS = {
    "another process has it alone": Fault(locked_out, "locked"),
    "it may not be read": Fault(lambda path: mode(path, 0), "unable to open|Permission denied"),
    "its folder may not be entered": Fault(
        lambda path: mode(path.parent, 0), "unable to open|Permission denied"
    ),
    "its folder may not be written": Fault(
        lambda path: mode(path.parent, 0o500), "Permission denied", needs_file=False
    ),
    "noise in its place": Fault(
        lambda path: something_else(path, noise), "not an SQLite database, .*left as it is"
    ),
    "a text in its place": Fault(
        lambda path: something_else(path, text), "not an SQLite database, .*left as it is"
    ),
    "another database in its place": Fault(
        lambda path: something_else(path, other_database), "application_id 0x0, .*left as it is"
    ),
    "the disk is full": Fault(
        full_from_the_start, "full|disk I/O error", needs_file=False, needs_small_disk=True
    ),
    "the disk fails": Fault(lambda _: longest_file(4096), "disk I/O error", needs_file=False),
}


@pytest.fixture(params=FAULTS.values(), ids=list(FAULTS))
def fault(request: pytest.FixtureRequest) -> Fault:
    found: Fault = request.param
    return found


@pytest.fixture
def path(tmp_path: Path, fault: Fault) -> Iterator[Path]:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "cache.sqlite"
    if not fault.needs_small_disk:
        yield path
        return
    with mounted(folder, nbytes=4 * 2**20):
        yield path
        close_everything()
        for file in filter(is_cache_file, folder.glob("*.sqlite")):
            assert_accounts(file)


@pytest.fixture
async def kept(path: Path, fault: Fault, statements: Statements) -> list[str]:
    """The keys whose values are in the file before."""
    if not fault.needs_file:
        return []
    store = new_cache(new_source(), path)
    # Threads that an event loop has started already could read as root.
    await read_all(SURFACES["sync"], store, KEPT)
    restart(store)
    statements.texts.clear()
    return KEPT


@each_surface
@pytest.mark.usefixtures("kept", "short_waits")
async def test_every_read_is_right_and_counted_and_the_file_is_tried_once(
    path: Path,
    fault: Fault,
    surface: Read,
    statements: Statements,
    warned: list[WarningMessage],
) -> None:
    source = new_source()
    store = new_cache(source, path)
    with fault.begin(path):
        found = await surface(store, KEYS[0])
        tried = len(statements.texts)
        rest = [await read_all(surface, store) for _ in range(20)]
        tried_again = len(statements.texts)

    assert found == VALUES[KEYS[0]]
    assert rest == [VALUES] * 20
    assert sorted(source.keys) == sorted([KEYS[0], *KEYS * 20])
    assert re.search(f"{path}.*({fault.said})", "".join(told(warned)))
    assert len(warned) == 1
    assert store.cache_stats()["faults"] == 1 + 20 * len(KEYS)
    assert tried_again == tried


@each_surface
async def test_the_cache_works_again_when_the_fault_is_over(
    path: Path,
    fault: Fault,
    surface: Read,
    kept: list[str],
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    source = new_source()
    store = new_cache(source, path)
    with fault.begin(path):
        await read_all(surface, store)
    short_waits.step(LONGEST_SECONDS)
    source.reset()
    first = await read_until_kept(surface, store)
    asked = set(source.keys)
    source.reset()
    then = await read_all(surface, store)

    assert [*first, then] == [VALUES] * 3
    assert asked == set(KEYS) - set(kept)
    assert source.requests.total() == 0
    assert len(told(warned)) == 1


@pytest.mark.usefixtures("kept")
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
        await store.delete_dir(KEYS[3])
        during = [await read_all(surface, store) for surface in SURFACES.values()]
    short_waits.step(LONGEST_SECONDS)
    after = [await read_all(surface, store) for surface in SURFACES.values()]

    assert during == [expected] * 2
    assert after == [expected] * 2
    assert len(told(warned)) == 1


def test_a_store_can_be_made_in_a_folder_that_may_not_be_entered(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    with mode(folder, 0o000):
        store = CacheStore(
            MemoryStore({KEYS[0]: buffer(b"kept")}, read_only=True),
            cache_store=SqliteStore(folder / "cache.sqlite"),
        )
        with pytest.warns(CacheWarning, match="Permission denied|unable to open"):
            response = store.get_sync(KEYS[0])
        assert response is not None
        assert response.to_bytes() == b"kept"
        store.close()
