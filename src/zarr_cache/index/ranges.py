"""Ranges in the file: entries that have some bytes of a value. Steps of operations.

Of the ranges of a key none lies inside another. So they are sorted by their end as well as by
their start, and of those that begin at a byte or before it, the last one reaches furthest: one step
in the index of keys finds it. The last bytes of a value of unknown size have no place among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from zarr_cache.core import checksum
from zarr_cache.core.byte_range import Span, span_of
from zarr_cache.core.errors import FileDamagedError
from zarr_cache.index import extents

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from zarr_cache.file.connection import Connection


TAIL = -2
"""The `start` of the last bytes of a value of unknown size."""

MAX_AT_ONCE = 64
"""At most this many ranges are removed in one transaction, as in `evict`."""

END = 2**63 - 1
"""After every byte of a value."""

# For many places in one statement, which costs a third of one each. The bytes of a range are read
# only if it is fresh and has the first byte that is wanted: the range before a missing one usually
# ends there.
FIND = """
SELECT
    wanted.key,
    entry.id,
    entry.size,
    entry.stored_at,
    entry.checksum,
    entry.validator,
    entry.confirmed_at,
    value.rowid,
    length(value.data),
    CASE WHEN length(value.checksums) <= 512 THEN value.checksums END,
    CASE WHEN entry.size <= ? AND length(value.data) = entry.size THEN value.data END,
    extent.offset,
    extent.length,
    entry.start,
    entry.stop
FROM json_each(?) AS wanted
JOIN namespace ON namespace.name = ?
JOIN entry ON entry.id = (
    SELECT id
    FROM entry AS other
    WHERE other.namespace = namespace.id
      AND other.key = ?
      AND other.start BETWEEN min(wanted.value, 0) AND wanted.value
    ORDER BY other.start DESC
    LIMIT 1
)
LEFT JOIN value
    ON value.entry = entry.id AND value.part = 0
    AND coalesce(entry.confirmed_at, entry.stored_at) > ?
    AND (entry.start + entry.size > wanted.value OR entry.stop IS NULL)
LEFT JOIN extent
    ON extent.entry = CASE
        WHEN entry.size >= ? AND coalesce(entry.confirmed_at, entry.stored_at) > ? THEN entry.id
    END
    AND extent.start = 0
"""

LAST_PLACE = """
SELECT id, start, stop, size, stored_at, checksum, validator, confirmed_at
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND start BETWEEN :first AND :last
ORDER BY start DESC
LIMIT 1
"""

# `+kind` is not looked up in an index. Otherwise SQLite takes entry_by_age, and walks all ranges of
# the namespace.
FIRST = """
SELECT id, start, stop, size, stored_at, checksum, validator, confirmed_at
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND +kind = 'range'
LIMIT 1
"""

REMOVE = """
DELETE FROM entry
WHERE id = :entry
"""

REMOVE_INSIDE = """
DELETE FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND start >= :start
  AND start < :stop
  AND (start + size <= :stop OR start = :start)
"""

REMOVE_TAIL = """
DELETE FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND start = -2
  AND size <= :size
"""

REMOVE_OF_KEY = """
DELETE FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND +kind = 'range'
"""

REMOVE_SOME = """
DELETE FROM entry
WHERE id IN (
    SELECT id
    FROM entry
    WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
      AND key = :key
      AND +kind = 'range'
    LIMIT :limit
)
RETURNING id
"""

HAS_MORE_THAN = """
SELECT 1
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND +kind = 'range'
LIMIT 1 OFFSET :limit
"""

INSERT = """
INSERT INTO entry (
    namespace, key, kind, start, stop, size, stored_at, used_at, revision, checksum, validator
)
SELECT id, :key, 'range', :start, :stop, :size, :stored_at, :used_at, 0, :checksum, :validator
FROM namespace
WHERE name = :namespace
RETURNING id
"""


def facts_of(namespace: str, key: str, span: Span, stored_at: int) -> int:
    """The identity checksum of a range."""
    kind = f"range {span.start} {span.reaches_end}"
    return checksum.of_facts(namespace, key, kind, span.size, stored_at)


class FoundRange(NamedTuple):
    """The row of a range that may have the bytes of a request, as `lookup.EntryState` has them."""

    place: int
    entry: int
    size: int
    stored_at: int
    checksum: int
    validator: str | None
    confirmed_at: int | None
    part: int | None
    part_length: int | None
    checksums: bytes | None
    data: bytes | None
    offset: int | None
    length: int | None
    start: int
    stop: int | None

    @property
    def has_integers(self) -> bool:
        """Whether the columns of `span`, and its time, are integers."""
        times = (self.stored_at, self.as_of)
        return _are_integers(self.start, self.size, *times, self.stop or 0)

    @property
    def as_of(self) -> int:
        """When the source last had this, as far as is known."""
        return self.stored_at if self.confirmed_at is None else self.confirmed_at

    @property
    def span(self) -> Span:
        """Which bytes it has."""
        return span_of_row(self.start, self.stop, self.size)


def _are_integers(*columns: object) -> bool:
    """Whether they are: on a damaged page, a column may have another type than its table allows."""
    return set(map(type, columns)) == {int}


def span_of_row(start: int, stop: int | None, size: int) -> Span:
    """Which bytes a row of the table ``entry`` has."""
    return Span(start if start >= 0 else None, size, reaches_end=stop is None)


class RangeRow(NamedTuple):
    """The facts of a range, without its bytes."""

    entry: int
    start: int
    stop: int | None
    size: int
    stored_at: int
    checksum: int
    validator: str | None
    confirmed_at: int | None

    @property
    def as_of(self) -> int:
        """When the source last had this, as far as is known."""
        return self.stored_at if self.confirmed_at is None else self.confirmed_at

    def span_in(self, namespace: str, key: str) -> Span | None:
        """Which bytes of the key's value it has; None if the row is not what was written."""
        times = (self.stored_at, self.as_of)
        if not _are_integers(self.start, self.size, *times, self.stop or 0):
            return None
        span = span_of_row(self.start, self.stop, self.size)
        facts = facts_of(namespace, key, span, self.stored_at)
        version = checksum.of_version(self.validator, self.confirmed_at)
        return span if facts ^ version == self.checksum else None


