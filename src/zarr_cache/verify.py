"""What is wrong in a file: every stored fact compared with what it stands for.

A check finds problems in one read transaction over a piece of the file, so that a writer beside it
causes no false report, the log can be written back under a long verification, and a large file
takes no memory. To repair is to look again under the write lock, to remove what is wrong, and to
look once more.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, Protocol

from zarr_cache import checksum, schema, values
from zarr_cache.errors import FileDamagedError, is_code
from zarr_cache.staging import is_staged
from zarr_cache.values import DamagedValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from zarr_cache.connection import Connection

    type Find = Callable[[Connection], list[Problem]]
    type Fix = Callable[[Connection, list[Problem]], None]
    type Totals = dict[tuple[Any, Any], tuple[Any, Any]]

END = 2**62
"""Revisions are below it, and stamps: as nanoseconds since the Unix epoch, 2116."""

MOST_ENTRIES = 256
"""So many entries are verified in one transaction,"""

MOST_BYTES = 64 * 2**20
"""and no more once they have so many bytes."""

MOST_MESSAGES = 100
"""So many problems of pages and indexes are asked of SQLite."""

KINDS = ("stored", "value", "absent", "fence")

TYPES = ", ".join(["text"] * 3 + ["integer"] * 6)
"""Of the columns of `ENTRIES`, from ``namespace.name`` on."""

FIRST_ROW, LAST_ROW = -(2**63), 2**63 - 1

READABLE = "a page that SQLite can read"

UNFIXABLE = (
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_MISMATCH,
)
"""What SQLite answers to a statement for which something else would have to be right first."""

SIZES = """
SELECT id, CASE typeof(size) WHEN 'integer' THEN size END
FROM entry
WHERE id >= :first
ORDER BY id
LIMIT :most
"""

ENTRIES = """
SELECT
    entry.id,
    namespace.name,
    entry.key,
    entry.kind,
    entry.size,
    entry.stored_at,
    entry.used_at,
    entry.revision,
    entry.writers,
    entry.checksum,
    format(
        '%s, %s, %s, %s, %s, %s, %s, %s, %s',
        typeof(namespace.name),
        typeof(entry.key),
        typeof(entry.kind),
        typeof(entry.size),
        typeof(entry.stored_at),
        typeof(entry.used_at),
        typeof(entry.revision),
        typeof(entry.writers),
        typeof(entry.checksum)
    )
FROM entry
LEFT JOIN namespace ON namespace.id = entry.namespace
WHERE entry.id BETWEEN :first AND :last
ORDER BY entry.id
"""

# The length of text would count characters, and the length of what is on overflow pages is in the
# row: nothing is read here that has not been looked at.
PARTS = """
SELECT part, typeof(data), length(data), typeof(checksums), length(checksums)
FROM value
WHERE entry = :entry
ORDER BY part
"""

ORPHANS = """
SELECT rowid, entry, part
FROM value
WHERE rowid >= :first AND NOT EXISTS (SELECT 1 FROM entry WHERE id = value.entry)
ORDER BY rowid
LIMIT :most
"""

REMOVE_ORPHAN = """
DELETE FROM value
WHERE rowid = :row
"""

# What somebody stored stays, whatever is wrong with it: it is theirs to remove. It is in the
# namespace without a name, also when its kind is wrong.
REMOVE_ENTRY = """
DELETE FROM entry
WHERE id = :row
  AND kind <> 'stored'
  AND namespace IS NOT (SELECT id FROM namespace WHERE name = '')
"""

# A row with a value of another type than its column's cannot be changed but as a whole, and what it
# knew of writes is lost with it: so every namespace gets a fence.
OVERWRITE_ENTRY = """
UPDATE entry
SET namespace = 0,
    key = 'damaged ' || id,
    kind = 'fence',
    size = 0,
    stored_at = 0,
    used_at = 0,
    revision = 0,
    writers = 0,
    checksum = 0
WHERE id = :row
  AND kind IS NOT 'stored'
  AND namespace IS NOT (SELECT id FROM namespace WHERE name = '')
