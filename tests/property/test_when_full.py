"""What is kept when the cache is full equals what a plain model keeps, which evicts nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings

from tests.fakes import STRESS
from tests.property.test_order import (
    MAX_AGE,
    SETTINGS,
    Model,
    ModelOfRangesInFile,
    OrderInFile,
    OrderInMemory,
    OrderOfLargeValues,
)
from zarr_cache.backend import upkeep

if TYPE_CHECKING:
    from tests.property.test_order import FileId
    from zarr_cache.flows.settings import WhenFull


class Keeping(Model):
    """What a CacheStore keeps that evicts nothing for what is new, with ranges in memory."""

    def size_of(self, places: list[FileId]) -> int:
        return sum(self.kept[place].size for place in places)

    def inside(self, key: str, start: int, stop: int) -> list[FileId]:
        """The ranges that one with these bytes replaces."""
        return [(key, span) for span in self.spans(key) if start <= span[0] and span[1] <= stop]

    def is_in_file(self, place: FileId) -> bool:
        return place[1] is None

    def expire_in_memory(self) -> None:
        for place, kept in list(self.kept.items()):
            if not self.is_in_file(place) and not self.is_fresh(kept):
                self.drop(place)

    def has_room(self, size: int, replaced: list[FileId]) -> bool:
        """Whether a response is queued; then stale entries are removed before it is admitted."""
        if self.size + size <= self.max_size:
            return True
        excess = self.size + size - self.size_of(replaced) - self.max_size
        if excess > 0:
            before = self.size
            self.expire_in_memory()
            excess -= before - self.size
        stale = [place for place, kept in self.kept.items() if not self.is_fresh(kept)]
        return self.size_of([place for place in stale if self.is_in_file(place)]) >= excess

    def admit_value(self, key: str) -> None:
        size = len(self.source[key])
        of_key = [place for place in self.kept if place[0] == key]
        if not self.has_room(size, of_key):
            if (key, None) in self.kept:
                self.drop((key, None))
            return
        for span in self.spans(key):
            if not self.is_in_file((key, span)):
                self.drop((key, span))
        self.expire()
        left = [place for place in of_key if place in self.kept]
        if self.size - self.size_of(left) + size <= self.max_size:
            self.keep_value(key, self.row_revision(key))
        elif (key, None) in self.kept:
            self.drop((key, None))

    def admit_range(self, key: str, start: int, stop: int) -> None:
        more = stop - start - self.size_of(self.inside(key, start, stop))
        if self.size + more > self.max_size:
            self.expire_in_memory()
        more = stop - start - self.size_of(self.inside(key, start, stop))
        if self.size + more <= self.max_size:
            self.keep_range(key, start, stop)

    def admit_written(self, key: str) -> None:
        if self.size + len(self.source[key]) <= self.max_size:
            self.keep_value(key, self.revision)


class KeepingRangesInFile(Keeping, ModelOfRangesInFile):
    """What a CacheStore keeps that persists ranges."""

    def is_in_file(self, place: FileId) -> bool:  # noqa: ARG002 - as of the other model
        return True

    def admit_range(self, key: str, start: int, stop: int) -> None:
        size = stop - start
        if self.has_room(size, self.inside(key, start, stop)):
            self.expire()
            if self.size - self.size_of(self.inside(key, start, stop)) + size <= self.max_size:
                self.keep_range(key, start, stop)


class Kept:
    """The settings of each."""

    when_full: WhenFull = "keep"
    models: tuple[type[Model], type[Model]] = (Keeping, KeepingRangesInFile)


class KeptInFile(Kept, OrderInFile):
    pass


class KeptOfWhatAges(Kept, OrderInFile):
    max_age_seconds = MAX_AGE

    def __init__(self) -> None:
        super().__init__()
        # The model looks for what is stale at every read.
        self.patch.setattr(upkeep, "LOOK_NS", 0)


class KeptRangesInFile(Kept, OrderInFile):
    persist_ranges = True


class KeptRangesThatAge(KeptOfWhatAges):
    persist_ranges = True


class KeptLargeValues(Kept, OrderOfLargeValues):
    pass


class KeptLargeRanges(KeptLargeValues):
    persist_ranges = True


class KeptInMemory(Kept, OrderInMemory):
    max_age_seconds = MAX_AGE

    def __init__(self) -> None:
        super().__init__()
        self.patch.setattr(upkeep, "LOOK_NS", 0)


TestKeptInFile = KeptInFile.TestCase
TestKeptInFile.settings = settings(SETTINGS, max_examples=15 * STRESS)
TestKeptOfWhatAges = KeptOfWhatAges.TestCase
TestKeptOfWhatAges.settings = settings(SETTINGS, max_examples=15 * STRESS)
TestKeptRangesInFile = KeptRangesInFile.TestCase
TestKeptRangesInFile.settings = settings(SETTINGS, max_examples=15 * STRESS)
TestKeptRangesThatAge = KeptRangesThatAge.TestCase
TestKeptRangesThatAge.settings = settings(SETTINGS, max_examples=15 * STRESS)
TestKeptLargeValues = KeptLargeValues.TestCase
TestKeptLargeValues.settings = settings(SETTINGS, max_examples=8 * STRESS)
TestKeptLargeRanges = KeptLargeRanges.TestCase
TestKeptLargeRanges.settings = settings(SETTINGS, max_examples=8 * STRESS)
TestKeptInMemory = KeptInMemory.TestCase
TestKeptInMemory.settings = SETTINGS
