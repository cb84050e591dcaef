"""What is wrong in a file: every stored fact compared with what it stands for."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zarr_cache import schema
from zarr_cache.budget import MOST_AT_ONCE
from zarr_cache.errors import FileDamagedError
from zarr_cache.problem import END, REVISIONS_END, Problem, checked, run_on
from zarr_cache.verify_entries import FENCE_ALL, KINDS, MOST_ENTRIES, verify_entries, verify_orphans
from zarr_cache.verify_space import verify_space

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from zarr_cache.connection import Connection
    from zarr_cache.problem import Run

    type Totals = dict[tuple[Any, Any], tuple[Any, Any]]

MOST_MESSAGES = 100
"""At most this many problems of pages and indexes are asked of SQLite."""

# With what fences a key as well: an index that is made anew may come upon two rows of one key.
REMOVE_DOUBLES = """
DELETE FROM entry
WHERE kind IS NOT 'stored'
  AND writers = 0
  AND id IN (
    SELECT id
    FROM (
        SELECT id, count(*) OVER (PARTITION BY namespace, key) AS rows
        FROM entry NOT INDEXED
    )
    WHERE rows > 1
)
"""

# All in the transaction that makes the indexes anew, which is why the bytes stay for the moment.
DISBELIEVE = """
UPDATE entry
SET kind = 'fence',
    size = 0,
    used_at = 0
WHERE kind IN ('value', 'absent')
"""

# No write leaves a fence that was never used.
REMOVE_SOME_DISBELIEVED = """
DELETE FROM entry
WHERE id IN (
    SELECT id
    FROM entry
    WHERE kind = 'fence' AND used_at = 0 AND writers = 0
    LIMIT :most
)
RETURNING id
"""

NEXT_REVISION = """
UPDATE counter
SET revision = revision + 1,
    fence = revision + 1
WHERE revision BETWEEN 0 AND :end - 2
"""

# What is being fetched is refused.
RAISE_FENCES = """
UPDATE namespace
SET fence = (SELECT revision FROM counter)
WHERE fence < (SELECT revision FROM counter)
"""

COUNTER = """
SELECT id, revision, fence
FROM counter
"""

HIGHEST_REVISION = """
SELECT max(
    (SELECT coalesce(max(revision), 0) FROM entry WHERE revision < :end),
    (SELECT coalesce(max(fence), 0) FROM namespace WHERE fence < :end),
    (SELECT coalesce(max(fence), 0) FROM counter WHERE fence < :end)
)
"""

CLEAR_COUNTER = """
DELETE FROM counter
"""

# Above what any write has, and what this file or another in its place has told: what is being
# fetched now is refused.
SET_COUNTER = """
INSERT INTO counter (id, revision, fence)
SELECT 1, revision, revision
FROM (
    SELECT max(
        :highest + 1,
        CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000000
    ) AS revision
)
"""

FENCES = """
SELECT id, name, fence
FROM namespace
WHERE typeof(fence) <> 'integer' OR fence NOT BETWEEN 0 AND :end - 1
"""

LOWER_FENCE = """
UPDATE namespace
SET fence = (SELECT revision FROM counter WHERE id = 1)
WHERE id = :row
"""

USAGE = """
SELECT namespace, kind, entries, bytes
FROM usage
"""

TOTAL = """
SELECT kind, entries, bytes
FROM total
"""

# Added up in two halves: sum() raises when it exceeds 64 bits, as it does with sizes that lie.
COUNTED = """
SELECT
    namespace,
    kind,
    count(*),
    sum(size / 4294967296) FILTER (WHERE typeof(size) = 'integer'),
    sum(size % 4294967296) FILTER (WHERE typeof(size) = 'integer')
FROM entry
GROUP BY namespace, kind
"""

NAMES = """
SELECT id, name
FROM namespace
"""

# No trigger is about these: only an UPDATE of usage changes total.
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

STATISTICS = """
SELECT
    coalesce(namespace.id, statistics.namespace),
    namespace.name,
    namespace.id IS NOT NULL,
    hits,
    misses,
    bytes_served,
    bytes_fetched,
    evictions,
    expirations
