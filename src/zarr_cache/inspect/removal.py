"""Removing a selection of cached entries, in operations that are short transactions.

Values stored with `SqliteStore` are never removed. A trigger copies the revision of a removed row
to its namespace, so that an invalidated response stays invalidated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.index.evict import MAX_AT_ONCE
from zarr_cache.inspect.selection import CACHED, SELECTED, WITH_BYTES, Amount

if TYPE_CHECKING:
    from zarr_cache.file.connection import Connection
    from zarr_cache.inspect.selection import Selection


# The most recently used value or range that does not fit: it and all older ones are evicted.
NEWEST_VICTIM = f"""
SELECT used_at, id
FROM (
    SELECT
        entry.used_at,
        entry.id,
        sum(entry.size) OVER (ORDER BY entry.used_at DESC, entry.id DESC) AS kept
    {SELECTED}
)
WHERE kept > :max_size
ORDER BY used_at DESC, id DESC
LIMIT 1
"""  # noqa: S608 - a constant of ours

REMOVE = f"""
DELETE FROM entry
WHERE id IN (
    SELECT entry.id
    {SELECTED}
      AND entry.id > :after
    ORDER BY entry.id
    LIMIT :most
)
RETURNING id, size
"""  # noqa: S608 - the same


class Step(NamedTuple):
    """How much a step of `remove` removed, and the start of the next step; None after the last."""

    amount: Amount
    after: int | None


def too_much(connection: Connection, selection: Selection, max_size: int) -> Selection | None:
    """The least recently used values and ranges; the others have at most `max_size` bytes.

    None if all of them fit.
    """
    with_bytes = selection._replace(kinds=WITH_BYTES)
    parameters = with_bytes.parameters() | {"max_size": max_size}
    row = connection.execute(NEWEST_VICTIM, parameters).fetchone()
    return None if row is None else with_bytes._replace(used_by=row[0], last=row[1])


def remove(connection: Connection, selection: Selection, after: int = 0) -> Step:
    """Remove the next `MAX_AT_ONCE` entries of the selection, in the order of their rows.

    `after` is from the step before.
    """
    if not set(selection.kinds) <= set(CACHED):
        raise ValueError(f"only {CACHED} can be removed, not {selection.kinds}")
    parameters = selection.parameters() | {"after": after, "most": MAX_AT_ONCE}
    with connection.writing_much():
        rows = connection.execute(REMOVE, parameters).fetchall()
    amount = Amount(len(rows), sum(size for _, size in rows))
    is_last = len(rows) < MAX_AT_ONCE
    return Step(amount, None if is_last else max(entry for entry, _ in rows))
