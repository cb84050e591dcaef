"""Writes to the source: what is kept of their keys goes, what is being fetched is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_cache import index, key_order, pending, staging, values
from zarr_cache.answer import keep_bytes, seed_of
from zarr_cache.budget import MOST_AT_ONCE, trim, under_limits
from zarr_cache.errors import FileDamagedError, FileLockedError
from zarr_cache.index import LONGEST_WRITE_NS, NEW_NAMESPACE, prefix_end
from zarr_cache.staging import Staging

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zarr_cache.answer import Answer
    from zarr_cache.budget import Limits, Removed
    from zarr_cache.connection import Connection
    from zarr_cache.staging import Staged
    from zarr_cache.values import Keep

type Parameters = dict[str, str | int]

MOST_FENCES = 10_000
"""At most this many fences are kept in a file. One that goes leaves its revision to its
namespace."""

NEXT_REVISION = """
UPDATE counter
SET revision = revision + 1
RETURNING revision
"""

# Nothing that is asked of the source from here on is kept until the write has ended. While there
# are writers, `stored_at` is when the first of them began: one that never ends is taken for dead an
# hour later, however often others write to the key meanwhile.
# Not `<>`: a kind that is NULL, on a page that is damaged, would keep its row.
BEGIN_WRITE = """
INSERT INTO entry (
    namespace, key, kind, size, stored_at, used_at, revision, writers, checksum
)
SELECT id, :key, 'fence', 0, :now, :now, :revision, 1, 0
FROM namespace
WHERE name = :namespace
ON CONFLICT (namespace, key) DO UPDATE
SET kind = 'fence',
    size = 0,
    stored_at = CASE
        WHEN writers > 0 AND stored_at > :dead_before THEN stored_at ELSE excluded.stored_at
    END,
    used_at = excluded.used_at,
    revision = excluded.revision,
    writers = CASE WHEN stored_at <= :dead_before THEN 1 ELSE writers + 1 END
WHERE kind IS NOT 'stored'
RETURNING namespace, id
"""

# Only the one writer whose fence still stands knows what the source holds now.
END_WRITE_WITH_VALUE = """
UPDATE entry
SET kind = 'value',
    size = :size,
    stored_at = :stored_at,
    used_at = :used_at,
    revision = :revision,
    writers = 0,
    checksum = :checksum
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND revision = :begun
  AND writers = 1
RETURNING id
"""

END_WRITE = """
INSERT INTO entry (
    namespace, key, kind, size, stored_at, used_at, revision, writers, checksum
)
SELECT id, :key, 'fence', 0, :now, :now, :revision, 0, 0
FROM namespace
WHERE name = :namespace
ON CONFLICT (namespace, key) DO UPDATE
SET kind = 'fence',
    size = 0,
    stored_at = CASE WHEN writers > 1 THEN stored_at ELSE excluded.stored_at END,
    used_at = excluded.used_at,
    revision = excluded.revision,
    writers = max(0, writers - 1)
WHERE kind IS NOT 'stored'
RETURNING namespace, id
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
      AND (kind <> 'fence' OR writers = 0)
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
            number, entry = _fence(connection, BEGIN_WRITE, {"key": key, **parameters})
            key_order.check(connection, number, key, entry)
    begun.append(revision)


def end_write(
    connection: Connection,
    namespace: str,
    keys: Sequence[str],
    answers: Mapping[str, Answer],
    now_ns: int,
    limits: Limits,
    touches: Mapping[int, int],
    keep: Keep,
) -> Removed:
    """Let the keys be asked for again, and keep what the source is known to hold now.

    Parameters
    ----------
    keys
        Those of `begin_write`.
    answers
        By key, what the source would answer now, with the revision of `begin_write`. A key that is
        not in it is asked for again at the next read. So is one that another writer wrote to
        meanwhile: nobody knows who came last.
    """
    arguments = (connection, namespace, keys, now_ns, limits, touches, keep)
    try:
        return _end_write(*arguments, answers)
    except FileLockedError:
        if not answers:
            raise
        # The log is too long for bytes. That the write has ended is a few rows.
        return _end_write(*arguments, {})


