"""What is in a file, told for people: operations, which read facts and no bytes.

Every function here is an operation, see `zarr_cache.index`. They walk entries, which no read and no
write of a store does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from zarr_cache.core.clock import PersistentClock
from zarr_cache.disk import paths
from zarr_cache.file import opening
from zarr_cache.inspect.selection import SELECTED, Amount

if TYPE_CHECKING:
    from pathlib import Path

    from zarr_cache.file.connection import Connection
    from zarr_cache.inspect.selection import Selection


type Sort = Literal["key", "size", "stored", "used"]


COUNT = f"""
SELECT count(*), coalesce(sum(entry.size), 0)
{SELECTED}
"""


_LIST = f"""
SELECT
    namespace.name,
    entry.key,
    entry.kind,
    entry.size,
    entry.stored_at,
    entry.used_at
{SELECTED}
"""


# One statement an order: a parameter cannot name a column.
LISTS: dict[tuple[Sort, bool], str] = {
    ("key", False): f"{_LIST} ORDER BY namespace.name, entry.key LIMIT :most",
    ("key", True): f"{_LIST} ORDER BY namespace.name DESC, entry.key DESC LIMIT :most",
    ("size", False): f"{_LIST} ORDER BY entry.size DESC, entry.id LIMIT :most",
    ("size", True): f"{_LIST} ORDER BY entry.size, entry.id LIMIT :most",
    ("stored", False): f"{_LIST} ORDER BY entry.stored_at DESC, entry.id DESC LIMIT :most",
    ("stored", True): f"{_LIST} ORDER BY entry.stored_at, entry.id LIMIT :most",
    ("used", False): f"{_LIST} ORDER BY entry.used_at DESC, entry.id DESC LIMIT :most",
    ("used", True): f"{_LIST} ORDER BY entry.used_at, entry.id LIMIT :most",
}


# Oldest and newest lie at the ends of the index entry_by_age.
NAMESPACES = """
SELECT
    namespace.name,
    usage.kind,
    usage.entries,
    usage.bytes,
    (SELECT min(stored_at) FROM entry WHERE namespace = namespace.id AND kind = usage.kind),
    (SELECT max(stored_at) FROM entry WHERE namespace = namespace.id AND kind = usage.kind)
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
WHERE entry.kind = 'value' AND entry.stored_at <= :fresh_after
GROUP BY namespace.id
"""


# Who is evicted before it comes out of the index entry_by_use alone.
EXPLAIN = """
SELECT
    namespace.name,
    entry.kind,
    entry.size,
    entry.stored_at,
    entry.used_at,
    CASE WHEN entry.kind = 'value' THEN (
        SELECT count(*)
        FROM entry AS other
        WHERE other.kind = 'value' AND (other.used_at, other.id) < (entry.used_at, entry.id)
    ) END,
    CASE WHEN entry.kind = 'value' THEN (
        SELECT coalesce(sum(size), 0)
        FROM entry AS other
        WHERE other.kind = 'value' AND (other.used_at, other.id) < (entry.used_at, entry.id)
    ) END
FROM entry
JOIN namespace ON namespace.id = entry.namespace
WHERE entry.key = :key AND (:namespace IS NULL OR namespace.name = :namespace)
ORDER BY namespace.name
"""


class Listed(NamedTuple):
    """An entry, as `entries` lists it. Times are stamps of the file."""

    namespace: str
    key: str
    kind: str
    size: int
    stored_at: int
    used_at: int


class Explanation(NamedTuple):
    """An entry, and what would be evicted before it if it is a value."""

    namespace: str
    kind: str
    size: int
    stored_at: int
    used_at: int
    entries_before: int | None
    bytes_before: int | None


class NamespaceReport(NamedTuple):
    """What is kept of one source, and what happened over the life of the file.

    Attributes
    ----------
    entries, bytes
        By kind of entry.
    oldest, newest
        When the source was asked for the values; None without any.
    hits, misses, bytes_served, bytes_fetched, evictions, expirations
        As in ``cache_stats()``.
    stale
        The values that are; None if nobody said when they are.
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
    def hit_rate(self) -> float | None:
        """Share of the reads that the cache answered; None if there were none."""
        reads = self.hits + self.misses
        return self.hits / reads if reads else None


def now_ns(connection: Connection, path: Path) -> int:
    """The time as whoever opened the file now would have it, from which ages count."""
    floor_ns = opening.floor_ns(connection, paths.written_ns(path))
    return PersistentClock(floor_ns=floor_ns).now_ns()


def namespaces(connection: Connection, fresh_after: int | None) -> list[NamespaceReport]:
    """What the file holds and has seen, by namespace.

    Parameters
    ----------
    fresh_after
        A value stored at this time or earlier is stale. None: do not count them.
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
        oldest, newest = kinds["value"][2:] if "value" in kinds else (None, None)
        hits, misses, served, fetched, evictions, expirations = counts.get(name, [0] * 6)
        found.append(
            NamespaceReport(
                namespace=name,
                entries={kind: facts[0] for kind, facts in kinds.items()},
                bytes={kind: facts[1] for kind, facts in kinds.items()},
                oldest=oldest,
                newest=newest,
                hits=hits,
                misses=misses,
                bytes_served=served,
                bytes_fetched=fetched,
                evictions=evictions,
                expirations=expirations,
                stale=None if fresh_after is None else stale.get(name, Amount(0, 0)),
            )
        )
    return found


def entries(
    connection: Connection, selection: Selection, sort: Sort, *, is_reversed: bool, most: int | None
) -> list[Listed]:
    """The entries, in this order: by key from the first, by size and time from the greatest."""
    parameters = selection.parameters() | {"most": -1 if most is None else most}
    return [Listed(*row) for row in connection.execute(LISTS[sort, is_reversed], parameters)]


def amount(connection: Connection, selection: Selection) -> Amount:
    """How much that is."""
    return Amount(*connection.execute(COUNT, selection.parameters()).fetchone())


def explain(connection: Connection, key: str, namespace: str | None) -> list[Explanation]:
    """What is known of the key, in each namespace that has it."""
    parameters = {"key": key, "namespace": namespace}
    return [Explanation(*row) for row in connection.execute(EXPLAIN, parameters)]
