"""The schema of a new file is the one that is kept here, byte for byte.

A released schema never changes: a change is a new script in ``migrations/`` and a new file here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes import buffer, open_file
from zarr_cache import SqliteStore, migrate
from zarr_cache.cache_file import APPLICATION_ID

if TYPE_CHECKING:
    import sqlite3

FOLDER = Path(__file__).parent

SCHEMA = """
SELECT type, name, tbl_name, sql
FROM sqlite_schema
ORDER BY type, name
"""

# What scripts put into the tables, and what a file says of itself.
ROWS = {
    "namespace": "SELECT * FROM namespace",
    # Both are the time at which the file was made.
    "counter": "SELECT id, revision > 1.7e18, fence = revision FROM counter",
    "entry": "SELECT * FROM entry",
    "value": "SELECT * FROM value",
    "usage": "SELECT * FROM usage",
    "total": "SELECT * FROM total",
    "statistics": "SELECT * FROM statistics",
}
PRAGMAS = ["application_id", "user_version", "page_size", "auto_vacuum", "encoding"]


def printed(db: sqlite3.Connection) -> str:
    """The schema as text: of each object a line of its type, name and table, and then its SQL."""
    lines = []
    for kind, name, table, sql in db.execute(SCHEMA):
        lines.append(f"-- {kind} {name} of {table}\n{sql or '-- made by SQLite itself'}\n")
    for table, rows in ROWS.items():
        lines += [f"-- row of {table}: {row}" for row in db.execute(rows)]
    for pragma in PRAGMAS:
        (value,) = db.execute(f"PRAGMA {pragma}").fetchone()
        lines.append(f"-- {pragma}: {value}")
    return "\n".join([*lines, ""])


@pytest.fixture
def new_file(path: Path) -> Path:
    SqliteStore(path).get_sync("k")
    return path


def test_a_new_file_has_the_schema_that_is_kept_here(new_file: Path) -> None:
    kept = FOLDER / f"schema-{migrate.newest():04d}.sql"
    with open_file(new_file) as db:
        found = printed(db)

    assert found == kept.read_text(encoding="utf-8")


def test_there_is_a_kept_schema_for_every_script() -> None:
    kept = sorted(path.name for path in FOLDER.glob("schema-*.sql"))

    assert kept == [f"schema-{version:04d}.sql" for version, _ in migrate.scripts()]


def test_a_new_file_carries_our_mark_and_the_newest_version(new_file: Path) -> None:
    with open_file(new_file) as db:
        mark = db.execute("PRAGMA application_id").fetchone()
        version = db.execute("PRAGMA user_version").fetchone()

    assert (mark, version) == ((APPLICATION_ID,), (migrate.newest(),))


def test_every_table_is_strict(new_file: Path) -> None:
    with open_file(new_file) as db:
        rows = db.execute("SELECT name, strict FROM pragma_table_list WHERE type = 'table'")
        loose = [name for name, strict in rows if not strict and not name.startswith("sqlite_")]

    assert loose == []


def test_opening_again_changes_nothing_in_the_schema(new_file: Path) -> None:
    with open_file(new_file) as db:
        before = db.execute("PRAGMA schema_version").fetchone()
    store = SqliteStore(new_file)
    store.close()
    store.set_sync("k", buffer(b"value"))
    with open_file(new_file) as db:
        after = db.execute("PRAGMA schema_version").fetchone()

    assert after == before
