"""A file that somebody made to do harm: nothing of it runs, no read fails, none is wrong.

What is not promised: that its bytes are what the source holds. Checksums tell damage from what was
written, not who wrote it. See SECURITY.md.
"""

from __future__ import annotations

import re
import sqlite3
import sys
import tracemalloc
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from zarr.core.sync import sync
from zarr.storage import MemoryStore

import zarr_cache
from tests.fakes import CountingStore, buffer, forge, open_file, read, restart
from tests.fault.children import run_child
from tests.systems import needs_data_file
from zarr_cache import CacheStore, CacheWarning, SqliteStore, StorageError
from zarr_cache.disk.paths import data_file_of
from zarr_cache.file import connection, schema
from zarr_cache.file.connection import WriteLock, connect
from zarr_cache.file.identity import APPLICATION_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = [
    pytest.mark.leaves_damage,
    pytest.mark.filterwarnings("ignore::zarr_cache.CacheWarning"),
]

VALUES = {
    "small": b"{}",
    "c/0": b"0" * 1000,
    "c/1": b"1" * 60_000,
    "large": bytes(range(250)) * 800,
    **{f"c/{number}": f"{number}".encode() * 9 for number in range(2, 20)},
}
PAGE_SIZE = 1024


def source_and_store(path: Path) -> tuple[CountingStore, CacheStore]:
    source = CountingStore(MemoryStore({key: buffer(value) for key, value in VALUES.items()}))
    return source, CacheStore(source, cache_store=SqliteStore(path), namespace="source")


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """A file with all the values: of so many and so small pages that tables are trees."""
    path = tmp_path_factory.mktemp("whole") / "whole.sqlite"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(connection, "PAGE_SIZE", PAGE_SIZE)
        _, store = source_and_store(path)
        for key in VALUES:
            store.get_sync(key)
        restart(store)
    data = data_file_of(path)
    return path.read_bytes(), data.read_bytes() if data.exists() else b""


@pytest.fixture
def path(tmp_path: Path, content: tuple[bytes, bytes]) -> Path:
    """A copy of that file, which nobody has open."""
    path = tmp_path / "cache.sqlite"
    for each, data in zip((path, data_file_of(path)), content, strict=True):
        each.write_bytes(data)
    return path


def forge_schema(path: Path, *statements: str) -> None:
    """Change the file, its triggers and its table ``sqlite_schema`` as they are."""
    with open_file(path) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


def use(path: Path) -> CacheStore:
    """Read everything twice, write, and end: every answer is the source's, and nothing raises."""
    for _ in range(2):
        source, store = source_and_store(path)
        for key, value in chain(VALUES.items(), VALUES.items()):
            found = store.get_sync(key)
            assert found is not None
            assert found.to_bytes() == value, key
        store.set_sync("c/0", buffer(b"written"))
        assert sync(read(source, "c/0")) == b"written"
        found = store.get_sync("c/0")
        assert found is not None
        assert found.to_bytes() == b"written"
        store.set_sync("c/0", buffer(VALUES["c/0"]))
        restart(store)
    return store