FROM namespace
FULL JOIN statistics ON statistics.namespace = namespace.id
"""

REMOVE_STATISTICS = """
DELETE FROM statistics
WHERE namespace = :row
"""

ADD_STATISTICS = """
INSERT INTO statistics (namespace)
SELECT id
FROM namespace
WHERE id = :row
"""


def verify(run: Run, *, repair: bool = False, has_bytes: bool = True) -> Iterator[Problem]:
    """Yield what is wrong in a database, in many short transactions if it is large.

    Parameters
    ----------
    run
        Runs an operation, as `Database.run` does.
    repair
        Whether to remove what is wrong.
    has_bytes
        Whether the bytes of the entries are in the database as well, or their checksums only.
    """
    try:
        yield from run(checked, _find_schema, _fix_schema, repair=repair)
        # Told after the rest has been repaired: SQLite finds much of that, too.
        pages = run(checked, _find_pages, _fix_pages, repair=repair)
        if not repair:
            yield from pages
        elif pages:
            while run(_remove_some_disbelieved):
                pass
        yield from run(checked, _find_counter, _fix_counter, repair=repair)
        yield from run(checked, _find_namespaces, _fix_namespaces, repair=repair)
        yield from verify_space(run, repair=repair)
        yield from verify_entries(run, has_bytes=has_bytes, repair=repair)
        yield from verify_orphans(run, repair=repair)
        yield from run(checked, _find_totals, _fix_totals, repair=repair)
        yield from run(checked, _find_statistics, _fix_statistics, repair=repair)
        if repair and pages:
            left = run(checked, _find_pages, _fix_pages, repair=False)
            for problem in pages:
                yield replace(problem, is_repaired=problem not in left)
    except FileDamagedError as error:
        yield Problem("file", str(error), "a cache file")


def repair_refused(connection: Connection, path: Path) -> Iterator[Problem]:
    """As `verify` with `repair`, of a file that is refused as damaged when it is opened.

    Until its schema is ours nothing else in the file is asked or changed.
    """
    run = run_on(connection, path)
    problems = run(checked, _find_schema, _fix_schema, repair=True)
    yield from problems
    if all(problem.is_repaired for problem in problems):
        yield from verify(run, repair=True)


def next_values(connection: Connection, after: int) -> list[tuple[int, str, str]]:
    """Row, namespace and key of the value entries after a row, in their order, some at a time."""
    return connection.execute(VALUES, {"after": after, "most": MOST_ENTRIES}).fetchall()


def _find_schema(connection: Connection) -> list[Problem]:
    return [
        Problem("schema", found and found.sql, expected and expected.sql)
        for found, expected in schema.differences(connection)
    ]


def _fix_schema(connection: Connection, _: list[Problem]) -> None:
    """Drop what is not ours and would run, make what is missing.

    Where a table is another, nothing is done: what it computes would run.
    """
    different = schema.differences(connection)
    if any(each is not None and each.type == "table" for pair in different for each in pair):
        return
    for found, _expected in different:
        if found is not None and found.type != "table":
            name = found.name.replace('"', '""')
            connection.execute(f'DROP {found.type} "{name}"')
    for _found, expected in different:
        if expected is not None and expected.type != "table" and expected.sql:
            connection.execute(expected.sql)


def _find_pages(connection: Connection) -> list[Problem]:
    """What SQLite finds: the one check that is one transaction over the whole file."""
    rows = connection.execute(f"PRAGMA integrity_check({MOST_MESSAGES})").fetchall()
    return [Problem("page", message, "ok") for (message,) in rows if message != "ok"]


def _fix_pages(connection: Connection, _: list[Problem]) -> None:
    """Make the indexes anew, and believe nothing that was kept while they were wrong.

    A write that was led to another row by an index has fenced that one. The row that it should have
    found is found again now, with what was there before.
    """
    are_wrong = _are_pages_wrong(connection)
    # All of them: a message names the index in words that may change.
    try:
        connection.execute("REINDEX")
    except sqlite3.IntegrityError:
        _remove_doubles(connection)
        connection.execute("REINDEX")
    if are_wrong:
        connection.execute(NEXT_REVISION, {"end": REVISIONS_END})
        connection.execute(RAISE_FENCES)
        connection.execute(DISBELIEVE)


def _are_pages_wrong(connection: Connection) -> bool:
    """Whether anything is but the values that a row may have, which no index depends on."""
    connection.execute("PRAGMA ignore_check_constraints = ON")
    try:
        return connection.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]
    finally:
        connection.execute("PRAGMA ignore_check_constraints = OFF")


def _remove_doubles(connection: Connection) -> None:
    """Remove the entries of which a key has two: a write did not find the one that was there."""
    # Otherwise a row that its index lacks is one that cannot be removed.
    connection.execute("PRAGMA writable_schema = ON")
    try:
        connection.execute(REMOVE_DOUBLES)
    finally:
        connection.execute("PRAGMA writable_schema = OFF")


def _remove_some_disbelieved(connection: Connection) -> int:
    """Remove some of what is not believed any more; tell how many."""
    with connection.writing():
        return len(connection.execute(REMOVE_SOME_DISBELIEVED, {"most": MOST_AT_ONCE}).fetchall())


def _find_counter(connection: Connection) -> list[Problem]:
    found = connection.execute(COUNTER).fetchall()
    highest = _highest_revision(connection)
    match found:
        case [(1, int(revision), int(fence))] if (
            highest <= revision < REVISIONS_END and 0 <= fence <= revision
        ):
            return []
    expected = f"one row, its revision from {highest} to {REVISIONS_END - 1}"
    return [Problem("counter", found, expected)]


def _fix_counter(connection: Connection, _: list[Problem]) -> None:
    highest = _highest_revision(connection)
    connection.execute(CLEAR_COUNTER)
    connection.execute(SET_COUNTER, {"highest": highest})
    connection.execute(FENCE_ALL)


def _highest_revision(connection: Connection) -> int:
    (highest,) = connection.execute(HIGHEST_REVISION, {"end": REVISIONS_END}).fetchone()
    return int(highest)


def _find_namespaces(connection: Connection) -> list[Problem]:
    return [
        Problem(
            "namespace", f"the fence {fence}", f"one from 0 to {REVISIONS_END - 1}", name, row=row
        )
        for row, name, fence in connection.execute(FENCES, {"end": REVISIONS_END})
    ]


def _fix_namespaces(connection: Connection, problems: list[Problem]) -> None:
    for problem in problems:
        connection.execute(LOWER_FENCE, {"row": problem.row})


def _counted(connection: Connection) -> tuple[Totals, Totals]:
    """What ``usage`` and ``total`` should say: (entries, bytes) by namespace and kind, and by kind.

    Entries of a namespace that is gone are in neither.
    """
    namespaces = [namespace for (namespace,) in connection.execute("SELECT id FROM namespace")]
    usage: Totals = {(each, kind): (0, 0) for each in namespaces for kind in KINDS}
    total: Totals = {(None, kind): (0, 0) for kind in KINDS}
    for namespace, kind, entries, high, low in connection.execute(COUNTED):
        if (namespace, kind) in usage:
            nbytes = int(high or 0) * 2**32 + int(low or 0)
            usage[namespace, kind] = (entries, nbytes)
            before = total[None, kind]
            total[None, kind] = (before[0] + entries, before[1] + nbytes)
    return usage, total


def _find_totals(connection: Connection) -> list[Problem]:
    names = dict(connection.execute(NAMES).fetchall())
    usage, total = _counted(connection)
    found_usage = {(n, kind): totals for n, kind, *totals in connection.execute(USAGE)}
    found_total = {(None, kind): totals for kind, *totals in connection.execute(TOTAL)}
    return [
        *_compare("usage", found_usage, usage, names),
        *_compare("total", found_total, total, {}),
    ]


def _compare(
    what: str, found: Mapping[Any, list[Any]], counted: Totals, names: Mapping[int, str]
) -> Iterator[Problem]:
    for namespace, kind in {**counted, **found}:
        has = found.get((namespace, kind))
        should = counted.get((namespace, kind))
        if has is None or tuple(has) != should:
            yield Problem(what, _told(kind, has), _told(kind, should), names.get(namespace))


def _told(kind: str, totals: Sequence[Any] | None) -> str:
    return "no row" if totals is None else f"{totals[0]} entries of kind {kind}, {totals[1]} bytes"


def _fix_totals(connection: Connection, _: list[Problem]) -> None:
    usage, total = _counted(connection)
    if not all(0 <= nbytes < END for _, nbytes in total.values()):
        # The sizes of what somebody stored lie, and are left as they are. With such a total the
        # file would not be opened any more.
        return
    for statement in CLEAR_TOTALS:
        connection.execute(statement)
    for (namespace, kind), (entries, nbytes) in usage.items():
        row = {"namespace": namespace, "kind": kind, "entries": entries, "bytes": nbytes}
        connection.execute(SET_USAGE, row)
    for (_, kind), (entries, nbytes) in total.items():
        connection.execute(SET_TOTAL, {"kind": kind, "entries": entries, "bytes": nbytes})


def _find_statistics(connection: Connection) -> list[Problem]:
    return [
        Problem("statistics", found, expected, name, row=row)
        for row, name, expected, found in _wrong_statistics(connection)
    ]


def _wrong_statistics(connection: Connection) -> Iterator[tuple[int, str | None, str, object]]:
    for row, name, has_namespace, *numbers in connection.execute(STATISTICS).fetchall():
        if not has_namespace:
            yield row, None, "a namespace that has them", numbers
        elif not all(isinstance(number, int) and 0 <= number < END for number in numbers):
            yield row, name, f"numbers from 0 to {END - 1}", numbers


def _fix_statistics(connection: Connection, problems: list[Problem]) -> None:
    for problem in problems:
        connection.execute(REMOVE_STATISTICS, {"row": problem.row})
        connection.execute(ADD_STATISTICS, {"row": problem.row})
