"""What is wrong with entries: with their facts, the lengths of their parts, and their bytes."""

from __future__ import annotations

import sqlite3
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from zarr_cache.core import checksum
from zarr_cache.core.checksum import DamagedValueError
from zarr_cache.core.errors import FileDamagedError, is_code
from zarr_cache.disk.data_read import Read
from zarr_cache.index import extents, values
from zarr_cache.inspect.problem import (
    END,
    FIRST_ROW,
    LAST_ROW,
    READABLE,
    REVISIONS_END,
    Problem,
    checked,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.file.connection import Connection
    from zarr_cache.inspect.problem import Run


MAX_ENTRIES = 256


"""At most this many entries are verified in one transaction."""


MAX_BYTES = 64 * 2**20


"""A transaction that has verified this many bytes takes no more entries."""


KINDS = ("stored", "value", "absent", "fence")


TYPES = ", ".join(["text"] * 3 + ["integer"] * 6)


"""Of the columns of `ENTRIES`, from ``namespace.name`` on."""


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


EXTENTS = """
SELECT start, length
FROM extent
WHERE entry = :entry
ORDER BY start
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


# With its bytes, wherever they are. What somebody stored stays, whatever is wrong with it: it is
# theirs to remove. It is in the namespace without a name, also when its kind is wrong.
REMOVE_ENTRY = """
DELETE FROM entry
WHERE id = :row
  AND kind <> 'stored'
  AND namespace IS NOT (SELECT id FROM namespace WHERE name = '')
"""


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


def verify_entries(run: Run, *, has_bytes: bool, repair: bool) -> Iterator[Problem]:
    """Yield what is wrong with the entries and their bytes, some in each transaction."""
    first: int | None = FIRST_ROW
    while first is not None:
        try:
            last, following = run(_next_entries, first)
        except FileDamagedError as error:
            yield Problem("page", str(error), READABLE)
            return
        find = partial(_find_in_entries, first=first, last=last, has_bytes=has_bytes)
        problems = run(checked, find, _fix_entries if repair else None)
        for problem in problems:
            if repair or problem.what != "bytes" or problem.row is None:
                yield problem
            else:
                # Bytes in the data file may have been written over since the transaction began, for
                # another value. Whose entry is there all the same is damaged.
                again = partial(
                    _find_in_entries, first=problem.row, last=problem.row, has_bytes=has_bytes
                )
                if problem in run(checked, again):
                    yield problem
        first = following


def _next_entries(connection: Connection, first: int) -> tuple[int, int | None]:
    """The last entry of those to verify together, and the one to go on with; None at the end."""
    parameters = {"first": first, "most": MAX_ENTRIES}
    nbytes = 0
    number = 0
    for number, (entry, size) in enumerate(connection.execute(SIZES, parameters).fetchall(), 1):
        nbytes += size or 0
        if entry != LAST_ROW and (nbytes >= MAX_BYTES or number == MAX_ENTRIES):
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
    for what, end in (("stored_at", END), ("used_at", END), ("revision", REVISIONS_END)):
        number = getattr(entry, what)
        if not 0 <= number < end:
            yield problem(what, number, f"from 0 to {end - 1}")
    if entry.writers < 0 or (entry.writers and entry.kind != "fence"):
        yield problem("writers", entry.writers, "0 or more" if entry.kind == "fence" else 0)
    seed = checksum.of_facts(entry.namespace, entry.key, entry.kind, entry.size, entry.stored_at)
    if entry.checksum != seed and entry.kind != "fence":
        yield problem("checksum", entry.checksum, seed)
        return
    where = connection.execute(EXTENTS, {"entry": entry.id}).fetchall()
    is_in_data_file = bool(where) and entry.kind == "value"
    wrong = _wrong_extents(entry, where)
    wrong = wrong or _wrong_parts(
        connection, entry, has_size=has_size, has_bytes=has_bytes and not is_in_data_file
    )
    if wrong is None and has_bytes:
        read = _read_from_data_file if is_in_data_file else values.read
        wrong = _wrong_bytes(connection, entry, seed, read)
    if wrong is not None:
        yield problem("bytes", wrong, f"the {entry.size} bytes that were written")


def _wrong_extents(entry: Entry, where: list[tuple[Any, Any]]) -> str | None:
    """What is wrong with the extents of an entry, which only a value of a source has."""
    if not where:
        return None
    if entry.kind != "value":
        return f"extents of an entry of kind {entry.kind}"
    at: Any = 0
    for start, length in where:
        if start != at or type(length) is not int:
            return f"an extent that begins with byte {start} and not with {at}"
        at = start + length
    return None if at == extents.rounded(entry.size) else f"extents of {at} bytes"


def _wrong_parts(
    connection: Connection, entry: Entry, *, has_size: bool, has_bytes: bool
) -> str | None:
    """What is wrong with the number and the lengths of the parts; reads no bytes."""
    rows = connection.execute(PARTS, {"entry": entry.id})
    if not has_bytes and connection.data_file is None:
        # Checksums of all the blocks, or nothing at all of what another store already held.
        blocks = -(-entry.size // checksum.BLOCK)
        allowed = [(0, "blob", 0, "blob", checksum.LENGTH * blocks)] if has_size else []
        found = rows.fetchmany(2)
        return None if found in ([], allowed) else f"checksums {found}"
    count = -(-entry.size // values.PART)
    seen = 0
    for seen, row in enumerate(rows, 1):
        length = min(values.PART, entry.size - (seen - 1) * values.PART)
        sums = checksum.length_of(length)
        if row != (seen - 1, "blob", length if has_bytes else 0, "blob", sums):
            rows.close()
            return f"{row} as part {seen - 1} of {count}"
    return None if seen == count else f"{seen} parts of {count}"


def _read_from_data_file(
    connection: Connection, entry: int, seed: int, size: int, start: int, stop: int
) -> ByteArray:
    """As `values.read`, of bytes in the data file."""
    data = connection.data_file
    if data is None:
        raise DamagedValueError("there is no data file")
    where, sums = extents.located(connection, entry, size, start, stop)
    first = start // checksum.BLOCK
    return Read(data.opened(connection), where, seed, first, sums, 0, stop - start).wait()


def _wrong_bytes(
    connection: Connection, entry: Entry, seed: int, read: Callable[..., object]
) -> str | None:
    """What is wrong with the bytes, read a part at a time."""
    for start in range(0, entry.size, values.PART):
        stop = min(start + values.PART, entry.size)
        try:
            read(connection, entry.id, seed, entry.size, start, stop)
        except DamagedValueError as error:
            return f"others: {error}"
        except sqlite3.DatabaseError as error:
            if not is_code(error, sqlite3.SQLITE_CORRUPT):
                raise
            return str(error)
    return None


def _fix_entries(connection: Connection, problems: list[Problem]) -> None:
    for problem in problems:
        connection.execute(REMOVE_ENTRY, {"row": problem.row})


def verify_orphans(run: Run, *, repair: bool) -> Iterator[Problem]:
    """Yield the parts of values that no entry has."""
    first = FIRST_ROW
    while True:
        find = partial(_find_orphans, first=first)
        problems = run(checked, find, _fix_orphans if repair else None)
        yield from problems
        rows = [problem.row for problem in problems if problem.row is not None]
        if len(rows) < MAX_ENTRIES:
            return
        first = rows[-1] + 1


def _find_orphans(connection: Connection, *, first: int) -> list[Problem]:
    rows = connection.execute(ORPHANS, {"first": first, "most": MAX_ENTRIES}).fetchall()
    return [
        Problem("orphan", f"part {part} of entry {entry}", "an entry that has it", row=row)
        for row, entry, part in rows
    ]


def _fix_orphans(connection: Connection, problems: list[Problem]) -> None:
    for problem in problems:
        connection.execute(REMOVE_ORPHAN, {"row": problem.row})
