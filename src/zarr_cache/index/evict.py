"""The budget: what goes when there is too much, and what goes because it is stale.

Values in the file and parts of values in memory share one budget and one order.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core.ages import EVER
from zarr_cache.core.errors import FileDamagedError
from zarr_cache.core.keys import prefix_end
from zarr_cache.index import extents, uses
from zarr_cache.index.lookup import LONGEST_WRITE_NS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from zarr_cache.core.errors import CacheError
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.ranges import RangeCache


LATEST = 2**63 - 1


"""A time after every stamp."""


MAX_AT_ONCE = 64


"""At most this many entries go at a time: others may write in between, and the log stays short. In
a large file each may lie on five pages of its own."""


# What is being written counts as well.
CACHED_BYTES = """
SELECT entries, bytes + (SELECT coalesce(sum(bytes), 0) FROM reservation)
FROM total
WHERE kind = 'value'
"""


# The least recently used of a kind, as many as there are too many.
TRIM = """
DELETE FROM entry
WHERE id IN (
    SELECT id
    FROM entry
    WHERE kind = :kind AND (writes_in_flight = 0 OR stored_at <= :dead_before)
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
    now_ns
        As of when that is. A write to the source that began an hour before is taken for dead.
    """

    max_size: int | None
    ranges: RangeCache
    fresh_after: int
    absent_fresh_after: int
    now_ns: int

    @property
    def dead_before(self) -> int:
        """A write that began at this time or earlier is taken for dead."""
        return self.now_ns - LONGEST_WRITE_NS

    def are_exceeded(self, cached_bytes: int) -> bool:
        """Whether there is too much, with so many bytes of value entries in the file."""
        return self.max_size is not None and cached_bytes + self.ranges.nbytes > self.max_size


@dataclass(slots=True)
class Evictions:
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
    failure
        Why some of what was to be kept was not, if the operation itself did not fail.
    """

    evicted: list[str] = field(default_factory=list)
    evicted_ranges: int = 0
    expired: list[str] = field(default_factory=list)
    fenced: list[str] = field(default_factory=list)
    failure: CacheError | None = None


@contextlib.contextmanager
def under_limits(
    connection: Connection, namespace: str, limits: Limits, removed: Evictions | None = None
) -> Iterator[Evictions]:
    """Run the block, inside a write transaction, so that the limits hold at its end.

    What is stale goes before the block, and the least recently used after it.

    Parameters
    ----------
    removed
        What went before, to which this is added.
    """
    removed = Evictions() if removed is None else removed
    expire(connection, namespace, limits, removed)
    yield removed
    evict_to_fit(connection, limits, removed)


def enforce(
    connection: Connection, namespace: str, limits: Limits, touches: Mapping[int, int]
) -> Evictions:
    """Come under the limits, in as many transactions as it takes: `max_size` may be a new one.

    Parameters
    ----------
    touches
        Time of the last use by entry, as far as it waits to be written: eviction goes by them.
    """
    removed = Evictions()
    touches = uses.write_most(connection, touches)
    with connection.writing_much():
        uses.write_touches(connection, touches)
        expire(connection, namespace, limits, removed)
        fits = evict_batch(connection, limits, removed)
    while not fits:
        with connection.writing_much():
            fits = evict_batch(connection, limits, removed)
    return removed


def evict_ahead(
    connection: Connection,
    limits: Limits,
    touches: Mapping[int, int],
    removed: Evictions,
    coming: int,
) -> None:
    """Evict for what is coming, in transactions of their own, until what is left to go is little.

    One large value may take the place of thousands of small ones, which is too much for the
    transaction that keeps it.

    Parameters
    ----------
    touches
        Time of the last use by entry, as far as it waits to be written: eviction goes by them.
    coming
        Bytes that are about to be kept.
    """
    if limits.max_size is None:
        return
    is_first = True
    while True:
        entries, cached = _cached(connection)
        excess = cached + limits.ranges.nbytes + coming - limits.max_size
        if excess <= 0 or excess * entries <= MAX_AT_ONCE * cached:
            return
        with connection.writing_much():
            if is_first:
                uses.write_touches(connection, touches)
            is_first = False
            if evict_batch(connection, limits, removed, coming):
                return


def evict_to_fit(
    connection: Connection, limits: Limits, removed: Evictions, coming: int = 0
) -> bool:
    """Evict the least recently used, in the file and in memory alike, until the rest fits.

    Parameters
    ----------
    coming
        Bytes that are about to be kept, and are in no total yet.

    Returns
    -------
    bool
        Whether it fits: what is being written by others, or is stored, is not ours to evict.
    """
    while not evict_batch(connection, limits, removed, coming):
        pass
    return not limits.are_exceeded(cached_bytes(connection) + coming)


def evict_batch(
    connection: Connection, limits: Limits, removed: Evictions, coming: int = 0
) -> bool:
    """Evict some of the least recently used; tell whether no more can go or need go."""
    if limits.max_size is None:
        return True
    excess = cached_bytes(connection) + limits.ranges.nbytes + coming - limits.max_size
    if excess <= 0:
        return True
    oldest_range = limits.ranges.oldest_use()
    before = LATEST if oldest_range is None else oldest_range
    parameters = {"excess": excess, "before": before, "most": MAX_AT_ONCE}
    rows = connection.execute(EVICT, parameters).fetchall()
    removed.evicted += [key for (key,) in rows]
    if not rows:
        if not limits.ranges.evict():
            return True
        removed.evicted_ranges += 1
    return False


def cached_bytes(connection: Connection) -> int:
    """Bytes of all values that are kept of sources, or being written."""
    return _cached(connection)[1]


def _cached(connection: Connection) -> tuple[int, int]:
    row = connection.execute(CACHED_BYTES).fetchone()
    if row is None:
        raise FileDamagedError("a row of total is missing")
    return int(row[0]), int(row[1])


def trim(connection: Connection, kind: str, most: int, dead_before: int) -> None:
    """Remove the least recently used entries of a kind that has no bytes, until `most` are left.

    Parameters
    ----------
    dead_before
        Fences of writes that began later and have not ended stay.
    """
    parameters = {"kind": kind, "most": most, "dead_before": dead_before}
    connection.execute(TRIM, parameters)


def expire(connection: Connection, namespace: str, limits: Limits, removed: Evictions) -> None:
    """Remove what is stale, and give back what writers had reserved that have died."""
    extents.release_dead(connection, limits.now_ns)
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
            "most": MAX_AT_ONCE,
        }
        removed.expired += [key for (key,) in connection.execute(EXPIRE, parameters)]
    limits.ranges.expire(namespace, limits.fresh_after)


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
        parameters = {"namespace": namespace, "most": MAX_AT_ONCE}
        removed = connection.execute(REMOVE_SOME, parameters).fetchall()
        if len(removed) < MAX_AT_ONCE:
            connection.execute(REMOVE_NAMESPACE, {"namespace": namespace})
    return len(removed) == MAX_AT_ONCE