def find(
    connection: Connection,
    namespace: str,
    key: str,
    places: list[int],
    fresh_after: int,
    inline: int,
) -> list[FoundRange | None]:
    """For each place, the range of the key that may have the bytes of a request: see `places_of`.

    Parameters
    ----------
    fresh_after
        A range that was stored at this time or earlier is stale, and is not read.
    inline
        The bytes of ranges of up to so many bytes come with them.
    """
    found: list[FoundRange | None] = [None] * len(places)
    # A list of integers is JSON as Python writes it, in a quarter of the time of the module.
    limits = (fresh_after, extents.MIN_BYTES, fresh_after)
    parameters = (inline, str(places), namespace, key, *limits)
    for row in connection.execute(FIND, parameters):
        found[row[0]] = FoundRange._make(row)
    return found


def places_of(request: ByteRequest) -> tuple[int, ...]:
    """The last `start` of a range that may have the request's bytes; of several, the best first."""
    match request:
        case RangeByteRequest(start, _) | OffsetByteRequest(start):
            return (start,)
        case SuffixByteRequest():
            # Only the last can be known to reach the end.
            return (TAIL, END)


def make_place(
    connection: Connection,
    namespace: str,
    key: str,
    request: ByteRequest,
    size: int,
    fresh_after: int,
) -> bool:
    """Remove the ranges that a response of `size` bytes replaces: those inside it, and stale ones.

    So are damaged ones. False if a fresh range has all its bytes: then nothing is removed.
    """
    of_key = {"namespace": namespace, "key": key}
    replaced = []
    for last in places_of(request):
        interval = {**of_key, "first": min(last, 0), "last": last}
        while row := connection.execute(LAST_PLACE, interval).fetchone():
            found = RangeRow(*row)
            span = found.span_in(namespace, key)
            if span is not None:
                if span.part_for(request) is None:
                    break
                if found.as_of > fresh_after:
                    return False
            replaced.append({"entry": found.entry})
            interval["last"] = found.start - 1
    connection.executemany(REMOVE, replaced)
    span = span_of(request, size)
    if span.start is not None:
        stop = END if span.reaches_end else span.stop
        connection.execute(REMOVE_INSIDE, {**of_key, "start": span.start, "stop": stop})
    if span.reaches_end:
        connection.execute(REMOVE_TAIL, {**of_key, "size": span.size})
    return True


def insert(
    connection: Connection,
    namespace: str,
    key: str,
    span: Span,
    stored_at: int,
    used_at: int,
    identity_checksum: int,
    validator: str | None,
) -> int:
    """Insert a range without its bytes, and return its number."""
    is_tail = span.start is None
    parameters = {
        "namespace": namespace,
        "key": key,
        "start": TAIL if is_tail else span.start,
        "stop": None if span.reaches_end else span.stop,
        "size": span.size,
        "stored_at": stored_at,
        "used_at": used_at,
        "checksum": identity_checksum ^ checksum.of_version(validator, None),
        "validator": validator,
    }
    rows = connection.execute(INSERT, parameters).fetchall()
    if not rows:
        raise FileDamagedError(f"the namespace {namespace!r} is missing")
    return int(rows[0][0])


def remove(connection: Connection, entry: int | None) -> None:
    """Remove an entry."""
    connection.execute(REMOVE, {"entry": entry})


def remove_of_key(connection: Connection, namespace: str, key: str) -> None:
    """Remove every range of the key."""
    connection.execute(REMOVE_OF_KEY, {"namespace": namespace, "key": key})


def remove_all_but_some(connection: Connection, namespace: str, key: str) -> None:
    """Remove the ranges of the key, in short transactions, until few are left.

    The caller is about to remove them in one transaction, and a shard may have 100,000.
    """
    parameters = {"namespace": namespace, "key": key, "limit": MAX_AT_ONCE}
    while connection.execute(HAS_MORE_THAN, parameters).fetchone():
        with connection.writing_much():
            connection.execute(REMOVE_SOME, parameters).fetchall()


class KeptVersion(NamedTuple):
    """The version of the ranges of a key.

    Attributes
    ----------
    validator
        None if it is not known.
    as_of
        When the source last had it, as far as a range of it tells.
    """

    validator: str | None
    as_of: int


def version(connection: Connection, namespace: str, key: str) -> KeptVersion | None:
    """The version of the ranges of the key, fresh or stale; None if there is none: an operation."""
    row = connection.execute(FIRST, {"namespace": namespace, "key": key}).fetchone()
    if row is None:
        return None
    found = RangeRow._make(row)
    if found.span_in(namespace, key) is None:
        # Damaged: the lookup of its bytes removes it.
        return KeptVersion(None, 0)
    return KeptVersion(found.validator, found.as_of)
