"""Space of the data file: who has which bytes of it. Steps of transactions, unless said otherwise.

Space is reserved in one transaction, written to while no lock of the database is held, and given to
an entry in another. What is deleted with its entry becomes free by a trigger, as one with the free
space on either side; it is not written to before the transaction that freed it has been committed,
since space is given out by transactions only.
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


LEAST = 64 * 1024


"""Values of so many bytes or more are in the data file. Rounded up to `BLOCK` they take at most a
sixteenth more than their bytes. See docs/decisions/0013."""


LEASE_NS = 60 * 1_000_000_000


"""After this time a reservation is given back even if its writer seems to live."""


ROOM = 12 * 2**20


"""The data file may be so much longer than what `max_size` bytes of values take, rounded up."""


"""At most so many bytes are moved at a time."""


"""So many bytes behind the last extent are left for what comes next."""


OLD = 1 << 62


"""Where an extent begins in its value that is about to be freed: behind all others."""


RESERVE = """
INSERT INTO reservation (id, bytes, owner, until)
VALUES (:id, :bytes, :owner, :until)
"""


RESERVATIONS = """
SELECT id, owner, until
FROM reservation
"""


RESERVED_BYTES = """
SELECT coalesce(sum(bytes), 0)
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
WHERE :most IS NULL OR length + :length <= :most
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
WHERE entry = -:id AND start < :old
"""


DELETE = """
DELETE FROM extent
WHERE entry = :entry
"""


# An extent that begins before `start` may reach into what is asked for, and only the last one can.
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


LENGTH = """
SELECT length
FROM data_file
"""


FREE_BYTES = """
SELECT coalesce(sum(length), 0)
FROM free_extent
"""


class Reservation(NamedTuple):
    """Space that is reserved for one value.

    Attributes
    ----------
    id
        What it is known by.
    file
        The data file.
    extents
        Where the bytes of the value go, in their order.
    """

    id: int
    file: OpenFile
    extents: list[Extent]


def is_large(connection: Connection, nbytes: int) -> bool:
    """Whether a value of so many bytes goes into a data file."""
    return connection.data_file is not None and nbytes >= LEAST


def why_unusable(connection: Connection) -> DataFileError | None:
    """Why no large value can be kept, if that is known."""
    data = connection.data_file
    return None if data is None else data.why_unusable(connection)


def rounded(nbytes: int) -> int:
    """The space that so many bytes take."""
    return -(-nbytes // BLOCK) * BLOCK


def most_length(max_size: int | None) -> int | None:
    """How long the data file may be for values of `max_size` bytes; None for no limit.

    Less than 1.07 times that and 16 MiB, which is what is promised.
    """
    return None if max_size is None else max_size * 17 // 16 + ROOM


def reserved_bytes(connection: Connection) -> int:
    """Bytes of the values that are being written, by this process or another."""
    (nbytes,) = connection.execute(RESERVED_BYTES).fetchone()
    return int(nbytes)


def reserve(
    connection: Connection,
    file: OpenFile,
    nbytes: int,
    now_ns: int,
    most: int | None,
    *,
    is_counted: bool = True,
) -> Reservation:
    """Reserve space for so many bytes.

    One extent where one is free that is long enough, else at the end of the file, else several.

    Parameters
    ----------
    file
        As `DataFile.opened_to_write` has it in this transaction.
    most
        See `most_length`. The file does not grow beyond it while enough is free; None for no limit.
    is_counted
        Whether the bytes count for the budget.
    """
    identity = int.from_bytes(os.urandom(8)) >> 2 or 1
    row = {
        "id": identity,
        "bytes": nbytes if is_counted else 0,
        "owner": file.owner,
        "until": now_ns + LEASE_NS,
    }
    connection.execute(RESERVE, row)
    extents = _allocate(connection, rounded(nbytes), most)
    _add(connection, identity, extents)
    return Reservation(identity, file, extents)


def _add(connection: Connection, reservation: int, extents: list[Extent]) -> None:
    start = 0
    for offset, length in extents:
        row = {"entry": -reservation, "start": start, "offset": offset, "length": length}
        connection.execute(ADD, row)
        start += length


def _allocate(connection: Connection, length: int, most: int | None) -> list[Extent]:
    """Take space that is free, or let the file grow."""
    fitting = connection.execute(BEST_FIT, {"length": length}).fetchone()
    if fitting is not None:
        return [_take(connection, Extent(*fitting), length)]
    grown = connection.execute(GROW, {"length": length, "most": most}).fetchall()
    if grown:
        return [Extent(grown[0][0], length)]
    extents = []
    while length:
        largest = connection.execute(LARGEST).fetchone()
        if largest is None:
            ((offset,),) = connection.execute(GROW, {"length": length, "most": None}).fetchall()
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


def release_dead(connection: Connection, now_ns: int) -> None:
    """Give back what processes have reserved that have died.

    Parameters
    ----------
    now_ns
        Now, or some time before: a reservation that is younger is never given back for its age.
    """
    data = connection.data_file
    if data is None:
        return
    reservations = connection.execute(RESERVATIONS).fetchall()
    if not reservations:
        return
    file = data.opened_if_there(connection)
    for identity, owner, until in reservations:
        # Who may not open the file, or finds none, cannot tell who lives.
        if until <= now_ns or (file is not None and not file.is_alive(owner)):
            release(connection, identity)


def release(connection: Connection, reservation: int) -> None:
    """Give back what was reserved and given to no entry."""
    connection.execute(RELEASE, {"id": reservation})


def is_reserved(connection: Connection, reservation: int) -> bool:
    """Whether it is still: a writer may have been taken for dead."""
    return connection.execute(IS_RESERVED, {"id": reservation}).fetchone() is not None


def write(connection: Connection, reserved: Reservation, seed: int, data: ByteArray) -> list[bytes]:
    """Write the bytes of a value where space is reserved for it, in no transaction.

    Returns
    -------
    list of bytes
        The checksums of each part, for `give`.
    """
    assert connection.data_file is not None  # noqa: S101 - nothing is reserved without one
    data_file.write(reserved.file, connection.data_file.path, reserved.extents, data)
    return [
        checksum.of_blocks(seed, part * values.PART // checksum.BLOCK, piece)
        for part, piece in values.parts(data)
    ]


def give(connection: Connection, reserved: Reservation, entry: int, checksums: list[bytes]) -> None:
    """Make what was written the bytes of an entry that has none."""
    connection.execute(GIVE_EXTENTS, {"id": reserved.id, "entry": entry, "after": 0, "old": OLD})
    for part, sums in enumerate(checksums):
        values.write_row(connection, entry, part, sums, b"")
    release(connection, reserved.id)


def delete(connection: Connection, entry: int) -> None:
    """Remove the bytes of the entry, wherever they are."""
    values.delete(connection, entry)
    connection.execute(DELETE, {"entry": entry})


def located(
    connection: Connection, entry: int, size: int, start: int, stop: int
) -> tuple[list[Extent], bytes]:
    """Where the bytes ``[start, stop)`` of an entry are, and the checksums of their blocks.

    Parameters
    ----------
    start, stop
        Where blocks begin, or the value ends.

    Raises
    ------
    DamagedValueError
        Some are missing.
    """
    extents = []
    at = start
    for first, offset, length in connection.execute(
        EXTENTS, {"entry": entry, "start": start, "stop": stop}
    ).fetchall():
        end = min(first + length, stop)
        if not (type(first) is type(offset) is type(length) is int) or not first <= at < end:
            raise checksum.DamagedValueError("its extents do not follow one another")
        extents.append(Extent(offset + at - first, end - at))
        at = end
    if at != stop:
        raise checksum.DamagedValueError("the value is missing or has another length")
    first_part, last_part = start // values.PART, (stop - 1) // values.PART
    rows = connection.execute(
        CHECKSUMS, {"entry": entry, "first": first_part, "last": last_part}
    ).fetchall()
    parts = range(first_part, last_part + 1)
    if [part for part, _ in rows] != [*parts] or not all(
        isinstance(sums, bytes)
        and len(sums) == checksum.length_of(min(values.PART, size - part * values.PART))
        for part, sums in rows
    ):
        raise checksum.DamagedValueError("checksums are missing")
    sums = b"".join(sums for _, sums in rows)
    skipped = start // checksum.BLOCK - first_part * values.PART // checksum.BLOCK
    sums = sums[skipped * checksum.LENGTH :]
    return extents, sums[: checksum.length_of(stop - start)]


def length(connection: Connection) -> int:
    """Bytes of the data file up to the end of its last extent."""
    row = connection.execute(LENGTH).fetchone()
    if row is None:
        raise FileDamagedError("the row of data_file is missing")
    return int(row[0])


def free_bytes(connection: Connection) -> int:
    """Bytes of the data file that nothing has. Walks the free extents."""
    (nbytes,) = connection.execute(FREE_BYTES).fetchone()
    return int(nbytes)
