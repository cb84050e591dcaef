"""Listings: how much is cached, and what of a key or of those below a prefix. Operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core import checksum
from zarr_cache.core.ages import EVER
from zarr_cache.core.byte_range import span_of
from zarr_cache.core.keys import prefix_end
from zarr_cache.index import ranges
from zarr_cache.index.lookup import NEW_NAMESPACE
from zarr_cache.index.ranges import RangeRow
from zarr_cache.sampling.curve import curve_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zarr.abc.store import ByteRequest

    from zarr_cache.core.byte_range import Span
    from zarr_cache.file.connection import Connection
    from zarr_cache.sampling.curve import Curve


USAGE = """
SELECT usage.kind, usage.entries, usage.bytes
FROM usage
JOIN namespace ON namespace.id = usage.namespace
WHERE namespace.name = :namespace
"""

TOTAL = """
SELECT kind, entries, bytes
FROM total
"""


class Usage(NamedTuple):
    """Entries and bytes by kind of entry: of a namespace, and of the whole file.

    Attributes
    ----------
    curve
        The hit rate of other sizes, by the reads that have been written; None with too few.
    """

    entries: dict[str, int]
    bytes: dict[str, int]
    total_entries: dict[str, int]
    total_bytes: dict[str, int]
    curve: Curve | None


def usage(connection: Connection, namespace: str) -> Usage:
    """Entries and bytes of the namespace and of the file, and its curve."""
    with connection.reading():
        own = connection.execute(USAGE, {"namespace": namespace}).fetchall()
        total = connection.execute(TOTAL).fetchall()
    return Usage(
        {kind: entries for kind, entries, _ in own},
        {kind: size for kind, _, size in own},
        {kind: entries for kind, entries, _ in total},
        {kind: size for kind, _, size in total},
        curve_of(connection),
    )


# A blob is greater than every text: it is the bound of a prefix without an end. With
# "OR :end IS NULL" instead, SQLite walks to the last key of the namespace.
#
# In the order of the rows, not of the keys: SQLite checks a page each time it visits it, and keys
# stored in another order are on a page each. Without the LIMIT, SQLite drops the subquery's order.
LIST_CACHED = """
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
WHERE entry.kind = 'value' AND coalesce(entry.confirmed_at, entry.stored_at) > :fresh_after
   OR entry.kind = 'absent' AND entry.stored_at > :absent_fresh_after
"""

type Kept = tuple[int, int | None]
"""The number of an entry, and the size of its value; None if the source has no such key."""


def list_cached(
    connection: Connection, namespace: str, prefix: str, fresh_after: int, absent_fresh_after: int
) -> dict[str, Kept]:
    """The fresh entries of the keys that begin with `prefix`; no value is read.

    Walks the entries below the prefix: some seconds for a million.
    """
    parameters = {
        "namespace": namespace,
        "prefix": prefix,
        "end": prefix_end(prefix),
        "fresh_after": fresh_after,
        "absent_fresh_after": absent_fresh_after,
    }
    rows = connection.execute(LIST_CACHED, parameters)
    return {key: (entry, size) for key, entry, size in rows}


LIST = """
SELECT key, id, start, stop, size, stored_at, checksum, validator, confirmed_at
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key >= :prefix
  AND key < coalesce(:end, x'')
  AND +kind = 'range'
  AND coalesce(confirmed_at, stored_at) > :fresh_after
ORDER BY key, start
"""


class ListedRange(NamedTuple):
    """A range in the file or in memory. `start` is None for the end of a value of unknown size."""

    entry: int | None
    span: Span


def list_ranges(
    connection: Connection, namespace: str, prefix: str, fresh_after: int
) -> dict[str, list[ListedRange]]:
    """The fresh ranges in the file of the keys that begin with `prefix`: an operation."""
    parameters = {
        "namespace": namespace,
        "prefix": prefix,
        "end": prefix_end(prefix),
        "fresh_after": fresh_after,
    }
    found: dict[str, list[ListedRange]] = {}
    for key, *facts in connection.execute(LIST, parameters):
        row = RangeRow(*facts)
        span = row.span_in(namespace, key)
        if span is not None:
            found.setdefault(key, []).append(ListedRange(row.entry, span))
    return found


LIST_VERSIONS = """
SELECT id, key, kind, size, stored_at, checksum, validator, confirmed_at
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key >= :prefix
  AND key < coalesce(:end, x'')
  AND +kind IN ('value', 'range', 'absent')
ORDER BY key, start
"""


class Versioned(NamedTuple):
    """The facts of an entry that tell its version."""

    entry: int
    key: str
    kind: str
    size: int
    stored_at: int
    checksum: int
    validator: str | None
    confirmed_at: int | None


def list_versions(connection: Connection, namespace: str, prefix: str) -> list[Versioned]:
    """The values, ranges and absences of the keys that begin with `prefix`, in their order."""
    parameters = {
        "namespace": namespace,
        "prefix": prefix,
        "end": prefix_end(prefix),
    }
    return [Versioned._make(row) for row in connection.execute(LIST_VERSIONS, parameters)]


# As in `ranges`: `+kind` is not looked up in an index.
HAS_ANY = """
SELECT id, start, stop, size, stored_at, checksum, validator, confirmed_at
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND +kind = 'range'
  AND coalesce(confirmed_at, stored_at) > :fresh_after
