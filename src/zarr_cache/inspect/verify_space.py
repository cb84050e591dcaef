"""Verifying the space of the data file: extents that overlap, are lost, or belong to no entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_cache.disk.data_file import BLOCK, HEADER, IDENTITY_BYTES
from zarr_cache.inspect.problem import END, Problem, checked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr_cache.file.connection import Connection
    from zarr_cache.inspect.problem import Run


DATA_FILE = """
SELECT id, identity, length
FROM data_file
"""

# In the order of the file; each byte behind the header should occur once.
SPACE = """
SELECT offset, length, entry
FROM extent
UNION ALL
SELECT offset, length, NULL
FROM free_extent
ORDER BY offset
"""

ORPHANS = """
SELECT entry, offset, length
FROM extent
WHERE CASE
    WHEN entry > 0
    THEN NOT EXISTS (SELECT 1 FROM entry WHERE id = extent.entry AND ordered_as = 'value')
    ELSE NOT EXISTS (SELECT 1 FROM reservation WHERE reservation.id = -extent.entry)
END
"""

REMOVE_EXTENTS = """
DELETE FROM extent
WHERE entry = :row
"""

REMOVE_ENTRY = """
DELETE FROM entry
WHERE id = :row AND ordered_as = 'value'
"""

EXTENTS = """
SELECT offset, length
FROM extent
ORDER BY offset
"""

CLEAR_FREE = """
DELETE FROM free_extent
"""

SET_FREE = """
INSERT INTO free_extent (offset, length)
VALUES (:offset, :length)
"""

SET_LENGTH = """
UPDATE data_file
SET length = :length
"""


def verify_space(run: Run, *, repair: bool) -> Iterator[Problem]:
    """Yield what is wrong with the extents and the free extents."""
    yield from run(checked, _find, _fix if repair else None)


def find_in_row(connection: Connection) -> list[Problem]:
    """What is wrong with the row that identifies the data file."""
    found = connection.execute(DATA_FILE).fetchall()
    match found:
        case [(1, bytes(identity), int(length))] if (
            len(identity) == IDENTITY_BYTES and HEADER <= length < END and length % BLOCK == 0
        ):
            return []
    expected = f"one row, with {IDENTITY_BYTES} bytes and a multiple of {BLOCK}"
    return [Problem("data_file", found, expected)]


def _find(connection: Connection) -> list[Problem]:
    return [*_find_orphans(connection), *_find_space(connection)]


def _find_orphans(connection: Connection) -> list[Problem]:
    return [
        Problem(
            "extent",
            f"{length} bytes at {offset} of entry {entry}",
            "an extent of a value or a range",
            row=entry,
        )
        for entry, offset, length in connection.execute(ORPHANS)
    ]


def _find_space(connection: Connection) -> list[Problem]:
    problems = []
    at = HEADER
    was_free = False
    for offset, length, entry in connection.execute(SPACE):
        is_free = entry is None
        whose = "free" if is_free else f"of entry {entry}"
        found = f"{length} bytes at {offset}, {whose}"
        if offset % BLOCK or length % BLOCK or not HEADER <= offset < END - length:
            expected = f"multiples of {BLOCK}, from {HEADER} on"
            problems.append(Problem("extent", found, expected, row=entry))
            continue
        if offset < at:
            problems.append(Problem("extent", found, f"none before {at}: they overlap", row=entry))
        elif offset > at:
            problems.append(Problem("extent", found, f"the next at {at}: {offset - at} are lost"))
        elif is_free and was_free:
            problems.append(Problem("extent", found, "one with the free space before it"))
        at, was_free = max(at, offset + length), is_free
    for _, _, length in connection.execute(DATA_FILE):
        if length != at:
            found = f"the length {length} of the data file"
            problems.append(Problem("extent", found, f"{at}, where the last extent ends"))
        elif was_free:
            problems.append(Problem("extent", "free space at the end", "none: it is cut off"))
    return problems


def _fix(connection: Connection, problems: list[Problem]) -> None:
    """Remove the entries whose space is wrong, and recompute the free space."""
    for problem in problems:
        if problem.row is not None:
            connection.execute(REMOVE_ENTRY, {"row": problem.row})
            connection.execute(REMOVE_EXTENTS, {"row": problem.row})
    connection.execute(CLEAR_FREE)
    at = HEADER
    for offset, length in connection.execute(EXTENTS).fetchall():
        if offset > at:
            connection.execute(SET_FREE, {"offset": at, "length": offset - at})
        at = offset + length
    connection.execute(SET_LENGTH, {"length": at})
