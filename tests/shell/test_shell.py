"""The sqlite3 shell shows and deletes what is cached while a CacheStore has the file open."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, assert_accounts, buffer, file_cache, open_file, read
from tests.systems import needs_data_file
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import ByteRequest

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

SIZES = {"a/c/0": 100, "a/c/1": 2048, "t/c/0": 5 * 2**20}


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


SHARD = bytes(range(256)) * 1000

SPANS: list[ByteRequest] = [
    RangeByteRequest(0, 100),
    RangeByteRequest(1000, 81_000),
    OffsetByteRequest(186_000),
]
"""Two of them are in the data file."""


class ShardShell(Shell):
    """The same, and beside it ranges of two shards of another source are in the file."""

    def __init__(self, command: list[str], path: Path) -> None:
        super().__init__(command, path)
        self.shards = CountingStore(MemoryStore({key: buffer(SHARD) for key in ("s/c/0", "s/c/1")}))
        self.sharded = CacheStore(
            self.shards, cache_store=SqliteStore(path), namespace="mur", persist_ranges=True
        )

    async def read_ranges(self) -> int:
        """Read every range as the source has it; how many requests that took."""
        self.shards.reset()
        requests = [*(("s/c/0", span) for span in SPANS), ("s/c/1", SuffixByteRequest(16))]
        found = [await read(self.sharded, key, span) for key, span in requests]
        self.sharded.flush()

        assert found == [SHARD[:100], SHARD[1000:81_000], SHARD[186_000:], SHARD[-16:]]
        return self.shards.requests.total()


@pytest.fixture(params=SHELLS)
async def shard_shell(
    path: Path, held_time: HeldTime, request: pytest.FixtureRequest
) -> ShardShell:
    shell = ShardShell(request.param, path)
    held_time.step(1)
    await shell.read_all()
    await shell.read_ranges()
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
        "era5,t/c/0,value,5.0 MiB,5242880",
    ]
    assert requests == 0


async def test_ranges_are_shown_with_their_spans(shard_shell: ShardShell) -> None:
    spans = ["ifnull(start, '-')", "ifnull(stop, '-')"]
    columns = row("namespace", "key", "kind", *spans, "size", "bytes")
    lines = shard_shell.run(
        f"SELECT {columns} FROM cache_entries WHERE kind <> 'value' ORDER BY key, start"  # noqa: S608 - our own
    )
    of_values = shard_shell.run(
        "SELECT DISTINCT ifnull(start, '-') || ifnull(stop, '-') FROM cache_entries"
        " WHERE kind = 'value'"
    )
    usage = shard_shell.run(
        f"SELECT {row('entries', 'size', 'bytes')} FROM cache_usage WHERE kind = 'range'"  # noqa: S608 - our own
    )

    assert [line.strip("()',\"") for line in lines] == [
        "mur,s/c/0,range,0,100,100 B,100",
        "mur,s/c/0,range,1000,81000,78.1 KiB,80000",
        "mur,s/c/0,range,186000,256000,68.4 KiB,70000",
        "mur,s/c/1,range,-16,-,16 B,16",
    ]
    assert [line.strip("()',") for line in of_values] == ["--"]
    assert [line.strip("()',\"") for line in usage] == ["4,146.6 KiB,150116"]
    assert await shard_shell.read_ranges() == 0


@needs_data_file
@pytest.mark.parametrize(
    ("statement", "requests", "freed"),
    [
        ("DELETE FROM entry", 4, 5 * 2**20 + 81_920 + 73_728),
        ("DELETE FROM entry WHERE kind = 'range'", 4, 81_920 + 73_728),
        ("DELETE FROM namespace WHERE name = 'mur'", 4, 81_920 + 73_728),
        ("DELETE FROM entry WHERE key = 's/c/0'", 3, 81_920 + 73_728),
        ("DELETE FROM entry WHERE start = 1000", 1, 81_920),
        ("DELETE FROM entry WHERE start = 186000", 1, 73_728),
        ("DELETE FROM entry WHERE key = 's/c/1'", 1, 0),
    ],
)
async def test_ranges_that_are_deleted_give_their_space_back_and_are_fetched_again(
    shard_shell: ShardShell, statement: str, requests: int, freed: int
) -> None:
    before = space(shard_shell.path)
    shard_shell.run(statement)
    deleted = space(shard_shell.path)
    assert_accounts(shard_shell.path)
    # Totals and the budget are those of what is left.
    info = shard_shell.sharded.cache_info()
    again = [await shard_shell.read_ranges(), await shard_shell.read_ranges()]
    await shard_shell.read_all()

    assert info["file_ranges"] == 4 - requests
    assert info["file_range_size"] == info["current_size"]
    assert before - deleted == freed
    assert again == [requests, 0]
    assert space(shard_shell.path) == before
    assert_accounts(shard_shell.path)


def space(path: Path) -> int:
    """Bytes of the data file that are in use."""
    with open_file(path) as db:
        (used,) = db.execute("SELECT total(length) FROM extent").fetchone()
    return int(used)


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
    await shell.store.set("t/c/0", buffer(b"before"))
    shell.run(statement)
    await shell.store.set("t/c/0", buffer(b"after"))
    shell.source.reset()

    assert await read(shell.store, "t/c/0") == b"after"
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
    "cache_entries": [
        *("namespace", "key", "kind", "start", "stop"),
        *("size", "bytes", "stored", "used"),
    ],
    "cache_usage": ["namespace", "kind", "entries", "size", "bytes"],
    "hit_rate_by_size": ["size", "bytes", "hit_rate"],
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
