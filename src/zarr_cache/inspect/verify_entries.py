"""Verifying entries: their facts, the lengths of their parts, and their bytes."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core import checksum
from zarr_cache.core.checksum import DamagedValueError
from zarr_cache.disk.data_read import Read
from zarr_cache.index import extents, ranges, values
from zarr_cache.inspect.problem import END, REVISIONS_END, Problem, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zarr_cache.core.byte_range import Span
    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.file.connection import Connection
    from zarr_cache.inspect.problem import Run


MAX_ENTRIES = 256
"""At most this many entries are verified in one transaction."""

MAX_BYTES = 64 * 2**20
"""A transaction that has verified this many bytes verifies no further entry."""

KINDS = ("stored", "value", "absent", "tombstone", "range")

SIZES = """
SELECT id, size
FROM entry
WHERE id > :after
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
    entry.writes_in_flight,
    entry.checksum,
    entry.start,
    entry.stop,
    entry.validator,
    entry.confirmed_at
FROM entry
LEFT JOIN namespace ON namespace.id = entry.namespace
WHERE entry.id > :after AND entry.id <= :last
ORDER BY entry.id
"""

# The lengths are in the row: no bytes are read here.
PARTS = """
SELECT part, length(data), length(checksums)
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
WHERE rowid > :after AND NOT EXISTS (SELECT 1 FROM entry WHERE id = value.entry)
ORDER BY rowid
LIMIT :most
"""

REMOVE_ORPHAN = """
DELETE FROM value
WHERE rowid = :row
"""

# Values stored with SqliteStore stay, whatever is wrong with them: only their owner removes them.
# They are in the namespace with the empty name, also when their kind is wrong.
REMOVE_ENTRY = """
DELETE FROM entry
WHERE id = :row
  AND kind <> 'stored'
  AND namespace IS NOT (SELECT id FROM namespace WHERE name = '')
