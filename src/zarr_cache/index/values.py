"""The bytes of an entry, in the table ``value`` or in the data file, and their checksums."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import numpy as np

from zarr_cache.core import checksum
from zarr_cache.core.checksum import DamagedValueError
from zarr_cache.core.errors import is_code
from zarr_cache.disk.data_file import Extent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.file.connection import Connection


PART = 64 * checksum.BLOCK
"""Bytes of a part. Far below SQLite's limit for one blob, 10^9 bytes, and a whole number of blocks.
See docs/decisions/0002."""

MAX_BYTES = 512 * 1024
"""At most so many bytes of small values are written in one transaction: the WAL stays short."""

INSERT_PART = """
INSERT INTO value (entry, part, checksums, data)
VALUES (:entry, :part, :checksums, :data)
"""

DELETE_PARTS = """
DELETE FROM value
WHERE entry = :entry
"""

# `length` of a blob does not read it.
FIND_PART = """
SELECT rowid, length(data), CASE WHEN length(checksums) <= 512 THEN checksums END
FROM value
WHERE entry = :entry AND part = :part
"""

LENGTH_OF_PARTS = """
SELECT coalesce(sum(length(data)), 0)
FROM value
WHERE entry = :entry AND part BETWEEN :first AND :last
"""

# An extent that begins before `start` may reach into the requested bytes: only the last one can.
EXTENTS = """
SELECT start, offset, length
FROM extent
WHERE entry = :entry
  AND start < :stop
  AND start >= coalesce(
      (
          SELECT start
          FROM extent
          WHERE entry = :entry AND start <= :start
          ORDER BY start DESC
          LIMIT 1
      ),
      0
  )
