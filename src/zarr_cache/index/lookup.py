"""Lookups: what the file has of a key. Operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr.abc.store import RangeByteRequest

from zarr_cache.core import ages, byte_range, checksum
from zarr_cache.core.checksum import DamagedValueError
from zarr_cache.core.errors import FileDamagedError
from zarr_cache.disk.data_read import Read
from zarr_cache.index import extents, ranges, values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.disk.data_file import OpenFile
    from zarr_cache.file.connection import Connection


type Data = bytes | ByteArray

WRITE_LEASE_NS = 3600 * 1_000_000_000
"""After this time the lease of a write that has not ended has expired: its process has died."""

HAVE_BYTES = frozenset({"value", "range", "stored"})
"""The kinds of entries that have bytes."""

MAX_INLINE_BYTES = 64 * 1024
"""Values of up to this many bytes are read with the facts, in one statement.
See docs/decisions/0002."""

NEW_NAMESPACE = """
INSERT INTO namespace (name, fence)
SELECT :namespace, fence
FROM counter
WHERE true
ON CONFLICT DO NOTHING
"""

# Parameters by position: a dict of names costs a fifth of the whole, and for numbers (?1) Python
# 3.12.1 warns. The lengths of blobs are checked before they are read, whatever the file claims. The
# search for an extent costs nothing if the value is small: then it is a search for NULL. A
# sum() over two rows of total takes a fifth of the whole; for +, a text of a damaged page is 0.
LOOKUP = """
SELECT
    counter.revision,
    CASE WHEN typeof(total.bytes) = 'integer' THEN total.bytes END
        + CASE WHEN typeof(ranges.bytes) = 'integer' THEN ranges.bytes END,
    max(coalesce(namespace.fence, counter.fence), coalesce(entry.revision, 0)),
    namespace.removals_since,
    ranges.entries,
    entry.id,
    entry.kind,
    entry.size,
    entry.stored_at,
    entry.writes_in_flight,
    entry.checksum,
    entry.validator,
    entry.confirmed_at,
    value.rowid,
    length(value.data),
    CASE WHEN length(value.checksums) <= 512 THEN value.checksums END,
    CASE WHEN entry.size <= ? AND length(value.data) = entry.size THEN value.data END,
    extent.offset,
    extent.length
FROM counter
LEFT JOIN total ON total.kind = 'value'
LEFT JOIN total AS ranges ON ranges.kind = 'range'
LEFT JOIN namespace ON namespace.name = ?
LEFT JOIN entry ON entry.namespace = namespace.id AND entry.key = ? AND entry.start = -1
LEFT JOIN value
    ON value.entry = entry.id AND value.part = 0
    AND coalesce(entry.confirmed_at, entry.stored_at) > ?
LEFT JOIN extent
    ON extent.entry = CASE
        WHEN entry.size >= ? AND coalesce(entry.confirmed_at, entry.stored_at) > ? THEN entry.id
    END
    AND extent.start = 0
