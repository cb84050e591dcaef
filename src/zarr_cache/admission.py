"""Keeping what the source answered."""

from __future__ import annotations

import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from zarr_cache import checksum, extents, index, values
from zarr_cache.answer import seed_of
from zarr_cache.budget import Removed, cached_bytes, evict_ahead, trim, under_limits
from zarr_cache.index import LONGEST_WRITE_NS, NEW_NAMESPACE
from zarr_cache.large_values import LargeValue, most_bytes, written
from zarr_cache.outcome import Outcome
from zarr_cache.pending import write_counts, write_touches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zarr_cache.answer import Answer
    from zarr_cache.budget import Limits
    from zarr_cache.connection import Connection
    from zarr_cache.errors import CacheError
    from zarr_cache.flow import Flow
    from zarr_cache.index import Found
    from zarr_cache.large_values import WrittenValues
    from zarr_cache.pending import Pending
    from zarr_cache.values import Keep

MOST_TOGETHER = 64
"""At most this many answers are kept in one transaction, and `values.MOST_BYTES` of those that are
in the database."""

MOST_ABSENT = 100_000
"""At most this many absent entries are kept in a file."""

# A row keeps its revision: it is that of the last write, and this is none. A row that says more
# recently what the source holds stays, and so does one that a write has fenced since, or that a
# write is fencing now, unless that writer is taken for dead. While a folder of the source is being
# removed, nothing of the source is kept.
ADMIT = """
INSERT INTO entry (namespace, key, kind, size, stored_at, used_at, revision, checksum)
SELECT id, :key, :kind, :size, :stored_at, :used_at, 0, :checksum
FROM namespace
WHERE name = :namespace
  AND fence <= :revision
  AND (removals_since IS NULL OR removals_since <= :dead_before)
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

# It keeps its revision: what was asked for before a write is refused as before.
MAKE_WAY = """
UPDATE entry
SET kind = 'fence',
    size = 0
WHERE id = :entry AND kind = 'value'
"""

SIZE_NOW = """
SELECT size
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND kind = 'value'
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
WHERE id = :entry AND checksum IS :checksum AND kind IS NOT 'stored'
RETURNING key
"""

ADOPT = """
INSERT INTO entry (namespace, key, kind, size, stored_at, used_at, revision, checksum)
SELECT id, :key, 'value', :size, 0, :used_at, 0, :checksum
FROM namespace
WHERE name = :namespace
ON CONFLICT DO NOTHING
"""

# Another store has one place for a key, whoever's it is.
TAKE_PLACE = """
DELETE FROM entry
WHERE namespace IN (SELECT id FROM namespace WHERE name <> :namespace)
  AND key = :key
  AND kind = 'value'
"""

HAS_PLACE = """
SELECT 1
FROM entry
WHERE namespace IN (SELECT id FROM namespace)
  AND key = :key
  AND kind = 'value'
