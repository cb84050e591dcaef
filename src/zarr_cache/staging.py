"""Large values are written before they are kept, a part in each transaction.

The log is as long as the longest transaction, and the disk holds it beside the file. So a large
value is *staged* first: as an entry, of as many bytes as are written so far, of a namespace that is
private to this process. As such it counts for the budget, goes as the least recently used, and goes
with the process, also if that is killed. Its bytes are not written again: the transaction that
keeps the value gives its number to the entry of the key.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from typing import TYPE_CHECKING, Self

from zarr_cache import index, private, values
from zarr_cache.budget import SMALL, Removed, expire, has_room, make_room, make_way
from zarr_cache.errors import CacheError, FileLockedError, is_code
from zarr_cache.index import NEW_NAMESPACE
from zarr_cache.pending import write_most, write_touches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from zarr_cache.budget import Limits
    from zarr_cache.checksum import ByteArray
    from zarr_cache.connection import Connection

MOST_AT_ONCE = values.PART
"""At most this many bytes of values are written in one transaction; more are staged. Two parts
would make the log 4 MiB longer; a part is the least that can be written."""

NAME = "staged"
"""How the private names end under which values are staged."""

BEGIN = """
INSERT INTO entry (namespace, key, kind, size, stored_at, used_at, revision, checksum)
SELECT id, :key, 'value', 0, :stored_at, :used_at, 0, :checksum
FROM namespace
WHERE name = :namespace
RETURNING id
"""

STAGED = """
SELECT key
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
"""

# By its key, which no other has: the number of an entry that is gone may be that of another now.
GROW = """
UPDATE entry
SET size = size + :nbytes
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace) AND key = :key
RETURNING id
"""

# What the row of the key counts from here on is not to be counted twice, and must not be evicted.
SHRINK = """
UPDATE entry
SET kind = 'fence',
    size = 0
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace) AND key = :key
RETURNING id
"""

# The bytes go by the number of their entry, and no other row has a negative one.
STEP_ASIDE = """
UPDATE entry
SET id = -id
WHERE id = :staged
"""

TAKE_NUMBER = """
UPDATE entry
SET id = :staged
WHERE id = :entry
"""

REMOVE = """
DELETE FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace) AND key = :key
"""

SIZE_NOW = """
SELECT size
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = :namespace)
  AND key = :key
  AND kind = 'value'
