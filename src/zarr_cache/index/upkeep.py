"""Upkeep: what was collected in memory is written to the file, and free space given back.

All are operations, or steps of operations that write other rows as well.
"""

from __future__ import annotations

from itertools import batched
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core import checksum
from zarr_cache.disk import data_file
from zarr_cache.disk.data_file import HEADER
from zarr_cache.index import extents as index_extents
from zarr_cache.index.lookup import NEW_NAMESPACE
from zarr_cache.sampling import stored

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zarr_cache.file.connection import Connection
    from zarr_cache.index.extents import Reservation
    from zarr_cache.sampling.sample import Batch
    from zarr_cache.sampling.stored import Sampled


MAX_USES = 128
"""At most this many uses are written in one transaction of a file with many entries, where each
changes two pages of its own: the WAL stays short."""

FEW_ENTRIES = 16_384
"""The rows and indexes of so few entries have no more pages than `MAX_USES` uses change."""

ENTRIES = """
SELECT sum(entries)
FROM total
"""

TOUCH = """
UPDATE entry
SET used_at = :used_at
WHERE id = :entry AND used_at < :used_at AND kind IN ('value', 'range', 'absent')
"""

# The row is that which was confirmed: its checksum is of its facts and its version.
CONFIRM = """
UPDATE entry
SET confirmed_at = :confirmed_at,
    checksum = :checksum
WHERE id = :entry AND checksum = :before AND validator IS NOT NULL
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


class Confirmation(NamedTuple):
    """The source still has the version of an entry.

    Attributes
    ----------
    entry, checksum, validator, before
        The row as it was found; `before` is its `confirmed_at`.
    confirmed_at
        When the source was asked.
    """

    entry: int
    checksum: int
    validator: str
    before: int | None
    confirmed_at: int


def write(
    connection: Connection,
    counts: Mapping[str, Mapping[str, int]],
    touches: Mapping[int, int],
    confirmations: Sequence[Confirmation] = (),
    reads: Batch | None = None,
    max_size: int | None = None,
) -> Sampled | None:
    """Write the counts by namespace and column, and the time of the last use by entry.

    And when entries were confirmed, and add the reads to the sample; `max_size` is the budget. In
    short transactions. Returns what has come of the reads.
    """
    touches = write_batches(connection, touches)
    for batch in batched(confirmations, MAX_USES):
        with connection.writing_much():
            connection.executemany(CONFIRM, list(map(_confirmed, batch)))
    with connection.writing_much():
        write_touches(connection, touches)
        write_counts(connection, counts)
        if reads is None or connection.has_long_wal():
            return None
        return stored.add(connection, reads, max_size)


def sample(connection: Connection, reads: Batch, max_size: int | None) -> Sampled | None:
    """Add the reads to the sample; `max_size` is the budget. Returns what has come of them."""
    with connection.writing_much():
        return None if connection.has_long_wal() else stored.add(connection, reads, max_size)


def _confirmed(each: Confirmation) -> dict[str, int]:
    facts = each.checksum ^ checksum.of_version(each.validator, each.before)
    return {
        "entry": each.entry,
        "before": each.checksum,
        "confirmed_at": each.confirmed_at,
        "checksum": facts ^ checksum.of_version(each.validator, each.confirmed_at),
    }


def write_batches(connection: Connection, touches: Mapping[int, int]) -> Mapping[int, int]:
    """Write the uses in batches; return the last batch, for the caller to write with its rows."""
    if len(touches) <= MAX_USES or _has_few_entries(connection):
        return touches
    *batches, last = batched(touches.items(), MAX_USES)
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


MAX_MOVED_BYTES = 8 * 2**20
"""At most so many bytes of the data file are moved at a time."""

MAX_CUT_LATER = 2**20
"""So many bytes after the last extent are left for the next values."""

LAST = """
SELECT entry, start, offset, length, (SELECT checksum FROM entry WHERE id = extent.entry)
FROM extent
ORDER BY offset DESC
LIMIT 1
"""

# The space may have been given to another value since, under the same number of an entry.
IS_SAME = """
SELECT 1
FROM extent
WHERE entry = :entry
  AND start = :start
  AND offset = :offset
  AND length = :length
  AND (SELECT checksum FROM entry WHERE id = :entry) = :checksum
"""

SHORTEN = """
UPDATE extent
SET length = :length
WHERE entry = :entry AND start = :start
"""

MARK_FREED = """
UPDATE extent
SET entry = -:id,
    start = :freed
