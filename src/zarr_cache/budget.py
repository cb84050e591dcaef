"""The budget: what goes when there is too much, and what goes because it is stale.

Values in the file and parts of values in memory share one budget and one order.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache import pending, space
from zarr_cache.errors import FileDamagedError
from zarr_cache.index import EVER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from zarr_cache.connection import Connection
    from zarr_cache.range_cache import RangeCache

LATEST = 2**63 - 1
"""A time after every stamp."""

MOST_AT_ONCE = 64
"""At most this many entries go at a time: others may write in between, and the log stays short. In
a large file each may lie on five pages of its own."""

MOST_STEPS = 4
"""At most so many times as many go in the transaction that keeps one value for which pages lack."""

SMALL = 4096
"""The bytes of up to so many values of this size that are kept together matter little."""

CACHED_BYTES = """
SELECT bytes
FROM total
WHERE kind = 'value'
"""

# The least recently used of a kind, as many as there are too many.
TRIM = """
DELETE FROM entry
WHERE id IN (
    SELECT id
    FROM entry
    WHERE kind = :kind AND (writers = 0 OR stored_at <= :dead_before)
    ORDER BY used_at, id
    LIMIT max(0, (SELECT entries FROM total WHERE kind = :kind) - :most)
)
"""

# Walks the index by use from the oldest on, and stops where enough is freed or where the oldest
# range entry in memory would go first: the cost is that of what goes, not of what is kept.
EVICT = """
WITH RECURSIVE victim (id, used_at, freed) AS (
    SELECT id, used_at, size
    FROM (
        SELECT id, used_at, size
        FROM entry
        WHERE kind = 'value' AND used_at < :before
        ORDER BY used_at, id
        LIMIT 1
    )
    UNION ALL
    SELECT next.id, next.used_at, victim.freed + next.size
    FROM victim
    JOIN entry AS next ON next.id = (
        SELECT id
        FROM entry
        WHERE kind = 'value' AND (used_at, id) > (victim.used_at, victim.id) AND used_at < :before
        ORDER BY used_at, id
        LIMIT 1
    )
    WHERE victim.freed < :excess
    LIMIT :most
)
DELETE FROM entry
WHERE id IN (SELECT id FROM victim)
RETURNING key
"""

# The least recently used of all that is not stored, as many as have so many bytes about. The fence
# of a write that is under way stays, unless its writer is taken for dead.
EVICT_ANY = """
DELETE FROM entry
WHERE id IN (
    SELECT id
    FROM (
        SELECT id, sum(size + :row_bytes) OVER (ORDER BY used_at, id) - size - :row_bytes AS freed
        FROM (
            SELECT id, used_at, size
            FROM (
                SELECT id, used_at, size
                FROM entry
                WHERE kind = 'value'
                ORDER BY used_at, id
                LIMIT :most
            )
            UNION ALL
            SELECT id, used_at, size
            FROM (
                SELECT id, used_at, size
                FROM entry
                WHERE kind = 'absent'
                ORDER BY used_at, id
                LIMIT :most
            )
            UNION ALL
            SELECT id, used_at, size
            FROM (
                SELECT id, used_at, size
                FROM entry
                WHERE kind = 'fence' AND (writers = 0 OR stored_at <= :dead_before)
                ORDER BY used_at, id
                LIMIT :most
            )
            ORDER BY used_at, id
            LIMIT :most
        )
    )
    WHERE freed < :excess
)
RETURNING kind, key
"""

EXPIRE = """
DELETE FROM entry
WHERE id IN (
    SELECT id
    FROM entry
    WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
      AND kind = :kind
      AND stored_at <= :fresh_after
    ORDER BY stored_at
    LIMIT :most
)
RETURNING key
"""


class Limits(NamedTuple):
    """What the entries of a namespace may cost and how old they may be.

    Attributes
    ----------
    max_size
        Bytes of all value entries in the file and all range entries of this process, or None.
    ranges
        The range entries.
    fresh_after
        A value stored at this time or earlier is stale, and an absence stored at
        `absent_fresh_after` or earlier.
    dead_before
        A write that began at this time or earlier is taken for dead.
    """

    max_size: int | None
    ranges: RangeCache
    fresh_after: int
    absent_fresh_after: int
    dead_before: int = EVER

    def are_exceeded(self, cached_bytes: int) -> bool:
        """Whether there is too much, with so many bytes of value entries in the file."""
        return self.max_size is not None and cached_bytes + self.ranges.nbytes > self.max_size


@dataclass(slots=True)
class Removed:
    """What an operation removed.

    Attributes
    ----------
    evicted
        Keys of the values that went to make room.
    evicted_ranges
        Number of the range entries that did.
    expired
        Keys that went because they were stale.
    fenced
        Keys that went because a write passed by.
    """

    evicted: list[str] = field(default_factory=list)
    evicted_ranges: int = 0
    expired: list[str] = field(default_factory=list)
    fenced: list[str] = field(default_factory=list)


@contextlib.contextmanager
def under_limits(
    connection: Connection, namespace: str, limits: Limits, removed: Removed | None = None
) -> Iterator[Removed]:
    """Run the block, inside a write transaction, so that the limits hold at its end.

    What is stale goes before the block, and the least recently used after it.

    Parameters
    ----------
    removed
        What went before, to which this is added.
    """
    removed = Removed() if removed is None else removed
    expire(connection, namespace, limits, removed)
    yield removed
    make_room(connection, limits, removed)


def enforce(
    connection: Connection, namespace: str, limits: Limits, touches: Mapping[int, int]
) -> Removed:
    """Come under the limits, in as many transactions as it takes: `max_size` may be a new one.

    Parameters
    ----------
    touches
        Time of the last use by entry, as far as it waits to be written: eviction goes by them.
    """
    removed = Removed()
    touches = pending.write_most(connection, touches)
    with connection.writing_much():
        pending.write_touches(connection, touches)
        expire(connection, namespace, limits, removed)
        fits = make_some_room(connection, limits, removed)
    while not fits:
        with connection.writing_much():
            fits = make_some_room(connection, limits, removed)
    make_way(connection, limits, touches, removed)
    return removed


def make_way(
    connection: Connection,
    limits: Limits,
    touches: Mapping[int, int],
    removed: Removed,
    coming: int = 0,
) -> None:
    """Come under the limit of pages, in as many transactions as it takes.

    Parameters
    ----------
    touches
        Time of the last use by entry, as far as it waits to be written: eviction goes by them.
    coming
        Bytes that are about to be written. What goes for them because of `max_size` goes as well,
        unless that is little.
    """
    if limits.max_size is None or connection.log is None:
        return
    while True:
        found = space.in_use(connection)
        excess = found.value_bytes + limits.ranges.nbytes + coming - limits.max_size
        goes_by_size = excess * found.values > MOST_AT_ONCE * found.value_bytes
        if not goes_by_size and pages_excess(found, limits, coming) <= 0:
            return
        with connection.writing_much():
            pending.write_touches(connection, touches)
            if goes_by_size:
                is_left = not make_some_room(connection, limits, removed, coming)
            else:
                is_left = free_some_pages(connection, limits, removed, coming)
        if not is_left:
            return


def has_room(connection: Connection, limits: Limits, coming: int) -> bool:
    """Whether so many bytes more fit, and nothing goes for them."""
    if limits.max_size is None or connection.log is None:
        return True
    if limits.are_exceeded(cached_bytes(connection) + coming):
        return False
    return pages_excess(space.in_use(connection), limits, coming) <= 0


def make_room(connection: Connection, limits: Limits, removed: Removed, coming: int = 0) -> None:
    """Remove the least recently used, in the file and in memory alike, until the rest fits.

    Parameters
    ----------
    coming
        Bytes that are about to be written, and are in the totals already.
    """
    while not make_some_room(connection, limits, removed):
        pass
    if coming <= SMALL or limits.max_size is None or connection.log is None:
        return
    for _ in range(MOST_STEPS):
        if not free_some_pages(connection, limits, removed, coming, is_counted=True):
            return


def pages_excess(
    found: space.InUse, limits: Limits, coming: int, *, is_counted: bool = False
) -> int:
    """Bytes of the pages that must be freed for what is coming, which may be none.

    Parameters
    ----------
    is_counted
        Whether what is coming is in the totals already.
    """
    max_size = limits.max_size or 0
    if not found.is_limited(max_size):
        return 0
    value_bytes = found.value_bytes + (0 if is_counted else coming)
    goes_by_size = max(0, value_bytes + limits.ranges.nbytes - max_size)
    return found.most_of_answers + coming - goes_by_size - space.most_bytes(max_size)


def free_some_pages(
    connection: Connection,
    limits: Limits,
    removed: Removed,
    coming: int = 0,
    *,
    is_counted: bool = False,
) -> bool:
    """Remove some of the least recently used if too many pages are in use; tell whether any was."""
    excess = pages_excess(space.in_use(connection), limits, coming, is_counted=is_counted)
    if excess <= 0:
        return False
    parameters = {
        "excess": excess,
        "row_bytes": space.ROW_BYTES,
        "dead_before": limits.dead_before,
        "most": MOST_AT_ONCE,
    }
    rows = connection.execute(EVICT_ANY, parameters).fetchall()
    removed.evicted += [key for kind, key in rows if kind != "fence"]
    return bool(rows)


def make_some_room(
    connection: Connection, limits: Limits, removed: Removed, coming: int = 0
) -> bool:
    """Remove some of the least recently used; tell whether the rest fits."""
    if limits.max_size is None:
        return True
    excess = cached_bytes(connection) + limits.ranges.nbytes + coming - limits.max_size
    if excess <= 0:
        return True
    oldest_range = limits.ranges.oldest_use()
    before = LATEST if oldest_range is None else oldest_range
    parameters = {"excess": excess, "before": before, "most": MOST_AT_ONCE}
    rows = connection.execute(EVICT, parameters).fetchall()
    removed.evicted += [key for (key,) in rows]
    if not rows:
        if not limits.ranges.evict():
            # What is left is not ours to remove.
            return True
        removed.evicted_ranges += 1
    return False


def cached_bytes(connection: Connection) -> int:
    """Bytes of all values that are kept of sources."""
    row = connection.execute(CACHED_BYTES).fetchone()
    if row is None:
        raise FileDamagedError("a row of total is missing")
    return int(row[0])


def trim(connection: Connection, kind: str, most: int, dead_before: int) -> None:
    """Remove the least recently used entries of a kind that has no bytes, until `most` are left.

    Parameters
    ----------
    dead_before
        Fences of writes that began later and have not ended stay.
    """
    parameters = {"kind": kind, "most": most, "dead_before": dead_before}
    connection.execute(TRIM, parameters)


def expire(connection: Connection, namespace: str, limits: Limits, removed: Removed) -> None:
    """Remove what is stale."""
    for kind, fresh_after in (
        ("value", limits.fresh_after),
        ("absent", limits.absent_fresh_after),
    ):
        if fresh_after == EVER:
            continue
        parameters = {
            "namespace": namespace,
            "kind": kind,
            "fresh_after": fresh_after,
            "most": MOST_AT_ONCE,
        }
        removed.expired += [key for (key,) in connection.execute(EXPIRE, parameters)]
    limits.ranges.expire(namespace, limits.fresh_after)
