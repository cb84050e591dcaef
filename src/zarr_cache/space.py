"""Pages of the file: how many may be in use, and giving back those that are not: operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr_cache import checksum, values
from zarr_cache.connection import PAGE_SIZE
from zarr_cache.errors import FileDamagedError

if TYPE_CHECKING:
    from zarr_cache.connection import Connection

STEP_BYTES = 2**20
"""So much is given back in one transaction: others may write in between."""

MOST_FREE_BYTES = 4 * 2**20
"""So much may stay free in a file that is in use, for what comes next."""

ROOM_BYTES = 2 * 2**20
"""What is in use of the file may be so much more than 1.1 times `max_size`. With a MiB for what a
transaction adds, and the log, this is less than 16 MiB. See docs/decisions/0012."""

ROW_BYTES = 256
"""About what a row takes with its places in the indexes, in bytes: so much is freed with each."""

MOST_ROW_BYTES = 4096
"""No row takes more than this and twice the bytes of its value, but for very long keys."""

STORED_ROW_BYTES = 1024
"""What a row takes of what is stored: rather too much than too little."""

INCREMENTAL = 2
"""What ``PRAGMA auto_vacuum`` tells of a file that can give pages back."""


# `PRAGMA page_count` and `freelist_count` are in the header of the file: nothing is walked.
IN_USE = """
SELECT
    page_count * page_size,
    (page_count - freelist_count) * page_size,
    value.entries,
    value.bytes,
    stored.entries,
    stored.bytes,
    absent.entries,
    fence.entries
FROM
    pragma_page_count,
    pragma_page_size,
    pragma_freelist_count,
    total AS value,
    total AS stored,
    total AS absent,
    total AS fence
WHERE value.kind = 'value'
  AND stored.kind = 'stored'
  AND absent.kind = 'absent'
  AND fence.kind = 'fence'
"""


def most_bytes(max_size: int) -> int:
    """How many bytes of pages may be in use for answers."""
    return max_size * 11 // 10 + ROOM_BYTES


def bytes_on_disk(nbytes: int) -> int:
    """About how many bytes of pages a value of so many bytes has, with its row."""
    whole, rest = divmod(nbytes, values.PART)
    return ROW_BYTES + whole * _bytes_of_part(values.PART) + (_bytes_of_part(rest) if rest else 0)


def _bytes_of_part(nbytes: int) -> int:
    """The same of one part alone: how much SQLite leaves in the page of its row, and in others.

    See "Cell Payload Overflow Pages" in https://www.sqlite.org/fileformat.html.
    """
    payload = nbytes + checksum.LENGTH * -(-nbytes // checksum.BLOCK) + 16
    here, most_here = payload, PAGE_SIZE - 35
    if payload > most_here:
        least_here = (PAGE_SIZE - 12) * 32 // 255 - 23
        here = least_here + (payload - least_here) % (PAGE_SIZE - 4)
        if here > most_here:
            here = least_here
    rows_of_a_page = (PAGE_SIZE - 8) // (here + 12)
    return -(-(payload - here) // (PAGE_SIZE - 4)) * PAGE_SIZE + PAGE_SIZE // rows_of_a_page


class Space(NamedTuple):
    """Bytes of the file, and how many of them are in pages that hold nothing."""

    bytes: int
    free_bytes: int
    can_shrink: bool


class InUse(NamedTuple):
    """What the file holds, in bytes of its pages and of its values.

    Attributes
    ----------
    pages
        All of them, whether they hold something or not.
    pages_in_use
        Those that do.
    """

    pages: int
    pages_in_use: int
    values: int
    value_bytes: int
    stored: int
    stored_bytes: int
    absent: int
    fences: int

    def most_bytes(self, max_size: int) -> int:
        """How many bytes of pages may be in use, with what is stored."""
        stored = 2 * self.stored_bytes + STORED_ROW_BYTES * self.stored
        return most_bytes(max_size) + stored

    @property
    def most_of_answers(self) -> int:
        """At most so many bytes of the pages in use are there for answers and fences."""
        rows = self.values + self.absent + self.fences
        return min(self.pages_in_use, 2 * self.value_bytes + MOST_ROW_BYTES * rows)

    def is_limited(self, max_size: int) -> bool:
        """Whether pages may lack for answers: they do not where others would hold too many.

        What is stored may leave its pages half empty, and nobody knows what a table of somebody's
        own takes. Neither is ours to remove, and to remove all else would not help.
        """
        others = self.pages_in_use - self.most_of_answers
        return self.stored == 0 and others <= most_bytes(max_size)


def space(connection: Connection) -> Space:
    """How large the file is, with what of its log is not written back yet."""
    with connection.reading():
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        (auto_vacuum,) = connection.execute("PRAGMA auto_vacuum").fetchone()
    return Space(pages * page_size, free * page_size, auto_vacuum == INCREMENTAL)


def in_use(connection: Connection) -> InUse:
    """What the file holds."""
    row = connection.execute(IN_USE).fetchone()
    # On a page that is damaged, a column has another type than its table allows.
    if row is None or not all(type(number) is int for number in row):
        raise FileDamagedError("a total is missing, or is no integer")
    return InUse(*row)


def has_much_free(connection: Connection, max_size: int | None) -> bool:
    """Whether so many pages hold nothing that some are to be given back.

    Of a file that has more pages than may be in use, those that make a step.
    """
    found = space(connection)
    if not found.can_shrink or found.free_bytes < STEP_BYTES:
        return False
    if found.free_bytes > MOST_FREE_BYTES:
        return True
    return max_size is not None and found.bytes > in_use(connection).most_bytes(max_size)


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
