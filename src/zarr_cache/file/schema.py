"""What a file's schema must be, and what it may have besides.

A schema is code: its triggers, views and expressions run when its tables are used. So the schema of
a file is compared with what our scripts make before anything else is asked of the file.
"""

from __future__ import annotations

import functools
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core.errors import FileDamagedError
from zarr_cache.file import migrate

if TYPE_CHECKING:
    from pathlib import Path


# As blobs: nothing promises that the text of a file is UTF-8, and Python raises where it is not.
OBJECTS = """
SELECT CAST(type AS BLOB), CAST(name AS BLOB), CAST(tbl_name AS BLOB), CAST(sql AS BLOB)
FROM sqlite_schema
"""


# Every look-up joins these. Numbers that leave no room to count on from are as bad as no row. What
# the budget goes by is there twice, as a total and by namespace: a total that is too small would
# let the file grow by what it lacks, for ever. As floats, which do not overflow.
WRONG_ROWS = """
SELECT 'the revision in counter'
WHERE 1 <> (
    SELECT count(*)
    FROM counter
    WHERE id = 1
      AND typeof(revision) = 'integer' AND revision BETWEEN 0 AND 4611686018427387903
      AND typeof(fence) = 'integer' AND fence BETWEEN 0 AND revision
)
UNION ALL
SELECT 'the row of data_file'
WHERE 1 <> (
    SELECT count(*)
    FROM data_file
    WHERE id = 1
      AND typeof(identity) = 'blob' AND length(identity) = 16
      AND typeof(length) = 'integer' AND length BETWEEN 4096 AND 4611686018427387903
)
UNION ALL
SELECT 'a row of total'
WHERE 4 <> (
    SELECT count(*)
    FROM total
    WHERE kind IN ('stored', 'value', 'absent', 'tombstone')
      AND typeof(entries) = 'integer' AND entries BETWEEN 0 AND 4611686018427387903
      AND typeof(bytes) = 'integer' AND bytes BETWEEN 0 AND 4611686018427387903
      AND bytes = (SELECT total(usage.bytes) FROM usage WHERE usage.kind = total.kind)
)
"""


# What SQLite itself makes for ANALYZE.
MADE_BY_SQLITE = {"sqlite_stat1", "sqlite_stat4"}


MAX_TOLD = 3


"""A message names so many differences."""


class Object(NamedTuple):
    """A table, index, trigger or view, as the table ``sqlite_schema`` has it."""

    type: str
    name: str
    table: str
    sql: str

    def __str__(self) -> str:
        return f"{self.type} {self.name!r} of {self.table!r}"


class Difference(NamedTuple):
    """Something in which a file's schema is not what our scripts make.

    Attributes
    ----------
    found
        What the file has, or None where something is missing.
    expected
        What it should have, or None where there is something of which our scripts know nothing.
    """

    found: Object | None
    expected: Object | None

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.expected} is missing"
        if self.expected is None:
            return f"{self.found} is not ours; add nothing but views, and drop it"
        return f"{self.found} is not as our scripts make it"


def check_file(connection: sqlite3.Connection, path: Path) -> None:
    """Raise unless the file has the schema that our scripts give its version, and its single rows.

    Call it before a connection reads or writes a table, and before a migration: to find out that a
    schema is another runs nothing of it. A few statements, whatever the file holds.

    Raises
    ------
    FileDamagedError
        Something differs; the message says what.
    """
    connection.execute("BEGIN")
    try:
        wrong: list[object] = [*differences(connection)]
        if not wrong and migrate.version(connection) == migrate.newest():
            wrong = [f"{fact} is not what it can be" for (fact,) in connection.execute(WRONG_ROWS)]
    finally:
        # SQLite has already rolled back after some errors.
        if connection.in_transaction:
            connection.execute("COMMIT")
    if wrong:
        told = "; ".join(map(str, wrong[:MAX_TOLD]))
        more = f"; and {len(wrong) - MAX_TOLD} more" if len(wrong) > MAX_TOLD else ""
        raise FileDamagedError(f"{path}: {told}{more}")


def differences(connection: sqlite3.Connection) -> list[Difference]:
    """In what the file's schema is another than our scripts give its version.

    Views of other names, that somebody has added, are no difference: nothing of them runs when our
    tables are used.
    """
    expected = {each.name: each for each in objects_of(migrate.version(connection))}
    found = [Object(*map(_text, row)) for row in connection.execute(OBJECTS)]
    names = {each.name for each in found}
    different = [
        Difference(each, expected.get(each.name))
        for each in found
        if each != expected.get(each.name) and not _is_harmless(each)
    ]
    missing = [Difference(None, each) for name, each in expected.items() if name not in names]
    return different + missing


@functools.cache
def objects_of(version: int) -> tuple[Object, ...]:
    """What the scripts up to that version make."""
    scripts = [script for script in migrate.scripts() if script[0] <= version]
    # No file, so none of the settings of connection.py are of use here.
    connection = sqlite3.Connection(":memory:", autocommit=True)
    try:
        migrate.migrate(connection, application_id=0, scripts=scripts)
        return tuple(Object(*map(_text, row)) for row in connection.execute(OBJECTS))
    finally:
        connection.close()


def _text(blob: bytes | None) -> str:
    return (blob or b"").decode(errors="backslashreplace")


def _is_harmless(added: Object) -> bool:
    """Whether it is a view of another name than ours, or made by SQLite for ``ANALYZE``.

    SQLite refuses a schema in which type, name or table are not those that the SQL says.
    """
    ours = {each.name.lower() for each in objects_of(migrate.newest())}
    is_view = added.type == "view" and added.name.lower() not in ours
    return is_view or added.name in MADE_BY_SQLITE
