"""The schema of a new file is the one that is kept here, byte for byte.

A released schema never changes: a change is a new script in ``migrations/`` and new files here,
which ``python -m tests.upgrade.kept`` makes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes import buffer, open_file
from tests.upgrade.kept import FOLDER, kept_schema, printed
from zarr_cache import SqliteStore
from zarr_cache.file import migrate

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def new_file(path: Path) -> Path:
    SqliteStore(path).get_sync("k")
    return path


def test_a_new_file_has_the_schema_that_is_kept_here(new_file: Path) -> None:
    kept = kept_schema(migrate.newest())
    with open_file(new_file) as db:
        found = printed(db)

    assert found == kept.read_text(encoding="utf-8")


def test_there_is_a_kept_schema_for_every_script() -> None:
    kept = sorted(path.name for path in FOLDER.glob("schema-*.sql"))

    assert kept == [f"schema-{version:04d}.sql" for version, _ in migrate.scripts()]


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