"""

FENCE_ALL = """
UPDATE namespace
SET fence = (SELECT revision FROM counter WHERE id = 1)
"""

# Before it is removed as well: a revision outlives its row, as the fence of the namespace.
LOWER_REVISION = """
UPDATE entry
SET revision = (SELECT revision FROM counter WHERE id = 1)
WHERE id = :row AND revision NOT BETWEEN 0 AND (SELECT revision FROM counter WHERE id = 1)
"""

END_WRITES = """
UPDATE entry
SET writers = 0
WHERE id = :row
"""

# To be taken for longer unused than it was is harmless.
FORGET_USE = """
UPDATE entry
SET used_at = stored_at
WHERE id = :row
"""

HARMLESS = {"used_at": FORGET_USE, "revision": LOWER_REVISION, "writers": END_WRITES}
"""How a fact of an entry is repaired that its bytes do not depend on."""

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


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a file that is not what it should be.

    Attributes
    ----------
    what
        Which fact is wrong. Of the file: ``"file"``, ``"schema"``, ``"page"`` (a page, an index or
        what else SQLite's ``integrity_check`` tells), ``"counter"``, ``"total"``. Of a namespace:
        ``"namespace"``, ``"usage"``, ``"statistics"``. Of an entry: ``"entry"`` (the row itself),
        ``"size"``, ``"stored_at"``, ``"used_at"``, ``"revision"``, ``"writers"``, ``"checksum"``
        (of the facts), ``"bytes"``. And ``"orphan"``: bytes of no entry.
    found, expected
        What it is, and what it should be.
    namespace, key
        Whose fact it is; None where there is none.
    row
        Number of the row in its table, where that helps.
    is_repaired
        Whether it is not so any more.
    """

    what: str
    found: object
    expected: object
    namespace: str | None = None
    key: str | None = None
    row: int | None = None
    is_repaired: bool = False

    def __str__(self) -> str:
        of = "" if self.key is None else f" of {self.key!r}"
        where = "" if self.namespace is None else f" in namespace {self.namespace!r}"
        repaired = "; repaired" if self.is_repaired else ""
        return f"{self.what}{of}{where}: found {self.found}, expected {self.expected}{repaired}"