READ = """
import os

def most_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024

source = MemoryStore({"k": buffer(b"value")})
with CacheStore(source, cache_store=SqliteStore(path.with_name("other.sqlite"))) as other:
    other.get_sync("k")
before = most_bytes()
found = CacheStore(source, cache_store=SqliteStore(path), namespace="source").get_sync("k")
tell(right=found.to_bytes() == b"value", more=most_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the most that was taken")
def test_a_long_text_in_the_schema_takes_no_memory(path: Path) -> None:
    forge_schema(path, f"CREATE VIEW people AS SELECT '{'x' * 32 * 2**20}'")
    child = run_child(path, READ)

    assert child.code == 0, child.errors
    assert child.facts["right"]
    assert child.facts["more"] < 16 * 2**20
    assert "its schema has a text of more than 1048576 bytes" in child.facts["warned"][0]


# As whoever forges a file can.
CLAIM = "UPDATE entry SET checksum = facts(key, kind, size, stored_at)"

FORGED = {
    "a size of almost all there is": (
        "UPDATE entry SET size = (1 << 62)",
        CLAIM,
    ),
    "a size of 8 GiB": ("UPDATE entry SET size = (1 << 33)", CLAIM),
    "a size below zero": ("UPDATE entry SET size = -1", CLAIM),
    "sizes that are one too large": (
        "UPDATE entry SET size = size + 1",
        CLAIM,
    ),
    "a value for what is absent": (
        "UPDATE entry SET kind = 'absent'",
        CLAIM,
    ),
    "parts of no number": ("UPDATE value SET part = part + 0x7ffffffffffffff0",),
    "checksums of no length": ("UPDATE value SET checksums = x''",),
    "checksums of a great length": ("UPDATE value SET checksums = zeroblob(100000)",),
    "the last of all stamps": ("UPDATE entry SET used_at = 0x7fffffffffffffff",),
    "the first of all stamps": (
        "UPDATE entry SET used_at = -9223372036854775808, stored_at = -9223372036854775808",
        CLAIM,
    ),
    "kept in the year 2262": (
        "UPDATE entry SET stored_at = 0x7fffffffffffffff",
        CLAIM,
    ),
    "the last of all revisions": ("UPDATE counter SET revision = 0x7fffffffffffffff",),
    "revisions of entries after all": ("UPDATE entry SET revision = 0x7fffffffffffffff",),
    "a fence after all": ("UPDATE namespace SET fence = 0x7fffffffffffffff",),
    "more writers than there are": ("UPDATE entry SET writes_in_flight = 0x7fffffffffffffff",),
    "no counter": ("DELETE FROM counter",),
    "no total": ("DELETE FROM total",),
    "no usage": ("DELETE FROM usage",),
    "no statistics": ("DELETE FROM statistics",),
    "no namespace": ("DELETE FROM namespace",),
    "no entry": ("DELETE FROM entry",),
    "no value": ("DELETE FROM value",),
    "no extent": ("DELETE FROM extent",),
    "an extent in the header": ("UPDATE extent SET offset = 0",),
    "an extent before the file": ("UPDATE extent SET offset = -4096",),
    "an extent behind the file": ("UPDATE extent SET offset = (1 << 40)",),
    "an extent at the end of all": ("UPDATE extent SET offset = 0x7ffffffffffff000",),
    "an extent of another place": ("UPDATE extent SET offset = offset + 4096",),
    "an extent without length": ("UPDATE extent SET length = 0",),
    "an extent of almost all there is": ("UPDATE extent SET length = (1 << 62)",),
    "an extent below zero": ("UPDATE extent SET length = -4096",),
    "an extent that begins later": ("UPDATE extent SET start = 4096",),
    "all of the file is free": ("INSERT INTO free_extent VALUES (4096, 1 << 30)",),
    "free space before the file": ("INSERT INTO free_extent VALUES (-1048576, 1048576)",),
    "free space of no length": ("INSERT INTO free_extent VALUES (8192, -4096)",),
    "a data file of no length": ("UPDATE data_file SET length = 0",),
    "a data file of almost all there is": ("UPDATE data_file SET length = 0x7ffffffffffff000",),
    "a data file without identity": ("UPDATE data_file SET identity = x''",),
    "no data file": ("DELETE FROM data_file",),
    "reservations of all the budget": ("INSERT INTO reservation VALUES (7, 1 << 62, 1, 1 << 62)",),
    "reservations below zero": ("INSERT INTO reservation VALUES (7, -(1 << 40), 1, 1 << 62)",),
    "values of no entry": ("UPDATE value SET entry = entry + 1000",),
    "a total of almost all there is": ("UPDATE total SET bytes = 0x7fffffffffffffff",),
    "a total below zero": ("UPDATE total SET bytes = -9223372036854775808",),
    "statistics of almost all there is": ("UPDATE statistics SET hits = 0x7fffffffffffffff",),
    "a row after which there is none": ("UPDATE entry SET id = 0x7fffffffffffffff WHERE id = 1",),
    "a key that is not UTF-8": ("UPDATE entry SET key = CAST(x'ff63' AS TEXT) WHERE key = 'c/0'",),
    "a kind that is not UTF-8": ("UPDATE entry SET kind = CAST(x'ff' AS TEXT)",),
    "a name that is not UTF-8": ("UPDATE namespace SET name = CAST(x'ff' AS TEXT)",),
    "a key that ends in the middle": (
        "UPDATE entry SET key = CAST(x'632f3000' AS TEXT) WHERE key = 'c/0'",
    ),
}

HARMLESS = [
    "no entry",
    "no statistics",
    "statistics of almost all there is",
    "reservations of all the budget",
]
"""Counts alone are wrong, or the next write removes it."""


@pytest.mark.parametrize("statements", FORGED.values(), ids=FORGED)
def test_what_rows_say_makes_no_read_wrong_or_fail(path: Path, statements: tuple[str, ...]) -> None:
    forge(path, *statements)

    use(path)


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param(each, id=name, marks=[needs_data_file] if " extent" in name else [])
        for name, each in FORGED.items()
    ],
)
def test_verify_reports_problems_of_a_forged_file_and_does_not_fail(
    path: Path, statements: tuple[str, ...]
) -> None:
    forge(path, *statements)
    store = SqliteStore(path)
    problems = list(store.verify())
    list(store.verify(repair=True))

    assert problems or statements in [FORGED[name] for name in HARMLESS]


WRITABLE = "PRAGMA writable_schema = ON"
EVIL = "CREATE TABLE evil (what)"
RUN = "INSERT INTO evil VALUES ('was run')"

ENDLESS_TRIGGER = """
CREATE TRIGGER theirs AFTER INSERT ON entry BEGIN
    INSERT INTO evil
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i FROM n)
    SELECT i FROM n;
