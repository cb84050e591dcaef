"""Whether the index of keys is in order where it is relied on: an operation."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

from zarr_cache.errors import FileDamagedError

if TYPE_CHECKING:
    from zarr_cache.connection import Connection

# Of any namespace: its number may be what is damaged. With what the row itself says, which an index
# that is made anew goes by.
BEFORE = """
SELECT place.namespace, place.key, place.id, own.namespace, own.key
FROM entry AS place
LEFT JOIN entry AS own NOT INDEXED ON own.id = place.id
WHERE (place.namespace, place.key) < (:number, :key)
ORDER BY place.namespace DESC, place.key DESC
LIMIT 2
"""

AFTER = """
SELECT place.namespace, place.key, place.id, own.namespace, own.key
FROM entry AS place
LEFT JOIN entry AS own NOT INDEXED ON own.id = place.id
WHERE (place.namespace, place.key) >= (:number, :key)
ORDER BY place.namespace, place.key
LIMIT 2
"""

FIRST = (0, "")
"""A place before all others."""


def check(connection: Connection, number: int, key: str, entry: int | None = None) -> None:
    """Raise unless the index is right around a key, as far as two rows on each side tell.

    It is if it is in order, and says of each row what that row says of itself.

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

    def rows(statement: str, number: int, key: str) -> list[tuple[int, str, int, int, str]]:
        return connection.execute(statement, {"number": number, "key": key}).fetchall()

    before, after = rows(BEFORE, number, key), rows(AFTER, number, key)
    places = [row[:2] for row in (*reversed(before), *after)]
    last_before = before[0][:2] if before else FIRST
    is_in_order = (
        # On a page that is damaged they may be of any type.
        all(type(each) is int and type(place) is str for each, place in places)
        and all(row[:2] == row[3:] for row in (*before, *after))
        and places == sorted(set(places))
        and bisect_left(places, (number, key)) == len(before)
        and (entry is None or after[:1] == [(number, key, entry, number, key)])
        # The two searches may have come to two places.
        and rows(AFTER, *last_before) == [*before[:1], *after][:2]
    )
    if not is_in_order:
        raise FileDamagedError(f"the index of keys is not in order at {key!r}")
