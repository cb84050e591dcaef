"""A process that is killed at any moment leaves a file that opens, adds up and tells no lies."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import MemoryStore

from tests.fakes import (
    STRESS,
    assert_accounts,
    buffer,
    cached_bytes,
    cached_keys,
    cached_ranges,
    open_file,
    read,
)
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.file import migrate
from zarr_cache.file.identity import APPLICATION_ID

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]

HANG_SECONDS = 60

TIMES = STRESS
"""How many processes are killed at each kind of work."""

SEED = int(os.environ.get("ZARR_CACHE_SEED") or random.SystemRandom().randrange(2**32))
"""Told when a test fails; ``ZARR_CACHE_SEED`` chooses the same moments again."""

MAX_SIZE = 3_000_000

BEGIN = """
import asyncio, os, random, sys
from tests.fakes import *
from tests.stress.test_kill import *

path, turn = Path(sys.argv[1]), int(sys.argv[2])
source = new_source()
store = new_cache(source, path)

def at_work():
    # From here on it may be killed.
    print("at work", flush=True)
"""

MAKE = """
# The file is there, whatever happens.
store.get_sync(KEYS[0])
"""

# Each goes on until it is killed.
WORK = {
    "reads": """
for key in KEYS[:20]:
    store.get_sync(key)
at_work()
while True:
    store.get_sync(KEYS[turn % 20])
    turn += 1
""",
    "admits and evicts": """
async def main():
    global turn
    at_work()
    while True:
        keys = [KEYS[(turn + n) % len(KEYS)] for n in range(8)]
        await asyncio.gather(*(store.get(key, PROTOTYPE) for key in keys))
        turn += 5
asyncio.run(main())
""",
    "writes": """
at_work()
while True:
    key = KEYS[turn % len(KEYS)]
    store.set_sync(key, buffer(value(key)))
    store.get_sync(KEYS[turn * 7 % len(KEYS)])
    turn += 1
""",
    "closes": """
at_work()
while True:
    for n in range(5):
        store.get_sync(KEYS[(turn + n) % len(KEYS)])
    store.close()
    turn += 3
""",
    "admits and evicts large ranges": """
ranges = new_cache(source, path, persist_ranges=True)
at_work()
while True:
    for key in LARGE:
        for request in (
            RangeByteRequest(turn * 997 % 1000, 100_000 + turn % 100_000),
            RangeByteRequest(200_000, 200_000 + turn % 9000),
        ):
            ranges.get_sync(key, byte_range=request)
    turn += 1
""",
    "lowers the budget": """
