"""What is cached of a key, and below a prefix: operations."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core import ages, byte_range, checksum
from zarr_cache.core.checksum import DamagedValueError
from zarr_cache.core.errors import FileDamagedError, is_code
from zarr_cache.core.keys import prefix_end
from zarr_cache.disk.data_file import Extent
from zarr_cache.disk.data_read import Read
from zarr_cache.index import extents, values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.disk.data_file import OpenFile
    from zarr_cache.file.connection import Connection


type Data = bytes | ByteArray


"""For `fresh_after`: every age is fresh, and none is."""


LONGEST_WRITE_NS = 3600 * 1_000_000_000


"""A write that has not ended after this time never will: its process has died."""


HAVE_BYTES = frozenset({"value", "stored"})


"""The kinds of entries that have bytes."""


INLINE = 64 * 1024


"""Values of up to this many bytes come with the facts, in one statement.
See docs/decisions/0002."""


NEW_NAMESPACE = """
INSERT INTO namespace (name, fence)
SELECT :namespace, fence
FROM counter
WHERE true
ON CONFLICT DO NOTHING
"""


# By position: a dict of names costs a fifth of the whole, and at numbers (?1) Python 3.12.1 warns.
# What comes of the first part is checked for its length before it is read, whatever the file says
# of itself. To search for NULL takes no time: only what may be in the data file is looked for.
LOOKUP = """
SELECT
    counter.revision,
    (SELECT bytes FROM total WHERE kind = 'value'),
    max(coalesce(namespace.fence, counter.fence), coalesce(entry.revision, 0)),
    namespace.removals_since,
    entry.id,
    entry.kind,
    entry.size,
    entry.stored_at,
    entry.writes_in_flight,
    entry.checksum,
    value.rowid,
    length(value.data),
    CASE WHEN length(value.checksums) <= 512 THEN value.checksums END,
    CASE WHEN entry.size <= ? AND length(value.data) = entry.size THEN value.data END,
    extent.offset,
    extent.length
FROM counter
LEFT JOIN namespace ON namespace.name = ?
LEFT JOIN entry ON entry.namespace = namespace.id AND entry.key = ?
LEFT JOIN value ON value.entry = entry.id AND value.part = 0 AND entry.stored_at > ?
LEFT JOIN extent
    ON extent.entry = CASE WHEN entry.size >= ? AND entry.stored_at > ? THEN entry.id END
    AND extent.start = 0