ORDER BY start
"""

CHECKSUMS = """
SELECT part, CASE WHEN length(checksums) <= 512 THEN checksums END
FROM value
WHERE entry = :entry AND part BETWEEN :first AND :last
ORDER BY part
"""

FIRST_CHECKSUMS = """
SELECT checksums
FROM value
WHERE entry = :entry AND part = 0
"""

type Keep = Callable[[sqlite3.Connection, int, int, ByteArray], None]
"""Writes the bytes of an entry that has none: `write`, or `write_checksums`."""


def write(
    connection: sqlite3.Connection, entry: int, identity_checksum: int, data: ByteArray
) -> None:
    """Write `data` as the bytes of the entry, which has none so far."""
    for part, piece in parts(data):
        sums = checksum.of_blocks(identity_checksum, part * PART // checksum.BLOCK, piece)
        write_row(connection, entry, part, sums, piece.data)


def parts(data: ByteArray) -> Iterator[tuple[int, ByteArray]]:
    """The parts of a value, with their numbers."""
    for part, start in enumerate(range(0, data.size, PART)):
        yield part, data[start : start + PART]


def write_row(
    connection: sqlite3.Connection,
    entry: int,
    part: int,
    checksums: bytes,
    data: bytes | memoryview,
) -> None:
    """Write the checksums of a part, and its bytes unless they are in another file."""
    parameters = {"entry": entry, "part": part, "checksums": checksums, "data": data}
    connection.execute(INSERT_PART, parameters)


def verify(identity_checksum: int, first: int, data: bytes, checksums: bytes) -> None:
    """Raise a DamagedValueError unless `data` has the checksums that were written with it."""
    if checksum.of_blocks(identity_checksum, first, data) != checksums:
        raise DamagedValueError(f"block {first} or one after it")


def read_any(
    connection: Connection,
    entry: int,
    identity_checksum: int,
    size: int,
    start: int,
    stop: int,
    first: tuple[int | None, int | None, bytes],
) -> bytes | ByteArray:
    """As `read`, with the row, length and checksums of the first part, if they are known."""
    if size > PART:
        # One transaction, so that all parts are of the same value.
        with connection.reading():
            return read(connection, entry, identity_checksum, size, start, stop)
    part, length, sums = first
    if part is None or length != size:
        raise DamagedValueError("the value is missing or has another length")
    try:
        return read_blob(connection, part, identity_checksum, 0, size, sums, start, stop)
    except sqlite3.OperationalError as error:
        if is_code(error, sqlite3.SQLITE_ERROR):
            raise DamagedValueError("the value was removed") from error
        raise


def read(
    connection: sqlite3.Connection,
    entry: int,
    identity_checksum: int,
    size: int,
    start: int,
    stop: int,
) -> bytes | ByteArray:
    """The bytes ``[start, stop)`` of the entry, verified.

    Reads and verifies whole blocks: up to two blocks more than requested. The caller holds a
    transaction, so that all parts are of the same value.

    Raises
    ------
    DamagedValueError
        A part is missing, has another length, or has bytes that differ from those written.
    """
    parts = range(start // PART, -(-stop // PART))
    if len(parts) == 1:
        return _read_part(connection, entry, identity_checksum, size, parts[0], start, stop)
    bounds = {"entry": entry, "first": parts[0], "last": parts[-1]}
    (length,) = connection.execute(LENGTH_OF_PARTS, bounds).fetchone()
    if length != min(size, parts[-1] * PART + PART) - parts[0] * PART:
        # Checked before memory is allocated for a size that the file claims.
        raise DamagedValueError("parts are missing or have another length")
    whole = np.empty(stop - start, np.uint8)
    for part in parts:
        begin, end = max(start, part * PART), min(stop, (part + 1) * PART)
        piece = _read_part(connection, entry, identity_checksum, size, part, begin, end)
        whole[begin - start : end - start] = np.frombuffer(piece, np.uint8)
    return whole


def _read_part(
    connection: sqlite3.Connection,
    entry: int,
    identity_checksum: int,
    size: int,
    part: int,
    start: int,
    stop: int,
) -> bytes:
    """The bytes ``[start, stop)`` of a value of `size` bytes, all of them in one part."""
    origin = part * PART
    row = connection.execute(FIND_PART, {"entry": entry, "part": part}).fetchone()
    if row is None:
        raise DamagedValueError(f"part {part} is missing")
    rowid, length, checksums = row
    # On a damaged page, a column may have another type than its table allows.
    if not isinstance(checksums, bytes):
        raise DamagedValueError(f"the checksums of part {part} are no blob")
    if length != min(PART, size - origin):
        raise DamagedValueError(f"part {part} has another length")
    first = origin // checksum.BLOCK
    return read_blob(
        connection,
        rowid,
        identity_checksum,
        first,
        length,
        checksums,
        start - origin,
        stop - origin,
    )


def read_blob(
    connection: sqlite3.Connection,
    rowid: int,
    identity_checksum: int,
    first: int,
    length: int,
    checksums: bytes,
    start: int,
    stop: int,
) -> bytes:
    """The bytes ``[start, stop)`` of a part, verified.

    Parameters
    ----------
    rowid, length, checksums
        Of the part.
    identity_checksum
        Checksum of the facts: the seed of the checksums.
    first
        Number of the block in the value that the part begins with.
    """
    # Whole blocks, since a checksum is over a block.
    one, last = start // checksum.BLOCK, -(-stop // checksum.BLOCK)
    begin, end = one * checksum.BLOCK, min(last * checksum.BLOCK, length)
    # A blob handle reads from the pages into the bytes that are returned. A SELECT makes one more
    # copy, which costs more than the read if the value is large.
    with connection.blobopen("value", "data", rowid, readonly=True) as blob:
        if begin:
            blob.seek(begin)
        data = blob.read(end - begin)
    verify(
        identity_checksum,
        first + one,
        data,
        checksums[checksum.LENGTH * one : checksum.LENGTH * last],
    )
    return data if (begin, end) == (start, stop) else data[start - begin : stop - begin]


def write_checksums(
    connection: sqlite3.Connection, entry: int, identity_checksum: int, data: ByteArray
) -> None:
    """Write only the checksums of `data`, whose bytes are in another store."""
    write_row(connection, entry, 0, checksum.of_blocks(identity_checksum, 0, data), b"")


def delete(connection: sqlite3.Connection, entry: int) -> None:
    """Remove the bytes and checksums of the entry."""
    connection.execute(DELETE_PARTS, {"entry": entry})


def locate(
    connection: sqlite3.Connection,
    entry: int,
    size: int,
    start: int,
    stop: int,
    head: tuple[int | None, int | None, bytes | None] = (None, None, None),
) -> tuple[list[Extent], bytes]:
    """Where in the data file the bytes ``[start, stop)`` of an entry are, and their checksums.

    Parameters
    ----------
    start, stop
        Each the start of a block, or the end of the value.
    head
        Offset and length of its first extent and checksums of its first part, if they are known.
    """
    begin, nbytes, sums_of_part = head
    is_known = type(begin) is type(nbytes) is int and isinstance(sums_of_part, bytes)
    if is_known and stop <= min(nbytes or 0, PART):
        one, last = start // checksum.BLOCK, -(-stop // checksum.BLOCK)
        where = Extent((begin or 0) + start, stop - start)
        return [where], (sums_of_part or b"")[one * checksum.LENGTH : last * checksum.LENGTH]
    extents = []
    at = start
    for first, offset, length in connection.execute(
        EXTENTS, {"entry": entry, "start": start, "stop": stop}
    ).fetchall():
        # On a damaged page, a column may have another type than its table allows.
        are_integers = type(first) is type(offset) is type(length) is int
        if not are_integers or not first <= at < min(first + length, stop):
            raise DamagedValueError("its extents are not consecutive")
        end = min(first + length, stop)
        extents.append(Extent(offset + at - first, end - at))
        at = end
    if at != stop:
        raise DamagedValueError("the value is missing or has another length")
    first_part, last_part = start // PART, (stop - 1) // PART
    rows = connection.execute(
        CHECKSUMS, {"entry": entry, "first": first_part, "last": last_part}
    ).fetchall()
    parts = range(first_part, last_part + 1)
    if [part for part, _ in rows] != [*parts] or not all(
        isinstance(sums, bytes) and len(sums) == checksum.length_of(min(PART, size - part * PART))
        for part, sums in rows
    ):
        raise DamagedValueError("checksums are missing")
    sums = b"".join(sums for _, sums in rows)
    skipped = start // checksum.BLOCK - first_part * PART // checksum.BLOCK
    sums = sums[skipped * checksum.LENGTH :]
    return extents, sums[: checksum.length_of(stop - start)]


def checksums_of(connection: sqlite3.Connection, entry: int) -> bytes | None:
    """The checksums of a value whose bytes are in another store; None if there are none."""
    row = connection.execute(FIRST_CHECKSUMS, {"entry": entry}).fetchone()
    return None if row is None else bytes(row[0])
