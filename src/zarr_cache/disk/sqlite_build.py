"""The SQLite that this Python uses: its version, and whether it has the WAL-reset fault."""

from __future__ import annotations

import sqlite3

from zarr_cache.disk.paths import HAS_LOCKS

FIXED = (3, 51, 3)
"""The first version without the fault."""

BACKPORTS = ((3, 44, 6), (3, 50, 7))
"""Earlier versions to which the correction was carried back, with those of the same series after
them."""


def has_wal_reset_fault(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Whether two processes that write at the same instant may damage a database with a WAL.

    A checkpoint that begins while another process begins the WAL anew may record pages as written
    to the database that are not (https://sqlite.org/wal.html#walresetbug).
    """
    is_carried_back = any(version[:2] == each[:2] and version >= each for each in BACKPORTS)
    return version < FIXED and not is_carried_back


def description() -> str:
    """The version, and what is known of it, in a line."""
    if not has_wal_reset_fault():
        return sqlite3.sqlite_version
    # Processes of the cache take a lock where there is one: see `locked_wal`.
    concerned = "other programs" if HAS_LOCKS else "several processes"
    return (
        f"{sqlite3.sqlite_version}, which has the WAL-reset fault: it concerns files to which "
        f"{concerned} write; {'.'.join(map(str, FIXED))} and later versions do not have it"
    )