at_work()
while True:
    small = new_cache(source, path, max_size=MAX_SIZE // 10)
    for n in range(20):
        store.get_sync(KEYS[(turn + n) % len(KEYS)])
    small.get_sync(KEYS[turn % len(KEYS)])
    turn += 20
""",
}

KEYS = [str(number) for number in range(60)]

LARGE = KEYS[::7]


def value(key: str) -> bytes:
    """Of 1 byte to some pages and, of one in seven, more than can be read in one statement."""
    return (key.encode() + b"/") * (1 + int(key) * 97 if int(key) % 7 else 150_000)


def new_source() -> MemoryStore:
    return MemoryStore({key: buffer(value(key)) for key in KEYS})


def new_cache(
    source: MemoryStore, path: Path, max_size: int = MAX_SIZE, **settings: Any
) -> CacheStore:
    cache = SqliteStore(path)
    return CacheStore(source, cache_store=cache, namespace="source", max_size=max_size, **settings)


def start(script: str, path: Path, turn: int) -> subprocess.Popen[str]:
    """A process that runs the script, as soon as it is at work."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + script, str(path), str(turn)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "at work\n", process.communicate()
    return process


def kill(process: subprocess.Popen[str], after_seconds: float) -> None:
    """Kill the process at a moment that nothing in it has chosen."""
    time.sleep(after_seconds)
    process.kill()
    _, errors = process.communicate(timeout=HANG_SECONDS)

    assert errors == ""
    # 1 on Windows; a process that fails by itself tells of an error.
    assert process.returncode in {-9, 1, 0}


def moments(times: int) -> Iterator[float]:
    """Seconds after which to kill, shorter ones more often."""
    chance = random.Random(SEED)  # noqa: S311 - the seed is printed when a test fails
    for _ in range(times):
        yield chance.random() ** 2 * 0.3


@pytest.mark.parametrize("script", WORK.values(), ids=WORK)
async def test_a_process_that_is_killed_while_it(path: Path, script: str) -> None:
    for turn, after_seconds in enumerate(moments(TIMES)):
        kill(start(MAKE + script, path, turn * 11), after_seconds)

        # Nothing has opened it since: what is asserted is what the process has left.
        assert cached_bytes(path) <= MAX_SIZE, (SEED, turn)
        assert_accounts(path)
        keys, ranges = cached_keys(path), cached_ranges(path)
        store = new_cache(MemoryStore(), path)
        found = {key: await read(store, key) for key in keys}
        parts = [
            await read(store, each.key, RangeByteRequest(each.start, each.stop or 0))
            for each in ranges
        ]
        stats = store.cache_stats()
        store.close()

        assert found == {key: value(key) for key in keys}, (SEED, turn)
        assert parts == [value(key)[start:stop] for key, start, stop in ranges], (SEED, turn)
        assert (stats["damaged"], stats["faults"], stats["misses"]) == (0, 0, 0), (SEED, turn)


# A second migration that takes some time, since it rewrites what is there.
SLOW = (
    migrate.newest() + 1,
    """
ALTER TABLE entry ADD COLUMN note TEXT;
CREATE TABLE many (a INTEGER PRIMARY KEY, b BLOB NOT NULL) STRICT;
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO many SELECT i, randomblob(1000) FROM n;
CREATE INDEX many_by_b ON many (b);
UPDATE entry SET note = key;
""",
)

MIGRATE = """
from zarr_cache.file import migrate
more = (*migrate.scripts(), SLOW)
migrate.scripts = lambda: more
at_work()
SqliteStore(path).get_sync("k")
os._exit(0)
"""

CREATE = """
at_work()
SqliteStore(path).get_sync("k")
os._exit(0)
"""


def schema_of(path: Path) -> tuple[int, int, bool, bool]:
    """Application id, version, and whether the table and the column of the migration are there."""
    with open_file(path) as db:
        (application_id,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
        columns = {row[1] for row in db.execute("PRAGMA table_info(entry)")}
    return application_id, version, "many" in tables, "note" in columns


def integrity(path: Path) -> str:
    with open_file(path) as db:
        (found,) = db.execute("PRAGMA integrity_check").fetchone()
    return str(found)


def test_a_migration_that_is_killed_leaves_the_old_schema_or_the_new_one(
    tmp_path: Path,
) -> None:
    # The code of today refuses what comes of it.
    path = tmp_path / "newer.db"
    store = new_cache(new_source(), path)
    for key in KEYS[:20]:
        store.get_sync(key)
    store.close()
    before = schema_of(path)
    after = (APPLICATION_ID, migrate.newest() + 1, True, True)
    seen = []
    for after_seconds in moments(TIMES):
        # One that has been migrated would not be migrated again.
        copy = tmp_path / "killed.db"
        shutil.copy(path, copy)
        kill(start(MIGRATE, copy, 0), after_seconds)
        seen.append(schema_of(copy))
        assert integrity(copy) == "ok", SEED
        assert cached_keys(copy) == set(KEYS[:20]), SEED
        for file in tmp_path.glob("killed.db*"):
            file.unlink()
    process = start(MIGRATE, path, 0)
    _, errors = process.communicate(timeout=HANG_SECONDS)

    assert before == (APPLICATION_ID, migrate.newest(), False, False)
    assert set(seen) <= {before, after}, SEED
    assert (process.returncode, errors) == (0, "")
    assert schema_of(path) == after


async def test_a_process_that_is_killed_while_it_makes_the_file_leaves_none_or_one_that_is_used(
    path: Path,
) -> None:
    for turn, after_seconds in enumerate(moments(TIMES)):
        file = path.with_name(f"{turn}.sqlite")
        process = start(CREATE, file, 0)
        # It is made within some milliseconds.
        kill(process, after_seconds / 10)
        store = new_cache(new_source(), file)
        found = [await read(store, key) for key in KEYS[:3]]
        stats = store.cache_stats()
        store.close()

        assert found == [value(key) for key in KEYS[:3]]
        assert stats["faults"] == 0, SEED
        assert cached_keys(file) == set(KEYS[:3])
        assert_accounts(file)
