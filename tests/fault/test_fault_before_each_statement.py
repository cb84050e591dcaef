"""Whichever statement fails, every read is right, nothing is raised, and the file adds up."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.storage import MemoryStore

from tests.fakes import (
    PROTOTYPE,
    STRESS,
    CountingStore,
    Statements,
    assert_accounts,
    buffer,
    cached_bytes,
    close_everything,
    leave_process,
    read,
    restart,
)
from tests.fault.sources import LONGEST_SECONDS, drain, new_cache, told

if TYPE_CHECKING:
    from pathlib import Path
    from warnings import WarningMessage

    from tests.fakes import HeldTime

MAX_SIZE = 300_000
MAX_AGE_SECONDS = 1000

# What each is found to be by the caller is in errors.py.
CODES = [
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOMEM,
]

# The last is read by its own transaction, and is too much together with the first.
SIZES = {"a": 30_000, "b": 10, "c": 70_000}


def value(key: str, generation: int) -> bytes:
    return f"{key}{generation}/".encode() * SIZES[key]


class Script:
    """Operations in their order, each compared with what the source itself answers then."""

    def __init__(self, path: Path, time: HeldTime) -> None:
        values = {key: buffer(value(key, 0)) for key in SIZES}
        self.source = CountingStore(MemoryStore(values))
        self.store = new_cache(
            self.source, path, max_size=MAX_SIZE, max_age_seconds=MAX_AGE_SECONDS
        )
        self._time = time
        leave_process(self.store)
        self.other = new_cache(
            self.source, path, max_size=MAX_SIZE, max_age_seconds=MAX_AGE_SECONDS
        )

    async def _compare(self, key: str, byte_range: Any = None) -> None:
        expected = await read(self.source, key, byte_range)

        assert await read(self.store, key, byte_range) == expected, key

    async def compare_in_both(self) -> None:
        """Compare each value as both processes read it, the one that does nothing else first."""
        for key in SIZES:
            expected = await read(self.source, key)

            assert await read(self.other, key) == expected, f"{key} in the other process"
            assert await read(self.store, key) == expected, key

    def begin_anew(self) -> None:
        """Let another process take the place of the one that wrote."""
        path = self.store._cache.path  # type: ignore[attr-defined]
        restart(self.store)
        self.store = new_cache(
            self.source, path, max_size=MAX_SIZE, max_age_seconds=MAX_AGE_SECONDS
        )

    def _compare_sync(self, key: str, byte_range: Any = None) -> None:
        source: Any = self.source
        expected = source.get_sync(key, prototype=PROTOTYPE, byte_range=byte_range)
        found = self.store.get_sync(key, byte_range=byte_range)

        assert (found and found.to_bytes()) == (expected and expected.to_bytes()), key

    async def run(self) -> None:
        """Run to the end."""
        store = self.store
        for key in SIZES:
            await self._compare(key)
        drain(store)
        self._compare_sync("c", RangeByteRequest(1, 90))
        await self.compare_in_both()
        await store.set("a", buffer(value("a", 1)))
        await self._compare("a")
        store.delete_sync("b")
        await self._compare("b")
        await self.compare_in_both()
        drain(store)
        self._time.step(MAX_AGE_SECONDS + 1)
        self._compare_sync("c")
        await self._compare("c", SuffixByteRequest(10))
        store.close()
        self._compare_sync("c")
        await store.delete_dir("")
        await self._compare("a")
        store.set_sync("b", buffer(value("b", 1)))
        assert await store.exists("b")
        self._compare_sync("b")
        await self.compare_in_both()
        store.close()

    async def run_again(self) -> None:
        """Write and read everything, and then all that is kept."""
        for key in SIZES:
            await self.store.set(key, buffer(value(key, 4)))
        for key in SIZES:
            self._compare_sync(key)
        drain(self.store)
        for key in SIZES:
            await self._compare(key)


async def clean_run(path: Path, time: HeldTime, statements: Statements) -> int:
    """How many statements there are when none fails."""
    script = Script(path, time)
    await script.run()
    return len(statements.texts)


async def run_with_fault(
    path: Path, time: HeldTime, statements: Statements, code: int, at: int, times: int
) -> None:
    """Run the script, with statements that fail, and look at what it leaves."""
    script = Script(path, time)
    statements.fail(code, at=at, times=times)
    await script.run()
    script.begin_anew()
    statements.fail(code, at=1, times=0)
    time.step(LONGEST_SECONDS)
    await script.compare_in_both()
    await script.run_again()
    close_everything()

    assert cached_bytes(path) <= MAX_SIZE
    assert_accounts(path)


# Every so many statements, in one way each; nearer and in more ways the more time there is.
WAYS = {"once": (1, 5), "a few times": (4, 13), "to the end": (10_000, 23)}


@pytest.mark.parametrize(("times", "step"), WAYS.values(), ids=WAYS)
async def test_a_fault_before_any_statement_breaks_no_read_and_no_account(
    path: Path,
    times: int,
    step: int,
    statements: Statements,
    short_waits: HeldTime,
    warned: list[WarningMessage],
) -> None:
    number = await clean_run(path, short_waits, statements)
    for turn, at in enumerate(range(1, number + 1, max(1, step // STRESS))):
        for code in (CODES * 2)[turn % len(CODES) :][: min(1 + STRESS // 5, len(CODES))]:
            statements.texts.clear()
            file = path.with_name(f"{at}-{code}.sqlite")
            try:
                await run_with_fault(file, short_waits, statements, code, at, times)
            except BaseException as error:
                error.add_note(f"result code {code} before {at}: {statements.texts[at - 1]}")
                raise
            remove(file)

    assert told(warned)


def remove(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