END
"""

VIEW_OF_VALUES = """
CREATE VIEW value (entry, part, checksums, data) AS
SELECT entry, part, checksums, x'00'
FROM theirs
"""

ENDLESS_VIEW = """
CREATE VIEW counter (id, revision, fence) AS
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)
SELECT i, i, i
FROM n
"""

COMPUTED_COLUMN = """
CREATE TABLE total (
    kind    TEXT PRIMARY KEY,
    entries INTEGER,
    bytes   INTEGER AS (length(hex(zeroblob(400000000))))
)
"""

UNKNOWN_COLLATION = """
UPDATE sqlite_schema
SET sql = replace(sql, '(key)', '(key COLLATE theirs)')
WHERE name = 'theirs'
"""

ROOT_OF_ANOTHER = """
UPDATE sqlite_schema
SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'value')
WHERE name = 'entry'
"""

# What only adds objects to ours.
ADDITIONS = {
    "a trigger on every insert": (
        EVIL,
        f"CREATE TRIGGER theirs AFTER INSERT ON entry BEGIN {RUN}; END",
    ),
    "a trigger on every touch": (
        EVIL,
        f"CREATE TRIGGER theirs BEFORE UPDATE ON entry BEGIN {RUN}; END",
    ),
    "a trigger on counts": (
        EVIL,
        f"CREATE TRIGGER theirs AFTER UPDATE ON statistics BEGIN {RUN}; END",
    ),
    "a trigger that never ends": (
        EVIL,
        ENDLESS_TRIGGER,
    ),
    "an index of a collation that nobody has": (
        "CREATE INDEX theirs ON entry (key)",
        WRITABLE,
        UNKNOWN_COLLATION,
    ),
    "a table of another kind": (
        WRITABLE,
        """INSERT INTO sqlite_schema
        VALUES ('table', 'theirs', 'theirs', 0, 'CREATE VIRTUAL TABLE theirs USING a_kind (a)')""",
    ),
    "an index": ("CREATE INDEX by_size ON entry (size DESC)",),
    "a table": ("CREATE TABLE notes (key TEXT UNIQUE)",),
}

SCHEMAS = {
    "a trigger of ours that does more": (
        EVIL,
        "DROP TRIGGER entry_after_insert",
        f"CREATE TRIGGER entry_after_insert AFTER INSERT ON entry BEGIN {RUN}; END",
    ),
    "a trigger in the place of ours": (
        EVIL,
        "DROP TRIGGER entry_after_insert",
        f"CREATE TRIGGER theirs AFTER INSERT ON entry BEGIN {RUN}; END",
    ),
    "a view in the place of the values": (
        "ALTER TABLE value RENAME TO theirs",
        VIEW_OF_VALUES,
    ),
    "a view that never ends": (
        "DROP TABLE counter",
        ENDLESS_VIEW,
    ),
    "a column that is computed": (
        "DROP TABLE total",
        COMPUTED_COLUMN,
    ),
    "a table without its checks": (
        WRITABLE,
        "UPDATE sqlite_schema SET sql = replace(sql, 'CHECK (size >= 0)', '') WHERE name = 'entry'",
    ),
    "a table in the place of another": (
        WRITABLE,
        ROOT_OF_ANOTHER,
    ),
    "SQL that is none": (WRITABLE, "UPDATE sqlite_schema SET sql = 'what' WHERE name = 'usage'"),
    "SQL that is not UTF-8": (
        WRITABLE,
        "UPDATE sqlite_schema SET sql = CAST(x'ff' || sql AS TEXT) WHERE name = 'usage'",
    ),
    "no trigger at all": tuple(
        f"DROP TRIGGER {each.name}" for each in schema.objects_of(1) if each.type == "trigger"
    ),
    "no index": ("DROP INDEX entry_by_use",),
    "no schema": (WRITABLE, "DELETE FROM sqlite_schema"),
    "a version of before": ("PRAGMA user_version = 0",),
    "a version below zero": ("PRAGMA user_version = -1",),
}


def was_run(folder: Path) -> list[str]:
    """What was written by somebody else's SQL, in any file of the folder."""
    rows: list[str] = []
    for file in folder.glob("*.sqlite*"):
        if file.name.endswith(("-wal", "-shm", "-data")):
            continue
        with open_file(file) as db:
            names = [name for (name,) in db.execute("SELECT name FROM sqlite_schema")]
            if "evil" in names:
                rows += [what for (what,) in db.execute("SELECT what FROM evil")]
    return rows


