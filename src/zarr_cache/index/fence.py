"""Writes to the source: what is kept of their keys goes, what is being fetched is refused."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from zarr_cache.core.errors import FileDamagedError, FileLockedError
from zarr_cache.core.keys import prefix_end
from zarr_cache.index import extents, lookup, uses
from zarr_cache.index.admit import identity_checksum_of
from zarr_cache.index.evict import MAX_AT_ONCE, Evictions, evict_ahead, trim, under_limits
from zarr_cache.index.large_values import LargeValue, most_bytes, written
from zarr_cache.index.lookup import LONGEST_WRITE_NS, NEW_NAMESPACE
from zarr_cache.index.values import MAX_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from zarr_cache.file.connection import Connection
    from zarr_cache.index.admit import Response
    from zarr_cache.index.evict import Limits
    from zarr_cache.index.large_values import Written
    from zarr_cache.index.values import Keep


type Parameters = dict[str, str | int]


MAX_FENCES = 10_000


"""At most this many fences are kept in a file. One that goes leaves its revision to its
namespace."""


NEXT_REVISION = """
UPDATE counter
SET revision = revision + 1
RETURNING revision
"""


# No response fetched from here on is admitted until the write has ended. While writes are in
# flight, `stored_at` is when the first of them began: the lease of a write that never ends expires
# an hour later, however often the key is written meanwhile.
# Not `<>`: a kind that is NULL, on a page that is damaged, would keep its row.
BEGIN_WRITE = """
INSERT INTO entry (
    namespace, key, kind, size, stored_at, used_at, revision, writes_in_flight, checksum
)
SELECT id, :key, 'tombstone', 0, :now, :now, :revision, 1, 0
FROM namespace
WHERE name = :namespace
ON CONFLICT (namespace, key) DO UPDATE
SET kind = 'tombstone',
    size = 0,
    stored_at = CASE
        WHEN writes_in_flight > 0 AND stored_at > :dead_before THEN stored_at
        ELSE excluded.stored_at
    END,
    used_at = excluded.used_at,
    revision = excluded.revision,
    writes_in_flight = CASE WHEN stored_at <= :dead_before THEN 1 ELSE writes_in_flight + 1 END
WHERE kind IS NOT 'stored'
RETURNING id
"""


# Only the one writer whose fence still stands knows what the source holds now, and only where no
# folder has been removed meanwhile.
END_WRITE_WITH_VALUE = """
UPDATE entry
SET kind = 'value',
    size = :size,
    stored_at = :stored_at,
    used_at = :used_at,
    revision = :revision,
    writes_in_flight = 0,
    checksum = :checksum
WHERE namespace = (
        SELECT id
        FROM namespace
        WHERE name = :namespace
          AND fence <= :begun
          AND (removals_since IS NULL OR removals_since <= :dead_before)
    )
  AND key = :key
  AND revision = :begun
  AND writes_in_flight = 1
RETURNING id
"""


END_WRITE = """
INSERT INTO entry (
    namespace, key, kind, size, stored_at, used_at, revision, writes_in_flight, checksum
)
SELECT id, :key, 'tombstone', 0, :now, :now, :revision, 0, 0
FROM namespace
WHERE name = :namespace
ON CONFLICT (namespace, key) DO UPDATE
SET kind = 'tombstone',
    size = 0,
    stored_at = CASE WHEN writes_in_flight > 1 THEN stored_at ELSE excluded.stored_at END,
    used_at = excluded.used_at,
    revision = excluded.revision,
    writes_in_flight = max(0, writes_in_flight - 1)
WHERE kind IS NOT 'stored'
RETURNING id
"""


# A blob comes after every text. With an OR in its place, SQLite walks to the end of the namespace.
# What is newer than the fence has been asked for or written since. A fence of a write that is under
# way keeps nothing but that.
REMOVE_SOME_OF_PREFIX = """
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
    LIMIT :most
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
SET removals = CASE WHEN removals_since > :dead_before THEN removals + 1 ELSE 1 END,
    removals_since = CASE WHEN removals_since > :dead_before THEN removals_since ELSE :now END
