"""Keeping what the source answered."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from zarr_cache import checksum, index, staging, values
from zarr_cache.answer import keep_bytes, seed_of
from zarr_cache.budget import trim, under_limits
from zarr_cache.index import LONGEST_WRITE_NS, NEW_NAMESPACE
from zarr_cache.outcome import Outcome
from zarr_cache.pending import write_counts, write_touches
from zarr_cache.staging import Staging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zarr_cache.answer import Answer
    from zarr_cache.budget import Limits, Removed
    from zarr_cache.connection import Connection
    from zarr_cache.errors import CacheError
    from zarr_cache.flow import Flow
    from zarr_cache.index import Found
    from zarr_cache.pending import Pending
    from zarr_cache.staging import Staged
    from zarr_cache.values import Keep

MOST_TOGETHER = 64
"""At most this many answers are kept in one transaction, and no more bytes of them than
`staging.MOST_AT_ONCE`, unless one alone has more."""

MOST_ABSENT = 100_000
"""At most this many absent entries are kept in a file."""

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

# It keeps its revision: what was asked for before a write is refused as before.
MAKE_WAY = """
UPDATE entry
SET kind = 'fence',
    size = 0
WHERE id = :entry AND kind = 'value'
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
        # While it was staged, which stays so whatever becomes of it.
        self.removed_before: Removed | None = None
        self.is_needless = False
        self._told = told
        self._ended: Outcome[None] = Outcome()

    def end(self, error: CacheError | None) -> None:
        """Tell what became of it."""
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
            # What is being staged as well: nothing of it is in the file yet that could be removed.
            for admission in (*self._waiting, *self._taken):
                if (admission.namespace, admission.key) == (namespace, key):
                    admission.is_needless = True

    def take(self) -> list[Admission]:
        """Some of those that wait, but not so many that the next waits for long.

        They are at hand until `taken_away`.
        """
        taken: list[Admission] = []
        nbytes = 0
        with self._lock:
            while self._waiting and len(taken) < MOST_TOGETHER:
                nbytes += self._waiting[0].answer.size
                if taken and nbytes > staging.MOST_AT_ONCE:
                    break  # a large one is alone
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
        self, connection: Connection, ended: list[Admission], pending: Pending, keep: Keep
    ) -> None:
        """Keep some of those that wait, in one transaction, or a large one in several.

        Parameters
        ----------
        ended
            Is filled with those that were kept, or that could not be if this raises.
        pending
            Uses that wait to be written: they are first, since eviction goes by them. Counts go
            along: a process that always has something to keep would write none by themselves.
        keep
            Where the bytes go.
        """
        with self._turn:
            # When the file was opened anew, the same ones are tried once more.
            if not ended:
                ended += self.take()
            if not ended:
                return
            touches, counts = pending.take_touches(), pending.take_counts()
            try:
                first = ended[0]
                wanted = [admission for admission in ended if not admission.is_needless]
                sizes = [(each.namespace, each.key, each.answer.size) for each in wanted]
                coming = staging.bytes_coming(connection, first.limits, sizes)
                with Staging(connection, first.namespace, first.limits, touches, coming) as stage:
                    if stage.removed.evicted or stage.removed.evicted_ranges:
                        first.removed = first.removed_before = stage.removed
                    large = _stage(connection, first, stage)
                    with connection.writing_much():
                        write_touches(connection, touches)
                        for admission in ended:
                            if not admission.is_needless:
                                _admit(connection, admission, keep, large)
                        write_counts(connection, counts)
                        stage.clear()
            except BaseException:
                pending.put_back(touches)
                pending.put_back_counts(counts)
                for admission in ended:
                    admission.entry = None
                    admission.removed = admission.removed_before
                raise
            finally:
                self.taken_away(ended, pending)


def _stage(connection: Connection, admission: Admission, stage: Staging) -> Staged | None:
    """Write the bytes of a large answer before it is kept; None if it is small."""
    namespace, answer, limits = admission.namespace, admission.answer, admission.limits
    if answer.data is None or not staging.is_large(connection, answer.size):
        return None
    admission.removed_before = stage.removed

    def is_wanted() -> bool:
        found = index.peek(connection, namespace, admission.key)
        if admission.is_needless or answer.instead_of(found) is found:
            return False
        nbytes = found.cached_bytes + limits.ranges.nbytes + answer.size
        if found.entry is not None and limits.max_size is not None and nbytes > limits.max_size:
            # There is no room for what it takes the place of as well: better that than another.
            connection.execute(MAKE_WAY, {"entry": found.entry})
            values.delete(connection, found.entry)
        return True

    seed = seed_of(namespace, admission.key, answer)
    return stage.write(seed, answer.data, answer.stored_at, admission.used_at, is_wanted)


def _admit(connection: Connection, admission: Admission, keep: Keep, large: Staged | None) -> None:
    namespace, answer = admission.namespace, admission.answer
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
        # What was staged is there no more if a write has overtaken it, or all else was used later.
        is_there = large is None or large.shrink(connection)
        is_there = is_there and not index.is_being_removed(
            connection, namespace, admission.key, answer.stored_at
        )
        rows = connection.execute(ADMIT, parameters).fetchall() if is_there else []
        for (entry,) in rows:
            admission.entry = entry if large is None else large.entry
            how = keep if large is None else large.keep
            keep_bytes(connection, entry, seed, answer.data, how, admission.limits, removed)
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
