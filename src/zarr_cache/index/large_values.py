"""Large values: one short transaction reserves space, another gives it to an entry.

The bytes are written between the two, while no lock of the database is held. A process that dies
there leaves a reservation, which the next process that reserves releases.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core.errors import CacheError, DataFileError, is_code
from zarr_cache.disk.read_threads import in_two_threads
from zarr_cache.index import extents, upkeep
from zarr_cache.index.evict import add_if_it_fits, evict_to_fit, expire
from zarr_cache.index.upkeep import write_touches

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.evict import Evictions, Limits
    from zarr_cache.index.extents import Reservation


MAX_BYTES = 16 * 2**20
"""At most so many bytes of large values are written at a time, and at most half of `max_size`,
unless one alone has more. Meanwhile the values that they replace count for the budget as well."""


def max_bytes(limits: Limits) -> int:
    """At most so many bytes of large values are written at a time, unless one alone has more."""
    return MAX_BYTES if limits.max_size is None else min(MAX_BYTES, limits.max_size // 2)


class LargeValue(NamedTuple):
    """A value whose bytes are to be written before its entry is.

    Attributes
    ----------
    id
        By which `WrittenValues` has it.
    is_wanted
        Whether it would be admitted now: called in the transaction that reserves space for it.
    """

    id: Hashable
    identity_checksum: int
    data: ByteArray
    is_wanted: Callable[[], bool]


class WrittenValue(NamedTuple):
    """A value whose bytes are written and that has no entry yet."""

    reserved: Reservation
    checksums: list[bytes]

    def is_reserved(self, connection: Connection) -> bool:
        """Whether its space is still reserved."""
        return extents.is_reserved(connection, self.reserved.id)

    def give(self, connection: Connection, entry: int) -> None:
        """Make it the value of an entry that has none."""
        extents.give(connection, self.reserved, entry, self.checksums)


class WrittenValues(dict["Hashable", WrittenValue]):
    """The values that are written for one transaction, by `LargeValue.id`.

    Attributes
    ----------
    failure
        Why there are none, if the data file cannot be used. Small values are admitted nevertheless.
    """

    def __init__(self, failure: DataFileError | None = None) -> None:
        super().__init__()
        self.failure = failure

    def release(self, connection: Connection) -> None:
        """Release the space that was given to no entry, in a transaction."""
        for written in self.values():
            extents.release(connection, written.reserved.id)


@contextlib.contextmanager
def written(
    connection: Connection,
    namespace: str,
    limits: Limits,
    touches: Mapping[int, int],
    large: Sequence[LargeValue],
    now_ns: int,
    evictions: Evictions,
    failure: DataFileError | None,
) -> Iterator[WrittenValues]:
    """Write large values, for the transaction in the block; if that fails, release their space.

    To make space, stale entries of the namespace are removed and the least recently used are
    evicted; both are added to `evictions`.

    Parameters
    ----------
    now_ns
        When this process began to write, by the clock of the file.
    failure
        Why none of them can be written, if that is known.
    """
    values_written = WrittenValues(failure)
    if not large or failure is not None:
        yield values_written
        return
    with connection.writing_much():
        write_touches(connection, touches)
        expire(connection, namespace, limits, evictions)
        reserved: dict[Hashable, Reservation] = {}
        try:
            reserved = _reserve(connection, limits, large, now_ns, evictions)
        except DataFileError as error:
            values_written.failure = error
    try:
        wanted = [each for each in large if each.id in reserved]

        def write(each: LargeValue) -> WrittenValue:
            space = reserved[each.id]
            checksums = extents.write(connection, space, each.identity_checksum, each.data)
            return WrittenValue(space, checksums)

        for each, value_written in zip(wanted, in_two_threads(write, wanted), strict=True):
            values_written[each.id] = value_written
        yield values_written
    except BaseException as error:
        # If another process holds the lock, one wait for it is enough: the next process that
        # reserves releases the space.
        is_locked = isinstance(error, sqlite3.Error) and is_code(error, sqlite3.SQLITE_BUSY)
        if not is_locked:
            with contextlib.suppress(sqlite3.Error, CacheError), connection.writing():
                for space in reserved.values():
                    extents.release(connection, space.id)
                # On a full disk, only this makes the space that the commit needs.
                upkeep.cut_off(connection)
        raise


def _reserve(
    connection: Connection,
    limits: Limits,
    large: Sequence[LargeValue],
    now_ns: int,
    evictions: Evictions,
) -> dict[Hashable, Reservation]:
    """Reserve space for the values that are wanted and fit into the budget."""
    data = connection.data_file
    assert data is not None  # noqa: S101 - nothing is large without one
    file = data.opened_to_write(connection)
    max_length = extents.max_length_of(limits.max_size)
    reserved = {}
    for each in large:
        size = each.data.size
        is_wanted = add_if_it_fits(connection, limits, evictions, each.is_wanted, size)
        if is_wanted and evict_to_fit(connection, limits, evictions, size):
            reserved[each.id] = extents.reserve(connection, file, size, now_ns, max_length)
    return reserved