WHERE entry = :entry AND start = :start
"""


def is_too_long(connection: Connection, max_size: int | None) -> bool:
    """Whether the data file is longer than its limit, as after `max_size` became smaller."""
    longest = index_extents.max_length_of(max_size)
    return longest is not None and index_extents.length(connection) > longest


def move_last(connection: Connection, now_ns: int) -> bool:
    """Move bytes from the end of the data file to free space before it: an operation.

    At most `MAX_MOVED_BYTES`; False if nothing was moved. No lock is held while they are copied. A
    reader finds them at the old offset, or looks them up again.
    """
    with connection.writing_much():
        last = connection.execute(LAST).fetchone()
        free = index_extents.free_bytes(connection)
        if last is None or last[0] < 0 or not free or connection.data_file is None:
            return False
        entry, start, offset, length, checksum = last
        count = min(length, free, MAX_MOVED_BYTES)
        data = connection.data_file
        file = data.opened_to_write(connection)
        index_extents.release_expired(connection, now_ns)
        # There is enough free space: the file does not grow.
        reserved = index_extents.reserve(connection, file, count, now_ns, 0, is_counted=False)
    try:
        data_file.copy(file, data.path, offset + length - count, reserved.extents)
        with connection.writing_much():
            as_read = {
                "entry": entry,
                "start": start,
                "offset": offset,
                "length": length,
                "checksum": checksum,
            }
            is_same = connection.execute(IS_SAME, as_read).fetchone()
            if is_same and index_extents.is_reserved(connection, reserved.id):
                _replace_tail(connection, reserved, entry, start, offset, length, count)
            index_extents.release(connection, reserved.id)
    except BaseException:
        with connection.writing():
            index_extents.release(connection, reserved.id)
        raise
    return True


def _replace_tail(
    connection: Connection,
    reserved: Reservation,
    entry: int,
    start: int,
    offset: int,
    length: int,
    count: int,
) -> None:
    """Point the entry to the copy of the last bytes of an extent, and free the original."""
    row = {"entry": entry, "start": start, "id": reserved.id, "freed": index_extents.FREED_START}
    if count == length:
        connection.execute(MARK_FREED, row)
    else:
        connection.execute(SHORTEN, {"entry": entry, "start": start, "length": length - count})
        tail = {
            "entry": -reserved.id,
            "start": index_extents.FREED_START,
            "offset": offset + length - count,
            "length": count,
        }
        connection.execute(index_extents.ADD, tail)
    connection.execute(
        index_extents.GIVE_EXTENTS,
        {
            "id": reserved.id,
            "entry": entry,
            "after": start + length - count,
            "freed": index_extents.FREED_START,
        },
    )


def cut(connection: Connection) -> None:
    """Truncate the data file after its last extent: an operation."""
    with connection.writing():
        cut_off(connection)


def cut_off(connection: Connection) -> None:
    """Truncate the data file in a write transaction, in which no other process can reserve space.

    If the transaction is rolled back, a reservation after the last extent has no bytes; it has no
    entry either.
    """
    data = connection.data_file
    file = None if data is None else data.opened_to_cut(connection)
    if data is not None and file is not None:
        data_file.cut(file, data.path, max(HEADER, index_extents.length(connection)))


def has_much_to_cut(connection: Connection) -> bool:
    """Whether more than `MAX_CUT_LATER` bytes are after the last extent."""
    data = connection.data_file
    file = None if data is None else data.opened_to_cut(connection)
    if file is None:
        return False
    return data_file.size_of(file) > index_extents.length(connection) + MAX_CUT_LATER


MAX_VACUUM_BYTES = 2**20
"""At most so many bytes are given back in one transaction: other processes can write in between."""

MAX_FREE_BYTES = 4 * 2**20
"""So many bytes may stay free in a file that is in use, for the next entries."""

INCREMENTAL = 2
"""``PRAGMA auto_vacuum`` of a file that can give pages back."""


class Space(NamedTuple):
    """Bytes of the file, and bytes of its free pages."""

    bytes: int
    free_bytes: int
    can_shrink: bool


def space(connection: Connection) -> Space:
    """The size of the file, with the pages of the WAL that are not in it yet."""
    with connection.reading():
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (auto_vacuum,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    return Space(pages * page_size, free * page_size, auto_vacuum == INCREMENTAL)


def has_much_free(connection: Connection) -> bool:
    """Whether more than `MAX_FREE_BYTES` are in free pages that can be given back."""
    found = space(connection)
    return found.can_shrink and found.free_bytes > MAX_FREE_BYTES


def give_back(connection: Connection) -> int:
    """Give back free pages, at most `MAX_VACUUM_BYTES`; return the number of bytes.

    ``VACUUM`` would write the whole file again and block all processes meanwhile. This moves pages
    from the end of the file into free pages; the next checkpoint truncates the file.
    """
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    with connection.writing_much():
        (before,) = connection.execute("PRAGMA freelist_count").fetchone()
        # Each row that is read frees a page.
        connection.execute(f"PRAGMA incremental_vacuum({MAX_VACUUM_BYTES // page_size})").fetchall()
        (after,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(before - after) * int(page_size)


def checkpoint(connection: Connection) -> bool:
    """Write the WAL into the file and truncate it; False if another connection reads or writes."""
    with connection.as_only_writer():
        (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not is_busy
