"""Removing what is kept of sources that ended with their process: operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_cache.budget import MOST_AT_ONCE
from zarr_cache.index import prefix_end

if TYPE_CHECKING:
    from zarr_cache.connection import Connection

LONGEST_UNUSED_NS = 7 * 24 * 3600 * 10**9
"""A private namespace that was not used for a week is one that a killed process has left."""

NAMESPACES = """
SELECT name
FROM namespace
WHERE name >= :prefix
  AND name < :end
  AND NOT EXISTS (
      SELECT 1
      FROM entry
      WHERE namespace = namespace.id AND used_at > :unused_since
  )
"""

REMOVE_SOME = """
DELETE FROM entry
WHERE id IN (
    SELECT id
    FROM entry
    WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace) AND kind <> 'stored'
    LIMIT :most
)
RETURNING id
"""

REMOVE_NAMESPACE = """
DELETE FROM namespace
WHERE name = :namespace
"""


def namespaces(connection: Connection, prefix: str, unused_since: int) -> list[str]:
    """The namespaces whose names begin so and of which no entry was used later than this time.

    A process that still uses one loses what was kept: its next reads are misses.
    """
    parameters = {"prefix": prefix, "end": prefix_end(prefix), "unused_since": unused_since}
    rows = connection.execute(NAMESPACES, parameters)
    return [name for (name,) in rows.fetchall()]


def drop_some(connection: Connection, namespace: str) -> bool:
    """Remove a namespace that is of no use any more, or some of what is in it.

    Returns
    -------
    bool
        Whether something is left to be removed.
    """
    with connection.writing_much():
        parameters = {"namespace": namespace, "most": MOST_AT_ONCE}
        removed = connection.execute(REMOVE_SOME, parameters).fetchall()
        if len(removed) < MOST_AT_ONCE:
            connection.execute(REMOVE_NAMESPACE, {"namespace": namespace})
    return len(removed) == MOST_AT_ONCE