WHERE counter.id = 1
"""


IS_THERE = """
SELECT 1
FROM entry
WHERE id = :entry
"""


CHECKSUMS = """
SELECT checksums
FROM value
WHERE entry = :entry AND part = 0
"""


class EntryState(NamedTuple):
    """What the file knows of a key.

    Attributes
    ----------
    revision
        Of the last write that the file has seen: hand it back with what is fetched from now on.
    cached_bytes
        Bytes of all value entries in the file.
    fence
        Revision of the last write to the key: what was fetched at an earlier one is no answer.
    removals_since
        When the first removal of a folder of the source began that is under way; None when there is
        none.
    entry, kind, size, stored_at, writes_in_flight, checksum
        The row of the key; None when there is none.
    part, part_length, checksums
        Of the first part of fresh bytes: its row, its length in bytes, and the checksums of its
        blocks.
    data
        The bytes asked for, verified; None unless the key has bytes that are fresh.
    offset, length
        Of the first extent of fresh bytes in the data file.
    read
        What would bring the bytes asked for, where a disk must be waited for.
    is_damaged
        The row or its bytes are not what was written.
    """

    revision: int
    cached_bytes: int
    fence: int
    removals_since: int | None
    entry: int | None
    kind: str | None
    size: int
    stored_at: int
    writes_in_flight: int | None
    checksum: int
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
        """What the row of the key says."""
        return (
            self.entry,
            self.kind,
            self.size,
            self.stored_at,
            self.writes_in_flight,
            self.checksum,
        )

    def with_bytes(self, data: Data | None, read: Read | None) -> EntryState:
        """The same with the bytes asked for, or with what would bring them."""
        # As `_replace`, in a third of the time.
        return EntryState(*self[:13], data, self.offset, self.length, read)

    def is_overtaken(self, revision: int, now_ns: int) -> bool:
        """Whether what was asked of the source at `revision` is no answer any more."""
        dead_before = now_ns - LONGEST_WRITE_NS
        is_written = bool(self.writes_in_flight) and self.stored_at > dead_before
        since = self.removals_since
        # On a page that is damaged, it is of another type than its table allows.
        is_removed = since is not None and not (type(since) is int and since <= dead_before)
        return self.fence > revision or is_written or is_removed


def nothing(connection: Connection) -> None:
    """Do nothing: to run this is to open the database."""


def lookup_metadata(connection: Connection, namespace: str, key: str) -> EntryState:
    """What the file knows of the key, without its bytes."""
    return _facts(connection, namespace, key, ages.NEVER, -1)[0]


def is_there(connection: Connection, entry: int) -> bool:
    """Whether there is an entry of this number."""
    return connection.execute(IS_THERE, {"entry": entry}).fetchone() is not None


def checksums(connection: Connection, entry: int) -> bytes | None:
    """The checksums of a value of which the bytes are kept elsewhere; None if there are none."""
    row = connection.execute(CHECKSUMS, {"entry": entry}).fetchone()
    return None if row is None else bytes(row[0])


def lookup(
    connection: Connection,
    namespace: str,
    key: str,
    request: ByteRequest | None = None,
    fresh_after: int = ages.EVER,
    *,
    may_wait: bool = True,
) -> EntryState:
    """What the file knows of the key, with the bytes that `request` asks for if they are fresh.

    Parameters
    ----------
    fresh_after
        What was stored at this time or earlier is not read.
    may_wait
        Whether the disk may be waited for. If not, and it must be, `EntryState.read` does so.
    """
    data_file = connection.data_file
    tried: object = None
    while True:
        found, seed = _facts(connection, namespace, key, fresh_after, INLINE)
        if found.is_damaged or found.kind not in HAVE_BYTES or found.stored_at <= fresh_after:
            return found
        file = read = None
        try:
            if found.offset is None or data_file is None:
                data = _bytes(connection, found, seed, request)
                return found if data is found.data else found._replace(data=data)
            file = data_file.opened(connection)
            read = _read(connection, file, found, seed, request)
            brought = read.wait() if may_wait else read.now()
        except DamagedValueError:
            # It is damaged unless another value has taken its place since, or its bytes are
            # elsewhere now: moved, or in another data file.
            trial = (found.row, read and read.extents, file and file.place)
            if trial == tried:
                return found._replace(data=None, is_damaged=True)
            tried = trial
            if data_file is not None and file is not None:
                data_file.is_replaced(file)
        else:
            return found.with_bytes(brought, read if brought is None else None)


def _read(
    connection: Connection,
    file: OpenFile,
    found: EntryState,
    seed: int,
    request: ByteRequest | None,
) -> Read:
    """What brings the bytes asked for out of the data file: whole blocks, each with its checksum.

    Raises
    ------
    DamagedValueError
        Their places or their checksums are missing.
    """
    start, stop = byte_range.span(request, found.size)
    if start >= stop:
        return Read(file, [], seed, 0, b"", 0, 0)
    one, last = start // checksum.BLOCK, -(-stop // checksum.BLOCK)
    begin, end = one * checksum.BLOCK, min(last * checksum.BLOCK, found.size)
    offset, length, sums = found.offset, found.length, found.checksums
    is_all_here = type(offset) is type(length) is int and isinstance(sums, bytes)
    if is_all_here and end <= min(length or 0, values.PART):
        where = [Extent((offset or 0) + begin, end - begin)]
        sums = (sums or b"")[one * checksum.LENGTH : last * checksum.LENGTH]
    else:
        where, sums = extents.located(connection, found.entry or 0, found.size, begin, end)
    return Read(file, where, seed, one, sums, start - begin, stop - begin)


def _facts(
    connection: Connection, namespace: str, key: str, fresh_after: int, inline: int
) -> tuple[EntryState, int]:
    """The row, with the bytes of a fresh value of up to `inline` bytes, and the row's checksum."""
    parameters = (inline, namespace, key, fresh_after, extents.LEAST, fresh_after)
    row = connection.execute(LOOKUP, parameters).fetchone()
    # On a page that is damaged, a column has another type than its table allows.
    if row is None or not type(row[0]) is type(row[1]) is type(row[2]) is int:
        raise FileDamagedError("a revision or a total is missing, or is no integer")
    found = EntryState(*row)
    if found.entry is None:
        return found, 0
    if not type(found.size) is type(found.stored_at) is int:
        return found._replace(size=0, stored_at=0, data=None, is_damaged=True), 0
    if found.kind == "tombstone":
        return found, 0
    seed = checksum.of_facts(namespace, key, str(found.kind), found.size, found.stored_at)
    if seed != found.checksum or found.size < 0:
        # What came with the facts has been neither verified nor cut to the request.
        found = found._replace(data=None, is_damaged=True)
    return found, seed


