"""Eviction of entries above the budget, least recently used first, and expiry of stale entries.

Values and ranges in the file and ranges in memory share one budget and one order. The order is
known to `_evict_in_order` alone: it walks the index ``entry_by_use`` with `EVICT`, and takes those
in memory in the order in which `RangesInMemory` has them. To add another order, add there a
statement beside `EVICT`, with an index for it in a new migration, and the same order in memory.
`Limits` has the settings: where nothing may be evicted, only stale entries make room, and
`add_if_it_fits` undoes what has none.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from zarr_cache.core.ages import EVER
from zarr_cache.core.errors import FileDamagedError
from zarr_cache.index import extents, listing, upkeep
from zarr_cache.index.lookup import WRITE_LEASE_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from zarr_cache.core.errors import CacheError
    from zarr_cache.file.connection import Connection


LATEST = 2**63 - 1
"""A time after every use."""

MAX_AT_ONCE = 64
"""At most this many entries are removed in one transaction: other processes can write in between,
and the WAL stays short. In a large file, each may be on five pages of its own."""

# Values that are being written count as well.
CACHED_BYTES = """
SELECT sum(entries), sum(bytes) + (SELECT coalesce(sum(bytes), 0) FROM reservation)
FROM total
WHERE kind IN ('value', 'range')
"""

# The least recently used of a kind, as many as are above the limit.
TRIM = """
DELETE FROM entry
WHERE id IN (
    SELECT id
    FROM entry
    WHERE ordered_as = :kind AND (writes_in_flight = 0 OR stored_at <= :expired_before)
    ORDER BY used_at, id
    LIMIT max(0, (SELECT entries FROM total WHERE kind = :kind) - :limit)
)
"""

# Walks the index by use from the oldest entry, and stops when enough is freed or when the oldest
# range entry in memory is older: the cost depends on what is evicted, not on what stays.
EVICT = """
WITH RECURSIVE victim (id, used_at, freed) AS (
    SELECT id, used_at, size
    FROM (
        SELECT id, used_at, size
        FROM entry
        WHERE ordered_as = 'value' AND used_at < :before
        ORDER BY used_at, id
        LIMIT 1
    )
    UNION ALL
    SELECT next.id, next.used_at, victim.freed + next.size
    FROM victim
    JOIN entry AS next ON next.id = (
        SELECT id
        FROM entry
        WHERE ordered_as = 'value'
          AND (used_at, id) > (victim.used_at, victim.id)
          AND used_at < :before
        ORDER BY used_at, id
        LIMIT 1
    )
    WHERE victim.freed < :excess
    LIMIT :limit
)
DELETE FROM entry
WHERE id IN (SELECT id FROM victim)
RETURNING key
"""

REMOVE = """
DELETE FROM entry
WHERE id = :entry
"""

EXPIRE = """
DELETE FROM entry
WHERE id IN (
    SELECT id
    FROM entry
    WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
      AND kind = :kind
      AND (validator IS NULL) = 1
      AND stored_at <= :expired_after
    ORDER BY stored_at
    LIMIT :limit
)
RETURNING key
"""


class RangesInMemory(Protocol):
    """The ranges in the memory of a process, which share the budget of the file."""

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""

    def oldest_use(self) -> int | None:
        """Time of the last use of the least recently used one; None if there is none."""

    def evict(self) -> bool:
        """Remove the least recently used one; False if there is none."""

    def expire(self, namespace: str, expired_after: int) -> int:
        """Remove those of this time or earlier without a validator; return how many there were."""

    def evict_stale(self, namespace: str, expired_after: int, excess: int) -> bool:
        """Remove the oldest of this time or earlier, of so many bytes; False if there are none."""


class Limits(NamedTuple):
    """The budget of a file, and the ages at which entries of a namespace are stale.

    Attributes
    ----------
    max_size
        Bytes of all values and ranges in the file and all ranges in memory, or None.
    ranges
        Those in memory.
    fresh_after
        A value of this time or earlier is stale.
    expired_after
        A value without a validator that was stored at this time or earlier is removed: nothing can
        make it fresh again, and it is not served while the source fails either.
    now_ns
        The time as of which this is. The lease of a write that began an hour before has expired.
    namespace
        Whose entries are stale by these ages.
    may_evict
        Whether entries that are not stale are evicted for others. If not, what has no room is not
        admitted.
    """

    max_size: int | None
    ranges: RangesInMemory
    fresh_after: int
    expired_after: int
    now_ns: int
    namespace: str
    may_evict: bool

    @property
    def expired_before(self) -> int:
        """The lease of a write that began at this time or earlier has expired."""
        return self.now_ns - WRITE_LEASE_NS

    def are_exceeded(self, cached_bytes: int) -> bool:
        """Whether the budget is exceeded, with so many bytes of value entries in the file."""
        return self.excess(cached_bytes) > 0

    def excess(self, cached_bytes: int) -> int:
        """By how many bytes the budget is exceeded; negative, or 0 without one, if it is not."""
        return 0 if self.max_size is None else cached_bytes + self.ranges.nbytes - self.max_size


@dataclass(slots=True)
class Evictions:
    """The entries that an operation removed.

    Attributes
    ----------
    evicted
        Keys of the values that were evicted.
    evicted_ranges
        Number of the range entries that were.
    expired
        Keys of the entries that were stale.
    invalidated
        Keys that have a tombstone after a write.
    failure
        Why a response was not admitted, if the operation itself did not fail.
    """

    evicted: list[str] = field(default_factory=list)
    evicted_ranges: int = 0
    expired: list[str] = field(default_factory=list)
    invalidated: list[str] = field(default_factory=list)
    failure: CacheError | None = None


@contextlib.contextmanager
def under_limits(
    connection: Connection, namespace: str, limits: Limits, evictions: Evictions | None = None
) -> Iterator[Evictions]:
    """Run the block, inside a write transaction, so that the limits hold at its end.

    Stale entries are removed before the block, the least recently used are evicted after it. Both
    are added to `evictions`.
    """
    evictions = Evictions() if evictions is None else evictions
    expire(connection, namespace, limits, evictions)
    yield evictions
    evict_to_fit(connection, limits, evictions)


def apply_limits(
    connection: Connection, namespace: str, limits: Limits, touches: Mapping[int, int]
) -> Evictions:
    """Evict and expire until the limits hold, in as many transactions as it takes.

    The limits may be new: a smaller `max_size`. So this evicts also where nothing is evicted for
    another entry. Then the ranges in memory are first: they have no room if another process has
    filled the file since. The order of eviction depends on `touches`, the last uses that are not
    written yet.
    """
    evictions = Evictions()
    if not limits.may_evict:
        while limits.are_exceeded(cached_bytes(connection)) and limits.ranges.evict():
            evictions.evicted_ranges += 1
        limits = limits._replace(may_evict=True)
    touches = upkeep.write_batches(connection, touches)
    with connection.writing_much():
        upkeep.write_touches(connection, touches)
        expire(connection, namespace, limits, evictions)
        is_done = evict_batch(connection, limits, evictions)
    while not is_done:
        with connection.writing_much():
            is_done = evict_batch(connection, limits, evictions)
    return evictions


def evict_ahead(
    connection: Connection,
    limits: Limits,
    touches: Mapping[int, int],
    evictions: Evictions,
    coming: int,
) -> None:
    """Evict for `coming` bytes of new values, until one transaction can evict the rest.

    One large value may replace thousands of small ones, which is too much for the transaction that
    admits it.
    """
    if limits.max_size is None:
        return
    is_first = True
    while True:
        entries, cached = _cached(connection)
        excess = limits.excess(cached + coming)
        if excess <= 0 or excess * entries <= MAX_AT_ONCE * cached:
            return
        with connection.writing_much():
            if is_first:
                upkeep.write_touches(connection, touches)
            is_first = False
            if evict_batch(connection, limits, evictions, coming):
                return


def evict_to_fit(
    connection: Connection, limits: Limits, evictions: Evictions, coming: int = 0
) -> bool:
    """Evict, in one transaction, until the rest and `coming` bytes are within the budget.

    False if that cannot be: stored entries, and values that are being written, are not evicted, nor
    are those that are not stale if the limits say so.
    """
    while not evict_batch(connection, limits, evictions, coming):
        pass
    return not limits.are_exceeded(cached_bytes(connection) + coming)


def evict_batch(
    connection: Connection, limits: Limits, evictions: Evictions, coming: int = 0
) -> bool:
    """Evict at most `MAX_AT_ONCE` entries; return whether no more need or can be evicted."""
    if limits.max_size is None:
        return True
    excess = limits.excess(cached_bytes(connection) + coming)
    return excess <= 0 or not _evict_in_order(connection, limits, excess, evictions)


def add_if_it_fits(
    connection: Connection,
    limits: Limits,
    evictions: Evictions,
    add: Callable[[], bool],
    coming: int = 0,
) -> bool:
    """Run a step of a write transaction that adds an entry, and return whether it has.

    Where nothing may be evicted, it is undone if the entries and `coming` bytes do not fit into the
    budget then: what it has replaced is there again.
    """
    if limits.may_evict or limits.max_size is None:
        return add()
    connection.execute("SAVEPOINT addition")
    expired = len(evictions.expired)
    is_added = add() and evict_to_fit(connection, limits, evictions, coming)
    if not is_added:
        connection.execute("ROLLBACK TO addition")
        del evictions.expired[expired:]
    connection.execute("RELEASE addition")
    return is_added


def _evict_in_order(
    connection: Connection, limits: Limits, excess: int, evictions: Evictions
) -> bool:
    """Evict the next entries in the order of eviction; False if there are none.

    The oldest values in the file, up to the oldest range entry; or else that range entry. Where
    nothing may be evicted, those that are stale.
    """
    if not limits.may_evict:
        return _remove_stale(connection, limits, excess, evictions)
    ranges = limits.ranges
    oldest_range = ranges.oldest_use()
    before = LATEST if oldest_range is None else oldest_range
    parameters = {"excess": excess, "before": before, "limit": MAX_AT_ONCE}
    rows = connection.execute(EVICT, parameters).fetchall()
    evictions.evicted += [key for (key,) in rows]
    if rows:
        return True
    has_evicted_range = ranges.evict()
    evictions.evicted_ranges += has_evicted_range
    return has_evicted_range


def _remove_stale(
    connection: Connection, limits: Limits, excess: int, evictions: Evictions
) -> bool:
    """Remove stale entries of `excess` bytes, at most `MAX_AT_ONCE`; False if there are none."""
    of_namespace = (limits.namespace, limits.expired_after)
    stale = listing.stale(connection, *of_namespace, MAX_AT_ONCE)
    for entry, key, size in stale:
        if excess <= 0:
            break
        connection.execute(REMOVE, {"entry": entry})
        evictions.expired.append(key)
        excess -= size
    return bool(stale) or limits.ranges.evict_stale(*of_namespace, excess)


def cached_bytes(connection: Connection) -> int:
    """Bytes of all values of sources, in the file or being written."""
    return _cached(connection)[1]


def _cached(connection: Connection) -> tuple[int, int]:
    row = connection.execute(CACHED_BYTES).fetchone()
    if row[0] is None:
        raise FileDamagedError("a row of total is missing")
    return int(row[0]), int(row[1])


def trim(connection: Connection, kind: str, limit: int, expired_before: int) -> None:
    """Remove the least recently used entries of a kind without bytes, until `limit` are left.

    The tombstone of a write in flight that began after `expired_before` is not removed.
    """
    parameters = {"kind": kind, "limit": limit, "expired_before": expired_before}
    connection.execute(TRIM, parameters)


def expire(connection: Connection, namespace: str, limits: Limits, evictions: Evictions) -> None:
    """Remove expired values and ranges, at most `MAX_AT_ONCE` of each, and expired reservations."""
    extents.release_expired(connection, limits.now_ns)
    if limits.expired_after == EVER:
        return
    for kind in ("value", "range"):
        parameters = {
            "namespace": namespace,
            "kind": kind,
            "expired_after": limits.expired_after,
            "limit": MAX_AT_ONCE,
        }
        evictions.expired += [key for (key,) in connection.execute(EXPIRE, parameters)]
    limits.ranges.expire(namespace, limits.expired_after)