"""


class Admission:
    """An answer that is to be kept.

    Parameters
    ----------
    told
        Called with what became of it: what went to make room for it, None when a write has
        overtaken it, or why it could not be kept. By the thread that has kept it.
    """

    def __init__(
        self,
        namespace: str,
        key: str,
        answer: Answer,
        limits: Limits,
        told: Callable[[Removed | CacheError | None], None],
    ) -> None:
        self.namespace = namespace
        self.key = key
        self.answer = answer
        self.limits = limits
        self.used_at = self.used_at_in_file = answer.used_at
        self.entry: int | None = None
        self.removed: Removed | None = None
        # For it, before its own transaction: that stays so whatever becomes of it.
        self.removed_before: Removed | None = None
        self.failure: CacheError | None = None
        self.is_needless = False
        self._told = told
        self._ended: Outcome[None] = Outcome()

    def end(self, error: CacheError | None) -> None:
        """Tell what became of it."""
        error = error or self.failure
        if error is not None:
            self._told(error)
        if error is None or self.removed is not None:
            # Some may have gone to make room for what could not be kept in the end.
            self._told(self.removed)
        self._ended.set(None)

    def wait(self) -> Flow[None]:
        """Wait until it has ended."""
        return self._ended.wait()


class Admissions:
    """Answers that wait to be kept. Whoever comes to write takes many of them along.

    A transaction costs several times what one more entry in it does, and none of that is the
    reader's to wait for. What waits is at hand all the same: `answer` tells.

    Any thread may call.

    Attributes
    ----------
    nbytes
        Bytes of those that wait or are being written.
    being_kept
        Bytes of those that are being written just now.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._waiting: deque[Admission] = deque()
        self._taken: list[Admission] = []
        self._by_key: dict[tuple[str, str], Admission] = {}
        self.nbytes = 0
        self.being_kept = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, admission: Admission) -> None:
        """Let it wait."""
        with self._lock:
            self._waiting.append(admission)
            self._by_key[admission.namespace, admission.key] = admission
            self.nbytes += admission.answer.size

    def answer(self, namespace: str, key: str) -> Answer | None:
        """The last answer for the key that waits, or is being kept just now."""
        admission = self._by_key.get((namespace, key))
        return None if admission is None or admission.is_needless else admission.answer

    def touch(self, namespace: str, key: str, used_at: int) -> None:
        """Note a use of what waits for the key."""
        with self._lock:
            admission = self._by_key.get((namespace, key))
            if admission is not None:
                admission.used_at = used_at

    def forget(self, namespace: str, key: str) -> None:
        """Do not keep what waits for the key."""
        with self._lock:
            # What is being written as well: it has no entry yet that could be removed.
            for admission in (*self._waiting, *self._taken):
                if (admission.namespace, admission.key) == (namespace, key):
                    admission.is_needless = True

    def take(self, connection: Connection | None = None) -> list[Admission]:
        """Some of those that wait, but not so many that the next waits for long.

        They are at hand until `taken_away`.

        Parameters
        ----------
        connection
            To what they are to be kept in; None if they are not.
        """
        taken: list[Admission] = []
        small = large = 0
        with self._lock:
            while self._waiting and len(taken) < MOST_TOGETHER:
                first = self._waiting[0]
                size = first.answer.size
                if connection is not None and extents.is_large(connection, size):
                    large += size
                else:
                    small += size
                if taken and (small > values.MOST_BYTES or large > most_bytes(first.limits)):
                    break
                taken.append(self._waiting.popleft())
            self._taken += taken
            self.being_kept += sum(admission.answer.size for admission in taken)
        return taken

    def taken_away(self, taken: Iterable[Admission], pending: Pending) -> None:
        """They are in the file, or never will be."""
        with self._lock:
            for admission in taken:
                if admission not in self._taken:
                    continue
                self._taken.remove(admission)
                is_used = admission.used_at > admission.used_at_in_file
                if admission.entry is not None and is_used:
                    # While it was written.
                    pending.touch(admission.entry, admission.used_at)
                self.nbytes -= admission.answer.size
                self.being_kept -= admission.answer.size
                place = (admission.namespace, admission.key)
                if self._by_key.get(place) is admission:
                    del self._by_key[place]

    def settle(self) -> None:
        """Wait until nothing is being kept."""
        with self._turn:
            pass

    def admit_some(
        self,
        connection: Connection,
        ended: list[Admission],
        pending: Pending,
        keep: Keep,
        now_ns: int,
    ) -> None:
        """Keep some of those that wait, in one transaction; large values are written before it.

        Parameters
        ----------
        ended
            Is filled with those that were kept, or that could not be if this raises.
        pending
            Uses that wait to be written: they are first, since eviction goes by them. Counts go
            along: a process that always has something to keep would write none by themselves.
        keep
            Where the bytes of small values go.
        now_ns
            When this was called, by the clock of the file.
        """
        with self._turn:
            # When the file was opened anew, the same ones are tried once more.
            if not ended:
                ended += self.take(connection)
            if not ended:
                return
            touches, counts = pending.take_touches(), pending.take_counts()
            removed = Removed()
            try:
                first = ended[0]
                limits = first.limits
                wanted = [each for each in ended if not each.is_needless]
                large = _large(connection, wanted)
                failure = extents.why_unusable(connection) if large else None
                coming = _bytes_coming(connection, limits, [] if failure is not None else wanted)
                evict_ahead(connection, limits, touches, removed, coming)
                with written(
                    connection, first.namespace, limits, touches, large, now_ns, removed, failure
                ) as values_written:
                    if removed.evicted or removed.evicted_ranges or removed.expired:
                        first.removed = first.removed_before = removed
                    with connection.writing_much():
                        write_touches(connection, touches)
                        for admission in ended:
                            if not admission.is_needless:
                                _admit(connection, admission, keep, values_written)
                        write_counts(connection, counts)
                        values_written.release(connection)
            except BaseException:
                pending.put_back(touches)
                pending.put_back_counts(counts)
                for admission in ended:
                    admission.entry = None
                    admission.removed = admission.removed_before
                if ended and (removed.evicted or removed.evicted_ranges or removed.expired):
                    ended[0].removed = removed
                raise
            finally:
                self.taken_away(ended, pending)


