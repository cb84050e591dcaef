"""Uses and counts that wait in memory to be written into the file together."""

from __future__ import annotations

from itertools import batched
from typing import TYPE_CHECKING

from zarr_cache.index.lookup import NEW_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zarr_cache.file.connection import Connection


"""After this many uses they are written: a crash may lose as many."""


"""The first use waits no longer than this if more come: other processes evict by what is in the
file."""


"""At most this many uses are remembered while the file cannot be written to."""


MAX_AT_ONCE = 128


"""At most this many uses are written in one transaction of a file with many entries, where each
changes two pages of its own: the log stays short."""


FEW_ENTRIES = 16_384


"""The rows and indexes of so many entries have no more pages than `MAX_AT_ONCE` uses change."""


ENTRIES = """
SELECT sum(entries)
FROM total
"""


TOUCH = """
UPDATE entry
SET used_at = :used_at
WHERE id = :entry AND used_at < :used_at AND kind IN ('value', 'absent')
"""


ADD_STATISTICS = """
UPDATE statistics
SET hits = hits + :hits,
    misses = misses + :misses,
    bytes_served = bytes_served + :bytes_served,
    bytes_fetched = bytes_fetched + :bytes_fetched,
    evictions = evictions + :evictions,
    expirations = expirations + :expirations
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
"""


def write(
    connection: Connection, counts: Mapping[str, Mapping[str, int]], touches: Mapping[int, int]
) -> None:
    """Write the uses and counts that were gathered in memory, in short transactions.

    Parameters
    ----------
    counts
        By namespace, what to add to which column of `statistics`.
    touches
        Time of the last use, by entry.
    """
    touches = write_most(connection, touches)
    with connection.writing_much():
        write_touches(connection, touches)
        write_counts(connection, counts)


def write_most(connection: Connection, touches: Mapping[int, int]) -> Mapping[int, int]:
    """Write the uses, some in each transaction, but for the last, which another takes along.

    Returns
    -------
    Mapping of int to int
        Those that are left.
    """
    if len(touches) <= MAX_AT_ONCE or _has_few_entries(connection):
        return touches
    *most, rest = batched(touches.items(), MAX_AT_ONCE)
    for some in most:
        with connection.writing_much():
            write_touches(connection, dict(some))
    return dict(rest)


def _has_few_entries(connection: Connection) -> bool:
    (entries,) = connection.execute(ENTRIES).fetchone()
    return bool(entries is None or entries <= FEW_ENTRIES)


def write_touches(connection: Connection, touches: Mapping[int, int]) -> None:
    """Write the uses into a transaction that is under way, unless the log is long.

    Then they are dropped: it is a transaction that only ends what was begun.
    """
    if touches and not connection.has_long_wal():
        connection.executemany(
            TOUCH, [{"entry": entry, "used_at": used_at} for entry, used_at in touches.items()]
        )


def write_counts(connection: Connection, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Add the counts up in a transaction that is under way."""
    for namespace, added in counts.items():
        connection.execute(NEW_NAMESPACE, {"namespace": namespace})
        connection.execute(ADD_STATISTICS, {"namespace": namespace, **added})
