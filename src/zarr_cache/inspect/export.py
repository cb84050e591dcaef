"""Export: a new cache file with what is cached of one source.

The old file is read in short steps, which hold up none of its writers. An entry is copied with its
age and its last use, after its bytes are verified. Tombstones, counts and what is stored with
`SqliteStore` are not copied.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from zarr_cache.backend.ranges import RangeCache
from zarr_cache.core import ages
from zarr_cache.core.clock import TIMESTAMPS_END
from zarr_cache.core.errors import CacheError, StorageError
from zarr_cache.core.private import is_private
from zarr_cache.disk.location import refuse_location
from zarr_cache.disk.paths import (
    data_file_of,
    locked_folder,
    marker_of,
    shared_memory_of,
    wal_of,
)
from zarr_cache.file.file_database import FileDatabase
from zarr_cache.index import extents, lookup, ranges, values
from zarr_cache.index.admit import Response, identity_checksum_of
from zarr_cache.index.evict import Evictions, Limits
from zarr_cache.index.large_values import MAX_BYTES, LargeValue, written
from zarr_cache.index.lookup import NEW_NAMESPACE
from zarr_cache.index.upkeep import checkpoint
from zarr_cache.inspect.selection import CACHED, NOTHING, Amount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest

    from zarr_cache.file.connection import Connection
    from zarr_cache.index.large_values import WrittenValue


MAX_ENTRIES = 64
"""At most this many entries are listed in one step, and inserted in one transaction."""

NAMESPACES = """
SELECT namespace.name
FROM namespace
JOIN usage ON usage.namespace = namespace.id
WHERE usage.kind IN ('value', 'range', 'absent') AND usage.entries > 0
GROUP BY namespace.id
ORDER BY namespace.name
"""

# Along the index of keys: each step begins where the last one ended. `+kind` is not looked up in an
# index. Otherwise SQLite may take entry_by_age, and sort all entries of the namespace in each step.
NEXT = """
SELECT id, key, start, stop, size, stored_at, used_at
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND (key, start) >= (:key, :start)
  AND +kind IN ('value', 'range', 'absent')
ORDER BY key, start
LIMIT :limit
"""

INSERT = """
INSERT INTO entry (
    namespace, key, kind, start, stop, size, stored_at, used_at, revision, checksum,
    validator, confirmed_at
)
SELECT
    id, :key, :kind, :start, :stop, :size, :stored_at, :used_at, 0, :checksum,
    :validator, :confirmed_at
