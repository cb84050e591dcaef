"""Removals: of a folder of the source, of a namespace, and of entries not to be used any more.

Of a folder: `begin_removal`, `invalidate_prefix`, the source, `invalidate_prefix` once more,
`end_removal`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_cache.core.errors import FileDamagedError
from zarr_cache.core.keys import prefix_end
from zarr_cache.index import ranges
from zarr_cache.index.evict import MAX_AT_ONCE
from zarr_cache.index.invalidate import next_revision
from zarr_cache.index.lookup import NEW_NAMESPACE, WRITE_LEASE_NS

if TYPE_CHECKING:
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.lookup import EntryState


# A blob is greater than every text. With an OR instead, SQLite walks to the end of the namespace.
# An entry of a later revision was written since. The tombstone of a write in flight must stay.
REMOVE_BATCH = """
DELETE FROM entry
WHERE id IN (
    SELECT id
    FROM entry
    WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
      AND key >= :prefix
      AND key < coalesce(:end, x'')
      AND kind <> 'stored'
      AND (kind <> 'tombstone' OR writes_in_flight = 0)
      AND revision < :revision
    LIMIT :limit
)
RETURNING key, kind
"""

RAISE_FENCE = """
UPDATE namespace
SET fence = :revision
WHERE name = :namespace
RETURNING id
"""

# As with the writes in flight of a key, the lease of a removal that never ends expires an hour
# after the first began, however many begin meanwhile.
BEGIN_REMOVAL = """
UPDATE namespace
SET removals = CASE WHEN removals_since > :expired_before THEN removals + 1 ELSE 1 END,
    removals_since = CASE WHEN removals_since > :expired_before THEN removals_since ELSE :now END
WHERE name = :namespace
"""

END_REMOVAL = """
UPDATE namespace
SET removals = max(0, removals - 1),
    removals_since = CASE WHEN removals > 1 THEN removals_since END
WHERE name = :namespace
"""


FORGET = """
DELETE FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND start = -1
  AND kind IN ('value', 'absent')
  AND revision <= :revision
  AND writes_in_flight = 0
  AND stored_at <= :stored_at
RETURNING key
"""

FORGET_RANGES = """
DELETE FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND +kind = 'range'
  AND stored_at <= :stored_at
"""

DISCARD = """
DELETE FROM entry
WHERE id = :entry AND checksum IS :checksum AND kind IS NOT 'stored'
RETURNING key
"""

# Another store has one value for a key, whatever the namespace.
REMOVE_FROM_OTHER_NAMESPACES = """
DELETE FROM entry
WHERE namespace IN (SELECT id FROM namespace WHERE name <> :namespace)
  AND key = :key
  AND start = -1
  AND kind = 'value'