"""

# Of this process, whatever the file.
_numbers = itertools.count(1)
_under_way: set[str] = set()


class Staged:
    """A value that is being staged, or has been.

    Attributes
    ----------
    is_whole
        Whether all of its bytes are written.
    entry
        Number of its entry.
    """

    def __init__(self) -> None:
        self._place = {"namespace": f"{private.own_prefix()}{NAME}", "key": str(next(_numbers))}
        self.is_whole = False
        self.entry = 0
        _under_way.add(self._place["key"])

    def begin(self, connection: Connection, seed: int, stored_at: int, used_at: int) -> None:
        """Make the entry, and remove those that could not be removed before."""
        connection.execute(NEW_NAMESPACE, self._place)
        for (key,) in connection.execute(STAGED, self._place).fetchall():
            if key not in _under_way:
                connection.execute(REMOVE, self._place | {"key": key})
        parameters = {"stored_at": stored_at, "used_at": used_at, "checksum": seed}
        for (entry,) in connection.execute(BEGIN, self._place | parameters).fetchall():
            values.delete(connection, entry)

    def grow(self, connection: Connection, nbytes: int, limits: Limits, removed: Removed) -> bool:
        """Make room for so many bytes more; False if the entry is there no more."""
        rows = connection.execute(GROW, self._place | {"nbytes": nbytes}).fetchall()
        if not rows:
            return False
        (self.entry,) = rows[0]
        make_room(connection, limits, removed, nbytes)
        return index.is_there(connection, self.entry)

    def shrink(self, connection: Connection) -> bool:
        """Count no more, in the transaction that keeps the value; False if it is not whole."""
        return self.is_whole and bool(connection.execute(SHRINK, self._place).fetchall())

    def keep(
        self, connection: sqlite3.Connection, entry: int, _seed: int, _data: ByteArray
    ) -> None:
        """Give the bytes to an entry that has none, and with them the number."""
        connection.execute(STEP_ASIDE, {"staged": self.entry})
        connection.execute(TAKE_NUMBER, {"staged": self.entry, "entry": entry})

    def remove(self, connection: Connection) -> None:
        """Remove what is left of it."""
        connection.execute(REMOVE, self._place)

    def end(self) -> None:
        """Whatever is left of it is of no use."""
        _under_way.discard(self._place["key"])


class Staging:
    """What is staged for one transaction, in which all of it is kept or removed.

    Use it as a context manager around that transaction: if it fails, what is staged is removed, or,
    where that fails as well, before anything else is staged.

    Parameters
    ----------
    namespace
        Whose values these are.
    touches
        Uses that wait to be written: eviction goes by them.
    coming
        Bytes that the transaction will write, as far as is known.

    Attributes
    ----------
    removed
        What went to make room.
    """

    def __init__(
        self,
        connection: Connection,
        namespace: str,
        limits: Limits,
        touches: Mapping[int, int],
        coming: int = 0,
    ) -> None:
        self.removed = Removed()
        self._connection = connection
        self._namespace = namespace
        self._limits = limits
        self._touches = touches
        self._coming = coming
        self._staged: list[Staged] = []

    def __enter__(self) -> Self:
        # If the log is long, what is to be kept is refused all the same, and what only ends needs
        # none of this.
        with contextlib.suppress(FileLockedError):
            write_most(self._connection, self._touches)
            self._make_way(min(self._coming, MOST_AT_ONCE))
        return self

    def _make_way(self, coming: int) -> None:
        make_way(self._connection, self._limits, self._touches, self.removed, coming)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        # Another process holds the lock, and one wait for it is enough.
        is_locked = isinstance(error, sqlite3.Error) and is_code(error, sqlite3.SQLITE_BUSY)
        if error is not None and self._staged and not is_locked:
            with contextlib.suppress(sqlite3.Error, CacheError), self._connection.writing():
                self.clear()
        for staged in self._staged:
            staged.end()

    def write(
        self,
        seed: int,
        data: ByteArray,
        stored_at: int,
        used_at: int,
        is_wanted: Callable[[], bool],
    ) -> Staged:
        """Stage a value, as long as it is wanted: that is asked in the transaction of each part.

        Parameters
        ----------
        seed
            The checksum of the facts of its entry to be.
        """
        staged = Staged()
        self._staged.append(staged)
        connection, limits, removed = self._connection, self._limits, self.removed
        if limits.max_size is not None and data.size > limits.max_size:
            return staged
        with connection.writing_much():
            write_touches(connection, self._touches)
            expire(connection, self._namespace, limits, removed)
            staged.begin(connection, seed, stored_at, used_at)
        for part, piece in values.parts(data):
            self._make_way(piece.size)
            with connection.writing_much():
                if not (is_wanted() and staged.grow(connection, piece.size, limits, removed)):
                    return staged
                values.write_part(connection, staged.entry, seed, part, piece)
        staged.is_whole = True
        return staged

    def clear(self) -> None:
        """Remove what nothing has been given to, in a transaction that is under way."""
        for staged in self._staged:
            staged.remove(self._connection)


def bytes_coming(
    connection: Connection, limits: Limits, answers: Iterable[tuple[str, str, int]]
) -> int:
    """How many bytes more the file will have with answers of these namespaces, keys and sizes.

    Rather too many: what a value takes the place of is looked for, which costs, only where there is
    no room for all of them and they are not few.
    """
    answers = list(answers)
    coming = sum(size for _, _, size in answers)
    if coming <= SMALL or has_room(connection, limits, coming):
        return coming
    more: dict[tuple[str, str], int] = {}
    for namespace, key, size in answers:
        row = connection.execute(SIZE_NOW, {"namespace": namespace, "key": key}).fetchone()
        before = 0 if row is None else int(row[0])
        more[namespace, key] = max(more.get((namespace, key), 0), size - before)
    return sum(more.values())


def is_large(connection: Connection, nbytes: int) -> bool:
    """Whether values of so many bytes are too much for one transaction."""
    return connection.log is not None and nbytes > MOST_AT_ONCE


def is_staged(namespace: str) -> bool:
    """Whether it is a namespace of values that are being written."""
    return private.is_private(namespace) and namespace.endswith(f":{NAME}")
