"""The sqlite3 shell shows and deletes what is cached while a CacheStore has the file open."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, assert_accounts, buffer, file_cache, open_file, read
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import HeldTime

SQLITE3 = shutil.which("sqlite3")

SHELLS = [
    pytest.param(
        [str(SQLITE3), "-batch", "-list", "-noheader"],
        marks=pytest.mark.skipif(SQLITE3 is None, reason="there is no sqlite3 on the path"),
        id="sqlite3",
    ),
    pytest.param([sys.executable, "-m", "sqlite3"], id="python -m sqlite3"),
]

SIZES = {"a/c/0": 100, "a/c/1": 2048, "zarr.json": 5 * 2**20}


class Shell:
    """A shell on the cache file, beside a CacheStore that has read every key of its source."""

    def __init__(self, command: list[str], path: Path) -> None:
        self._command = [*command, str(path)]
        self.path = path
        self.source = CountingStore(
            MemoryStore({key: buffer(key.encode()[:1] * size) for key, size in SIZES.items()})
        )
        self.store = CacheStore(
            self.source, cache_store=SqliteStore(path), namespace="era5", max_age_seconds=1000
        )

    def run(self, statement: str) -> list[str]:
        """Lines that the shell prints, with nothing but words, numbers and commas."""
        # The shell waits for no lock, and pages may be given back just now.
        file_cache(self.store)._writer.stop()
        result = subprocess.run(
            [*self._command, statement], check=True, capture_output=True, text=True
        )
        assert result.stderr == ""
        return result.stdout.splitlines()

    async def read_all(self) -> int:
        """Read every key as the source has it; how many requests that took."""
        self.source.reset()
        values = {key: await read(self.store, key) for key in SIZES}
        self.store.flush()

        assert values == {key: key.encode()[:1] * size for key, size in SIZES.items()}
        return self.source.requests.total()


@pytest.fixture(params=SHELLS)
async def shell(path: Path, held_time: HeldTime, request: pytest.FixtureRequest) -> Shell:
    shell = Shell(request.param, path)
    held_time.step(1)
    await shell.read_all()
    return shell


def row(*columns: str) -> str:
    """One column that both shells print alike."""
    return " || ',' || ".join(columns)


async def test_the_entries_are_shown_while_the_file_is_open(shell: Shell) -> None:
    columns = row("namespace", "key", "kind", "size", "bytes")
    lines = shell.run(f"SELECT {columns} FROM cache_entries ORDER BY key")  # noqa: S608 - our own
    requests = await shell.read_all()

    assert [line.strip("()',\"") for line in lines] == [
        "era5,a/c/0,value,100 B,100",
        "era5,a/c/1,value,2.0 KiB,2048",
        "era5,zarr.json,value,5.0 MiB,5242880",
    ]
    assert requests == 0


async def test_the_usage_is_shown_while_the_file_is_open(shell: Shell) -> None:
    columns = row("namespace", "kind", "entries", "size", "bytes")
    lines = shell.run(f"SELECT {columns} FROM cache_usage")  # noqa: S608 - our own

    total = sum(SIZES.values())
    assert [line.strip("()',\"") for line in lines] == [f"era5,value,3,5.0 MiB,{total}"]


async def test_times_are_shown_as_local_times(shell: Shell) -> None:
    expected = "datetime(1700000001, 'unixepoch', 'localtime')"
    lines = shell.run(
        f"SELECT count(*) FROM cache_entries WHERE stored = {expected} AND used = {expected}"  # noqa: S608 - our own
    )

    assert [line.strip("(),") for line in lines] == ["3"]


async def test_a_row_that_is_deleted_is_fetched_again(shell: Shell) -> None:
    shell.run("DELETE FROM entry WHERE key = 'a/c/1'")
    assert_accounts(shell.path)
    requests = [await shell.read_all(), await shell.read_all()]

    assert requests == [1, 0]
    assert shell.store.cache_info()["current_size"] == sum(SIZES.values())


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entry",
        "DELETE FROM namespace",
        "DELETE FROM namespace WHERE name = 'era5'",
        "DELETE FROM entry WHERE kind = 'value'",
    ],
)
async def test_a_cache_that_is_emptied_fills_again(shell: Shell, statement: str) -> None:
    shell.run(statement)
    assert_accounts(shell.path)
    size = shell.store.cache_info()["current_size"]
    requests = [await shell.read_all(), await shell.read_all()]

    assert size == 0
    assert requests == [3, 0]


@pytest.mark.parametrize("statement", ["DELETE FROM entry", "DELETE FROM namespace"])
async def test_writes_work_after_a_cache_was_emptied(shell: Shell, statement: str) -> None:
    await shell.store.set("zarr.json", buffer(b"before"))
    shell.run(statement)
    await shell.store.set("zarr.json", buffer(b"after"))
    shell.source.reset()

    assert await read(shell.store, "zarr.json") == b"after"
    assert shell.source.requests.total() == 0


async def test_the_budget_holds_after_rows_were_deleted(shell: Shell) -> None:
    small = CacheStore(
        shell.source, cache_store=SqliteStore(shell.path), namespace="era5", max_size=2100
    )
    shell.run("DELETE FROM entry WHERE key = 'a/c/0'")
    for key in SIZES:
        await read(small, key)
    with open_file(shell.path) as db:
        (held,) = db.execute("SELECT sum(length(data)) FROM value").fetchone()

    assert held <= 2100


async def test_the_totals_are_right_when_a_size_was_changed_by_hand(shell: Shell) -> None:
    shell.run("UPDATE entry SET size = 0 WHERE key = 'a/c/0'")
    shell.run("DELETE FROM entry WHERE size = 0")
    assert_accounts(shell.path)

    assert await shell.read_all() == 1


COLUMNS = {
    "cache_entries": ["namespace", "key", "kind", "size", "bytes", "stored", "used"],
    "cache_usage": ["namespace", "kind", "entries", "size", "bytes"],
}


@pytest.mark.parametrize("view", COLUMNS)
def test_the_columns_of_a_view_are_those_that_people_rely_on(path: Path, view: str) -> None:
    SqliteStore(path).set_sync("k", buffer(b"value"))
    with open_file(path) as db:
        description = db.execute(f"SELECT * FROM {view}").description  # noqa: S608 - our own

    assert [name for name, *_ in description] == COLUMNS[view]


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20, "1.0 MiB"),
        (3 * 2**20 + 2**19, "3.5 MiB"),
    ],
)
def test_sizes_are_shown_in_units_of_1024(path: Path, size: int, shown: str) -> None:
    SqliteStore(path).set_sync("k", buffer(bytes(size)))
    with open_file(path) as db:
        found = [
            db.execute("SELECT size FROM cache_entries").fetchone(),
            db.execute("SELECT size FROM cache_usage").fetchone(),
        ]

    assert found == [(shown,), (shown,)]
