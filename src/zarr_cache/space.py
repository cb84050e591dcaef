"""Pages of the cache file that hold nothing, and giving them back: operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from zarr_cache.connection import Connection

STEP_BYTES = 2**20
"""So much is given back in one transaction: others may write in between."""

MOST_FREE_BYTES = 4 * 2**20
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
    return found.can_shrink and found.free_bytes > MOST_FREE_BYTES


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
