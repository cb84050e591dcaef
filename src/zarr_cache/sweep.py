"""Removing what is kept of sources that have ended with their process: operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_cache.budget import MOST_AT_ONCE

if TYPE_CHECKING:
    from zarr_cache.connection import Connection

NAMESPACES = """
SELECT name
FROM namespace
WHERE name >= :first AND name < :end
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


def namespaces(connection: Connection, first: str, end: str) -> list[str]:
    """The namespaces whose names are in the half-open interval."""
    rows = connection.execute(NAMESPACES, {"first": first, "end": end})
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
