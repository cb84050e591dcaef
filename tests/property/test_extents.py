"""Space of the data file equals a plain list of intervals, whatever is kept, freed or lost."""

from __future__ import annotations

import os
import random
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pytest
from zarr.storage import MemoryStore

from tests.fakes import STRESS, file_cache
from tests.fault.sources import new_cache
from tests.systems import needs_data_file
from zarr_cache.disk.data_file import BLOCK, HEADER, Extent
from zarr_cache.index import extents

if TYPE_CHECKING:
    from pathlib import Path

    from zarr_cache.disk.data_file import OpenFile
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.extents import Reservation

SEED = int(os.environ.get("ZARR_CACHE_SEED") or random.SystemRandom().randrange(2**32))
"""Told when a test fails; ``ZARR_CACHE_SEED`` chooses the same operations again."""

OPERATIONS = 40_000 * STRESS

CHECKED_EACH = 500
"""So many operations are between two looks at all of it."""

MAX_SIZE = 16 * 2**20
ROOM = 2**20

ME, DEAD, ALIVE = 1, 2, 3
"""Whose reservations there are."""


class WhoLives(NamedTuple):
    """In place of a data file: knows which writers live."""

    owner: int

    def is_alive(self, owner: int) -> bool:
        return owner != DEAD


class Model:
    """Who has which bytes: entries by their number, reservations by the negative of theirs."""

    def __init__(self) -> None:
        self.spans: dict[int, list[Extent]] = {}
        self.sizes: dict[int, int] = {}
        self.order: list[Extent] = []

    def add(self, owner: int, nbytes: int, spans: list[Extent]) -> None:
        for span in spans:
            place = bisect_left(self.order, span)
            beside = self.order[max(0, place - 1) : place + 1]
            assert all(
                each.place + each.length <= span.place or span.place + span.length <= each.place
                for each in beside
            ), (SEED, span, beside)
            insort(self.order, span)
        assert sum(span.length for span in spans) == -(-nbytes // BLOCK) * BLOCK
        self.spans[owner], self.sizes[owner] = spans, nbytes

    def remove(self, owner: int) -> None:
        for span in self.spans.pop(owner):
            del self.order[bisect_left(self.order, span)]
        del self.sizes[owner]

    @property
    def nbytes(self) -> int:
        return sum(self.sizes.values())

    @property
    def holes(self) -> list[Extent]:
        """What nobody has, between what somebody has."""
        found = []
        at = HEADER
        for place, length in self.order:
            if place > at:
                found.append(Extent(at, place - at))
            at = place + length
        return found

    @property
    def end(self) -> int:
        return sum(self.order[-1]) if self.order else HEADER


class Allocator:
    """The tables, driven at random beside the model."""

    def __init__(self, connection: Connection, random_: random.Random) -> None:
        self.connection = connection
        self.random = random_
        self.model = Model()
        self.reserved: dict[int, Reservation] = {}
        self.now = 0
        self.entry = 0

    def size(self) -> int:
        """Of a value: what just fits a hole, or just does not, or anything."""
        free = self.connection.execute("SELECT length FROM free_extent LIMIT 50").fetchall()
        fitting: list[int] = [
            length + more
            for (length,) in self.random.sample(free, min(3, len(free)))
            for more in (0, -1, 1, -BLOCK, BLOCK)
            if length + more >= extents.MIN_BYTES
        ]
        anything = [
            extents.MIN_BYTES,
            extents.MIN_BYTES + 1,
            2**20,
            self.random.randrange(2**16, 2**21),
        ]
        return self.random.choice([*fitting, *anything])

    def reserve(self) -> None:
        nbytes = self.size()
        while self.model.nbytes + nbytes > MAX_SIZE:
            if not self.free():
                return
        owner = self.random.choices([ME, DEAD, ALIVE], [8, 1, 1])[0]
        with self.connection.writing():
            reserved = extents.reserve(
                self.connection,
                cast("OpenFile", WhoLives(owner)),
                nbytes,
                self.now,
                extents.max_length_of(MAX_SIZE),
            )
        self.model.add(-reserved.id, nbytes, reserved.extents)
        self.reserved[owner * 2**64 + reserved.id] = reserved
        assert self.length() <= MAX_SIZE * 1.07 + ROOM, SEED

    def reserve_and_roll_back(self) -> None:
        class CrashError(Exception):
            pass

        def crash() -> None:
            with self.connection.writing():
                for nbytes in (2**20, 2**16, 3 * 2**20):
                    file = cast("OpenFile", WhoLives(ME))
                    extents.reserve(self.connection, file, nbytes, self.now, None)
                self.connection.execute(
                    "DELETE FROM extent WHERE entry IN (SELECT max(entry) FROM extent)"
                )
                raise CrashError

        with pytest.raises(CrashError):
            crash()

    def give(self) -> None:
        """Commit one of ours: it becomes an entry."""
        mine = [key for key in self.reserved if key // 2**64 == ME]
        if not mine:
            return
        reserved = self.reserved.pop(self.random.choice(mine))
        self.entry += 1
        with self.connection.writing():
            assert extents.is_reserved(self.connection, reserved.id)
            extents.give(self.connection, reserved, self.entry, [])
        nbytes, spans = self.model.sizes[-reserved.id], self.model.spans[-reserved.id]
        self.model.remove(-reserved.id)
        self.model.add(self.entry, nbytes, spans)

    def free(self) -> bool:
        """Evict some entry, or give a reservation up."""
        entries = [each for each in self.model.spans if each > 0]
        if entries:
            entry = self.random.choice(entries)
            with self.connection.writing():
                extents.delete(self.connection, entry)
            self.model.remove(entry)
        else:
            self.release_expired()
        return bool(entries)

    def release(self) -> None:
        if self.reserved:
            reserved = self.reserved.pop(self.random.choice(list(self.reserved)))
            with self.connection.writing():
                extents.release(self.connection, reserved.id)
            self.model.remove(-reserved.id)

    def release_expired(self) -> None:
        """What a killed process had reserved goes at once, all else when its time is over."""
        if self.random.random() < 0.1:
            self.now += extents.LEASE_NS + 1
            gone = list(self.reserved)
        else:
            gone = [key for key in self.reserved if key // 2**64 == DEAD]
        with self.connection.writing():
            extents.release_expired(self.connection, self.now)
        for key in gone:
            self.model.remove(-self.reserved.pop(key).id)

    def length(self) -> int:
        return extents.length(self.connection)

    def check(self) -> None:
        def rows(statement: str) -> list[Any]:
            return self.connection.execute(statement).fetchall()

        spans: dict[int, list[Extent]] = {}
        starts: dict[int, int] = {}
        for entry, start, place, length in rows("SELECT * FROM extent ORDER BY entry, start"):
            assert start == starts.get(entry, 0)
            starts[entry] = start + length
            spans.setdefault(entry, []).append(Extent(place, length))
        free = [
            Extent(*row) for row in rows("SELECT offset, length FROM free_extent ORDER BY offset")
        ]
        reserved = rows("SELECT -id, bytes FROM reservation ORDER BY id DESC")

        assert spans == self.model.spans, SEED
        assert free == self.model.holes, SEED
        assert self.length() == self.model.end, SEED
        assert sorted(reserved) == sorted(each for each in self.model.sizes.items() if each[0] < 0)
        used = sum(length for _, length in self.model.order)
        assert HEADER + used + sum(length for _, length in free) == self.length()


@needs_data_file
def test_space_is_a_list_of_intervals(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extents, "ROOM", ROOM)
    store = new_cache(MemoryStore(), path)
    store.get_sync("absent")
    store.flush()

    def drive(connection: Connection) -> None:
        assert connection.data_file is not None
        monkeypatch.setattr(connection.data_file, "opened_if_there", lambda _: WhoLives(ME))
        allocator = Allocator(connection, random.Random(SEED))  # noqa: S311 - to be told again
        steps = [
            (allocator.reserve, 40),
            (allocator.give, 40),
            (allocator.free, 15),
            (allocator.release, 4),
            (allocator.release_expired, 2),
            (allocator.reserve_and_roll_back, 1),
        ]
        chosen = allocator.random.choices(*zip(*steps, strict=True), k=OPERATIONS)
        connection.execute("PRAGMA synchronous = OFF")
        for number, step in enumerate(chosen):
            step()
            if number % CHECKED_EACH == 0:
                allocator.check()
        allocator.check()
        with connection.writing():
            connection.execute("DELETE FROM extent")
            connection.execute("DELETE FROM reservation")
        assert connection.execute("SELECT * FROM free_extent").fetchall() == []
        assert extents.length(connection) == HEADER

    file_cache(store)._database.run(drive)
