"""What a file's schema must be, and what it may have besides.

A schema is code: its triggers, views and expressions run when its tables are used. So the schema of
a file is compared with what our scripts make before any other statement uses the file.
"""

from __future__ import annotations

import functools
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core.errors import FileDamagedError, StorageError
from zarr_cache.file import migrate

if TYPE_CHECKING:
    from pathlib import Path


# As blobs: nothing promises that the text of a file is UTF-8, and Python raises where it is not.
OBJECTS = """
SELECT CAST(type AS BLOB), CAST(name AS BLOB), CAST(tbl_name AS BLOB), CAST(sql AS BLOB)
FROM sqlite_schema
"""

# Every lookup joins these. Numbers that leave no room to count on from are as bad as no row. The
# bytes that the budget limits are there twice, as a total and by namespace: a total that is too
# small would let the file grow by the difference, for ever. As floats, which do not overflow.
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
WHERE 5 <> (
    SELECT count(*)
    FROM total
    WHERE kind IN ('stored', 'value', 'absent', 'tombstone', 'range')
      AND typeof(entries) = 'integer' AND entries BETWEEN 0 AND 4611686018427387903
      AND typeof(bytes) = 'integer' AND bytes BETWEEN 0 AND 4611686018427387903
      AND bytes = (SELECT total(usage.bytes) FROM usage WHERE usage.kind = total.kind)
)
"""

# What SQLite itself makes for ANALYZE.
MADE_BY_SQLITE = {"sqlite_stat1", "sqlite_stat4"}

MAX_NAMED = 3
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
        What the file has; None where an object is missing.
    expected
        What our scripts make; None where an object was added.
    """

    found: Object | None
    expected: Object | None

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.expected} is missing"
        if self.expected is None:
            return f"{self.found} was added"
        return f"{self.found} is not as our scripts make it"


def check_file(connection: sqlite3.Connection, path: Path) -> None:
    """Raise unless the file has the schema that our scripts give its version, and its single rows.

    Call it before a connection reads or writes a table, and before a migration: the comparison runs
    nothing of the file's schema. A few statements, whatever the file holds.

    Raises
    ------
    StorageError
        A user has added objects and nothing else differs. The file is not damaged: it is neither
        used nor quarantined.
    FileDamagedError
        Something differs otherwise. Either message names it.
    """
    connection.execute("BEGIN")
    try:
        different = differences(connection)
        wrong_rows: list[str] = []
        if not different and migrate.version(connection) == migrate.newest():
            wrong_rows = [fact for (fact,) in connection.execute(WRONG_ROWS)]
    finally:
        # SQLite has already rolled back after some errors.
        if connection.in_transaction:
            connection.execute("COMMIT")
    if wrong_rows:
        raise FileDamagedError(f"{path}: {'; '.join(wrong_rows)} is not what it can be")
    if not different:
        return
    named = "; ".join(map(str, different[:MAX_NAMED]))
    if len(different) > MAX_NAMED:
        named = f"{named}; and {len(different) - MAX_NAMED} more"
    if all(map(_is_addition, different)):
        raise StorageError(
            f"{path}: {named}; the file is left as it is and not used: drop what was added, views "
            "excepted, while no process has the file open, or name another file"
        )
    raise FileDamagedError(f"{path}: {named}")


def differences(connection: sqlite3.Connection) -> list[Difference]:
    """In what the file's schema is not what our scripts give its version.

    Added views of other names are no difference: nothing of them runs when our tables are used.
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
    """The objects that the scripts up to that version make."""
    scripts = [script for script in migrate.scripts() if script[0] <= version]
    # No file, so none of the settings of connection.py are of use here.
    connection = sqlite3.Connection(":memory:", autocommit=True)
    try:
        migrate.migrate(connection, application_id=0, scripts=scripts)
        return tuple(Object(*map(_text, row)) for row in connection.execute(OBJECTS))
    finally:
        connection.close()


def _is_addition(difference: Difference) -> bool:
    """Whether a user has added an object; one of our names is in a file whose version is wrong."""
    found, expected = difference
    return found is not None and expected is None and found.name not in _our_names()


def _our_names() -> set[str]:
    return {each.name for each in objects_of(migrate.newest())}


def _text(blob: bytes | None) -> str:
    return (blob or b"").decode(errors="backslashreplace")


def _is_harmless(added: Object) -> bool:
    """Whether it is a view of another name than ours, or made by SQLite for ``ANALYZE``.

    SQLite refuses a schema in which type, name or table are not those that the SQL says.
    """
    ours = {name.lower() for name in _our_names()}
    is_view = added.type == "view" and added.name.lower() not in ours
    return is_view or added.name in MADE_BY_SQLITE