def _end_write(
    connection: Connection,
    namespace: str,
    keys: Sequence[str],
    now_ns: int,
    limits: Limits,
    touches: Mapping[int, int],
    keep: Keep,
    answers: Mapping[str, Answer],
) -> Removed:
    with Staging(connection, namespace, limits, touches) as stage:
        large = _stage(connection, namespace, answers, stage)
        with (
            connection.writing_much() if answers else connection.writing(),
            under_limits(connection, namespace, limits, stage.removed) as removed,
        ):
            pending.write_touches(connection, touches)
            revision = _next_revision(connection, namespace)
            parameters: Parameters = {"namespace": namespace, "now": now_ns, "revision": revision}
            for key in keys:
                answer = answers.get(key)
                staged = large.get(key)
                entry = None
                if (
                    answer is not None
                    and (staged is None or staged.shrink(connection))
                    and not index.is_being_removed(connection, namespace, key, now_ns)
                ):
                    entry = _end_with_value(connection, namespace, key, answer, revision)
                if answer is not None and entry is not None:
                    seed = seed_of(namespace, key, answer)
                    how = keep if staged is None else staged.keep
                    keep_bytes(connection, entry, seed, answer.data, how, limits, removed)
                else:
                    _fence(connection, END_WRITE, {"key": key, **parameters})
                    removed.fenced.append(key)
            trim(connection, "fence", MOST_FENCES, limits.dead_before)
            stage.clear()
    return removed


def _stage(
    connection: Connection, namespace: str, answers: Mapping[str, Answer], stage: Staging
) -> dict[str, Staged]:
    """Write beforehand the bytes that are too many for one transaction, by key."""
    large = {}
    nbytes = 0
    for key, answer in answers.items():
        if answer.data is None or not staging.is_large(connection, nbytes + answer.size):
            nbytes += answer.size
            continue

        def is_wanted(key: str = key, begun: int = answer.revision) -> bool:
            found = index.peek(connection, namespace, key)
            return found.fence <= begun and found.writers == 1

        seed = seed_of(namespace, key, answer)
        large[key] = stage.write(seed, answer.data, answer.stored_at, answer.used_at, is_wanted)
    return large


def _next_revision(connection: Connection, namespace: str) -> int:
    connection.execute(NEW_NAMESPACE, {"namespace": namespace})
    rows = connection.execute(NEXT_REVISION).fetchall()
    if not rows:
        raise FileDamagedError("the row of counter is missing")
    return int(rows[0][0])


def _fence(connection: Connection, statement: str, parameters: Parameters) -> tuple[int, int]:
    """Put a fence at the key, which removes what is kept of it; return its namespace and entry."""
    rows = connection.execute(statement, parameters).fetchall()
    if not rows:
        # Nothing is stored in the namespace of a source: its row is there and cannot be found.
        raise FileDamagedError(f"no fence could be put at {parameters['key']!r}")
    number, entry = rows[0]
    values.delete(connection, entry)
    return number, entry


def _end_with_value(
    connection: Connection, namespace: str, key: str, answer: Answer, revision: int
) -> int | None:
    """The entry that has taken the place of the fence; None if it must not."""
    rows = connection.execute(
        END_WRITE_WITH_VALUE,
        {
            "namespace": namespace,
            "key": key,
            "size": answer.size,
            "stored_at": answer.stored_at,
            "used_at": answer.used_at,
            "begun": answer.revision,
            "revision": revision,
            "checksum": seed_of(namespace, key, answer),
        },
    ).fetchall()
    return int(rows[0][0]) if rows else None


def _raise_fence(connection: Connection, namespace: str, revision: int) -> int:
    """Refuse what is being fetched of the namespace; return its number."""
    parameters = {"namespace": namespace, "revision": revision}
    rows = connection.execute(RAISE_FENCE, parameters).fetchall()
    if not rows:
        raise FileDamagedError(f"the namespace {namespace!r} is missing")
    return int(rows[0][0])


def fence_prefix(connection: Connection, namespace: str, prefix: str) -> list[str]:
    """Remove what is kept of every key that begins with `prefix`; refuse what is being fetched.

    In as many transactions as it takes: they may be a million.

    Returns
    -------
    list of str
        The keys of the values removed. An absence or a fence has no bytes anywhere, and the fence
        of a folder has no key.
    """
    with connection.writing_much():
        revision = _next_revision(connection, namespace)
        number = _raise_fence(connection, namespace, revision)
        parameters = {
            "namespace": namespace,
            "prefix": prefix,
            "end": prefix_end(prefix),
            "revision": revision,
            "most": MOST_AT_ONCE,
        }
        removed = some = connection.execute(REMOVE_SOME_OF_PREFIX, parameters).fetchall()
        key_order.check(connection, number, prefix)
    while len(some) == MOST_AT_ONCE:
        with connection.writing_much():
            some = connection.execute(REMOVE_SOME_OF_PREFIX, parameters).fetchall()
            key_order.check(connection, number, prefix)
        removed += some
    return [key for key, kind in removed if kind == "value"]
