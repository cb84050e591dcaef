"""Reports of what is in a file: operations that read facts about entries, not their bytes.

They walk over entries, which no read and no write of a store does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from zarr_cache.core.clock import PersistentClock
from zarr_cache.disk import paths
from zarr_cache.file import opening
from zarr_cache.inspect.selection import NOTHING, SELECTED, WITH_BYTES, Amount

if TYPE_CHECKING:
    from pathlib import Path

    from zarr_cache.file.connection import Connection
    from zarr_cache.inspect.selection import Selection


type Sort = Literal["key", "size", "stored", "used"]

COUNT = f"""
SELECT count(*), coalesce(sum(entry.size), 0)
{SELECTED}
"""

COUNT_KEYS = f"""
SELECT count(*)
FROM (SELECT DISTINCT entry.namespace, entry.key {SELECTED})
"""  # noqa: S608 - a constant of ours

# The end of a value of unknown size begins with minus its size, as in the view cache_entries.
_LIST = f"""
SELECT
    namespace.name,
    entry.key,
    entry.kind,
    CASE WHEN entry.start >= 0 THEN entry.start WHEN entry.kind = 'range' THEN -entry.size END,
    CASE WHEN entry.start >= 0 THEN entry.start + entry.size END,
    entry.size,
    entry.stored_at,
    entry.used_at
{SELECTED}
"""

# A statement for each order: a parameter cannot name a column.
LISTS: dict[tuple[Sort, bool], str] = {
    ("key", False): f"{_LIST} ORDER BY namespace.name, entry.key, entry.start LIMIT :most",
    ("key", True): (
        f"{_LIST} ORDER BY namespace.name DESC, entry.key DESC, entry.start DESC LIMIT :most"
    ),
    ("size", False): f"{_LIST} ORDER BY entry.size DESC, entry.id LIMIT :most",
    ("size", True): f"{_LIST} ORDER BY entry.size, entry.id LIMIT :most",
    ("stored", False): f"{_LIST} ORDER BY entry.stored_at DESC, entry.id DESC LIMIT :most",
    ("stored", True): f"{_LIST} ORDER BY entry.stored_at, entry.id LIMIT :most",
    ("used", False): f"{_LIST} ORDER BY entry.used_at DESC, entry.id DESC LIMIT :most",
    ("used", True): f"{_LIST} ORDER BY entry.used_at, entry.id LIMIT :most",
}

# The oldest and the newest are at the ends of the index entry_by_age, with a validator and without.
NAMESPACES = """
SELECT
    namespace.name,
    usage.kind,
    usage.entries,
    usage.bytes,
    (
        SELECT min(
            (
                SELECT min(stored_at)
                FROM entry
                WHERE namespace = namespace.id
                  AND kind = usage.kind
                  AND (validator IS NULL) = has_none.value
            )
        )
        FROM json_each('[0, 1]') AS has_none
    ),
    (
        SELECT max(
            (
                SELECT max(stored_at)
                FROM entry
                WHERE namespace = namespace.id
                  AND kind = usage.kind
                  AND (validator IS NULL) = has_none.value
            )
        )
        FROM json_each('[0, 1]') AS has_none
    )
FROM namespace
JOIN usage ON usage.namespace = namespace.id
ORDER BY namespace.name
"""

STATISTICS = """
SELECT
    namespace.name,
    statistics.hits,
    statistics.misses,
    statistics.bytes_served,
    statistics.bytes_fetched,
    statistics.evictions,
    statistics.expirations
FROM statistics
JOIN namespace ON namespace.id = statistics.namespace
"""

STALE = """
SELECT namespace.name, count(*), sum(entry.size)
FROM entry
JOIN namespace ON namespace.id = entry.namespace
WHERE entry.kind IN ('value', 'range')
  AND coalesce(entry.confirmed_at, entry.stored_at) <= :fresh_after