def _bytes_coming(connection: Connection, limits: Limits, wanted: Sequence[Admission]) -> int:
    """How many bytes more there will be; what they replace is looked for only where room lacks."""
    coming = sum(each.answer.size for each in wanted)
    if not limits.are_exceeded(cached_bytes(connection) + coming):
        return coming
    more: dict[tuple[str, str], int] = {}
    for each in wanted:
        place = (each.namespace, each.key)
        row = connection.execute(SIZE_NOW, {"namespace": place[0], "key": place[1]}).fetchone()
        before = 0 if row is None else int(row[0])
        more[place] = max(more.get(place, 0), each.answer.size - before)
    return sum(more.values())


def _large(connection: Connection, wanted: Sequence[Admission]) -> list[LargeValue]:
    """Those of which the bytes are written before their entries are."""
    return [
        LargeValue(
            admission,
            seed_of(admission.namespace, admission.key, admission.answer),
            admission.answer.data,
            partial(_is_wanted, connection, admission),
        )
        for admission in wanted
        if admission.answer.data is not None and extents.is_large(connection, admission.answer.size)
    ]


def _is_wanted(connection: Connection, admission: Admission) -> bool:
    """Whether the answer would be kept as things are; what it replaces may go for it."""
    found = index.peek(connection, admission.namespace, admission.key)
    answer, limits = admission.answer, admission.limits
    if admission.is_needless or answer.instead_of(found) is found:
        return False
    if found.kind == "value" and limits.are_exceeded(cached_bytes(connection) + answer.size):
        # Better that than another, since there is no room for both.
        connection.execute(MAKE_WAY, {"entry": found.entry})
        extents.delete(connection, found.entry or 0)
    return True


def _admit(
    connection: Connection, admission: Admission, keep: Keep, values_written: WrittenValues
) -> None:
    namespace, answer = admission.namespace, admission.answer
    its = values_written.get(admission)
    if its is None and answer.data is not None and extents.is_large(connection, answer.size):
        # It was not wanted, or there was no room for it, or there is no data file.
        admission.failure = values_written.failure
        return
    used_at = admission.used_at_in_file = admission.used_at
    seed = seed_of(namespace, admission.key, answer)
    parameters = {
        "namespace": namespace,
        "key": admission.key,
        "kind": answer.kind,
        "size": answer.size,
        "stored_at": answer.stored_at,
        "used_at": used_at,
        "revision": answer.revision,
        "dead_before": answer.stored_at - LONGEST_WRITE_NS,
        "checksum": seed,
    }
    before = admission.removed_before
    with under_limits(connection, namespace, admission.limits, before) as removed:
        connection.execute(NEW_NAMESPACE, {"namespace": namespace})
        # Its space is reserved no more if this process was taken for dead.
        is_there = its is None or its.is_there(connection)
        rows = connection.execute(ADMIT, parameters).fetchall() if is_there else []
        for (entry,) in rows:
            admission.entry = entry
            extents.delete(connection, entry)
            if its is not None:
                its.give(connection, entry)
            elif answer.data is not None:
                keep(connection, entry, seed, answer.data)
        if answer.data is None:
            trim(connection, "absent", MOST_ABSENT, admission.limits.dead_before)
    admission.removed = removed if rows else before


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
    with connection.writing_much():
        return [key for (key,) in connection.execute(FORGET, parameters).fetchall()]


def discard(connection: Connection, found: Found) -> list[str]:
    """Remove a damaged entry; another that has taken its place meanwhile stays."""
    parameters = {"entry": found.entry, "checksum": found.checksum}
    with connection.writing_much():
        return [key for (key,) in connection.execute(DISCARD, parameters).fetchall()]


def take_place(connection: Connection, namespace: str, key: str) -> None:
    """Remove the values of this key of all other namespaces, of which the bytes are to go."""
    with connection.writing():
        connection.execute(TAKE_PLACE, {"namespace": namespace, "key": key})


def has_place(connection: Connection, key: str) -> bool:
    """Whether there is a value of this key, in whatever namespace."""
    return connection.execute(HAS_PLACE, {"key": key}).fetchone() is not None


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
