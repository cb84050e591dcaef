"""Space of the data file: reserved, given to an entry, and freed. Steps of transactions.

Space is reserved in one transaction, written to while no lock of the database is held, and given to
an entry in another. When its entry is deleted, a trigger frees it and joins it with the free space
on either side. Only transactions allocate space, so none is written to before the transaction that
freed it is committed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core import checksum
from zarr_cache.core.errors import FileDamagedError
from zarr_cache.disk import data_file
from zarr_cache.disk.data_file import BLOCK, Extent
from zarr_cache.index import values

if TYPE_CHECKING:
    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.core.errors import DataFileError
    from zarr_cache.disk.data_file import OpenFile
    from zarr_cache.file.connection import Connection


MIN_BYTES = 64 * 1024
"""Values of so many bytes or more are in the data file. Rounded up to `BLOCK` they take at most a
sixteenth more than their bytes. See docs/decisions/0013."""

LEASE_NS = 60 * 1_000_000_000
"""After this time the lease of a reservation has expired, even if its process seems to live."""

ROOM = 12 * 2**20
"""The data file may be so much longer than the space of `max_size` bytes of values."""

FREED_START = 1 << 62
"""The `start` of an extent that is about to be freed: after that of all others."""

RESERVE = """
INSERT INTO reservation (id, bytes, owner, until)
VALUES (:id, :bytes, :owner, :until)
"""

RESERVATIONS = """
SELECT id, owner, until
FROM reservation
"""

RELEASE = """
DELETE FROM reservation
WHERE id = :id
"""

BEST_FIT = """
SELECT offset, length
FROM free_extent
WHERE length >= :length
ORDER BY length, offset
LIMIT 1
"""

LARGEST = """
SELECT offset, length
FROM free_extent
ORDER BY length DESC, offset
LIMIT 1
"""

TAKE_WHOLE = """
DELETE FROM free_extent
WHERE offset = :offset
"""

TAKE_FRONT = """
UPDATE free_extent
SET offset = offset + :length,
    length = length - :length
WHERE offset = :offset
"""

GROW = """
UPDATE data_file
SET length = length + :length
WHERE :max_length IS NULL OR length + :length <= :max_length
RETURNING length - :length
"""

ADD = """
INSERT INTO extent (entry, start, offset, length)
VALUES (:entry, :start, :offset, :length)
"""

IS_RESERVED = """
SELECT 1
FROM reservation
WHERE id = :id
"""

GIVE_EXTENTS = """
UPDATE extent
SET entry = :entry,
    start = start + :after