def _bytes(
    connection: Connection, found: EntryState, seed: int, request: ByteRequest | None
) -> Data:
    """The bytes asked for, verified.

    Raises
    ------
    DamagedValueError
        They are not those that were written with the facts, or are there no more.
    """
    sums = b"" if found.checksums is None else found.checksums
    if not isinstance(sums, bytes):
        raise DamagedValueError("the checksums are no blob")
    start, stop = byte_range.span(request, found.size)
    if found.data is not None:
        if not isinstance(found.data, bytes):
            raise DamagedValueError("the value is no blob")
        values.verify(seed, 0, found.data, sums)
        return found.data[start:stop]
    if start >= stop:
        return b""
    if found.size > values.PART:
        # All parts of one and the same value.
        with connection.reading():
            return values.read(connection, found.entry or 0, seed, found.size, start, stop)
    if found.part is None or found.part_length != found.size:
        raise DamagedValueError("the value is missing or has another length")
    try:
        return values.read_blob(connection, found.part, seed, 0, found.size, sums, start, stop)
    except sqlite3.OperationalError as error:
        if is_code(error, sqlite3.SQLITE_ERROR):
            raise DamagedValueError("the value is there no more") from error
        raise


def lookup_many(
    connection: Connection,
    namespace: str,
    key: str,
    requests: Sequence[ByteRequest | None],
    fresh_after: int,
    *,
    may_wait: bool = True,
) -> list[EntryState]:
    """`lookup` for each request, in their order."""
    return [
        lookup(connection, namespace, key, request, fresh_after, may_wait=may_wait)
        for request in requests
    ]


# Every text is less than a blob: the bound of a prefix that has no end. SQLite walks the index up
# to it; with "OR :end IS NULL" it would walk to the last key of the namespace.
#
# In the order of the rows, and not of the keys: SQLite checks a page each time it comes to it, and
# keys that were stored in another order lie on another page each. Without the LIMIT, SQLite takes
# the order of a subquery for needless.
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
WHERE entry.kind = 'value' AND entry.stored_at > :fresh_after
   OR entry.kind = 'absent' AND entry.stored_at > :absent_fresh_after
"""


type Kept = tuple[int, int | None]


"""The number of an entry, and the bytes of its value; None: the source has no such key."""


def list_cached(
    connection: Connection, namespace: str, prefix: str, fresh_after: int, absent_fresh_after: int
) -> dict[str, Kept]:
    """The entries of the keys that begin with `prefix`, as far as they are fresh; no value is read.

    Costs a walk over the entries below the prefix: some seconds for a million.

    Parameters
    ----------
    fresh_after, absent_fresh_after
        A value, an absence, stored at this time or earlier is stale.
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
