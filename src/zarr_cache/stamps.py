"""The newest time in a file, from which its clock goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_cache.clock import resumed_ns

if TYPE_CHECKING:
    import sqlite3

# Along the index entry_by_use. No other stamp is newer: what is stored is used at that time.
# A stamp from which the clock could not count on, far beyond the year 2100, is not one of ours.
NEWEST = """
SELECT coalesce(max(used_at), 0)
FROM (
    SELECT max(used_at) AS used_at FROM entry WHERE kind = 'stored' AND used_at < 1 << 62
    UNION ALL
    SELECT max(used_at) FROM entry WHERE kind = 'value' AND used_at < 1 << 62
    UNION ALL
    SELECT max(used_at) FROM entry WHERE kind = 'absent' AND used_at < 1 << 62
    UNION ALL
    SELECT max(used_at) FROM entry WHERE kind = 'fence' AND used_at < 1 << 62
)
"""


def floor_ns(connection: sqlite3.Connection, written_ns: int) -> int:
    """The time that a clock of the file begins with, at least.

    Parameters
    ----------
    written_ns
        When the file was last written, see `cache_file.written_ns`; from before it was opened.
    """
    (newest_ns,) = connection.execute(NEWEST).fetchone()
    return resumed_ns(newest_ns, written_ns)
