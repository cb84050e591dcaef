"""Keeping what the source answered."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core import byte_range, checksum
from zarr_cache.core.single_flight import LazyFuture
from zarr_cache.index import extents, lookup
from zarr_cache.index.evict import Evictions, cached_bytes, trim, under_limits
from zarr_cache.index.large_values import LargeValue
from zarr_cache.index.lookup import LONGEST_WRITE_NS, NEW_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zarr.abc.store import ByteRequest

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.core.errors import CacheError
    from zarr_cache.core.flow import Flow
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.evict import Limits
    from zarr_cache.index.large_values import WrittenValues
    from zarr_cache.index.lookup import EntryState
    from zarr_cache.index.values import Keep


"""At most this many answers are kept in one transaction, and `values.MAX_BYTES` of those that are
in the database."""


MAX_ABSENT = 100_000


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
    writes_in_flight = 0,
    checksum = excluded.checksum
WHERE revision <= :revision
  AND (writes_in_flight = 0 OR stored_at <= :dead_before)
  AND stored_at <= excluded.stored_at
  AND kind <> 'stored'
RETURNING id
"""


# It keeps its revision: what was asked for before a write is refused as before.
MAKE_WAY = """
UPDATE entry
SET kind = 'tombstone',
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
  AND writes_in_flight = 0
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
    on_done
        Called with what became of it: what went to make room for it, None when a write has
        overtaken it, or why it could not be kept. By the thread that has kept it.
    """

    def __init__(
        self,
        namespace: str,
        key: str,
        response: Response,
        limits: Limits,
        on_done: Callable[[Evictions | CacheError | None], None],
    ) -> None:
        self.namespace = namespace
        self.key = key
        self.response = response
        self.limits = limits
        self.used_at = self.used_at_in_file = response.used_at
        self.entry: int | None = None
        self.removed: Evictions | None = None
        # For it, before its own transaction: that stays so whatever becomes of it.
        self.removed_before: Evictions | None = None
        self.failure: CacheError | None = None
        self.is_needless = False
        self._told = on_done
        self._ended: LazyFuture[None] = LazyFuture()

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


def bytes_coming(connection: Connection, limits: Limits, wanted: Sequence[Admission]) -> int:
    """How many bytes more there will be; what they replace is looked for only where room lacks."""
    coming = sum(each.response.size for each in wanted)
    if not limits.are_exceeded(cached_bytes(connection) + coming):
        return coming
    more: dict[tuple[str, str], int] = {}
    for each in wanted:
        place = (each.namespace, each.key)
        row = connection.execute(SIZE_NOW, {"namespace": place[0], "key": place[1]}).fetchone()
        before = 0 if row is None else int(row[0])
        more[place] = max(more.get(place, 0), each.response.size - before)
    return sum(more.values())


def large_values(connection: Connection, wanted: Sequence[Admission]) -> list[LargeValue]:
    """Those of which the bytes are written before their entries are."""
    return [
        LargeValue(
            admission,
            identity_checksum_of(admission.namespace, admission.key, admission.response),
            admission.response.data,
            partial(_is_wanted, connection, admission),
        )
        for admission in wanted
        if admission.response.data is not None
        and extents.is_large(connection, admission.response.size)
    ]


def _is_wanted(connection: Connection, admission: Admission) -> bool:
    """Whether the answer would be kept as things are; what it replaces may go for it."""
    found = lookup.lookup_metadata(connection, admission.namespace, admission.key)
    response, limits = admission.response, admission.limits
    if admission.is_needless or response.instead_of(found) is found:
        return False
    if found.kind == "value" and limits.are_exceeded(cached_bytes(connection) + response.size):
        # Better that than another, since there is no room for both.
        connection.execute(MAKE_WAY, {"entry": found.entry})
        extents.delete(connection, found.entry or 0)
    return True


def admit(
    connection: Connection, admission: Admission, keep: Keep, values_written: WrittenValues
) -> None:
    """Keep one answer, unless a write has overtaken it: a step of a transaction."""
    namespace, response = admission.namespace, admission.response
    its = values_written.get(admission)
    if its is None and response.data is not None and extents.is_large(connection, response.size):
        # It was not wanted, or there was no room for it, or there is no data file.
        admission.failure = values_written.failure
        return
    used_at = admission.used_at_in_file = admission.used_at
    seed = identity_checksum_of(namespace, admission.key, response)
    parameters = {
        "namespace": namespace,
        "key": admission.key,
        "kind": response.kind,
        "size": response.size,
        "stored_at": response.stored_at,
        "used_at": used_at,
        "revision": response.revision,
        "dead_before": response.stored_at - LONGEST_WRITE_NS,
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
            elif response.data is not None:
                keep(connection, entry, seed, response.data)
        if response.data is None:
            trim(connection, "absent", MAX_ABSENT, admission.limits.dead_before)
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


def discard(connection: Connection, found: EntryState) -> list[str]:
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


class Response(NamedTuple):
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
        `EntryState.revision` from before the source was asked.
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

    def instead_of(
        self, found: EntryState, request: ByteRequest | None = None, fresh_after: int | None = None
    ) -> EntryState:
        """What the file will tell once this is in it, instead of what it tells now.

        Parameters
        ----------
        request, fresh_after
            Of a look-up for bytes; without `fresh_after` it is for facts.
        """
        if found.is_overtaken(self.revision, self.stored_at):
            return found
        if found.kind in {"value", "absent"} and found.stored_at > self.stored_at:
            return found
        data = None
        if self.data is not None and fresh_after is not None and self.stored_at > fresh_after:
            start, stop = byte_range.span(request, self.size)
            data = self.data[start:stop]
        return found._replace(
            entry=None,
            kind=self.kind,
            size=self.size,
            stored_at=self.stored_at,
            writes_in_flight=0,
            data=data,
            read=None,
            is_damaged=False,
        )


def identity_checksum_of(namespace: str, key: str, response: Response) -> int:
    """The checksum of the facts of the entry that the answer becomes."""
    return checksum.of_facts(namespace, key, response.kind, response.size, response.stored_at)
