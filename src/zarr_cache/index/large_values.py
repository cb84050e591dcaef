"""Large values: space is reserved, written to, and given to an entry, in two short transactions.

The bytes are written between the two, while no lock of the database is held. A process that dies
there leaves a reservation, which the next one that reserves gives back.
"""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core.errors import CacheError, DataFileError, is_code
from zarr_cache.disk.read_threads import in_two_threads
from zarr_cache.index import extents
from zarr_cache.index import space as index_space
from zarr_cache.index.evict import evict_to_fit, expire
from zarr_cache.index.uses import write_touches

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.evict import Evictions, Limits
    from zarr_cache.index.extents import Reservation


MAX_BYTES = 16 * 2**20


"""At most so many bytes of large values are written at a time, and no more than half of `max_size`,
unless one alone has more: they are in nobody's way, and are not counted twice for long."""


def most_bytes(limits: Limits) -> int:
    """At most so many bytes of large values are written at a time, unless one alone has more."""
    return MAX_BYTES if limits.max_size is None else min(MAX_BYTES, limits.max_size // 2)


class LargeValue(NamedTuple):
    """A value that is to be written before its entry is.

    Attributes
    ----------
    place
        What it is known by.
    seed
        The checksum of the facts of its entry to be.
    data
        Its bytes.
    is_wanted
        Whether it would be kept as things are, asked in the transaction that reserves space for it.
    """

    place: Hashable
    seed: int
    data: ByteArray
    is_wanted: Callable[[], bool]


class Written(NamedTuple):
    """A value that is written and has no entry yet."""

    reserved: Reservation
    checksums: list[bytes]

    def is_there(self, connection: Connection) -> bool:
        """Whether its space is still reserved."""
        return extents.is_reserved(connection, self.reserved.id)

    def give(self, connection: Connection, entry: int) -> None:
        """Make it the value of an entry that has none."""
        extents.give(connection, self.reserved, entry, self.checksums)


class WrittenValues(dict["Hashable", Written]):
    """What is written for one transaction, by what it is known by.

    Attributes
    ----------
    failure
        Why none is, if the data file cannot be used: small values are kept all the same.
    """

    def __init__(self, failure: DataFileError | None = None) -> None:
        super().__init__()
        self.failure = failure

    def release(self, connection: Connection) -> None:
        """Give back, in a transaction, what was given to no entry."""
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
    removed: Evictions,
    failure: DataFileError | None,
) -> Iterator[WrittenValues]:
    """Write large values, for the transaction in the block; if it fails, give back their space.

    Parameters
    ----------
    namespace, limits
        What is stale in this namespace goes for them, and the least recently used.
    touches
        Uses that wait to be written: eviction goes by them.
    now_ns
        When this process began to write, by the clock of the file.
    removed
        What went, to which this is added.
    failure
        Why none of them can be kept, if that is known.
    """
    done = WrittenValues(failure)
    if not large or failure is not None:
        yield done
        return
    with connection.writing_much():
        write_touches(connection, touches)
        expire(connection, namespace, limits, removed)
        reserved: dict[Hashable, Reservation] = {}
        try:
            reserved = _reserve(connection, limits, large, now_ns, removed)
        except DataFileError as error:
            done.failure = error
    try:
        wanted = [each for each in large if each.place in reserved]

        def write(each: LargeValue) -> Written:
            space = reserved[each.place]
            return Written(space, extents.write(connection, space, each.seed, each.data))

        for each, its in zip(wanted, in_two_threads(write, wanted), strict=True):
            done[each.place] = its
        yield done
    except BaseException as error:
        # If another process holds the lock, one wait for it is enough: somebody else gives it back.
        is_locked = isinstance(error, sqlite3.Error) and is_code(error, sqlite3.SQLITE_BUSY)
        if not is_locked:
            with contextlib.suppress(sqlite3.Error, CacheError), connection.writing():
                for space in reserved.values():
                    extents.release(connection, space.id)
                # If the disk is full, that the space is free can be written only when it is.
                index_space.cut_off(connection)
        raise


def _reserve(
    connection: Connection,
    limits: Limits,
    large: Sequence[LargeValue],
    now_ns: int,
    removed: Evictions,
) -> dict[Hashable, Reservation]:
    """Reserve space for those that are wanted and for which there is room."""
    data = connection.data_file
    assert data is not None  # noqa: S101 - nothing is large without one
    file = data.opened_to_write(connection)
    most = extents.most_length(limits.max_size)
    reserved = {}
    for each in large:
        size = each.data.size
        if each.is_wanted() and evict_to_fit(connection, limits, removed, size):
            reserved[each.place] = extents.reserve(connection, file, size, now_ns, most)
    return reserved
