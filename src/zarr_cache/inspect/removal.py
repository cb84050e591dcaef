"""Removing what somebody chose, of what is kept of sources: operations, each a short transaction.

What somebody stored with `SqliteStore` is data and is never among it. A row that goes leaves its
revision to its namespace by a trigger, so that what a write has made invalid stays so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.index.evict import MAX_AT_ONCE
from zarr_cache.inspect.problem import FIRST_ROW
from zarr_cache.inspect.selection import CACHED, SELECTED, Amount

if TYPE_CHECKING:
    from zarr_cache.file.connection import Connection
    from zarr_cache.inspect.selection import Selection


# From the most recently used on: what does not fit any more goes, and all that was used before.
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
    """What one step of `remove` removed, and where the next begins; None if it was the last."""

    amount: Amount
    after: int | None


def too_much(connection: Connection, selection: Selection, max_size: int) -> Selection | None:
    """The least recently used of the values, as far as the rest has `max_size` bytes at most.

    Returns
    -------
    Selection or None
        None if all of them fit.
    """
    of_values = selection._replace(kinds=("value",))
    parameters = of_values.parameters() | {"max_size": max_size}
    row = connection.execute(NEWEST_VICTIM, parameters).fetchone()
    return None if row is None else of_values.until(*row)


def remove(connection: Connection, selection: Selection, after: int = FIRST_ROW) -> Step:
    """Remove the next `MAX_AT_ONCE` of them, in the order of their numbers.

    Parameters
    ----------
    after
        As the step before has told.

    Raises
    ------
    ValueError
        There is something else among the kinds than answers of a source.
    """
    if not set(selection.kinds) <= set(CACHED):
        raise ValueError(f"only {CACHED} can be removed, not {selection.kinds}")
    parameters = selection.parameters() | {"after": after, "most": MAX_AT_ONCE}
    with connection.writing_much():
        rows = connection.execute(REMOVE, parameters).fetchall()
    amount = Amount(len(rows), sum(size for _, size in rows))
    is_last = len(rows) < MAX_AT_ONCE
    return Step(amount, None if is_last else max(entry for entry, _ in rows))