GROUP BY namespace.id
"""

RECORDED_MAX_SIZE = """
SELECT max_size
FROM sampling
WHERE id = 1
"""


class Listed(NamedTuple):
    """An entry in the list of `entries`. Times are timestamps of the file.

    Attributes
    ----------
    start, stop
        The bytes ``[start, stop)`` of a range; of the end of a value of unknown size, minus its
        size and None. None for other kinds.
    """

    namespace: str
    key: str
    kind: str
    start: int | None
    stop: int | None
    size: int
    stored_at: int
    used_at: int


class NamespaceReport(NamedTuple):
    """What is cached of one source, and counts over the life of the file.

    Attributes
    ----------
    entries, bytes
        By kind of entry.
    oldest, newest
        Times of the first and the last request for the values and ranges; None if there are none.
    hits, misses, bytes_served, bytes_fetched, evictions, expirations
        As in ``cache_stats()``.
    stale
        The stale values and ranges; None if no age was given.
    """

    namespace: str
    entries: dict[str, int]
    bytes: dict[str, int]
    oldest: int | None
    newest: int | None
    hits: int
    misses: int
    bytes_served: int
    bytes_fetched: int
    evictions: int
    expirations: int
    stale: Amount | None

    @property
    def ranges(self) -> Amount:
        """The ranges in the file."""
        return self.amount("range")

    @property
    def cached(self) -> Amount:
        """The values and the ranges."""
        return sum(map(self.amount, WITH_BYTES), NOTHING)

    def amount(self, kind: str) -> Amount:
        """The entries of a kind."""
        return Amount(self.entries.get(kind, 0), self.bytes.get(kind, 0))

    @property
    def hit_rate(self) -> float | None:
        """Share of reads that were hits; None without reads."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else None


def now_ns(connection: Connection, path: Path) -> int:
    """The current time as a process that opens the file has it; ages count from it."""
    floor_ns = opening.floor_ns(connection, paths.written_ns(path))
    return PersistentClock(floor_ns=floor_ns).now_ns()


def namespaces(connection: Connection, fresh_after: int | None) -> list[NamespaceReport]:
    """The contents and counts of the file, by namespace.

    What was stored at `fresh_after` or earlier is stale; with None, it is not counted.
    """
    with connection.reading():
        rows = connection.execute(NAMESPACES).fetchall()
        counts = {name: each for name, *each in connection.execute(STATISTICS)}
        stale = {
            name: Amount(entries, size)
            for name, entries, size in connection.execute(STALE, {"fresh_after": fresh_after})
        }
    by_name: dict[str, dict[str, list[Any]]] = {}
    for name, kind, *facts in rows:
        by_name.setdefault(name, {})[kind] = facts
    found = []
    for name, kinds in by_name.items():
        with_bytes = [kinds[kind][2:] for kind in WITH_BYTES if kind in kinds and kinds[kind][2]]
        hits, misses, served, fetched, evictions, expirations = counts.get(name, [0] * 6)
        found.append(
            NamespaceReport(
                namespace=name,
                entries={kind: facts[0] for kind, facts in kinds.items()},
                bytes={kind: facts[1] for kind, facts in kinds.items()},
                oldest=min((oldest for oldest, _ in with_bytes), default=None),
                newest=max((newest for _, newest in with_bytes), default=None),
                hits=hits,
                misses=misses,
                bytes_served=served,
                bytes_fetched=fetched,
                evictions=evictions,
                expirations=expirations,
                stale=None if fresh_after is None else stale.get(name, NOTHING),
            )
        )
    return found


def recorded_max_size(connection: Connection) -> int | None:
    """The budget of the CacheStore whose reads were recorded last; None if it had none."""
    row = connection.execute(RECORDED_MAX_SIZE).fetchone()
    return None if row is None else row[0]


def entries(
    connection: Connection, selection: Selection, sort: Sort, *, is_reversed: bool, most: int | None
) -> list[Listed]:
    """The entries in this order: by key ascending, by size or time descending."""
    parameters = selection.parameters() | {"most": -1 if most is None else most}
    return [Listed(*row) for row in connection.execute(LISTS[sort, is_reversed], parameters)]


def count_keys(connection: Connection, selection: Selection) -> int:
    """How many keys the selected entries have, in each namespace."""
    (keys,) = connection.execute(COUNT_KEYS, selection.parameters()).fetchone()
    return int(keys)


def amount(connection: Connection, selection: Selection) -> Amount:
    """How much is selected."""
    return Amount(*connection.execute(COUNT, selection.parameters()).fetchone())
