"""Writes to the source: invalidating the keys before, and caching the written values after.

`begin_write` gives each key a tombstone: an entry without a value, which makes a later response of
an earlier revision be refused. `end_write` replaces it by the value, if that is known.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zarr_cache.core.errors import FileDamagedError, FileLockedError
from zarr_cache.index import extents, lookup, ranges, upkeep
from zarr_cache.index.admit import identity_checksum_of
from zarr_cache.index.evict import Evictions, add_if_it_fits, evict_ahead, trim, under_limits
from zarr_cache.index.large_values import LargeValue, max_bytes, written
from zarr_cache.index.lookup import NEW_NAMESPACE, WRITE_LEASE_NS
from zarr_cache.index.values import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from zarr_cache.file.connection import Connection
    from zarr_cache.index.admit import Response
    from zarr_cache.index.evict import Limits
    from zarr_cache.index.large_values import WrittenValue
    from zarr_cache.index.values import Keep


type Parameters = dict[str, str | int]

MAX_TOMBSTONES = 10_000
"""At most this many tombstones are in a file. When one is removed, a trigger raises the fence of
its namespace to its revision."""

NEXT_REVISION = """
UPDATE counter
SET revision = revision + 1
RETURNING revision
"""

# No response fetched from here on is admitted until the write has ended. While writes are in
# flight, `stored_at` is when the first of them began: the lease of a write that never ends expires
# an hour later, however often the key is written meanwhile.
# Not `<>`: that would spare a row whose kind is NULL, on a damaged page.
BEGIN_WRITE = """
INSERT INTO entry (
    namespace, key, kind, size, stored_at, used_at, revision, writes_in_flight, checksum
)
SELECT id, :key, 'tombstone', 0, :now, :now, :revision, 1, 0
FROM namespace
WHERE name = :namespace
ON CONFLICT (namespace, key, start) DO UPDATE
SET kind = 'tombstone',
    size = 0,
    stored_at = CASE
        WHEN writes_in_flight > 0 AND stored_at > :expired_before THEN stored_at
        ELSE excluded.stored_at
    END,
    used_at = excluded.used_at,
    revision = excluded.revision,
    validator = NULL,
    confirmed_at = NULL,
    writes_in_flight = CASE WHEN stored_at <= :expired_before THEN 1 ELSE writes_in_flight + 1 END
WHERE kind IS NOT 'stored'
RETURNING id
"""

# The value of the source is known only if no other write to the key has begun since, and no folder
# has been removed.
END_WRITE_WITH_VALUE = """
UPDATE entry
SET kind = 'value',
    size = :size,
    stored_at = :stored_at,
    used_at = :used_at,
    revision = :revision,
    writes_in_flight = 0,
    checksum = :checksum,
    validator = NULL,
    confirmed_at = NULL
WHERE namespace = (
        SELECT id
        FROM namespace
        WHERE name = :namespace
          AND fence <= :fence
          AND (removals_since IS NULL OR removals_since <= :expired_before)
    )
  AND key = :key
  AND start = -1
  AND revision = :begun
  AND writes_in_flight = 1
RETURNING id
"""

# Whether no folder has been removed since the revision that `fence` stands for.
IS_CURRENT = """
SELECT 1
FROM namespace
WHERE name = :namespace AND fence <= :fence
"""

END_WRITE = """
INSERT INTO entry (
    namespace, key, kind, size, stored_at, used_at, revision, writes_in_flight, checksum
)
SELECT id, :key, 'tombstone', 0, :now, :now, :revision, 0, 0
FROM namespace
WHERE name = :namespace
ON CONFLICT (namespace, key, start) DO UPDATE
SET kind = 'tombstone',
    size = 0,
    stored_at = CASE WHEN writes_in_flight > 1 THEN stored_at ELSE excluded.stored_at END,
    used_at = excluded.used_at,
    revision = excluded.revision,
    validator = NULL,
    confirmed_at = NULL,
    writes_in_flight = max(0, writes_in_flight - 1)