"""


def begin_removal(connection: Connection, namespace: str, now_ns: int) -> None:
    """Admit no response of the namespace while the source removes a folder, for an hour at most.

    The entries of the folder are removed by `invalidate_prefix`, before the source removes it and
    after. Without `begin_removal`, a response that arrives in between would stay cached if this
    process died before the second call.
    """
    parameters = {
        "namespace": namespace,
        "now": now_ns,
        "expired_before": now_ns - WRITE_LEASE_NS,
    }
    with connection.writing_much():
        connection.execute(NEW_NAMESPACE, {"namespace": namespace})
        connection.execute(BEGIN_REMOVAL, parameters)


def end_removal(connection: Connection, namespace: str) -> None:
    """Admit responses again, unless another folder is being removed."""
    with connection.writing():
        connection.execute(END_REMOVAL, {"namespace": namespace})


def invalidate_prefix(connection: Connection, namespace: str, prefix: str) -> list[str]:
    """Remove the entries of all keys that begin with `prefix`, and refuse responses in flight.

    In as many transactions as it takes: there may be a million entries. Returns the keys of the
    values removed: absences and tombstones have no bytes anywhere.
    """
    with connection.writing_much():
        revision = next_revision(connection, namespace)
        _raise_fence(connection, namespace, revision)
        parameters = {
            "namespace": namespace,
            "prefix": prefix,
            "end": prefix_end(prefix),
            "revision": revision,
            "limit": MAX_AT_ONCE,
        }
        removed = batch = connection.execute(REMOVE_BATCH, parameters).fetchall()
    while len(batch) == MAX_AT_ONCE:
        with connection.writing_much():
            batch = connection.execute(REMOVE_BATCH, parameters).fetchall()
        removed += batch
    return [key for key, kind in removed if kind == "value"]


def _raise_fence(connection: Connection, namespace: str, revision: int) -> None:
    """Refuse responses of an earlier revision, for every key of the namespace."""
    parameters = {"namespace": namespace, "revision": revision}
    rows = connection.execute(RAISE_FENCE, parameters).fetchall()
    if not rows:
        raise FileDamagedError(f"the namespace {namespace!r} is missing")


def forget(
    connection: Connection,
    namespace: str,
    key: str,
    *,
    revision: int,
    stored_at: int,
    with_ranges: bool = False,
) -> list[str]:
    """Remove the entry of the key, and its ranges if so said, unless they are newer.

    Returns the keys of the values removed.
    """
    if with_ranges:
        ranges.remove_all_but_some(connection, namespace, key)
    parameters = {
        "namespace": namespace,
        "key": key,
        "revision": revision,
        "stored_at": stored_at,
    }
    with connection.writing_much():
        if with_ranges:
            connection.execute(FORGET_RANGES, parameters)
        return [key for (key,) in connection.execute(FORGET, parameters).fetchall()]


def discard(connection: Connection, found: EntryState) -> list[str]:
    """Remove a damaged entry, unless it was replaced meanwhile; return the keys removed."""
    parameters = {"entry": found.entry, "checksum": found.checksum}
    with connection.writing_much():
        return [key for (key,) in connection.execute(DISCARD, parameters).fetchall()]


def remove_from_other_namespaces(connection: Connection, namespace: str, key: str) -> None:
    """Remove the values of this key of all other namespaces, whose bytes are to be overwritten."""
    with connection.writing():
        connection.execute(REMOVE_FROM_OTHER_NAMESPACES, {"namespace": namespace, "key": key})


MAX_UNUSED_NS = 7 * 24 * 3600 * 10**9
"""A private namespace that was not used for a week was left by a killed process."""

UNUSED_NAMESPACES = """
SELECT name
FROM namespace
WHERE name >= :prefix
  AND name < :end
  AND NOT EXISTS (
      SELECT 1
      FROM entry
      WHERE namespace = namespace.id AND used_at > :unused_since
  )
"""

REMOVE_SOME = """
DELETE FROM entry
WHERE id IN (
    SELECT id
    FROM entry
    WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace) AND kind <> 'stored'
    LIMIT :limit
)
RETURNING id
"""

REMOVE_NAMESPACE = """
DELETE FROM namespace
WHERE name = :namespace
"""


def unused_namespaces(connection: Connection, prefix: str, unused_since: int) -> list[str]:
    """The namespaces whose names begin with `prefix` and whose entries were not used since.

    If a process still uses one and it is removed, the next reads of that process are misses.
    """
    parameters = {"prefix": prefix, "end": prefix_end(prefix), "unused_since": unused_since}
    rows = connection.execute(UNUSED_NAMESPACES, parameters)
    return [name for (name,) in rows.fetchall()]


def remove_namespace(connection: Connection, namespace: str) -> bool:
    """Remove at most `MAX_AT_ONCE` entries of a namespace, and the namespace with the last of them.

    Returns whether entries are left.
    """
    with connection.writing_much():
        parameters = {"namespace": namespace, "limit": MAX_AT_ONCE}
        removed = connection.execute(REMOVE_SOME, parameters).fetchall()
        if len(removed) < MAX_AT_ONCE:
            connection.execute(REMOVE_NAMESPACE, {"namespace": namespace})
    return len(removed) == MAX_AT_ONCE
