"""The bytes of an entry: rows of the table ``value``, and their checksums."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zarr_cache.core import checksum
from zarr_cache.core.checksum import DamagedValueError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator

    from zarr_cache.core.checksum import ByteArray


PART = 64 * checksum.BLOCK


"""Bytes of a part. Far below SQLite's limit for one blob, 10^9 bytes, and a whole number of blocks.
See docs/decisions/0002."""


MAX_BYTES = 512 * 1024


"""At most so many bytes of small values are kept in one transaction: the log stays short."""


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


type Keep = Callable[[sqlite3.Connection, int, int, ByteArray], None]


"""Keeps bytes for an entry that has none: `write`, or `write_checksums`."""


def write(connection: sqlite3.Connection, entry: int, seed: int, data: ByteArray) -> None:
    """Keep `data` as the bytes of the entry, which has none so far."""
    for part, piece in parts(data):
        write_part(connection, entry, seed, part, piece)


def parts(data: ByteArray) -> Iterator[tuple[int, ByteArray]]:
    """The parts that a value is written in, with their numbers."""
    for part, start in enumerate(range(0, data.size, PART)):
        yield part, data[start : start + PART]


def write_part(
    connection: sqlite3.Connection, entry: int, seed: int, part: int, piece: ByteArray
) -> None:
    """Keep one of the `parts` of a value, which the entry does not have so far."""
    sums = checksum.of_blocks(seed, part * PART // checksum.BLOCK, piece)
    write_row(connection, entry, part, sums, piece.data)


def write_row(
    connection: sqlite3.Connection,
    entry: int,
    part: int,
    checksums: bytes,
    data: bytes | memoryview,
) -> None:
    """Keep the checksums of a part, and its bytes unless they are elsewhere."""
    parameters = {"entry": entry, "part": part, "checksums": checksums, "data": data}
    connection.execute(INSERT_PART, parameters)


def verify(seed: int, first: int, data: bytes, checksums: bytes) -> None:
    """Raise unless `data` has the checksums that were written with it.

    Raises
    ------
    DamagedValueError
        A block differs.
    """
    if checksum.of_blocks(seed, first, data) != checksums:
        raise DamagedValueError(f"block {first} or one after it")


def read(
    connection: sqlite3.Connection, entry: int, seed: int, size: int, start: int, stop: int
) -> bytes | ByteArray:
    """The bytes ``[start, stop)`` of the entry, verified.

    Reads and verifies whole blocks: up to two blocks more than asked for. Call it inside a
    transaction, so that all parts are of one and the same value.

    Raises
    ------
    DamagedValueError
        A part is missing, has another length, or has bytes that differ from those written.
    """
    parts = range(start // PART, -(-stop // PART))
    if len(parts) == 1:
        return _read_part(connection, entry, seed, size, parts[0], start, stop)
    bounds = {"entry": entry, "first": parts[0], "last": parts[-1]}
    (length,) = connection.execute(LENGTH_OF_PARTS, bounds).fetchone()
    if length != min(size, parts[-1] * PART + PART) - parts[0] * PART:
        # Before memory is taken for what somebody says that there is.
        raise DamagedValueError("parts are missing or have another length")
    whole = np.empty(stop - start, np.uint8)
    for part in parts:
        begin, end = max(start, part * PART), min(stop, (part + 1) * PART)
        piece = _read_part(connection, entry, seed, size, part, begin, end)
        whole[begin - start : end - start] = np.frombuffer(piece, np.uint8)
    return whole


def _read_part(
    connection: sqlite3.Connection,
    entry: int,
    seed: int,
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
    # On a page that is damaged, a column has another type than its table allows.
    if not isinstance(checksums, bytes):
        raise DamagedValueError(f"the checksums of part {part} are no blob")
    if length != min(PART, size - origin):
        raise DamagedValueError(f"part {part} has another length")
    first = origin // checksum.BLOCK
    return read_blob(
        connection, rowid, seed, first, length, checksums, start - origin, stop - origin
    )


def read_blob(
    connection: sqlite3.Connection,
    rowid: int,
    seed: int,
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
    seed
        Checksum of the facts.
    first
        Number of the block in the value that the part begins with.

    Raises
    ------
    DamagedValueError
        They differ from those written.
    """
    # Whole blocks, since a checksum is over a block.
    one, last = start // checksum.BLOCK, -(-stop // checksum.BLOCK)
    begin, end = one * checksum.BLOCK, min(last * checksum.BLOCK, length)
    # A blob handle reads from the pages into the bytes that are returned. A SELECT of the same
    # makes a copy in between, and for large values that costs more than the read.
    with connection.blobopen("value", "data", rowid, readonly=True) as blob:
        if begin:
            blob.seek(begin)
        data = blob.read(end - begin)
    verify(seed, first + one, data, checksums[checksum.LENGTH * one : checksum.LENGTH * last])
    return data if (begin, end) == (start, stop) else data[start - begin : stop - begin]


def write_checksums(connection: sqlite3.Connection, entry: int, seed: int, data: ByteArray) -> None:
    """Keep only the checksums of `data`, whose bytes are kept in another store."""
    write_row(connection, entry, 0, checksum.of_blocks(seed, 0, data), b"")


def delete(connection: sqlite3.Connection, entry: int) -> None:
    """Remove the bytes of the entry."""
    connection.execute(DELETE_PARTS, {"entry": entry})