@pytest.mark.parametrize("statements", SCHEMAS.values(), ids=SCHEMAS)
def test_a_foreign_schema_is_quarantined_before_anything_of_it_runs(
    path: Path, statements: tuple[str, ...]
) -> None:
    forge_schema(path, *statements)
    store = use(path)
    aside = [file.name for file in path.parent.glob("*.damaged-*[Z]")]

    assert len(aside) == 1
    # A schema that is no SQL cannot be looked into.
    assert EVIL not in statements or was_run(path.parent) == []
    assert list(SqliteStore(path).verify()) == []
    assert store.cache_info()["cached_keys"] == len(VALUES)


@pytest.mark.parametrize("statements", ADDITIONS.values(), ids=ADDITIONS)
def test_a_file_with_additions_is_neither_used_nor_renamed(
    path: Path, statements: tuple[str, ...]
) -> None:
    forge_schema(path, *statements)
    before = path.read_bytes()
    with pytest.warns(CacheWarning, match="was added.*left as it is and not used: drop"):
        use(path)

    assert path.read_bytes() == before
    assert EVIL not in statements or was_run(path.parent) == []
    assert not list(path.parent.glob("*.damaged-*"))


def test_a_repair_leaves_a_file_with_additions_as_it_is(path: Path) -> None:
    forge_schema(path, "CREATE INDEX by_size ON entry (size DESC)")
    before = path.read_bytes()

    with pytest.raises(StorageError, match="'by_size' of 'entry' was added"):
        list(SqliteStore(path).verify(repair=True))
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*.damaged-*"))


def test_a_file_without_the_additions_is_used_again_and_has_nothing_from_before_a_write(
    path: Path,
) -> None:
    forge_schema(path, "CREATE INDEX by_size ON entry (size DESC)")
    source, store = source_and_store(path)
    store.set_sync("c/0", buffer(b"written"))
    restart(store)
    forge_schema(path, "DROP INDEX by_size")
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    found = store.get_sync("c/0")
    store.flush()

    assert found is not None
    assert found.to_bytes() == b"written"
    assert store.cache_info()["cached_keys"] == 1


ALL_SCHEMAS = ADDITIONS | SCHEMAS