"""


class KnownRanges(NamedTuple):
    """What the fresh ranges of a key show: that there is one, and the size of the value."""

    has_any: bool
    size: int | None


def known(connection: Connection, namespace: str, key: str, fresh_after: int) -> KnownRanges:
    """What the fresh ranges of the key in the file show: an operation."""
    of_key = {"namespace": namespace, "key": key, "fresh_after": fresh_after}
    rows = map(RangeRow._make, connection.execute(HAS_ANY, of_key))
    has_any = any(row.span_in(namespace, key) is not None for row in rows)
    last = connection.execute(ranges.LAST_PLACE, {**of_key, "first": 0, "last": ranges.END})
    for row in map(RangeRow._make, last):
        span = row.span_in(namespace, key)
        if span is not None and span.reaches_end and row.as_of > fresh_after:
            return KnownRanges(has_any, span.stop)
    return KnownRanges(has_any, None)


ADOPT = """
INSERT INTO entry (namespace, key, kind, size, stored_at, used_at, revision, checksum)
SELECT id, :key, 'value', :size, 0, :used_at, 0, :checksum
FROM namespace
WHERE name = :namespace
ON CONFLICT DO NOTHING
"""

HAS_VALUE = """
SELECT 1
FROM entry
WHERE namespace IN (SELECT id FROM namespace)
  AND key = :key
  AND start = -1
  AND kind = 'value'
"""


def has_value(connection: Connection, key: str) -> bool:
    """Whether there is a value of this key in any namespace."""
    return connection.execute(HAS_VALUE, {"key": key}).fetchone() is not None


def adopt(connection: Connection, namespace: str, sizes: Sequence[tuple[str, int]]) -> None:
    """Add the values that another store already has, oldest first, older than any finite age."""
    with connection.writing():
        connection.execute(NEW_NAMESPACE, {"namespace": namespace})
        for used_at, (key, size) in enumerate(sizes, 1):
            parameters = {
                "namespace": namespace,
                "key": key,
                "size": size,
                "used_at": used_at,
                "checksum": checksum.of_facts(namespace, key, "value", size, 0),
            }
            connection.execute(ADOPT, parameters)


MAX_LOOKED_AT = 4096
"""Of the entries of a kind that are old enough to be stale, at most this many are looked at. If the
source has confirmed as many of the oldest since, the stale ones after them are not found."""

# A walk in the index entry_by_age.
STALE = """
SELECT id, key, size
FROM (
    SELECT id, key, size, stored_at, confirmed_at
    FROM entry
    WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
      AND kind = :kind
      AND (validator IS NULL) = :is_without
      AND stored_at <= :expired_after
    ORDER BY stored_at
    LIMIT :rows
)
WHERE coalesce(confirmed_at, stored_at) <= :expired_after
LIMIT :limit
"""

STALE_BYTES = f"""
SELECT coalesce(sum(size), 0)
FROM ({STALE})
"""  # noqa: S608 - of a constant


class Stale(NamedTuple):
    """A stale entry that has bytes."""

    entry: int
    key: str
    size: int


def stale(connection: Connection, namespace: str, expired_after: int, limit: int) -> list[Stale]:
    """The oldest values and ranges of this time or earlier, at most `limit`.

    They are all of one kind: values before ranges, and those that have a validator last.
    """
    for kind in _kinds_of_stale(namespace, expired_after, limit):
        rows = connection.execute(STALE, kind).fetchall()
        if rows:
            return list(map(Stale._make, rows))
    return []


def stale_bytes(connection: Connection, namespace: str, expired_after: int) -> int:
    """Bytes of the values and ranges that `stale` finds, call after call: an operation."""
    kinds = _kinds_of_stale(namespace, expired_after, MAX_LOOKED_AT)
    return sum(connection.execute(STALE_BYTES, kind).fetchone()[0] for kind in kinds)


def _kinds_of_stale(
    namespace: str, expired_after: int, limit: int
) -> Iterator[dict[str, str | int]]:
    """The parameters of `STALE` for each kind of entries; none if no entry is ever stale."""
    if expired_after == EVER:
        return
    for is_without in (1, 0):
        for kind in ("value", "range"):
            yield {
                "namespace": namespace,
                "kind": kind,
                "is_without": is_without,
                "expired_after": expired_after,
                "rows": MAX_LOOKED_AT,
                "limit": limit,
            }


SIZE_OF_KEY = """
SELECT coalesce(sum(size), 0)
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND +kind IN ('value', 'range')
"""

# As in `ranges.make_place`: those inside a range, and one with the same start.
SIZE_INSIDE = """
SELECT coalesce(sum(size), 0)
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND start >= :start
  AND start < :stop
  AND (start + size <= :stop OR start = :start)
"""


def replaced_bytes(
    connection: Connection, namespace: str, key: str, request: ByteRequest | None, size: int
) -> int:
    """Bytes that a response of `size` bytes replaces in the file: an operation.

    A whole value replaces what is cached of the key, a range those inside it.
    """
    of_key: dict[str, str | int] = {"namespace": namespace, "key": key}
    statement = SIZE_OF_KEY
    if request is not None:
        statement, span = SIZE_INSIDE, span_of(request, size)
        if span.start is None:
            of_key |= {"start": ranges.TAIL, "stop": ranges.TAIL + 1}
        else:
            of_key |= {"start": span.start, "stop": ranges.END if span.reaches_end else span.stop}
    return int(connection.execute(statement, of_key).fetchone()[0])