WHERE kind IS NOT 'stored'
RETURNING id
"""


def begin_write(
    connection: Connection, namespace: str, keys: Sequence[str], now_ns: int, begun: list[int]
) -> None:
    """Invalidate the keys before the source is written.

    Each entry becomes a tombstone with a new revision and one more write in flight. Until
    `end_write`, no response for the key is admitted.

    Parameters
    ----------
    begun
        The revision of this write, for `end_write`, is appended once it is committed. A caller that
        is cancelled while this runs in another thread finds there whether it has a write to end.
    """
    for key in keys:
        ranges.remove_all_but_some(connection, namespace, key)
    with connection.writing_much():
        revision = next_revision(connection, namespace)
        parameters: Parameters = {
            "namespace": namespace,
            "now": now_ns,
            "revision": revision,
            "expired_before": now_ns - WRITE_LEASE_NS,
        }
        for key in keys:
            _put_tombstone(connection, BEGIN_WRITE, {"key": key, **parameters})
    begun.append(revision)


def end_write(
    connection: Connection,
    namespace: str,
    keys: Sequence[str],
    responses: Mapping[str, Response],
    now_ns: int,
    limits: Limits,
    touches: Mapping[int, int],
    keep: Keep,
) -> Evictions:
    """Admit responses for the keys again, and cache the values that the source is known to have.

    Parameters
    ----------
    keys
        Those of `begin_write`.
    responses
        By key, the value that was written, with the revision of `begin_write`. The other keys are
        read from the source at their next read. So are keys that another write began for meanwhile:
        which of the two the source took last is unknown.
    """
    left, evictions = list(keys), Evictions()
    arguments = (connection, namespace, left, now_ns, limits, touches, keep, evictions)
    try:
        _end_write(*arguments, responses)
    except FileLockedError:
        if not responses:
            raise
        # The WAL is too long for values. The tombstones alone are a few rows.
        _end_write(*arguments, {})
    return evictions


def _end_write(
    connection: Connection,
    namespace: str,
    left: list[str],
    now_ns: int,
    limits: Limits,
    touches: Mapping[int, int],
    keep: Keep,
    evictions: Evictions,
    responses: Mapping[str, Response],
) -> None:
    """End the write to the keys in `left`, and remove from it those whose batch is committed."""
    fence = min((each.revision for each in responses.values()), default=0)
    for batch in list(_batches(connection, left, responses, limits)):
        to_admit = {key: responses[key] for key in batch if key in responses}
        large = _large_values(connection, namespace, to_admit)
        failure = extents.why_unusable(connection) if large else None
        coming = sum(each.size for each in to_admit.values()) if failure is None else 0
        evict_ahead(connection, limits, touches, evictions, coming)
        with (
            written(
                connection, namespace, limits, touches, large, now_ns, evictions, failure
            ) as values_written,
            connection.writing_much() if responses else connection.writing(),
            under_limits(connection, namespace, limits, evictions),
        ):
            upkeep.write_touches(connection, touches)
            revision = next_revision(connection, namespace)
            parameters: Parameters = {"namespace": namespace, "now": now_ns, "revision": revision}
            below = {"namespace": namespace, "fence": fence}
            is_current = connection.execute(IS_CURRENT, below).fetchone() is not None
            for key in batch:
                response = responses.get(key)
                add = partial(_end_with_value, connection, namespace, key, response)
                add_it = partial(add, revision, fence, values_written.get(key), keep)
                if not add_if_it_fits(connection, limits, evictions, add_it):
                    _put_tombstone(connection, END_WRITE, {"key": key, **parameters})
                    evictions.invalidated.append(key)
            trim(connection, "tombstone", MAX_TOMBSTONES, limits.expired_before)
            values_written.release(connection)
        evictions.failure = evictions.failure or values_written.failure
        del left[: len(batch)]
        if is_current:
            # The next batch may evict values of this one, which raises the fence to this revision.
            # A folder that is removed after this batch raises it higher.
            fence = revision


def _large_values(
    connection: Connection, namespace: str, responses: Mapping[str, Response]
) -> list[LargeValue]:
    """The values whose bytes are written to the data file, before their entries."""

    def is_wanted(key: str) -> bool:
        # Whether that one write is this one is checked by the statement that ends it.
        return lookup.lookup_metadata(connection, namespace, key).writes_in_flight == 1

    return [
        LargeValue(
            key,
            identity_checksum_of(namespace, key, response),
            response.data,
            partial(is_wanted, key),
        )
        for key, response in responses.items()
        if response.data is not None and extents.is_large(connection, response.size)
    ]


def _batches(
    connection: Connection, keys: Sequence[str], responses: Mapping[str, Response], limits: Limits
) -> Iterator[list[str]]:
    """The keys in batches, of which the values fit into one transaction each."""
    batch: list[str] = []
    small = large = 0
    for key in keys:
        size = responses[key].size if key in responses else 0
        if extents.is_large(connection, size):
            large += size
        else:
            small += size
        if batch and (small > MAX_BYTES or large > max_bytes(limits)):
            yield batch
            is_large = extents.is_large(connection, size)
            batch, small, large = [], 0 if is_large else size, size if is_large else 0
        batch.append(key)
    if batch:
        yield batch


def next_revision(connection: Connection, namespace: str) -> int:
    """The revision of a new write, in a transaction."""
    connection.execute(NEW_NAMESPACE, {"namespace": namespace})
    rows = connection.execute(NEXT_REVISION).fetchall()
    if not rows:
        raise FileDamagedError("the row of counter is missing")
    return int(rows[0][0])


def _put_tombstone(connection: Connection, statement: str, parameters: Parameters) -> None:
    """Make the entry of the key a tombstone, and remove its bytes and its ranges."""
    rows = connection.execute(statement, parameters).fetchall()
    if not rows:
        # The namespace of a source has no stored entries: its row is there and cannot be found.
        raise FileDamagedError(f"no tombstone could be put at {parameters['key']!r}")
    ranges.remove_of_key(connection, str(parameters["namespace"]), str(parameters["key"]))
    for (entry,) in rows:
        extents.delete(connection, entry)


def _end_with_value(
    connection: Connection,
    namespace: str,
    key: str,
    response: Response | None,
    revision: int,
    fence: int,
    value_written: WrittenValue | None,
    keep: Keep,
) -> bool:
    """Replace the tombstone by the value; False if that is not known, or must not be admitted."""
    if response is None:
        return False
    is_large = response.data is not None and extents.is_large(connection, response.size)
    if is_large and value_written is None:
        return False
    if value_written is not None and not value_written.is_reserved(connection):
        return False
    identity_checksum = identity_checksum_of(namespace, key, response)
    rows = connection.execute(
        END_WRITE_WITH_VALUE,
        {
            "namespace": namespace,
            "key": key,
            "size": response.size,
            "stored_at": response.stored_at,
            "used_at": response.used_at,
            "begun": response.revision,
            "fence": fence,
            "expired_before": response.used_at - WRITE_LEASE_NS,
            "revision": revision,
            "checksum": identity_checksum,
        },
    ).fetchall()
    for (entry,) in rows:
        ranges.remove_of_key(connection, namespace, key)
        extents.delete(connection, entry)
        if value_written is not None:
            value_written.give(connection, entry)
        elif response.data is not None:
            keep(connection, entry, identity_checksum, response.data)
    return bool(rows)