WHERE entry = -:id AND start < :freed
"""

DELETE = """
DELETE FROM extent
WHERE entry = :entry
"""

LENGTH = """
SELECT length
FROM data_file
"""

FREE_BYTES = """
SELECT coalesce(sum(length), 0)
FROM free_extent
"""


class Reservation(NamedTuple):
    """Space that is reserved for one value, in the order of its bytes."""

    id: int
    file: OpenFile
    extents: list[Extent]


def is_large(connection: Connection, nbytes: int) -> bool:
    """Whether a value of so many bytes is kept in the data file."""
    return connection.data_file is not None and nbytes >= MIN_BYTES


def why_unusable(connection: Connection) -> DataFileError | None:
    """Why the data file cannot be used, if that is known."""
    data = connection.data_file
    return None if data is None else data.why_unusable(connection)


def rounded(nbytes: int) -> int:
    """The space that so many bytes take."""
    return -(-nbytes // BLOCK) * BLOCK


def max_length_of(max_size: int | None) -> int | None:
    """The largest length of the data file for values of `max_size` bytes; None for no limit.

    Less than 1.07 times that and 16 MiB, which the documentation promises.
    """
    return None if max_size is None else max_size * 17 // 16 + ROOM


def reserve(
    connection: Connection,
    file: OpenFile,
    nbytes: int,
    now_ns: int,
    max_length: int | None,
    *,
    is_counted: bool = True,
) -> Reservation:
    """Reserve space for so many bytes.

    One free extent if one is long enough, else the end of the file, else several free extents.

    Parameters
    ----------
    file
        As `DataFile.opened_to_write` returns it in this transaction.
    max_length
        See `max_length_of`. The file grows beyond it only if too little is free; None for no limit.
    is_counted
        Whether the bytes count for the budget.
    """
    number = int.from_bytes(os.urandom(8)) >> 2 or 1
    row = {
        "id": number,
        "bytes": nbytes if is_counted else 0,
        "owner": file.owner,
        "until": now_ns + LEASE_NS,
    }
    connection.execute(RESERVE, row)
    extents = _allocate(connection, rounded(nbytes), max_length)
    _add(connection, number, extents)
    return Reservation(number, file, extents)


def _add(connection: Connection, reservation: int, extents: list[Extent]) -> None:
    start = 0
    for offset, length in extents:
        row = {"entry": -reservation, "start": start, "offset": offset, "length": length}
        connection.execute(ADD, row)
        start += length


def _allocate(connection: Connection, length: int, max_length: int | None) -> list[Extent]:
    """Take free space, or let the file grow."""
    fitting = connection.execute(BEST_FIT, {"length": length}).fetchone()
    if fitting is not None:
        return [_take(connection, Extent(*fitting), length)]
    grown = connection.execute(GROW, {"length": length, "max_length": max_length}).fetchall()
    if grown:
        return [Extent(grown[0][0], length)]
    extents = []
    while length:
        largest = connection.execute(LARGEST).fetchone()
        if largest is None:
            grow = {"length": length, "max_length": None}
            ((offset,),) = connection.execute(GROW, grow).fetchall()
            extents.append(Extent(offset, length))
            break
        free = Extent(*largest)
        extents.append(_take(connection, free, min(length, free.length)))
        length -= extents[-1].length
    return extents


def _take(connection: Connection, free: Extent, length: int) -> Extent:
    if free.length == length:
        connection.execute(TAKE_WHOLE, {"offset": free.place})
    else:
        connection.execute(TAKE_FRONT, {"offset": free.place, "length": length})
    return Extent(free.place, length)


def release_expired(connection: Connection, now_ns: int) -> None:
    """Free the reservations whose lease has expired or whose process has died."""
    data = connection.data_file
    if data is None:
        return
    reservations = connection.execute(RESERVATIONS).fetchall()
    if not reservations:
        return
    file = data.opened_if_there(connection)
    for number, owner, until in reservations:
        # A lease that ends far in the future was never given, and on a damaged page, a column may
        # have another type. Without the data file's locks, it is unknown which processes live.
        are_integers = type(owner) is type(until) is int
        is_lease = are_integers and 0 < until - now_ns <= 60 * LEASE_NS
        if not is_lease or (file is not None and not file.is_alive(owner)):
            release(connection, number)


def release(connection: Connection, reservation: int) -> None:
    """Free the space of a reservation that was given to no entry."""
    connection.execute(RELEASE, {"id": reservation})


def is_reserved(connection: Connection, reservation: int) -> bool:
    """Whether the reservation still exists: its lease may have expired."""
    return connection.execute(IS_RESERVED, {"id": reservation}).fetchone() is not None


def write(
    connection: Connection, reserved: Reservation, identity_checksum: int, data: ByteArray
) -> list[bytes]:
    """Write the bytes of a value into its reserved space, in no transaction.

    Returns the checksums of each part, for `give`.
    """
    assert connection.data_file is not None  # noqa: S101 - nothing is reserved without one
    data_file.write(reserved.file, connection.data_file.path, reserved.extents, data)
    return [
        checksum.of_blocks(identity_checksum, part * values.PART // checksum.BLOCK, piece)
        for part, piece in values.parts(data)
    ]


def give(connection: Connection, reserved: Reservation, entry: int, checksums: list[bytes]) -> None:
    """Make the written bytes those of an entry that has none."""
    row = {"id": reserved.id, "entry": entry, "after": 0, "freed": FREED_START}
    connection.execute(GIVE_EXTENTS, row)
    for part, sums in enumerate(checksums):
        values.write_row(connection, entry, part, sums, b"")
    release(connection, reserved.id)


def delete(connection: Connection, entry: int) -> None:
    """Remove the bytes of the entry, from the table ``value`` and from the data file."""
    values.delete(connection, entry)
    connection.execute(DELETE, {"entry": entry})


def length(connection: Connection) -> int:
    """Bytes of the data file up to the end of its last extent."""
    row = connection.execute(LENGTH).fetchone()
    if row is None:
        raise FileDamagedError("the row of data_file is missing")
    return int(row[0])


def free_bytes(connection: Connection) -> int:
    """Bytes of the data file that are free. Walks the free extents."""
    (nbytes,) = connection.execute(FREE_BYTES).fetchone()
    return int(nbytes)
