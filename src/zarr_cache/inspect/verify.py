"""Verifying a file: the database itself, then its entries, their bytes, and its totals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zarr_cache.core.errors import FileDamagedError
from zarr_cache.file import schema
from zarr_cache.inspect.problem import END, REVISIONS_END, Problem, checked
from zarr_cache.inspect.verify_entries import KINDS, MAX_ENTRIES, verify_entries, verify_orphans
from zarr_cache.inspect.verify_space import find_in_row, verify_space

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zarr_cache.file.connection import Connection
    from zarr_cache.inspect.problem import Run


type Totals = dict[tuple[Any, str], tuple[int, int]]

MAX_MESSAGES = 100
"""SQLite reports at most this many problems of pages and indexes."""

COUNTER = """
SELECT id, revision, fence
FROM counter
"""

HIGHEST_REVISION = """
SELECT max(
    (SELECT coalesce(max(revision), 0) FROM entry),
    (SELECT coalesce(max(fence), 0) FROM namespace),
    (SELECT coalesce(max(fence), 0) FROM counter)
)
"""

FENCES = """
SELECT id, name, fence
FROM namespace
WHERE fence NOT BETWEEN 0 AND :end - 1
"""

# A total has no namespace.
TOTALS = """
SELECT namespace, kind, entries, bytes
FROM usage
UNION ALL
SELECT NULL, kind, entries, bytes
FROM total
"""

# Not sum(), which raises if wrong sizes add up to more than 64 bits.
COUNTED = """
SELECT
    namespace,
    kind,
    count(*),
    CAST(total(size) AS INTEGER)
FROM entry
GROUP BY namespace, kind
"""

NAMES = """
SELECT id, name
FROM namespace
"""

# No trigger reacts to a DELETE: only an UPDATE of usage changes total.
CLEAR_TOTALS = ("DELETE FROM usage", "DELETE FROM total")

SET_USAGE = """
INSERT INTO usage (namespace, kind, entries, bytes)
VALUES (:namespace, :kind, :entries, :bytes)
"""

SET_TOTAL = """
INSERT INTO total (kind, entries, bytes)
VALUES (:kind, :entries, :bytes)
"""

VALUES = """
SELECT entry.id, namespace.name, entry.key
FROM entry
JOIN namespace ON namespace.id = entry.namespace
WHERE entry.id > :after AND entry.kind = 'value'
ORDER BY entry.id
LIMIT :most
"""


def verify(run: Run) -> Iterator[Problem]:
    """Yield what is wrong in a file, in many short transactions if it is large.

    The entries of a damaged database are not verified: a repair replaces all of it.
    """
    try:
        yield from find_damage(run) or verify_rows(run)
    except FileDamagedError as error:
        yield Problem("file", str(error), "a cache file")


def find_damage(run: Run) -> list[Problem]:
    """What is wrong with the database itself, which is not repaired: it must be replaced.

    What SQLite finds, a foreign schema, and wrong revisions or a wrong data file row, with which a
    read could return an old value for a new one.
    """
    finds = (_find_schema, _find_pages, _find_counter, _find_namespaces, find_in_row)
    return [problem for find in finds for problem in run(checked, find)]


def verify_rows(run: Run, *, repair: bool = False, has_bytes: bool = True) -> Iterator[Problem]:
    """Yield what is wrong with the entries, their bytes and their totals, in a sound database.

    Parameters
    ----------
    repair
        Whether to remove wrong entries and to recompute the totals.
    has_bytes
        Whether the bytes of the entries are in the files, or only their checksums.
    """
    yield from verify_space(run, repair=repair)
    yield from verify_entries(run, has_bytes=has_bytes, repair=repair)
    yield from verify_orphans(run, repair=repair)
    yield from run(checked, _find_totals, _fix_totals if repair else None)


def next_values(connection: Connection, after: int) -> list[tuple[int, str, str]]:
    """Row, namespace and key of the next value entries after a row."""
    return connection.execute(VALUES, {"after": after, "most": MAX_ENTRIES}).fetchall()


def _find_schema(connection: Connection) -> list[Problem]:
    return [
        Problem("schema", found and found.sql, expected and expected.sql)
        for found, expected in schema.differences(connection)
    ]


def _find_pages(connection: Connection) -> list[Problem]:
    """What SQLite finds, in a single transaction over the whole file."""
    rows = connection.execute(f"PRAGMA integrity_check({MAX_MESSAGES})").fetchall()
    return [Problem("page", message, "ok") for (message,) in rows if message != "ok"]


def _find_counter(connection: Connection) -> list[Problem]:
    found = connection.execute(COUNTER).fetchall()
    (highest,) = connection.execute(HIGHEST_REVISION).fetchone()
    match found:
        case [(1, int(revision), int(fence))] if (
            isinstance(highest, int) and 0 <= fence <= highest <= revision < REVISIONS_END
        ):
            return []
    expected = f"one row, its revision from {highest} to {REVISIONS_END - 1}"
    return [Problem("counter", found, expected)]


def _find_namespaces(connection: Connection) -> list[Problem]:
    return [
        Problem(
            "namespace", f"the fence {fence}", f"one from 0 to {REVISIONS_END - 1}", name, row=row
        )
        for row, name, fence in connection.execute(FENCES, {"end": REVISIONS_END})
    ]


def _counted(connection: Connection) -> Totals:
    """The right rows of ``usage`` and, without a namespace, of ``total``: entries and bytes.

    Entries whose namespace is missing are in neither.
    """
    namespaces = [namespace for (namespace,) in connection.execute("SELECT id FROM namespace")]
    totals = {(each, kind): (0, 0) for each in (None, *namespaces) for kind in KINDS}
    for namespace, kind, entries, nbytes in connection.execute(COUNTED):
        if namespace is not None and (namespace, kind) in totals:
            totals[namespace, kind] = (entries, nbytes)
            before = totals[None, kind]
            totals[None, kind] = (before[0] + entries, before[1] + nbytes)
    return totals


def _find_totals(connection: Connection) -> list[Problem]:
    names = dict(connection.execute(NAMES).fetchall())
    counted = _counted(connection)
    found = {(n, kind): tuple(totals) for n, kind, *totals in connection.execute(TOTALS)}
    return [
        Problem(
            "total" if row[0] is None else "usage",
            _as_text(row[1], found.get(row)),
            _as_text(row[1], counted.get(row)),
            names.get(row[0]),
        )
        for row in {**counted, **found}
        if found.get(row) != counted.get(row)
    ]


def _as_text(kind: str, totals: Sequence[Any] | None) -> str:
    return "no row" if totals is None else f"{totals[0]} entries of kind {kind}, {totals[1]} bytes"


def _fix_totals(connection: Connection, _: list[Problem]) -> None:
    totals = _counted(connection)
    if not all(0 <= nbytes < END for _, nbytes in totals.values()):
        # A value stored with SqliteStore has a wrong size, and is not removed. A file with such a
        # total would be refused when it is opened.
        return
    for statement in CLEAR_TOTALS:
        connection.execute(statement)
    for (namespace, kind), (entries, nbytes) in totals.items():
        row = {"namespace": namespace, "kind": kind, "entries": entries, "bytes": nbytes}
        connection.execute(SET_TOTAL if namespace is None else SET_USAGE, row)