@pytest.mark.parametrize("statements", ALL_SCHEMAS.values(), ids=ALL_SCHEMAS)
def test_a_file_with_stored_values_and_a_foreign_schema_is_refused_and_stays(
    path: Path, statements: tuple[str, ...]
) -> None:
    SqliteStore(path).set_sync("mine", buffer(b"stored by hand"))
    SqliteStore(path).close()
    forge_schema(path, *statements)
    before = path.read_bytes()

    with pytest.raises(StorageError, match=re.escape(str(path))):
        SqliteStore(path).get_sync("mine")
    assert path.read_bytes() == before


def test_the_error_names_what_was_added_and_the_way_out(path: Path) -> None:
    SqliteStore(path).set_sync("mine", buffer(b"stored by hand"))
    SqliteStore(path).close()
    forge_schema(path, "CREATE INDEX by_size ON entry (size DESC)")

    with pytest.raises(StorageError) as refused:
        SqliteStore(path).get_sync("mine")
    forge_schema(path, "DROP INDEX by_size")

    assert "index 'by_size' of 'entry' was added; the file is left as it is" in str(refused.value)
    assert SqliteStore(path).get_sync("mine") == buffer(b"stored by hand")


OWN = {
    "a view": "CREATE VIEW mine AS SELECT key, size FROM entry ORDER BY size",
    "statistics for the planner": "ANALYZE",
}


@pytest.mark.parametrize("statement", OWN.values(), ids=OWN)
def test_views_and_planner_statistics_may_be_added(path: Path, statement: str) -> None:
    forge_schema(path, statement)
    with open_file(path) as db:
        before = db.execute("SELECT type, name, sql FROM sqlite_schema").fetchall()
    use(path)
    with open_file(path) as db:
        after = db.execute("SELECT type, name, sql FROM sqlite_schema").fetchall()

    assert after == before
    assert list(SqliteStore(path).verify()) == []


@pytest.mark.parametrize("version", [0, 1])
def test_an_empty_database_with_our_mark_is_used_or_replaced(tmp_path: Path, version: int) -> None:
    path = tmp_path / "marked.sqlite"
    mark = f"PRAGMA application_id = {APPLICATION_ID}"
    forge_schema(path, mark, f"PRAGMA user_version = {version}")

    assert use(path).cache_info()["cached_keys"] == len(VALUES)


