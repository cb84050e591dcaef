"""Which keys are at hand below a prefix, in one walk along the index of the keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_cache.index import prefix_end

if TYPE_CHECKING:
    from zarr_cache.connection import Connection

# Every text is less than a blob: the bound of a prefix that has no end. SQLite walks the index up
# to it; with "OR :end IS NULL" it would walk to the last key of the namespace.
#
# In the order of the rows, and not of the keys: SQLite checks a page each time it comes to it, and
# keys that were stored in another order lie on another page each. Without the LIMIT, SQLite takes
# the order of a subquery for needless.
AT_HAND = """
WITH below AS MATERIALIZED (
    SELECT id
    FROM entry
    WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
      AND key >= :prefix
      AND key < coalesce(:end, x'')
    ORDER BY id
    LIMIT -1
)
SELECT entry.key, entry.id, CASE entry.kind WHEN 'value' THEN entry.size END
FROM below
CROSS JOIN entry ON entry.id = below.id
WHERE entry.kind = 'value' AND entry.stored_at > :fresh_after
   OR entry.kind = 'absent' AND entry.stored_at > :absent_fresh_after
"""


type Kept = tuple[int, int | None]
"""The number of an entry, and the bytes of its value; None: the source has no such key."""


def at_hand(
    connection: Connection, namespace: str, prefix: str, fresh_after: int, absent_fresh_after: int
) -> dict[str, Kept]:
    """The entries of the keys that begin with `prefix`, as far as they are fresh; no value is read.

    Costs a walk over the entries below the prefix: some seconds for a million.

    Parameters
    ----------
    fresh_after, absent_fresh_after
        A value, an absence, stored at this time or earlier is stale.
    """
    parameters = {
        "namespace": namespace,
        "prefix": prefix,
        "end": prefix_end(prefix),
        "fresh_after": fresh_after,
        "absent_fresh_after": absent_fresh_after,
    }
    rows = connection.execute(AT_HAND, parameters)
    return {key: (entry, size) for key, entry, size in rows}
