"""Keeping what the source answered."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache import checksum, values
from zarr_cache.budget import under_limits
from zarr_cache.index import LONGEST_WRITE_NS, NEW_NAMESPACE
from zarr_cache.pending import write_touches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr_cache.budget import Limits, Removed
    from zarr_cache.checksum import ByteArray
    from zarr_cache.connection import Connection
    from zarr_cache.index import Found
    from zarr_cache.pending import Pending
    from zarr_cache.values import Keep

MOST_TOGETHER = 64
"""So many answers are kept in one transaction,"""

MOST_BYTES_TOGETHER = 16 * 2**20
"""and no more once they have so many bytes."""

MOST_ABSENT = 100_000
"""So many absent entries are kept in a file."""

# A row keeps its revision: it is that of the last write, and this is none. A row that says more
# recently what the source holds stays, and so does one that a write has fenced since, or that a
# write is fencing now, unless that writer is taken for dead.
ADMIT = """
INSERT INTO entry (namespace, key, kind, size, stored_at, used_at, revision, checksum)
SELECT id, :key, :kind, :size, :stored_at, :used_at, 0, :checksum
FROM namespace
WHERE name = :namespace AND fence <= :revision
ON CONFLICT (namespace, key) DO UPDATE
SET kind = excluded.kind,
    size = excluded.size,
    stored_at = excluded.stored_at,
    used_at = excluded.used_at,
    writers = 0,
    checksum = excluded.checksum
WHERE revision <= :revision
  AND (writers = 0 OR stored_at <= :dead_before)
  AND stored_at <= excluded.stored_at
  AND kind <> 'stored'
RETURNING id
"""

FORGET = """
DELETE FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND kind IN ('value', 'absent')
  AND revision <= :revision
  AND writers = 0
  AND stored_at <= :stored_at