def pages(path: Path, kind: int) -> Iterator[int]:
    """Numbers of the pages of a kind in the pointer map: 3 and 4 are those of large values."""
    data = path.read_bytes()
    in_a_map = PAGE_SIZE // 5
    for number in range(3, len(data) // PAGE_SIZE + 1):
        map_page, place = divmod(number - 2, in_a_map + 1)
        offset = (map_page * (in_a_map + 1) + 1) * PAGE_SIZE + (place - 1) * 5
        if place and data[offset] == kind:
            yield number


def overwrite(path: Path, offset: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)


def let_values_go_round(path: Path) -> None:
    """The next page of each page of a value is itself."""
    for kind in (3, 4):
        for number in pages(path, kind):
            overwrite(path, (number - 1) * PAGE_SIZE, number.to_bytes(4))


def let_trees_go_round(path: Path) -> None:
    """The last child of each page that has children is itself."""
    data = path.read_bytes()
    for number in range(3, len(data) // PAGE_SIZE + 1):
        start = (number - 1) * PAGE_SIZE
        if data[start] in {0x02, 0x05}:
            overwrite(path, start + 8, number.to_bytes(4))


def let_free_pages_go_round(path: Path) -> None:
    """The next page in the list of free pages is itself, and there are as many as can be."""
    forge(path, "DELETE FROM value WHERE entry % 2", "DELETE FROM entry WHERE id % 2")
    first = int.from_bytes(path.read_bytes()[32:36])
    assert first
    overwrite(path, (first - 1) * PAGE_SIZE, first.to_bytes(4))
    overwrite(path, 36, (2**31 - 1).to_bytes(4))


@pytest.mark.parametrize(
    "forge_pages", [let_values_go_round, let_trees_go_round, let_free_pages_go_round]
)
def test_pages_that_form_a_cycle_do_not_hang(
    path: Path, forge_pages: Callable[[Path], None]
) -> None:
    before = path.read_bytes()
    forge_pages(path)
    forged = path.read_bytes()
    problems = list(SqliteStore(path).verify())
    SqliteStore(path).close()

    assert forged != before
    assert problems
    use(path)


MEMORY = {
    "a size that is said": (
        "UPDATE entry SET size = (1 << 33) WHERE key = 'c/0'",
        CLAIM,
    ),
    "a size with its first part": (
        "UPDATE value SET data = zeroblob(4194304) WHERE length(data) = 60000",
        "UPDATE entry SET size = (1 << 33) WHERE key = 'c/1'",
        CLAIM,
    ),
    "a value that is not said": ("UPDATE value SET data = zeroblob(30000000) WHERE entry = 2",),
    "checksums without end": ("UPDATE value SET checksums = zeroblob(30000000) WHERE entry = 2",),
    "a size with its extent": (
        "UPDATE extent SET length = (1 << 33)",
        "UPDATE entry SET size = (1 << 33) WHERE key = 'large'",
        CLAIM,
    ),
}


@pytest.mark.parametrize("statements", MEMORY.values(), ids=MEMORY)
def test_no_memory_is_allocated_for_a_size_that_is_not_verified(
    path: Path, statements: tuple[str, ...]
) -> None:
    forge(path, *statements)
    _, store = source_and_store(path)
    tracemalloc.start()
    try:
        for key in VALUES:
            store.get_sync(key)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    restart(store)

    assert peak < 10 * 2**20
    assert store.cache_stats()["damaged"] == 1


def test_a_schema_is_not_trusted(path: Path) -> None:
    with closing(connect(str(path), WriteLock())) as db:
        trusted = db.execute("PRAGMA trusted_schema").fetchone()
        with pytest.raises(sqlite3.OperationalError, match="not authorized"):
            db.execute("SELECT load_extension('theirs')")

    assert trusted == (0,)


KEYS = [
    "../../etc/passwd",
    "/etc/passwd",
    "C:\\Windows\\System32",
    "file:other.sqlite?mode=rwc",
    "'; DROP TABLE entry; --",
    '"; DELETE FROM value; --',
    "'); ATTACH 'theirs.sqlite' AS theirs; --",
    ":key",
    "?1",
    "$(touch theirs)",
    "%",
    "_",
    "*",
    "a\0b",
    "a\nb",
    "a\r\nb",
    "\x1b[2J",
    "{0.__class__}",
    "%s%n",
    "\u202e",
    " ",
]


async def test_keys_are_data_and_neither_paths_nor_sql(path: Path) -> None:
    values = {key: f"value of {key!r}".encode() for key in KEYS}
    mine = SqliteStore(path)
    source = CountingStore(MemoryStore({key: buffer(value) for key, value in values.items()}))
    cache = CacheStore(source, cache_store=mine, namespace="'; DROP TABLE namespace; --")
    await mine._set_many([(key, buffer(value)) for key, value in values.items()])
    found = {}
    for store in (mine, cache, cache):
        found = {key: store.get_sync(key) for key in KEYS}
    listed = [key async for key in mine.list()]
    for key in KEYS:
        below = [each async for each in mine.list_prefix(key)]
        assert key in below
        await mine.delete(key)
    left = [key async for key in mine.list()]
    restart(cache)

    assert {key: value.to_bytes() for key, value in found.items() if value is not None} == values
    assert source.requests.total() == len(KEYS)
    assert sorted(listed) == sorted(KEYS)
    assert left == []
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}-data"}
    assert list(SqliteStore(path).verify()) == []


@needs_data_file
def test_values_are_kept_as_they_are(path: Path) -> None:
    with open_file(path) as db:
        kept = dict(db.execute("SELECT key, data FROM entry JOIN value ON value.entry = entry.id"))
        where = "SELECT offset, length FROM extent JOIN entry ON id = entry WHERE key = 'large'"
        ((place, length),) = db.execute(where)
    kept["large"] = data_file_of(path).read_bytes()[place : place + length]

    assert kept == VALUES


def test_nothing_in_the_package_makes_objects_of_what_it_reads() -> None:
    modules = Path(zarr_cache.__file__).parent.rglob("*.py")
    makers = re.compile(r"\b(pickle|marshal|shelve|dill|cloudpickle)\.loads?\b|\b(eval|exec)\(")
    using = {module.name for module in modules if makers.search(module.read_text("utf-8"))}

    assert using == set()