"""


class Entry(NamedTuple):
    """A row of ``entry``, with the name of its namespace; None if that is missing."""

    id: int
    namespace: str | None
    key: str
    kind: str
    size: int
    stored_at: int
    used_at: int
    revision: int
    writes_in_flight: int
    checksum: int
    start: int
    stop: int | None
    validator: str | None
    confirmed_at: int | None

    @property
    def has_value(self) -> bool:
        """Whether the kind of entry has bytes."""
        return self.kind in {"stored", "value", "range"}

    @property
    def span(self) -> Span:
        """Which bytes of a value a range has."""
        return ranges.span_of_row(self.start, self.stop, self.size)

    @property
    def named_bytes(self) -> str:
        """Which bytes it has, in words."""
        return str(self.span) if self.kind == "range" else f"the {self.size} bytes"

    def identity_checksum(self, namespace: str) -> int:
        """The checksum that the facts must have."""
        if self.kind == "range":
            return ranges.facts_of(namespace, self.key, self.span, self.stored_at)
        return checksum.of_facts(namespace, self.key, self.kind, self.size, self.stored_at)


def verify_entries(run: Run, *, has_bytes: bool, repair: bool) -> Iterator[Problem]:
    """Yield what is wrong with the entries and their bytes, some in each transaction."""
    after = 0
    while (last := run(_last_of_next, after)) is not None:
        find = partial(_find_in_entries, after=after, last=last, has_bytes=has_bytes)
        for problem in run(checked, find, _fix_entries if repair else None):
            if repair or problem.what != "bytes" or _is_still_there(run, problem, find):
                yield problem
        after = last


def _last_of_next(connection: Connection, after: int) -> int | None:
    """The last of the next entries to verify in one transaction; None if there are none."""
    last = None
    nbytes = 0
    for row, size in connection.execute(SIZES, {"after": after, "most": MAX_ENTRIES}).fetchall():
        last = row
        nbytes += size
        if nbytes >= MAX_BYTES:
            break
    return last


def _is_still_there(run: Run, problem: Problem, find: Callable[..., list[Problem]]) -> bool:
    """Whether the bytes are wrong in a second transaction, too.

    The entry may have been evicted during the first, and its space in the data file overwritten.
    """
    row = problem.row or 0
    return problem in run(checked, partial(find, after=row - 1, last=row))


def _find_in_entries(
    connection: Connection, *, after: int, last: int, has_bytes: bool
) -> list[Problem]:
    rows = connection.execute(ENTRIES, {"after": after, "last": last}).fetchall()
    return [
        problem
        for row in rows
        for problem in _find_in_entry(connection, Entry(*row), has_bytes=has_bytes)
    ]


def _find_in_entry(connection: Connection, entry: Entry, *, has_bytes: bool) -> Iterator[Problem]:
    problem = partial(Problem, namespace=entry.namespace, key=entry.key, row=entry.id)
    if entry.namespace is None:
        yield problem("entry", "no namespace", "one of the table namespace")
        return
    if entry.size and not entry.has_value:
        yield problem("size", entry.size, 0)
        return
    for what, end in (("stored_at", END), ("used_at", END), ("revision", REVISIONS_END)):
        number = getattr(entry, what)
        if not 0 <= number < end:
            yield problem(what, number, f"from 0 to {end - 1}")
    if entry.writes_in_flight and entry.kind != "tombstone":
        yield problem("writes_in_flight", entry.writes_in_flight, 0)
    if entry.revision and entry.kind == "range":
        yield problem("revision", entry.revision, 0)
    identity_checksum = entry.identity_checksum(entry.namespace)
    right = identity_checksum ^ checksum.of_version(entry.validator, entry.confirmed_at)
    if entry.checksum != right and entry.kind != "tombstone":
        yield problem("checksum", entry.checksum, right)
        return
    wrong = _wrong_value(connection, entry, identity_checksum, has_bytes=has_bytes)
    if wrong is not None:
        yield problem("bytes", wrong, f"{entry.named_bytes} that were written")


def _wrong_value(
    connection: Connection, entry: Entry, identity_checksum: int, *, has_bytes: bool
) -> str | None:
    """What is wrong with the bytes of an entry, or with the rows that locate them."""
    where = connection.execute(EXTENTS, {"entry": entry.id}).fetchall()
    is_in_database = has_bytes and not where
    wrong = _wrong_extents(entry, where)
    wrong = wrong or _wrong_parts(connection, entry, is_in_database=is_in_database)
    if wrong or not has_bytes:
        return wrong
    read = values.read if is_in_database else _read_from_data_file
    return _wrong_bytes(connection, entry, identity_checksum, read)


def _wrong_extents(entry: Entry, where: list[tuple[int, int]]) -> str | None:
    """What is wrong with the extents of an entry; only a value or a range may have some."""
    if not where:
        return None
    if entry.kind not in {"value", "range"}:
        return f"extents of an entry of kind {entry.kind}"
    at = 0
    for start, length in where:
        if start != at:
            return f"an extent that begins with byte {start} and not with {at}"
        at = start + length
    return None if at == extents.rounded(entry.size) else f"extents of {at} bytes"


def _wrong_parts(connection: Connection, entry: Entry, *, is_in_database: bool) -> str | None:
    """What is wrong with the number and the lengths of the parts; no bytes are read."""
    rows = connection.execute(PARTS, {"entry": entry.id})
    if not is_in_database and connection.data_file is None:
        # Another store has the bytes. Of values that it already had, there are no checksums.
        blocks = -(-entry.size // checksum.BLOCK)
        allowed = [(0, 0, checksum.LENGTH * blocks)] if entry.has_value else []
        found = rows.fetchmany(2)
        return None if found in ([], allowed) else f"checksums {found}"
    count = -(-entry.size // values.PART)
    seen = 0
    for seen, row in enumerate(rows, 1):
        length = min(values.PART, entry.size - (seen - 1) * values.PART)
        sums = checksum.length_of(length)
        if row != (seen - 1, length if is_in_database else 0, sums):
            rows.close()
            return f"{row} as part {seen - 1} of {count}"
    return None if seen == count else f"{seen} parts of {count}"


def _read_from_data_file(
    connection: Connection, entry: int, identity_checksum: int, size: int, start: int, stop: int
) -> ByteArray:
    """As `values.read`, for bytes in the data file."""
    data = connection.data_file
    if data is None:
        raise DamagedValueError("there is no data file")
    where, sums = values.locate(connection, entry, size, start, stop)
    first = start // checksum.BLOCK
    return Read(
        data.opened(connection), where, identity_checksum, first, sums, 0, stop - start
    ).wait()


def _wrong_bytes(
    connection: Connection, entry: Entry, identity_checksum: int, read: Callable[..., object]
) -> str | None:
    """What is wrong with the bytes, read a part at a time."""
    for start in range(0, entry.size, values.PART):
        stop = min(start + values.PART, entry.size)
        try:
            read(connection, entry.id, identity_checksum, entry.size, start, stop)
        except DamagedValueError as error:
            return f"others: {error}"
    return None


def _fix_entries(connection: Connection, problems: list[Problem]) -> None:
    for problem in problems:
        connection.execute(REMOVE_ENTRY, {"row": problem.row})


def verify_orphans(run: Run, *, repair: bool) -> Iterator[Problem]:
    """Yield the parts of values that belong to no entry."""
    after = 0
    while True:
        find = partial(_find_orphans, after=after)
        problems = run(checked, find, _fix_orphans if repair else None)
        yield from problems
        rows = [problem.row for problem in problems if problem.row is not None]
        if len(rows) < MAX_ENTRIES:
            return
        after = rows[-1]


def _find_orphans(connection: Connection, *, after: int) -> list[Problem]:
    rows = connection.execute(ORPHANS, {"after": after, "most": MAX_ENTRIES}).fetchall()
    return [
        Problem("orphan", f"part {part} of entry {entry}", "an entry that has it", row=row)
        for row, entry, part in rows
    ]


def _fix_orphans(connection: Connection, problems: list[Problem]) -> None:
    for problem in problems:
        connection.execute(REMOVE_ORPHAN, {"row": problem.row})