FROM namespace
WHERE name = :namespace
RETURNING id
"""


class Exported(NamedTuple):
    """What was copied, and how many entries were left out because they are damaged."""

    amount: Amount
    damaged: int


class Row(NamedTuple):
    """The row of an entry, of which nothing is verified."""

    id: int
    key: str
    start: int
    stop: int | None
    size: int
    stored_at: int
    used_at: int

    @property
    def identity(self) -> tuple[object, ...]:
        """What no other row had before it or has after it: the next one may get the same `id`."""
        return self.id, self.key, self.start, self.stored_at

    @property
    def has_types(self) -> bool:
        """Whether the columns have the types of their table: on a damaged page, they may not."""
        numbers = (self.start, self.stop or 0, self.size, self.stored_at, self.used_at)
        return isinstance(self.key, str) and set(map(type, numbers)) == {int}

    @property
    def request(self) -> ByteRequest | None:
        """The request whose response a range is; None for another entry."""
        if self.start == -1:
            return None
        if self.start == ranges.TAIL:
            return SuffixByteRequest(self.size)
        if self.stop is None:
            return OffsetByteRequest(self.start)
        return RangeByteRequest(self.start, self.stop)


class Entry(NamedTuple):
    """An entry whose facts and bytes are verified.

    Attributes
    ----------
    start, stop, confirmed_at, checksum
        As in its row, which is copied.
    identity_checksum
        The seed of the checksums of its bytes.
    """

    key: str
    start: int
    stop: int | None
    response: Response
    confirmed_at: int | None
    checksum: int
    identity_checksum: int

    @property
    def place(self) -> tuple[str, int]:
        """By which it differs from the other entries of its namespace."""
        return self.key, self.start


class DamagedEntryError(Exception):
    """The facts or the bytes of an entry are not those that were written."""


def namespace_of(connection: Connection, path: Path, given: str | None) -> str:
    """The namespace to export: the given one, or else the only one there is.

    Raises
    ------
    CacheError
        Nothing is cached of it, there are several, or it is private to a process. The message lists
        those that can be exported.
    """
    if given is not None and is_private(given):
        raise CacheError(
            f"{path}: {given!r} is the name of a source in one process, and no other process can "
            "read what is cached of it"
        )
    rows: list[tuple[str]] = connection.execute(NAMESPACES).fetchall()
    found = [name for (name,) in rows if not is_private(name)]
    if given is None and len(found) == 1:
        return found[0]
    if given is not None and given in found:
        return given
    names = ", ".join(map(repr, found))
    if not found:
        raise CacheError(f"{path}: nothing is cached that another process could read")
    if given is None:
        raise CacheError(f"{path}: several sources are cached; name one with --namespace: {names}")
    raise CacheError(f"{path}: nothing is cached of {given!r}; the sources are: {names}")


def refuse_existing(path: Path, namespace: str) -> None:
    """Raise a CacheError if there is a file that would belong to a cache file at `path`."""
    beside = (data_file_of(path), wal_of(path), shared_memory_of(path), marker_of(path, namespace))
    for each in (path, *beside):
        if each.exists(follow_symlinks=False):
            raise CacheError(f"{each}: exists already; delete it, or name another file")


def export(connection: Connection, old: Path, namespace: str, new: Path) -> Exported:
    """Make the file `new` with what is cached of the namespace in the file `old`.

    The file is made in a folder beside it and gets its name when it is complete. If this fails or
    is interrupted, the folder is removed; if the process is killed, it stays.

    Raises
    ------
    CacheError
        There is such a file, or a write to the source could not be recorded in the old one.
    StorageError
        The new file cannot be written, or the old one cannot be read.
    """
    refuse_location(new)
    refuse_existing(new, namespace)
    _refuse_invalidated(old, namespace)
    try:
        with tempfile.TemporaryDirectory(prefix=f"{new.name}.export-", dir=new.parent) as folder:
            begun = Path(folder) / new.name
            database = FileDatabase.of(begun)
            try:
                exported = copy(connection, database, namespace)
                if not database.run(checkpoint):
                    raise StorageError(f"{begun}: another process has it open")
            finally:
                database.close()
            # What was read may have been invalidated meanwhile.
            _refuse_invalidated(old, namespace)
            _move(begun, new, namespace)
    except OSError as error:
        raise StorageError(f"{new}: {error.strerror or error}") from error
    return exported


def _refuse_invalidated(path: Path, namespace: str) -> None:
    if marker_of(path, namespace).exists(follow_symlinks=False):
        raise CacheError(
            f"{path}: a write to {namespace!r} could not be recorded, and nothing that is cached "
            "of it is used; it is removed when a CacheStore reads this source and can write to "
            "the file"
        )


def _move(begun: Path, path: Path, namespace: str) -> None:
    """Give the file its name; no other process makes a cache file in the folder meanwhile."""
    with locked_folder(path, is_shared=False):
        refuse_existing(path, namespace)
        try:
            # First: a process that opens a database whose data file is missing makes another.
            if data_file_of(begun).exists():
                data_file_of(begun).rename(data_file_of(path))
            begun.rename(path)
        except BaseException:
            path.unlink(missing_ok=True)
            data_file_of(path).unlink(missing_ok=True)
            raise


def copy(connection: Connection, database: FileDatabase, namespace: str) -> Exported:
    """Copy what is cached of the namespace, in short steps, into a file that has nothing of it."""
    now_ns = database.clock().now_ns
    amount, damaged = NOTHING, 0
    last: Row | None = None
    while rows := next_rows(connection, namespace, last):
        last = rows[-1]
        batch: list[Entry] = []
        for row in rows:
            try:
                entry = read(connection, namespace, row)
            except DamagedEntryError:
                damaged += 1
                continue
            if entry is None:
                continue
            batch.append(entry)
            amount += Amount(1, entry.response.size)
            if sum(each.response.size for each in batch) >= MAX_BYTES:
                database.run(insert, namespace, batch, now_ns())
                batch = []
        if batch:
            database.run(insert, namespace, batch, now_ns())
    return Exported(amount, damaged)


def next_rows(connection: Connection, namespace: str, last: Row | None) -> list[Row]:
    """The next `MAX_ENTRIES` rows after the last one, by key and start: an operation.

    If that row was removed meanwhile, its value may have been written, and ranges of another
    version would come next. Then the other entries of its key are left out.
    """
    if last is None:
        return _rows_from(connection, namespace, "", ranges.TAIL)
    rows = _rows_from(connection, namespace, last.key, last.start)
    if rows and rows[0].identity == last.identity:
        return rows[1:]
    return _rows_from(connection, namespace, last.key, ranges.END)


def _rows_from(connection: Connection, namespace: str, key: str, start: int) -> list[Row]:
    # One more, since the first is of the step before.
    parameters = {"namespace": namespace, "key": key, "start": start, "limit": MAX_ENTRIES + 1}
    return [Row(*row) for row in connection.execute(NEXT, parameters)]


def read(connection: Connection, namespace: str, row: Row) -> Entry | None:
    """The entry of the row; None if it was removed or replaced meanwhile. An operation.

    Raises
    ------
    DamagedEntryError
        Its facts or its bytes do not have their checksums.
    """
    if not row.has_types:
        raise DamagedEntryError
    # A value that is cached beside a range is older: it was stale when the range was admitted. So
    # it is stale here as well, and the range is found.
    fresh_after = ages.EVER if row.request is None else row.stored_at - 1
    found = lookup.lookup(connection, namespace, row.key, row.request, fresh_after)
    if found.is_damaged:
        raise DamagedEntryError
    if (found.entry, found.stored_at) != (row.id, row.stored_at) or found.kind not in CACHED:
        return None
    data = None if found.data is None else np.frombuffer(found.data, np.uint8)
    # No checksum covers the last use.
    is_used_at = found.stored_at <= row.used_at < TIMESTAMPS_END
    used_at = row.used_at if is_used_at else found.stored_at
    response = Response(data, found.stored_at, used_at, 0, row.request, found.validator)
    identity_checksum = identity_checksum_of(namespace, row.key, response)
    facts = (row.key, row.start, row.stop, response, found.confirmed_at, found.checksum)
    return Entry(*facts, identity_checksum)


def insert(connection: Connection, namespace: str, entries: Sequence[Entry], now_ns: int) -> None:
    """Insert entries into a file that has none of them, in one transaction: an operation.

    The bytes of large values are written before it, as at admission. There is no budget.
    """
    limits = Limits(None, RangeCache(), ages.EVER, ages.EVER, now_ns, namespace, may_evict=True)
    large = [
        LargeValue(each.place, each.identity_checksum, each.response.data, lambda: True)
        for each in entries
        if each.response.data is not None and extents.is_large(connection, each.response.size)
    ]
    with written(
        connection, namespace, limits, {}, large, now_ns, Evictions(), None
    ) as values_written:
        if values_written.failure is not None:
            raise values_written.failure
        with connection.writing_much():
            connection.execute(NEW_NAMESPACE, {"namespace": namespace})
            for entry in entries:
                _insert(connection, namespace, entry, values_written.get(entry.place))


def _insert(
    connection: Connection, namespace: str, entry: Entry, value_written: WrittenValue | None
) -> None:
    response = entry.response
    parameters = {
        "namespace": namespace,
        "key": entry.key,
        "kind": response.kind,
        "start": entry.start,
        "stop": entry.stop,
        "size": response.size,
        "stored_at": response.stored_at,
        "used_at": response.used_at,
        "checksum": entry.checksum,
        "validator": response.validator,
        "confirmed_at": entry.confirmed_at,
    }
    ((number,),) = connection.execute(INSERT, parameters).fetchall()
    if value_written is not None:
        value_written.give(connection, number)
    elif response.data is not None:
        values.write(connection, number, entry.identity_checksum, response.data)
