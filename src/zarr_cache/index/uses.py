"""Writing uses and counts, which are collected in memory, to the file together."""

from __future__ import annotations

from itertools import batched
from typing import TYPE_CHECKING

from zarr_cache.index.lookup import NEW_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zarr_cache.file.connection import Connection


MAX_AT_ONCE = 128
"""At most this many uses are written in one transaction of a file with many entries, where each
changes two pages of its own: the WAL stays short."""

FEW_ENTRIES = 16_384
"""The rows and indexes of so few entries have no more pages than `MAX_AT_ONCE` uses change."""

ENTRIES = """
SELECT sum(entries)
FROM total
"""

TOUCH = """
UPDATE entry
SET used_at = :used_at
WHERE id = :entry AND used_at < :used_at AND kind IN ('value', 'range', 'absent')
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
    """Write the counts by namespace and column, and the time of the last use by entry.

    In short transactions.
    """
    touches = write_batches(connection, touches)
    with connection.writing_much():
        write_touches(connection, touches)
        write_counts(connection, counts)


def write_batches(connection: Connection, touches: Mapping[int, int]) -> Mapping[int, int]:
    """Write the uses in batches; return the last batch, for the caller to write with its rows."""
    if len(touches) <= MAX_AT_ONCE or _has_few_entries(connection):
        return touches
    *batches, last = batched(touches.items(), MAX_AT_ONCE)
    for batch in batches:
        with connection.writing_much():
            write_touches(connection, dict(batch))
    return dict(last)


def _has_few_entries(connection: Connection) -> bool:
    (entries,) = connection.execute(ENTRIES).fetchone()
    return bool(entries is None or entries <= FEW_ENTRIES)


def write_touches(connection: Connection, touches: Mapping[int, int]) -> None:
    """Write the uses in the current transaction.

    If the WAL is long they are dropped: then the transaction only ends a write to the source.
    """
    if touches and not connection.has_long_wal():
        connection.executemany(
            TOUCH, [{"entry": entry, "used_at": used_at} for entry, used_at in touches.items()]
        )


def write_counts(connection: Connection, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Add the counts in the current transaction."""
    for namespace, added in counts.items():
        connection.execute(NEW_NAMESPACE, {"namespace": namespace})
        connection.execute(ADD_STATISTICS, {"namespace": namespace, **added})
