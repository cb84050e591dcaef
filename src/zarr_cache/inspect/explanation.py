"""Explanations: what is cached of one key, and what is evicted before it. Operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.index.ranges import span_of_row

if TYPE_CHECKING:
    from zarr_cache.core.byte_range import Span
    from zarr_cache.file.connection import Connection


# The entries of the key are found in the index of keys, namespace by namespace, and what is evicted
# before them by a walk along the index entry_by_use.
EXPLAIN = """
SELECT
    namespace.name,
    entry.kind,
    entry.size,
    entry.stored_at,
    entry.used_at,
    entry.validator,
    entry.confirmed_at,
    CASE WHEN entry.kind = 'value' THEN (
        SELECT count(*)
        FROM entry AS other
        WHERE other.ordered_as = 'value'
          AND (other.used_at, other.id) < (entry.used_at, entry.id)
    ) END,
    CASE WHEN entry.kind = 'value' THEN (
        SELECT coalesce(sum(size), 0)
        FROM entry AS other
        WHERE other.ordered_as = 'value'
          AND (other.used_at, other.id) < (entry.used_at, entry.id)
    ) END
FROM namespace
CROSS JOIN entry ON entry.namespace = namespace.id AND entry.key = :key AND entry.start = -1
WHERE :namespace IS NULL OR namespace.name = :namespace
ORDER BY namespace.name
"""

EXPLAIN_RANGES = """
SELECT
    namespace,
    entries,
    bytes,
    oldest,
    newest,
    stale,
    used_at,
    validator,
    confirmed_at,
    (SELECT count(*) FROM entry WHERE ordered_as = 'value' AND used_at < first_used_at),
    (
        SELECT coalesce(sum(size), 0)
        FROM entry
        WHERE ordered_as = 'value' AND used_at < first_used_at
    )
FROM (
    SELECT
        namespace.name AS namespace,
        count(*) AS entries,
        sum(entry.size) AS bytes,
        min(entry.stored_at) AS oldest,
        max(entry.stored_at) AS newest,
        sum(coalesce(entry.confirmed_at, entry.stored_at) <= :fresh_after) AS stale,
        max(entry.used_at) AS used_at,
        max(entry.validator) AS validator,
        max(entry.confirmed_at) AS confirmed_at,
        min(entry.used_at) AS first_used_at
    FROM namespace
    CROSS JOIN entry ON entry.namespace = namespace.id AND entry.key = :key AND entry.start <> -1
    WHERE :namespace IS NULL OR namespace.name = :namespace
    GROUP BY namespace.id
)
ORDER BY namespace
"""

FIRST_RANGES = """
SELECT start, stop, size
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND start <> -1
ORDER BY start
LIMIT :most
"""


class Explanation(NamedTuple):
    """The row of a key and, of a value, how much would be evicted before it.

    Attributes
    ----------
    validator, confirmed_at
        Of the version of a value, and when the source last said that it still has it.
    """

    namespace: str
    kind: str
    size: int
    stored_at: int
    used_at: int
    validator: str | None
    confirmed_at: int | None
    entries_before: int | None
    bytes_before: int | None

    @property
    def as_of(self) -> int:
        """When the source last had it, as far as is known: its age counts from then."""
        return self.stored_at if self.confirmed_at is None else self.confirmed_at


class RangesExplanation(NamedTuple):
    """The ranges of a key in one namespace, together.

    Attributes
    ----------
    oldest, newest
        Times of the first and the last request for them.
    stale
        How many of them are stale; None if no age was given.
    used_at
        Time of the last use of any of them.
    validator, confirmed_at
        Of their version, and when the source last said that it still has it.
    entries_before, bytes_before
        How much would be evicted before the least recently used of them.
    """

    namespace: str
    entries: int
    bytes: int
    oldest: int
    newest: int
    stale: int | None
    used_at: int
    validator: str | None
    confirmed_at: int | None
    entries_before: int
    bytes_before: int


def explain(connection: Connection, key: str, namespace: str | None) -> list[Explanation]:
    """The row of the key in each namespace that has one, without its ranges."""
    parameters = {"key": key, "namespace": namespace}
    return [Explanation(*row) for row in connection.execute(EXPLAIN, parameters)]


def explain_ranges(
    connection: Connection, key: str, namespace: str | None, fresh_after: int | None
) -> list[RangesExplanation]:
    """The ranges of the key in each namespace that has some.

    A range stored at `fresh_after` or earlier is stale.
    """
    parameters = {"key": key, "namespace": namespace, "fresh_after": fresh_after}
    return [RangesExplanation(*row) for row in connection.execute(EXPLAIN_RANGES, parameters)]


def first_ranges(connection: Connection, namespace: str, key: str, most: int) -> list[Span]:
    """The first ranges of the key: the end of a value of unknown size, then by their start."""
    parameters = {"namespace": namespace, "key": key, "most": most}
    rows = connection.execute(FIRST_RANGES, parameters)
    return [span_of_row(*row) for row in rows]