WHERE counter.id = 1
"""


class EntryState(NamedTuple):
    """What the file has of a key.

    Attributes
    ----------
    revision
        Of the last write in the file. A response that is fetched after this lookup has it.
    cached_bytes
        Bytes of all values and ranges in the file.
    fence
        Revision of the last write to the key: responses of an earlier revision are refused.
    removals_since
        When the first removal of a folder that is in progress began; None if there is none.
    file_ranges
        Number of ranges in the file, of all keys; one more if others wait to be written.
    entry, kind, size, stored_at, writes_in_flight, checksum, validator, confirmed_at
        The row of the key, or of a range of it that has the bytes of the request; None if there is
        no row.
    part, part_length, checksums
        The first part of a fresh value: its row, length in bytes, and checksums of its blocks.
    data
        The bytes of the request, verified; None unless there is a fresh value or range.
    offset, length
        Of the first extent of a fresh value in the data file.
    read
        The read of the data file that is left to do, if it may block on the disk.
    is_damaged
        The row or its bytes are not what was written.
    """

    revision: int
    cached_bytes: int
    fence: int
    removals_since: int | None
    file_ranges: int
    entry: int | None
    kind: str | None
    size: int
    stored_at: int
    writes_in_flight: int | None
    checksum: int
    validator: str | None = None
    confirmed_at: int | None = None
    part: int | None = None
    part_length: int | None = None
    checksums: bytes | None = None
    data: Data | None = None
    offset: int | None = None
    length: int | None = None
    read: Read | None = None
    is_damaged: bool = False

    @property
    def row(self) -> tuple[object, ...]:
        """The row of the key."""
        return self[5:13]

    @property
    def as_of(self) -> int:
        """When the source last had this, as far as is known: its age counts from then."""
        return self.stored_at if self.confirmed_at is None else self.confirmed_at

    def with_bytes(self, data: Data | None, read: Read | None) -> EntryState:
        """The same with the bytes of the request, or with the read that is left to do."""
        # Takes a third of the time of `_replace`.
        return EntryState(*self[:16], data, self.offset, self.length, read)

    def cut_to(self, request: ByteRequest | None) -> EntryState:
        """The same with the bytes of the request alone, of a whole value."""
        start, stop = byte_range.span(request, self.size)
        return self if self.data is None else self._replace(data=self.data[start:stop])

    def has_bytes(self, fresh_after: int) -> bool:
        """Whether it is a fresh value or range, or one that was stored."""
        return self.kind in HAVE_BYTES and self.as_of > fresh_after

    def is_being_written(self, now_ns: int) -> bool:
        """Whether a write to the key is in flight whose lease has not expired."""
        return bool(self.writes_in_flight) and self.stored_at > now_ns - WRITE_LEASE_NS

    def is_overtaken(self, revision: int, now_ns: int) -> bool:
        """Whether a response of `revision` must be refused: the key was or is being written."""
        since = self.removals_since
        # On a damaged page, it may have another type than its table allows.
        is_removed = since is not None and not (
            type(since) is int and since <= now_ns - WRITE_LEASE_NS
        )
        return self.fence > revision or self.is_being_written(now_ns) or is_removed


type Located = tuple[EntryState, int, tuple[int, int] | None]
"""What a lookup has found, the checksum of its facts, and which bytes of a range to read."""


def nothing(connection: Connection) -> None:
    """Do nothing: a caller runs this to open the database."""


def lookup_metadata(connection: Connection, namespace: str, key: str) -> EntryState:
    """Look the key up, without its bytes."""
    return _facts(connection, namespace, key, ages.NEVER, -1)[0]


def lookup(
    connection: Connection,
    namespace: str,
    key: str,
    request: ByteRequest | None = None,
    fresh_after: int = ages.EVER,
    *,
    may_wait: bool = True,
    located: Located | None = None,
) -> EntryState:
    """Look the key up, with the bytes of the request if a value or a range of it is fresh.

    Parameters
    ----------
    fresh_after
        What was stored at this time or earlier is stale, and is not read.
    may_wait
        Whether this may block on the disk. If not, and it would, `EntryState.read` is left to do.
    located
        Where its bytes are, if that was just looked up.
    """
    data_file = connection.data_file
    last_attempt: object = None
    while True:
        found, identity_checksum, part = located or _locate(
            connection, namespace, key, request, fresh_after
        )
        located = None
        if found.is_damaged or not found.has_bytes(fresh_after):
            return found
        start, stop = part or byte_range.span(request, found.size)
        file = read = None
        try:
            if found.offset is None or data_file is None:
                value = _bytes(connection, found, identity_checksum, start, stop)
                return found if value is found.data else found._replace(data=value)
            file = data_file.opened(connection)
            read = _read(connection, file, found, identity_checksum, start, stop)
            data = read.wait() if may_wait else read.now()
        except DamagedValueError:
            # The entry is damaged, unless it was replaced since or its bytes were moved: then a
            # second attempt finds another row, other extents or another data file.
            attempt = (found.row, read and read.extents, file and file.file_id)
            if attempt == last_attempt:
                return found._replace(data=None, is_damaged=True)
            last_attempt = attempt
            if data_file is not None and file is not None:
                data_file.is_replaced(file)
        else:
            return found.with_bytes(data, read if data is None else None)


def _locate(
    connection: Connection, namespace: str, key: str, request: ByteRequest | None, fresh_after: int
) -> Located:
    """The fresh value of the key, or else a range of it; if there is none, the row of the key."""
    row, identity_checksum = _facts(connection, namespace, key, fresh_after, MAX_INLINE_BYTES)
    if row.has_bytes(fresh_after) or request is None or not row.file_ranges:
        return row, identity_checksum, None
    for place in ranges.places_of(request):
        (found,) = ranges.find(connection, namespace, key, [place], fresh_after, MAX_INLINE_BYTES)
        located = _fit(row, namespace, key, request, found, fresh_after)
        if located[0] is not row:
            return located
    return row, 0, None


def _fit(
    row: EntryState,
    namespace: str,
    key: str,
    request: ByteRequest,
    found: ranges.FoundRange | None,
    fresh_after: int,
) -> Located:
    """The range, if it is fresh and has the bytes of the request; otherwise the row of the key."""
    if found is None:
        return row, 0, None
    # On a damaged page, a column may have another type than its table allows.
    if not found.has_integers:
        state = row._replace(entry=found.entry, kind="range", size=0, stored_at=0)
        return state._replace(checksum=found.checksum, is_damaged=True), 0, None
    span = found.span
    part = span.part_for(request)
    if part is None or found.as_of <= fresh_after:
        return row, 0, None
    identity_checksum = ranges.facts_of(namespace, key, span, found.stored_at)
    # As `row._replace` with the columns from `checksum` to `length`, in a third of the time.
    facts = (found.entry, "range", found.size, found.stored_at, row.writes_in_flight)
    state = EntryState._make((*row[:5], *facts, *found[4:13], None, False))
    version = checksum.of_version(found.validator, found.confirmed_at)
    if identity_checksum ^ version != found.checksum:
        state = state._replace(data=None, is_damaged=True)
    return state, identity_checksum, part


def _read(
    connection: Connection,
    file: OpenFile,
    found: EntryState,
    identity_checksum: int,
    start: int,
    stop: int,
) -> Read:
    """The read of the data file for these bytes: whole blocks, each with its checksum."""
    if start >= stop:
        return Read(file, [], identity_checksum, 0, b"", 0, 0)
    one, last = start // checksum.BLOCK, -(-stop // checksum.BLOCK)
    begin, end = one * checksum.BLOCK, min(last * checksum.BLOCK, found.size)
    first = (found.offset, found.length, found.checksums)
    where, sums = values.locate(connection, found.entry or 0, found.size, begin, end, first)
    return Read(file, where, identity_checksum, one, sums, start - begin, stop - begin)


def _facts(
    connection: Connection, namespace: str, key: str, fresh_after: int, inline: int
) -> tuple[EntryState, int]:
    """The row, with a fresh value of up to `inline` bytes, and the checksum it must have."""
    parameters = (inline, namespace, key, fresh_after, extents.MIN_BYTES, fresh_after)
    row = connection.execute(LOOKUP, parameters).fetchone()
    # On a damaged page, a column may have another type than its table allows.
    if row is None or not type(row[0]) is type(row[1]) is type(row[2]) is int:
        raise FileDamagedError("a revision or a total is missing, or is no integer")
    found = EntryState(*row)
    if found.entry is None:
        return found, 0
    if not type(found.size) is type(found.stored_at) is type(found.as_of) is int:
        found = found._replace(size=0, stored_at=0, confirmed_at=None, data=None)
        return found._replace(is_damaged=True), 0
    if found.kind == "tombstone":
        return found, 0
    identity_checksum = checksum.of_facts(
        namespace, key, str(found.kind), found.size, found.stored_at
    )
    version = checksum.of_version(found.validator, found.confirmed_at)
    if identity_checksum ^ version != found.checksum or found.size < 0:
        # The bytes that came with the row are neither verified nor cut to the request.
        found = found._replace(data=None, is_damaged=True)
    return found, identity_checksum


def _bytes(
    connection: Connection, found: EntryState, identity_checksum: int, start: int, stop: int
) -> Data:
    """The bytes ``[start, stop)`` of the entry, from the table ``value``, verified."""
    sums = b"" if found.checksums is None else found.checksums
    if not isinstance(sums, bytes):
        raise DamagedValueError("the checksums are no blob")
    if found.data is not None:
        if not isinstance(found.data, bytes):
            raise DamagedValueError("the value is no blob")
        values.verify(identity_checksum, 0, found.data, sums)
        return found.data[start:stop]
    if start >= stop:
        return b""
    first = (found.part, found.part_length, sums)
    return values.read_any(
        connection, found.entry or 0, identity_checksum, found.size, start, stop, first
    )


def lookup_many(
    connection: Connection,
    namespace: str,
    key: str,
    requests: Sequence[ByteRequest | None],
    fresh_after: int,
    row: EntryState,
    *,
    may_wait: bool = True,
) -> list[EntryState]:
    """`lookup` for each request, in their order. `row` is that of the key, from a moment before."""
    wanted = [each for each in requests if isinstance(each, RangeByteRequest)]
    many: list[Located | None] = [None] * len(requests)
    if len(wanted) == len(requests) and not row.has_bytes(fresh_after):
        places = [each.start for each in wanted]
        found = ranges.find(connection, namespace, key, places, fresh_after, MAX_INLINE_BYTES)
        many = [
            _fit(row, namespace, key, request, each, fresh_after)
            for request, each in zip(wanted, found, strict=True)
        ]
    return [
        lookup(connection, namespace, key, request, fresh_after, may_wait=may_wait, located=located)
        for request, located in zip(requests, many, strict=True)
    ]
