"""How much room the files take, and giving back what is free: operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.disk import data_file
from zarr_cache.disk.data_file import HEADER
from zarr_cache.index import extents as index_extents

if TYPE_CHECKING:
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.extents import Reservation


USAGE = """
SELECT usage.kind, usage.entries, usage.bytes
FROM usage
JOIN namespace ON namespace.id = usage.namespace
WHERE namespace.name = :namespace
"""


TOTAL = """
SELECT kind, bytes
FROM total
"""


class Usage(NamedTuple):
    """How many entries and bytes, by kind of entry, of a namespace; and bytes of the whole file."""

    entries: dict[str, int]
    bytes: dict[str, int]
    total_bytes: dict[str, int]


def usage(connection: Connection, namespace: str) -> Usage:
    """What the namespace and the file hold."""
    with connection.reading():
        own = connection.execute(USAGE, {"namespace": namespace}).fetchall()
        total = connection.execute(TOTAL).fetchall()
    return Usage(
        {kind: entries for kind, entries, _ in own},
        {kind: size for kind, _, size in own},
        dict(total),
    )


STEP = 8 * 2**20


MAX_CUT_LATER = 2**20


LAST = """
SELECT entry, start, offset, length, (SELECT checksum FROM entry WHERE id = extent.entry)
FROM extent
ORDER BY offset DESC
LIMIT 1
"""


# Another value may have the same offset, under the same number.
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


PUT_ASIDE = """
UPDATE extent
SET entry = -:id,
    start = :old
WHERE entry = :entry AND start = :start
"""


def is_too_long(connection: Connection, max_size: int | None) -> bool:
    """Whether the data file is longer than it may be: `max_size` is smaller than before."""
    most = index_extents.most_length(max_size)
    return most is not None and index_extents.length(connection) > most


def move_last(connection: Connection, now_ns: int) -> bool:
    """Move the bytes at the end of the data file to the front, some at most: an operation.

    No lock is held while they are copied. Whoever reads them meanwhile finds them where they were,
    or looks again.

    Returns
    -------
    bool
        Whether anything was moved.
    """
    with connection.writing_much():
        last = connection.execute(LAST).fetchone()
        free = index_extents.free_bytes(connection)
        if last is None or last[0] < 0 or not free or connection.data_file is None:
            return False
        entry, start, offset, long, checked = last
        count = min(long, free, STEP)
        data = connection.data_file
        file = data.opened_to_write(connection)
        index_extents.release_dead(connection, now_ns)
        # So much is free: the file does not grow.
        reserved = index_extents.reserve(connection, file, count, now_ns, 0, is_counted=False)
    try:
        data_file.copy(file, data.path, offset + long - count, reserved.extents)
        with connection.writing_much():
            as_read = {
                "entry": entry,
                "start": start,
                "offset": offset,
                "length": long,
                "checksum": checked,
            }
            is_same = connection.execute(IS_SAME, as_read).fetchone()
            if is_same and index_extents.is_reserved(connection, reserved.id):
                _replace_tail(connection, reserved, entry, start, offset, long, count)
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
    long: int,
    count: int,
) -> None:
    """Let the last bytes of an extent be where they were copied; free them where they were."""
    old = {"entry": entry, "start": start, "id": reserved.id, "old": index_extents.OLD}
    if count == long:
        connection.execute(PUT_ASIDE, old)
    else:
        connection.execute(SHORTEN, {"entry": entry, "start": start, "length": long - count})
        tail = {
            "entry": -reserved.id,
            "start": index_extents.OLD,
            "offset": offset + long - count,
            "length": count,
        }
        connection.execute(index_extents.ADD, tail)
    connection.execute(
        index_extents.GIVE_EXTENTS,
        {
            "id": reserved.id,
            "entry": entry,
            "after": start + long - count,
            "old": index_extents.OLD,
        },
    )


def cut(connection: Connection) -> None:
    """Give what is behind the last extent back to the disk: an operation."""
    with connection.writing():
        cut_off(connection)


def cut_off(connection: Connection) -> None:
    """The same, in a write transaction: nobody has been given space behind the last extent.

    If that transaction is rolled back, what was reserved there has no bytes, and no entry either.
    """
    data = connection.data_file
    file = None if data is None else data.opened_to_cut(connection)
    if data is not None and file is not None:
        data_file.cut(file, data.path, max(HEADER, index_extents.length(connection)))


def has_much_to_cut(connection: Connection) -> bool:
    """Whether so much lies behind the last extent that it is to be cut off."""
    data = connection.data_file
    file = None if data is None else data.opened_to_cut(connection)
    if file is None:
        return False
    return data_file.size_of(file) > index_extents.length(connection) + MAX_CUT_LATER


STEP_BYTES = 2**20


"""So much is given back in one transaction: others may write in between."""


MAX_FREE_BYTES = 4 * 2**20


"""So much may stay free in a file that is in use, for what comes next."""


INCREMENTAL = 2


"""What ``PRAGMA auto_vacuum`` tells of a file that can give pages back."""


class Space(NamedTuple):
    """Bytes of the file, and how many of them are in pages that hold nothing."""

    bytes: int
    free_bytes: int
    can_shrink: bool


def space(connection: Connection) -> Space:
    """How large the file is, with what of its log is not written back yet."""
    with connection.reading():
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (auto_vacuum,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    return Space(pages * page_size, free * page_size, auto_vacuum == INCREMENTAL)


def has_much_free(connection: Connection) -> bool:
    """Whether so many pages hold nothing that some are to be given back."""
    found = space(connection)
    return found.can_shrink and found.free_bytes > MAX_FREE_BYTES


def give_back(connection: Connection) -> int:
    """Give back free pages, `STEP_BYTES` at most, and tell how many bytes that was.

    Not by ``VACUUM``, which would write the whole file anew and block everybody meanwhile. Moves
    pages from the end of the file into those that are free and cuts the end off; the file itself is
    cut when the log is written back.
    """
    (page_size,) = connection.execute("PRAGMA page_size").fetchone()
    with connection.writing_much():
        (before,) = connection.execute("PRAGMA freelist_count").fetchone()
        # All rows are to be read: each is a page.
        connection.execute(f"PRAGMA incremental_vacuum({STEP_BYTES // page_size})").fetchall()
        (after,) = connection.execute("PRAGMA freelist_count").fetchone()
    return int(before - after) * int(page_size)


def write_back(connection: Connection) -> bool:
    """Write the log into the file and cut it to nothing; False if somebody reads or writes."""
    (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not is_busy
