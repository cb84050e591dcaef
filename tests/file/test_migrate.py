"""A file has the schema of a script whole, or the one it had before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fakes import open_file, outputs_at_once
from zarr_cache import CacheError, MigrationError, SqliteStore
from zarr_cache.file import migrate
from zarr_cache.file.connection import WriteLock, connect
from zarr_cache.file.identity import APPLICATION_ID

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from zarr_cache.file.connection import Connection

FIRST = (1, "CREATE TABLE first (a INTEGER) STRICT; INSERT INTO first VALUES (1);")
SECOND = (2, "CREATE TABLE second (b INTEGER) STRICT;")
BROKEN = (3, "CREATE TABLE third (c INTEGER) STRICT; INSERT INTO nowhere VALUES (1);")


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    connection = connect(str(tmp_path / "plain.db"), WriteLock())
    yield connection
    connection.close()


def apply(connection: sqlite3.Connection, *scripts: tuple[int, str]) -> int:
    return migrate.migrate(connection, application_id=APPLICATION_ID, scripts=scripts)


def tables(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("SELECT name FROM sqlite_schema ORDER BY name")
    return [name for (name,) in rows]


def marks(connection: sqlite3.Connection) -> tuple[int, int]:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return application_id, version


def test_every_script_is_applied_once(connection: Connection) -> None:
    versions = [apply(connection, FIRST), apply(connection, FIRST, SECOND)]

    assert versions == [1, 2]
    assert tables(connection) == ["first", "second"]
    assert connection.execute("SELECT a FROM first").fetchall() == [(1,)]


def test_a_script_that_fails_leaves_the_schema_that_there_was_and_may_be_tried_again(
    connection: Connection,
) -> None:
    with pytest.raises(MigrationError, match=r"0003.*nowhere"):
        apply(connection, FIRST, BROKEN)

    assert tables(connection) == ["first"]
    assert marks(connection) == (APPLICATION_ID, 1)
    assert not connection.in_transaction
    assert apply(connection, FIRST, SECOND) == 2
    assert marks(connection) == (APPLICATION_ID, 2)


def test_a_first_script_that_fails_leaves_an_empty_file(connection: Connection) -> None:
    with pytest.raises(MigrationError):
        apply(connection, BROKEN)

    assert tables(connection) == []
    assert marks(connection) == (0, 0)


def test_an_interruption_leaves_the_schema_that_there_was(connection: Connection) -> None:
    class Interrupted(str):
        __slots__ = ()

        def __format__(self, spec: str) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apply(connection, FIRST, (2, Interrupted()))

    assert tables(connection) == ["first"]
    assert not connection.in_transaction


def test_a_file_of_a_newer_schema_is_not_migrated(connection: Connection) -> None:
    apply(connection, FIRST, SECOND)

    assert apply(connection, FIRST) == 2


def test_a_failed_migration_is_an_error_of_ours_that_names_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "scripts", lambda: (FIRST, BROKEN))

    with pytest.raises(CacheError, match="0003"):
        SqliteStore(tmp_path / "cache.db").get_sync("k")


def test_the_scripts_of_a_checkout_are_those_in_its_top_folder() -> None:
    folder = Path(__file__).parents[2] / "migrations"
    texts = [script.read_text(encoding="utf-8") for script in sorted(folder.glob("*.sql"))]

    assert [text for _, text in migrate.scripts()] == texts


def test_scripts_are_numbered_from_one_without_a_gap() -> None:
    versions = [version for version, _ in migrate.scripts()]

    assert versions == list(range(1, len(versions) + 1))
    assert migrate.newest() == versions[-1]


OPEN = """
import sys
from zarr_cache import SqliteStore
sys.stdin.readline()
print(SqliteStore(sys.argv[1]).get_sync("k"))
"""


def test_many_processes_may_migrate_a_file_at_once(path: Path) -> None:
    responses = outputs_at_once(OPEN, *[(str(path),)] * 4)
    with open_file(path) as db:
        found = marks(db)

    assert responses == [("None\n", "")] * 4
    assert found == (APPLICATION_ID, migrate.newest())
