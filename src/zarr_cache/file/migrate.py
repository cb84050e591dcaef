"""The schema of a file, from the numbered scripts in ``migrations/``."""

from __future__ import annotations

import functools
import sqlite3
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from zarr_cache.core.errors import MigrationError, is_code

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.resources.abc import Traversable


def _folder() -> Traversable:
    """Where the scripts are: inside the installed package, or at the top of a checkout."""
    installed = resources.files("zarr_cache") / "migrations"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "migrations"


@functools.cache
def scripts() -> tuple[tuple[int, str], ...]:
    """Version and SQL of each script, oldest first.

    The version is the number that the file's name begins with: ``0001_entries.sql`` is 1.
    """
    return tuple(
        (int(script.name.split("_")[0]), script.read_text(encoding="utf-8"))
        for script in sorted(_folder().iterdir(), key=lambda script: script.name)
        if script.name.endswith(".sql")
    )


def newest() -> int:
    """The schema version that this release writes."""
    return scripts()[-1][0]


def version(connection: sqlite3.Connection) -> int:
    """The schema version of the database; 0 of an empty one."""
    (found,) = connection.execute("PRAGMA user_version").fetchone()
    return int(found)


def migrate(
    connection: sqlite3.Connection,
    *,
    application_id: int,
    scripts: Iterable[tuple[int, str]],
) -> int:
    """Bring the database to the newest schema and return its version.

    `connection` must have ``autocommit=True``: otherwise ``executescript`` commits an open BEGIN
    first, and a script that fails stays half applied.

    Raises
    ------
    MigrationError
        A script failed. The file still has the schema it had before.
    """
    for number, script in scripts:
        connection.execute("BEGIN IMMEDIATE")
        try:
            # Read again under the write lock: another process may have just migrated.
            if version(connection) < number:
                connection.executescript(
                    f"{script}\n;"
                    f"PRAGMA application_id = {application_id};"
                    f"PRAGMA user_version = {number};"
                )
        except BaseException as error:
            # SQLite has already rolled back after some errors, a full disk for one.
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            # Other operational errors are not of the script's making.
            is_operational = isinstance(error, sqlite3.OperationalError)
            if isinstance(error, sqlite3.Error) and (
                not is_operational or is_code(error, sqlite3.SQLITE_ERROR)
            ):
                raise MigrationError(f"migration {number:04d}: {error}") from error
            raise
        connection.execute("COMMIT")
    return version(connection)