RETURNING key
"""

DISCARD = """
DELETE FROM entry
WHERE id = :entry AND checksum = :checksum AND kind <> 'stored'
RETURNING key
"""

ADOPT = """
INSERT INTO entry (namespace, key, kind, size, stored_at, used_at, revision, checksum)
SELECT id, :key, 'value', :size, 0, :used_at, 0, :checksum
FROM namespace
WHERE name = :namespace
ON CONFLICT DO NOTHING
"""

# More than one at a time, so that not each entry after the last allowed one has to remove one.
TRIM = """
DELETE FROM entry
WHERE id IN (
    SELECT id
    FROM entry
    WHERE kind = :kind
    ORDER BY used_at, id
    LIMIT max(0, (SELECT entries FROM total WHERE kind = :kind) - :most)
)
"""


class Answer(NamedTuple):
    """What the source said, to be kept.

    Attributes
    ----------
    data
        The whole value, or None: the source has no such key.
    stored_at
        Time at which the source was asked.
    used_at
        Stamp of this use.
    revision
        `Found.revision` from before the source was asked.
    """

    data: ByteArray | None
    stored_at: int
    used_at: int
    revision: int

    @property
    def kind(self) -> str:
        """The kind of entry that the answer becomes."""
        return "absent" if self.data is None else "value"

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return 0 if self.data is None else self.data.size


@dataclass(slots=True, eq=False)
class Admission:
    """An answer that is to be kept.

    Attributes
    ----------
    is_done
        Whether it has been decided.
    removed
        What went to make room for it; None when a write has overtaken the answer.
    error
        Why it could not be kept.
    """

    namespace: str
    key: str
    answer: Answer
    limits: Limits
    is_done: bool = False
    removed: Removed | None = None
    error: BaseException | None = None


class Admissions:
    """Answers that wait to be kept. Whoever comes to write takes all that wait along.

    A transaction costs several times what one more entry in it does. Nobody waits for others to
    come: what is taken along has come while the transaction before was under way.
    """

    def __init__(self) -> None:
        self._waiting: deque[Admission] = deque()
        self._turn = threading.Lock()

    def add(self, admission: Admission) -> None:
        """Let it wait for `admit`."""
        self._waiting.append(admission)

    def _take(self) -> list[Admission]:
        """Some of those that wait, but not so many that the next waits for long."""
        taken: list[Admission] = []
        nbytes = 0
        while self._waiting and len(taken) < MOST_TOGETHER and nbytes < MOST_BYTES_TOGETHER:
            admission = self._waiting.popleft()
            nbytes += admission.answer.size
            taken.append(admission)
        return taken

    def admit(
        self, connection: Connection, mine: Admission, pending: Pending, keep: Keep
    ) -> Removed | None:
        """Keep the answer, and others that wait; None when a write has overtaken it.

        Parameters
        ----------
        pending
            Uses that wait to be written: they are first, since eviction goes by them.
        keep
            Where the bytes go.
        """
        with self._turn:
            # Another may have taken mine along.
            while not mine.is_done:
                self._admit_together(connection, pending, keep)
        if mine.error is not None:
            raise mine.error
        return mine.removed

    def _admit_together(self, connection: Connection, pending: Pending, keep: Keep) -> None:
        error = None
        taken = self._take()
        touches = pending.take_touches()
        try:
            with connection.writing():
                write_touches(connection, touches)
                for admission in taken:
                    _admit(connection, admission, keep)
        except BaseException as failure:  # noqa: BLE001 - raised by each whose it is
            error = failure
            pending.put_back(touches)
        for admission in taken:
            admission.error = error
            admission.is_done = True


def _admit(connection: Connection, admission: Admission, keep: Keep) -> None:
    namespace, answer = admission.namespace, admission.answer
    facts = checksum.of_facts(namespace, admission.key, answer.kind, answer.size, answer.stored_at)
    parameters = {
        "namespace": namespace,
        "key": admission.key,
        "kind": answer.kind,
        "size": answer.size,
        "stored_at": answer.stored_at,
        "used_at": answer.used_at,
        "revision": answer.revision,
        "dead_before": answer.stored_at - LONGEST_WRITE_NS,
        "checksum": facts,
    }
    with under_limits(connection, namespace, admission.limits) as removed:
        connection.execute(NEW_NAMESPACE, {"namespace": namespace})
        rows = connection.execute(ADMIT, parameters).fetchall()
        for (entry,) in rows:
            values.replace(connection, entry, facts, answer.data, keep)
        if answer.data is None:
            connection.execute(TRIM, {"kind": "absent", "most": MOST_ABSENT})
    admission.removed = removed if rows else None


def forget(
    connection: Connection, namespace: str, key: str, *, revision: int, stored_at: int
) -> list[str]:
    """Remove what is kept of the key, unless it is newer; return the keys removed."""
    parameters = {
        "namespace": namespace,
        "key": key,
        "revision": revision,
        "stored_at": stored_at,
    }
    with connection.writing():
        return [key for (key,) in connection.execute(FORGET, parameters).fetchall()]


def discard(connection: Connection, found: Found) -> list[str]:
    """Remove a damaged entry; another that has taken its place meanwhile stays."""
    parameters = {"entry": found.entry, "checksum": found.checksum}
    with connection.writing():
        return [key for (key,) in connection.execute(DISCARD, parameters).fetchall()]


def adopt(connection: Connection, namespace: str, sizes: Sequence[tuple[str, int]]) -> None:
    """Take in values that another store already holds, oldest first, older than any finite age."""
    with connection.writing():
        connection.execute(NEW_NAMESPACE, {"namespace": namespace})
        for used_at, (key, size) in enumerate(sizes, 1):
            parameters = {
                "namespace": namespace,
                "key": key,
                "size": size,
                "used_at": used_at,
                "checksum": checksum.of_facts(namespace, key, "value", size, 0),
            }
            connection.execute(ADOPT, parameters)