WHERE name = :namespace
"""


END_REMOVAL = """
UPDATE namespace
SET removals = max(0, removals - 1),
    removals_since = CASE WHEN removals > 1 THEN removals_since END
WHERE name = :namespace
"""


def begin_write(
    connection: Connection, namespace: str, keys: Sequence[str], now_ns: int, begun: list[int]
) -> None:
    """Make what is kept of the keys unusable while the source is written to.

    Parameters
    ----------
    begun
        Is given the revision of this write, for `end_write`. Who is cancelled while this runs, in
        another thread, finds it there: only what has begun is to be ended.
    """
    with connection.writing_much():
        revision = _next_revision(connection, namespace)
        parameters: Parameters = {
            "namespace": namespace,
            "now": now_ns,
            "revision": revision,
            "dead_before": now_ns - LONGEST_WRITE_NS,
        }
        for key in keys:
            _fence(connection, BEGIN_WRITE, {"key": key, **parameters})
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
    """Let the keys be asked for again, and keep what the source is known to hold now.

    Parameters
    ----------
    keys
        Those of `begin_write`.
    responses
        By key, what the source would answer now, with the revision of `begin_write`. A key that is
        not in it is asked for again at the next read. So is one that another writer wrote to
        meanwhile: nobody knows who came last.
    """
    left, removed = list(keys), Evictions()
    arguments = (connection, namespace, left, now_ns, limits, touches, keep, removed)
    try:
        _end_write(*arguments, responses)
    except FileLockedError:
        if not responses:
            raise
        # The log is too long for bytes. That the write has ended is a few rows.
        _end_write(*arguments, {})
    return removed


def _end_write(
    connection: Connection,
    namespace: str,
    left: list[str],
    now_ns: int,
    limits: Limits,
    touches: Mapping[int, int],
    keep: Keep,
    removed: Evictions,
    responses: Mapping[str, Response],
) -> None:
    """End the write to the keys that are left, and take those that have ended out of them."""
    for some in list(_some_at_a_time(connection, left, responses, limits)):
        of_these = {key: responses[key] for key in some if key in responses}
        large = _large(connection, namespace, of_these)
        failure = extents.why_unusable(connection) if large else None
        coming = sum(each.size for each in of_these.values()) if failure is None else 0
        evict_ahead(connection, limits, touches, removed, coming)
        with (
            written(
                connection, namespace, limits, touches, large, now_ns, removed, failure
            ) as values_written,
            connection.writing_much() if responses else connection.writing(),
            under_limits(connection, namespace, limits, removed),
        ):
            uses.write_touches(connection, touches)
            revision = _next_revision(connection, namespace)
            parameters: Parameters = {"namespace": namespace, "now": now_ns, "revision": revision}
            for key in some:
                response = responses.get(key)
                if response is None or not _end_with_value(
                    connection, namespace, key, response, revision, values_written.get(key), keep
                ):
                    _fence(connection, END_WRITE, {"key": key, **parameters})
                    removed.fenced.append(key)
            trim(connection, "tombstone", MAX_FENCES, limits.dead_before)
            values_written.release(connection)
        removed.failure = removed.failure or values_written.failure
        del left[: len(some)]


def _large(
    connection: Connection, namespace: str, responses: Mapping[str, Response]
) -> list[LargeValue]:
    """Those of which the bytes are written before their entries are."""

    def is_wanted(key: str) -> bool:
        # Whether it is this writer's, the statement says that ends the write.
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


def _some_at_a_time(
    connection: Connection, keys: Sequence[str], responses: Mapping[str, Response], limits: Limits
) -> Iterator[list[str]]:
    """The keys, as many at a time as the values of one transaction may be."""
    some: list[str] = []
    small = large = 0
    for key in keys:
        size = responses[key].size if key in responses else 0
        if extents.is_large(connection, size):
            large += size
        else:
            small += size
        if some and (small > MAX_BYTES or large > most_bytes(limits)):
            yield some
            is_large = extents.is_large(connection, size)
            some, small, large = [], 0 if is_large else size, size if is_large else 0
        some.append(key)
    if some:
        yield some


def _next_revision(connection: Connection, namespace: str) -> int:
    connection.execute(NEW_NAMESPACE, {"namespace": namespace})
    rows = connection.execute(NEXT_REVISION).fetchall()
    if not rows:
        raise FileDamagedError("the row of counter is missing")
    return int(rows[0][0])


def _fence(connection: Connection, statement: str, parameters: Parameters) -> None:
    """Put a fence at the key, which removes what is kept of it."""
    rows = connection.execute(statement, parameters).fetchall()
    if not rows:
        # Nothing is stored in the namespace of a source: its row is there and cannot be found.
        raise FileDamagedError(f"no fence could be put at {parameters['key']!r}")
    for (entry,) in rows:
        extents.delete(connection, entry)


def _end_with_value(
    connection: Connection,
    namespace: str,
    key: str,
    response: Response,
    revision: int,
    its: Written | None,
    keep: Keep,
) -> bool:
    """Put the value in the place of the fence; False if it must not be kept."""
    if its is None and response.data is not None and extents.is_large(connection, response.size):
        return False
    if its is not None and not its.is_there(connection):
        return False
    seed = identity_checksum_of(namespace, key, response)
    rows = connection.execute(
        END_WRITE_WITH_VALUE,
        {
            "namespace": namespace,
            "key": key,
            "size": response.size,
            "stored_at": response.stored_at,
            "used_at": response.used_at,
            "begun": response.revision,
            "dead_before": response.used_at - LONGEST_WRITE_NS,
            "revision": revision,
            "checksum": seed,
        },
    ).fetchall()
    for (entry,) in rows:
        extents.delete(connection, entry)
        if its is not None:
            its.give(connection, entry)
        elif response.data is not None:
            keep(connection, entry, seed, response.data)
    return bool(rows)


def begin_removal(connection: Connection, namespace: str, now_ns: int) -> None:
    """Keep no answer of the namespace while the source removes a folder: for an hour at most.

    What is kept of the folder is for `fence_prefix` to remove, before the source is asked and when
    it has answered. What is asked for in between would stay if this process died before the second.
    """
    parameters = {
        "namespace": namespace,
        "now": now_ns,
        "dead_before": now_ns - LONGEST_WRITE_NS,
    }
    with connection.writing_much():
        connection.execute(NEW_NAMESPACE, {"namespace": namespace})
        connection.execute(BEGIN_REMOVAL, parameters)


def end_removal(connection: Connection, namespace: str) -> None:
    """Keep answers again, unless another folder is being removed."""
    with connection.writing():
        connection.execute(END_REMOVAL, {"namespace": namespace})


def _raise_fence(connection: Connection, namespace: str, revision: int) -> None:
    """Refuse what is being fetched of the namespace."""
    parameters = {"namespace": namespace, "revision": revision}
    rows = connection.execute(RAISE_FENCE, parameters).fetchall()
    if not rows:
        raise FileDamagedError(f"the namespace {namespace!r} is missing")


def fence_prefix(connection: Connection, namespace: str, prefix: str) -> list[str]:
    """Remove what is kept of every key that begins with `prefix`; refuse what is being fetched.

    In as many transactions as it takes: they may be a million.

    Returns
    -------
    list of str
        The keys of the values removed. An absence or a fence has no bytes anywhere.
    """
    with connection.writing_much():
        revision = _next_revision(connection, namespace)
        _raise_fence(connection, namespace, revision)
        parameters = {
            "namespace": namespace,
            "prefix": prefix,
            "end": prefix_end(prefix),
            "revision": revision,
            "most": MAX_AT_ONCE,
        }
        removed = some = connection.execute(REMOVE_SOME_OF_PREFIX, parameters).fetchall()
    while len(some) == MAX_AT_ONCE:
        with connection.writing_much():
            some = connection.execute(REMOVE_SOME_OF_PREFIX, parameters).fetchall()
        removed += some
    return [key for key, kind in removed if kind == "value"]
