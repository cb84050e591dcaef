"""Whether the index of keys is in order where it is relied on: an operation."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from zarr_cache.errors import FileDamagedError

if TYPE_CHECKING:
    from zarr_cache.connection import Connection

# Of any namespace: its number may be what is damaged.
BEFORE = """
SELECT namespace, key, id
FROM entry
WHERE (namespace, key) < (:number, :key)
ORDER BY namespace DESC, key DESC
LIMIT 2
"""

AFTER = """
SELECT namespace, key, id
FROM entry
WHERE (namespace, key) >= (:number, :key)
ORDER BY namespace, key
LIMIT 2
"""

FIRST = (0, "")
"""A place before all others."""


def check(connection: Connection, number: int, key: str, entry: int | None = None) -> None:
    """Raise unless the index is in order around a key, as far as two rows on each side tell.

    Where a page is damaged so that SQLite does not notice, a search goes astray, and what it was to
    remove is found by another search, or when the page has been written anew.

    Parameters
    ----------
    number
        Of the namespace: its ``id``.
    entry
        What must be found at the key; None if nothing need be there.

    Raises
    ------
    FileDamagedError
        It is not.
    """

    def rows(statement: str, number: int, key: str) -> list[tuple[int, str, int]]:
        return connection.execute(statement, {"number": number, "key": key}).fetchall()

    before, after = rows(BEFORE, number, key), rows(AFTER, number, key)
    places = [row[:2] for row in (*reversed(before), *after)]
    last_before = before[0][:2] if before else FIRST
    is_in_order = (
        # On a page that is damaged they may be of any type.
        all(type(each) is int and type(place) is str for each, place in places)
        and places == sorted(set(places))
        and bisect_left(places, (number, key)) == len(before)
        and (entry is None or after[:1] == [(number, key, entry)])
        # The two searches may have come to two places.
        and rows(AFTER, *last_before) == [*before[:1], *after][:2]
    )
    if not is_in_order:
        raise FileDamagedError(f"the index of keys is not in order at {key!r}")