class Run(Protocol):
    """`Database.run`, or what opens a file first."""

    def __call__[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """The result of ``operation(connection, *args, **kwargs)``."""


class Entry(NamedTuple):
    """A row of ``entry`` as it is, whatever that may be, with the name of its namespace."""

    id: int
    namespace: Any
    key: Any
    kind: Any
    size: Any
    stored_at: Any
    used_at: Any
    revision: Any
    writers: Any
    checksum: Any
    types: str


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
        yield from run(checked, _find_counter, _fix_counter, repair=repair)
        yield from run(checked, _find_namespaces, _fix_namespaces, repair=repair)
        yield from _verify_entries(run, has_bytes=has_bytes, repair=repair)
        yield from _verify_orphans(run, repair=repair)
        yield from run(checked, _find_totals, _fix_totals, repair=repair)
        yield from run(checked, _find_statistics, _fix_statistics, repair=repair)
        if repair and pages:
            left = run(checked, _find_pages, _fix_pages, repair=False)
            for problem in pages:
                yield replace(problem, is_repaired=problem not in left)
    except FileDamagedError as error:
        yield Problem("file", str(error), "a cache file")


def next_values(connection: Connection, after: int) -> list[tuple[int, str, str]]:
    """Row, namespace and key of the value entries after a row, in their order, some at a time."""
    return connection.execute(VALUES, {"after": after, "most": MOST_ENTRIES}).fetchall()


def checked(connection: Connection, find: Find, fix: Fix, *, repair: bool) -> list[Problem]:
    """What `find` finds and, with `repair`, what of it is there no more after `fix`."""
    problems = _found(connection, find)
    if not (repair and problems):
        return problems
    try:
        with connection.writing(), _any_text(connection):
            # Others may have written since.
            problems = find(connection)
            fix(connection, problems)
    except sqlite3.DatabaseError as error:
        if not any(is_code(error, code) for code in UNFIXABLE):
            raise
    left = _found(connection, find)
    return [replace(problem, is_repaired=problem not in left) for problem in problems]


def _found(connection: Connection, find: Find) -> list[Problem]:
    """What `find` finds in one state of the file; a page that cannot be read is a problem too."""
    try:
        with connection.reading(), _any_text(connection):
            return find(connection)
    except sqlite3.DatabaseError as error:
        if not is_code(error, sqlite3.SQLITE_CORRUPT):
            raise
        return [Problem("page", str(error), READABLE)]


@contextlib.contextmanager
def _any_text(connection: Connection) -> Iterator[None]:
    """Let text be read that is not UTF-8; otherwise Python raises."""
    connection.text_factory = partial(str, encoding="utf-8", errors="backslashreplace")
    try:
        yield
    finally:
        connection.text_factory = str


def _find_schema(connection: Connection) -> list[Problem]:
    return [
        Problem("schema", found and found.sql, expected and expected.sql)
        for found, expected in schema.differences(connection)
    ]


def _fix_schema(connection: Connection, _: list[Problem]) -> None:
    """Drop what is not ours and would run, make what is missing; tables stay as they are."""
    different = schema.differences(connection)
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
    # All of them: a message names the index in words that may change.
    connection.execute("REINDEX")


def _find_counter(connection: Connection) -> list[Problem]:
    found = connection.execute(COUNTER).fetchall()
    highest = _highest_revision(connection)
    match found:
        case [(1, int(revision), int(fence))] if highest <= revision < END and fence >= 0:
            return []
    return [Problem("counter", found, f"one row, its revision from {highest} to {END - 1}")]


def _fix_counter(connection: Connection, _: list[Problem]) -> None:
    highest = _highest_revision(connection)
    connection.execute(CLEAR_COUNTER)
    connection.execute(SET_COUNTER, {"highest": highest})
    connection.execute(FENCE_ALL)


def _highest_revision(connection: Connection) -> int:
    (highest,) = connection.execute(HIGHEST_REVISION, {"end": END}).fetchone()
    return int(highest)


def _find_namespaces(connection: Connection) -> list[Problem]:
    return [
        Problem("namespace", f"the fence {fence}", f"one from 0 to {END - 1}", name, row=row)
        for row, name, fence in connection.execute(FENCES, {"end": END})
    ]


def _fix_namespaces(connection: Connection, problems: list[Problem]) -> None:
    for problem in problems:
        connection.execute(LOWER_FENCE, {"row": problem.row})


def _verify_entries(run: Run, *, has_bytes: bool, repair: bool) -> Iterator[Problem]:
    first: int | None = FIRST_ROW
    while first is not None:
        try:
            last, following = run(_next_entries, first)
        except FileDamagedError as error:
            yield Problem("page", str(error), READABLE)
            return
        find = partial(_find_in_entries, first=first, last=last, has_bytes=has_bytes)
        yield from run(checked, find, _fix_entries, repair=repair)
        first = following


def _next_entries(connection: Connection, first: int) -> tuple[int, int | None]:
    """The last entry of those to verify together, and the one to go on with; None at the end."""
    parameters = {"first": first, "most": MOST_ENTRIES}
    nbytes = 0
    number = 0
    for number, (entry, size) in enumerate(connection.execute(SIZES, parameters).fetchall(), 1):
        nbytes += size or 0
        if entry != LAST_ROW and (nbytes >= MOST_BYTES or number == MOST_ENTRIES):
            return entry, entry + 1
    return LAST_ROW, None


def _find_in_entries(
    connection: Connection, *, first: int, last: int, has_bytes: bool
) -> list[Problem]:
    rows = connection.execute(ENTRIES, {"first": first, "last": last}).fetchall()
    return [
        problem
        for row in rows
        for problem in _find_in_entry(connection, Entry(*row), has_bytes=has_bytes)
    ]


def _find_in_entry(connection: Connection, entry: Entry, *, has_bytes: bool) -> Iterator[Problem]:
    problem = partial(Problem, namespace=entry.namespace, key=entry.key, row=entry.id)
    if entry.types != TYPES:
        # Among them an entry whose namespace is gone: its name is of type null.
        yield problem("entry", entry.types, TYPES)
        return
    if entry.kind not in KINDS:
        yield problem("entry", f"the kind {entry.kind}", f"one of {', '.join(KINDS)}")
        return
    has_size = entry.kind in {"stored", "value"}
    if entry.size < 0 or (entry.size and not has_size):
        yield problem("size", entry.size, "0 or more" if has_size else 0)
        return
    for what in ("stored_at", "used_at", "revision"):
        number = getattr(entry, what)
        if not 0 <= number < END:
            yield problem(what, number, f"from 0 to {END - 1}")
    if entry.writers < 0 or (entry.writers and entry.kind != "fence"):
        yield problem("writers", entry.writers, "0 or more" if entry.kind == "fence" else 0)
    seed = checksum.of_facts(entry.namespace, entry.key, entry.kind, entry.size, entry.stored_at)
    if is_staged(entry.namespace):
        # Its bytes are written with the facts that it will have.
        seed = entry.checksum
    if entry.checksum != seed and entry.kind != "fence":
        yield problem("checksum", entry.checksum, seed)
        return
    wrong = _wrong_parts(connection, entry, has_size=has_size, has_bytes=has_bytes)
    if wrong is None and has_bytes:
        wrong = _wrong_bytes(connection, entry, seed)
    if wrong is not None:
        yield problem("bytes", wrong, f"the {entry.size} bytes that were written")


def _wrong_parts(
    connection: Connection, entry: Entry, *, has_size: bool, has_bytes: bool
) -> str | None:
    """What is wrong with the number and the lengths of the parts; reads no bytes."""
    rows = connection.execute(PARTS, {"entry": entry.id})
    if not has_bytes:
        # Checksums of all the blocks, or nothing at all of what another store already held.
        blocks = -(-entry.size // checksum.BLOCK)
        allowed = [(0, "blob", 0, "blob", checksum.LENGTH * blocks)] if has_size else []
        found = rows.fetchmany(2)
        return None if found in ([], allowed) else f"checksums {found}"
    count = -(-entry.size // values.PART)
    seen = 0
    for seen, row in enumerate(rows, 1):
        length = min(values.PART, entry.size - (seen - 1) * values.PART)
        blocks = -(-length // checksum.BLOCK)
        if row != (seen - 1, "blob", length, "blob", checksum.LENGTH * blocks):
            rows.close()
            return f"{row} as part {seen - 1} of {count}"
    return None if seen == count else f"{seen} parts of {count}"


def _wrong_bytes(connection: Connection, entry: Entry, seed: int) -> str | None:
    """What is wrong with the bytes, read a part at a time."""
    for start in range(0, entry.size, values.PART):
        stop = min(start + values.PART, entry.size)
        try:
            values.read(connection, entry.id, seed, entry.size, start, stop)
        except DamagedValueError as error:
            return f"others: {error}"
        except sqlite3.DatabaseError as error:
            if not is_code(error, sqlite3.SQLITE_CORRUPT):
                raise
            return str(error)
    return None


def _fix_entries(connection: Connection, problems: list[Problem]) -> None:
    for problem in problems:
        row = {"row": problem.row}
        if problem.what in HARMLESS:
            connection.execute(HARMLESS[problem.what], row)
    for problem in problems:
        row = {"row": problem.row}
        if problem.what == "entry":
            connection.execute(OVERWRITE_ENTRY, row)
            connection.execute(FENCE_ALL)
        if problem.what not in HARMLESS:
            connection.execute(LOWER_REVISION, row)
            connection.execute(REMOVE_ENTRY, row)


def _verify_orphans(run: Run, *, repair: bool) -> Iterator[Problem]:
    first = FIRST_ROW
    while True:
        find = partial(_find_orphans, first=first)
        problems = run(checked, find, _fix_orphans, repair=repair)
        yield from problems
        rows = [problem.row for problem in problems if problem.row is not None]
        if len(rows) < MOST_ENTRIES:
            return
        first = rows[-1] + 1


def _find_orphans(connection: Connection, *, first: int) -> list[Problem]:
    rows = connection.execute(ORPHANS, {"first": first, "most": MOST_ENTRIES}).fetchall()
    return [
        Problem("orphan", f"part {part} of entry {entry}", "an entry that has it", row=row)
        for row, entry, part in rows
    ]


def _fix_orphans(connection: Connection, problems: list[Problem]) -> None:
    for problem in problems:
        connection.execute(REMOVE_ORPHAN, {"row": problem.row})


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
    if max(nbytes for _, nbytes in total.values()) > LAST_ROW:
        # The sizes of what somebody stored lie, and are left as they are.
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
