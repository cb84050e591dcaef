"""Uses and counts that wait in memory to be written into the file together."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import batched
from typing import TYPE_CHECKING

from zarr_cache.index import NEW_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zarr_cache.connection import Connection
    from zarr_cache.statistics import Statistics

MOST_PENDING = 1024
"""After this many uses they are written: a crash may lose as many."""

LONGEST_PENDING_NS = 10 * 10**9
"""The first use waits no longer than this if more come: other processes evict by what is in the
file."""

MOST_TOUCHES = 100_000
"""At most this many uses are remembered while the file cannot be written to."""

MOST_AT_ONCE = 128
"""At most this many uses are written in one transaction of a file with many entries, where each
changes two pages of its own: the log stays short."""

FEW_ENTRIES = 16_384
"""The rows and indexes of so many entries have no more pages than `MOST_AT_ONCE` uses change."""

ENTRIES = """
SELECT sum(entries)
FROM total
"""

TOUCH = """
UPDATE entry
SET used_at = :used_at
WHERE id = :entry AND used_at < :used_at AND kind IN ('value', 'absent')
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


class Pending:
    """Uses and counts that wait to be written into the file, so that a hit writes nothing.

    Any thread may call.

    Attributes
    ----------
    counted
        Those who have counted something since `gather`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._touches: dict[int, int] = {}
        # Stamps of the first use since these were last taken, and of the last.
        self._since = self._until = 0
        self._counts: dict[str, Counter[str]] = {}
        self.counted: set[Statistics] = set()

    def __len__(self) -> int:
        """Number of entries whose last use is not in the file yet."""
        return len(self._touches)

    @property
    def are_due(self) -> bool:
        """Whether it is time to write them: there are many, or the first is old."""
        return len(self._touches) >= MOST_PENDING or self._until - self._since >= LONGEST_PENDING_NS

    def touch(self, entry: int, used_at: int) -> bool:
        """Note a use of the entry; return whether they `are_due`."""
        with self._lock:
            if not self._touches:
                self._since = used_at
            self._until = used_at
            if len(self._touches) < MOST_TOUCHES:
                self._touches[entry] = used_at
            return self.are_due

    def take_touches(self) -> dict[int, int]:
        """The uses noted since the last call."""
        with self._lock:
            touches, self._touches = self._touches, {}
            self._since = self._until
        return touches

    def put_back(self, touches: dict[int, int]) -> None:
        """Undo `take_touches`: what took them has not been able to write them."""
        with self._lock:
            self._touches = {**touches, **self._touches}

    def gather(self) -> None:
        """Take over what was counted, so that nobody is kept here only because it has counted."""
        with self._lock:
            for _ in range(len(self.counted)):
                # Before it is asked: if it counts meanwhile, it is here again.
                statistics = self.counted.pop()
                counts = self._counts.setdefault(statistics.namespace, Counter())
                counts.update(statistics.take())

    def take_counts(self) -> dict[str, dict[str, int]]:
        """What was counted since the last call, by namespace, with each of `LASTING`."""
        self.gather()
        with self._lock:
            counts, self._counts = self._counts, {}
        return {
            namespace: dict(added) for namespace, added in counts.items() if any(added.values())
        }

    def put_back_counts(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """Undo `take_counts`."""
        with self._lock:
            for namespace, added in counts.items():
                self._counts.setdefault(namespace, Counter()).update(added)


def write(
    connection: Connection, counts: Mapping[str, Mapping[str, int]], touches: Mapping[int, int]
) -> None:
    """Write the uses and counts that were gathered in memory, in short transactions.

    Parameters
    ----------
    counts
        By namespace, what to add to which column of `statistics`.
    touches
        Time of the last use, by entry.
    """
    touches = write_most(connection, touches)
    with connection.writing_much():
        write_touches(connection, touches)
        write_counts(connection, counts)


def write_most(connection: Connection, touches: Mapping[int, int]) -> Mapping[int, int]:
    """Write the uses, some in each transaction, but for the last, which another takes along.

    Returns
    -------
    Mapping of int to int
        Those that are left.
    """
    if len(touches) <= MOST_AT_ONCE or _has_few_entries(connection):
        return touches
    *most, rest = batched(touches.items(), MOST_AT_ONCE)
    for some in most:
        with connection.writing_much():
            write_touches(connection, dict(some))
    return dict(rest)


def _has_few_entries(connection: Connection) -> bool:
    (entries,) = connection.execute(ENTRIES).fetchone()
    return bool(entries is None or entries <= FEW_ENTRIES)


def write_touches(connection: Connection, touches: Mapping[int, int]) -> None:
    """Write the uses into a transaction that is under way, unless the log is long.

    Then they are dropped: it is a transaction that only ends what was begun.
    """
    if touches and not connection.has_long_log():
        connection.executemany(
            TOUCH, [{"entry": entry, "used_at": used_at} for entry, used_at in touches.items()]
        )


def write_counts(connection: Connection, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Add the counts up in a transaction that is under way."""
    for namespace, added in counts.items():
        connection.execute(NEW_NAMESPACE, {"namespace": namespace})
        connection.execute(ADD_STATISTICS, {"namespace": namespace, **added})
