"""Copying the values stored with `SqliteStore` out of a quarantined file into the new one.

The quarantined database is damaged. It is read without its indexes and totals, and a value is
copied if it matches its checksums.
"""

from __future__ import annotations

import contextlib
import sqlite3
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zarr_cache.core import checksum
from zarr_cache.core.checksum import DamagedValueError
from zarr_cache.core.errors import StorageError
from zarr_cache.file import schema
from zarr_cache.file.connection import WriteLock, connect
from zarr_cache.index import values
from zarr_cache.index.stored import NAMESPACE
from zarr_cache.inspect.problem import Problem, any_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.file.connection import Connection


type Parts = dict[int, tuple[int, Any]]

NAMESPACES = """
SELECT id, name
FROM namespace NOT INDEXED
"""

ENTRIES = """
SELECT id, namespace, key, kind, size, stored_at, checksum
FROM entry NOT INDEXED
"""

PARTS = """
SELECT rowid, entry, part, CASE WHEN length(checksums) <= 512 THEN checksums END
FROM value NOT INDEXED
"""

ORDERS = ("ORDER BY rowid", "ORDER BY rowid DESC")
"""Rows on both sides of an unreadable page are read."""


class Entry(NamedTuple):
    """A row of ``entry``, unchecked."""

    id: int
    namespace: Any
    key: Any
    kind: Any
    size: Any
    stored_at: Any
    checksum: Any

    @property
    def identity_checksum(self) -> int:
        """The checksum of its facts if it was stored with `SqliteStore`."""
        return checksum.of_facts(NAMESPACE, self.key, "stored", self.size, self.stored_at)

    @property
    def is_right(self) -> bool:
        """Whether it was stored with `SqliteStore`, and its facts match their checksum."""
        types = (type(self.key), type(self.size), type(self.stored_at))
        return (
            types == (str, int, int) and self.size >= 0 and self.checksum == self.identity_checksum
        )


def copy_stored(quarantined: Path, put: Callable[[str, ByteArray], None]) -> Iterator[Problem]:
    """Put the stored values that match their checksums; yield the others.

    The quarantined file is not changed.
    """
    try:
        with contextlib.closing(_connect(quarantined)) as connection, any_text(connection):
            yield from _copy(connection, put)
    except (sqlite3.Error, UnicodeError) as error:
        yield _unread(str(error))


def _connect(quarantined: Path) -> Connection:
    connection = connect(f"{quarantined.as_uri()}?mode=rw", WriteLock(), uri=True)
    connection.execute("PRAGMA query_only = ON")
    # The file stays as it was found.
    connection.setconfig(sqlite3.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE)
    return connection


def _unread(why: str) -> Problem:
    return Problem("file", why, "values that may have been stored with SqliteStore")


def _copy(connection: Connection, put: Callable[[str, ByteArray], None]) -> Iterator[Problem]:
    for found, expected in schema.differences(connection):
        if "table" in {each.type for each in (found, expected) if each is not None}:
            # Code in the schema of a foreign table would run.
            yield _unread(f"{found or expected}, which is not as our scripts make it")
            return
    unread: list[str] = []
    entries = _stored(connection, unread)
    parts: dict[int, Parts] = {entry.id: {} for entry in entries}
    for row, number, part, sums in _rows(connection, PARTS, unread):
        if number in parts:
            parts[number][part] = (row, sums)
    yield from map(_unread, dict.fromkeys(unread))
    # There are two rows of a key if a damaged index hid the first from a write.
    right = [entry for entry in entries if entry.is_right]
    right.sort(key=lambda entry: (entry.stored_at, entry.id))
    newest = {entry.key: entry for entry in right}
    for entry in entries:
        problem = partial(Problem, namespace=NAMESPACE, key=entry.key, row=entry.id)
        if not entry.is_right:
            yield problem("checksum", entry.checksum, entry.identity_checksum)
        elif newest[entry.key] is entry:
            try:
                put(entry.key, _value(connection, entry, parts[entry.id]))
            except (DamagedValueError, sqlite3.Error, StorageError) as error:
                yield problem("bytes", str(error), f"the {entry.size} bytes that were written")


def _stored(connection: Connection, unread: list[str]) -> list[Entry]:
    """The entries that were stored with `SqliteStore`, right or wrong."""
    names = dict(_rows(connection, NAMESPACES, unread))
    return [
        entry
        for entry in map(Entry._make, _rows(connection, ENTRIES, unread))
        if entry.is_right or entry.kind == "stored" or names.get(entry.namespace) == NAMESPACE
    ]


def _rows(connection: Connection, statement: str, unread: list[str]) -> Iterator[Any]:
    """Each row that can be read, once; why others cannot be read is appended to `unread`."""
    seen: set[int] = set()
    for order in ORDERS:
        try:
            for row in connection.execute(f"{statement} {order}"):
                if row[0] in seen:
                    if order == ORDERS[0]:
                        unread.append("pages that refer to each other in a circle")
                    break
                seen.add(row[0])
                yield row
            else:
                return
        except sqlite3.Error as error:
            unread.append(str(error))


def _value(connection: Connection, entry: Entry, parts: Parts) -> ByteArray:
    """The bytes of an entry, verified."""
    count = -(-entry.size // values.PART)
    if parts.keys() != set(range(count)):
        raise DamagedValueError(f"{len(parts)} parts of {count}")
    whole = np.empty(entry.size, np.uint8)
    for part, (row, sums) in parts.items():
        start = part * values.PART
        length = min(values.PART, entry.size - start)
        if not isinstance(sums, bytes):
            raise DamagedValueError(f"the checksums of part {part} are no blob")
        first = start // checksum.BLOCK
        data = values.read_blob(
            connection, row, entry.identity_checksum, first, length, sums, 0, length
        )
        whole[start : start + length] = np.frombuffer(data, np.uint8)
    return whole
