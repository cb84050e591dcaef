"""Range entries in memory equal a plain list of spans."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from tests.fakes import STRESS
from zarr_cache.backend.ranges import RangeCache, RangeEntry
from zarr_cache.core.byte_range import span

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.abc.store import ByteRequest

    from zarr_cache.index.lookup import Data

NAMESPACE = "source"
MAX_AGE = 10

POSITIONS = st.integers(0, 14)
LENGTHS = st.integers(0, 9)
REQUESTS = st.one_of(
    st.builds(lambda start, length: RangeByteRequest(start, start + length), POSITIONS, LENGTHS),
    st.builds(OffsetByteRequest, POSITIONS),
    st.builds(SuffixByteRequest, POSITIONS),
)
KEYS = st.sampled_from(["a", "b"])
SIZES = st.integers(0, 12)


@dataclass(eq=False)
class Response:
    """Bytes ``[start, stop)`` of a value, and what the answer alone tells about them.

    Attributes
    ----------
    is_placed
        Whether it tells where they begin.
    is_end
        Whether it tells that they are the last.
    """

    key: str
    start: int
    stop: int
    stored_at: int
    revision: int
    is_placed: bool
    is_end: bool

    def holds(self, request: ByteRequest) -> bool:
        match request:
            case RangeByteRequest(start, stop):
                return self.has(start) and (stop <= self.stop or self.is_end)
            case OffsetByteRequest(offset):
                return self.has(offset) and self.is_end
            case SuffixByteRequest(suffix):
                is_whole = self.is_placed and self.start == 0
                return self.is_end and (suffix <= self.stop - self.start or is_whole)

    def has(self, position: int) -> bool:
        return self.is_placed and self.start <= position < self.stop

    def replaces(self, older: Response) -> bool:
        """Whether nothing is left of the use of another answer for the same key."""
        if older.is_placed:
            return self.is_placed and self.start <= older.start and older.stop <= self.stop
        is_longer = older.stop - older.start <= self.stop - self.start
        return not self.is_placed or (self.is_end and is_longer)


def response(
    key: str, request: ByteRequest, size: int, stored_at: int = 0, revision: int = 0
) -> Response:
    """What a source with a value of `size` bytes answers."""
    start, stop = span(request, size)
    match request:
        case RangeByteRequest():
            tells = True, False
        case SuffixByteRequest():
            tells = False, True
        case _:
            tells = True, True
    return Response(key, start, stop, stored_at, revision, *tells)


class Model:
    """Answers of the source. Least recently used first."""

    def __init__(self, source: dict[str, bytes]) -> None:
        self.source = source
        self.responses: list[Response] = []

    def of(self, key: str) -> list[Response]:
        """Those of one key, the last bytes of a value first, and then what begins last."""
        own = [each for each in self.responses if each.key == key]
        return sorted(own, key=lambda each: (each.is_placed, -each.start))

    def keep(self, is_kept: Callable[[Response], bool]) -> int:
        """Drop all others; how many those were."""
        before = self.responses
        self.responses = [each for each in before if is_kept(each)]
        return len(before) - len(self.responses)

    def forget(self, key: str, fence: int) -> None:
        """What was asked for before the last write goes."""
        self.keep(lambda each: each.key != key or each.revision >= fence)

    def get(self, key: str, request: ByteRequest, fence: int, fresh_after: int) -> bytes | None:
        self.forget(key, fence)
        for each in self.of(key):
            if each.holds(request):
                self.responses.remove(each)
                if each.stored_at > fresh_after:
                    self.responses.append(each)
                    start, stop = span(request, len(self.source[key]))
                    return self.source[key][start:stop]
        return None

    def add(self, request: ByteRequest, new: Response, fence: int) -> None:
        if new.start == new.stop:
            return
        self.forget(new.key, fence)
        if any(each.holds(request) for each in self.of(new.key)):
            return
        self.keep(lambda each: each.key != new.key or not new.replaces(each))
        self.responses.append(new)


class Ranges(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.source = {"a": b"0123456789", "b": b"ABCDEF"}
        self.fences = {"a": 0, "b": 0}
        self.revision = 0
        self.now = 0
        self.timestamp = 0
        self.written = 0
        self.ranges = RangeCache()
        self.model = Model(self.source)

    @property
    def fresh_after(self) -> int:
        return self.now - MAX_AGE

    def next_stamp(self) -> int:
        self.timestamp += 1
        return self.timestamp

    def get(self, key: str, request: ByteRequest) -> Data | None:
        found = self.ranges.get(
            NAMESPACE,
            key,
            request,
            fence=self.fences[key],
            fresh_after=self.fresh_after,
            used_at=self.next_stamp(),
        )
        return None if found is None else found[1]

    def check(self, key: str, request: ByteRequest) -> Data | None:
        expected = self.model.get(key, request, self.fences[key], self.fresh_after)
        found = self.get(key, request)

        assert found == expected
        return found

    @rule(key=KEYS, request=REQUESTS)
    def peek_at(self, key: str, request: ByteRequest) -> None:
        """Ask, and do not fetch what is missing."""
        self.check(key, request)

    @rule(key=KEYS, request=REQUESTS)
    def read(self, key: str, request: ByteRequest) -> None:
        """Ask, and fetch what is missing."""
        if self.check(key, request) is None:
            new = response(key, request, len(self.source[key]), self.now, self.revision)
            data = self.source[key][new.start : new.stop]
            entry = RangeEntry(
                NAMESPACE, key, request, data, self.now, self.revision, self.next_stamp()
            )
            self.ranges.add(entry, fence=self.fences[key])
            self.model.add(request, new, self.fences[key])

    @rule(key=KEYS, size=SIZES)
    def write(self, key: str, size: int) -> None:
        self.revision += 1
        self.written += 1
        self.fences[key] = self.revision
        self.source[key] = bytes([self.written]) * size

    @rule(seconds=st.sampled_from([1, 4, 9, 10]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def evict(self) -> None:
        had_one = bool(self.model.responses)
        del self.model.responses[:1]

        assert self.ranges.evict() == had_one

    @rule()
    def expire(self) -> None:
        expired = self.model.keep(lambda each: each.stored_at > self.fresh_after)

        assert self.ranges.expire(NAMESPACE, self.fresh_after) == expired

    @rule(key=KEYS)
    def remove_key(self, key: str) -> None:
        self.ranges.remove_key(NAMESPACE, key)
        self.model.keep(lambda each: each.key != key)

    @rule(prefix=st.sampled_from(["", "a", "ab"]))
    def remove(self, prefix: str) -> None:
        self.ranges.remove(NAMESPACE, prefix)
        self.model.keep(lambda each: not each.key.startswith(prefix))

    @rule(key=KEYS)
    def ask_for_size_and_existence(self, key: str) -> None:
        limits = {"fence": self.fences[key], "fresh_after": self.fresh_after}
        self.model.forget(key, limits["fence"])
        is_told = any(
            each.is_placed and each.is_end and each.stored_at > self.fresh_after
            for each in self.model.of(key)
        )
        size = len(self.source[key]) if is_told else None
        has_any = any(each.stored_at > self.fresh_after for each in self.model.of(key))

        assert self.ranges.known(NAMESPACE, key, **limits) == (has_any, size)

    @invariant()
    def bytes_and_number_are_those_of_the_spans(self) -> None:
        nbytes = sum(each.stop - each.start for each in self.model.responses)

        assert self.ranges.nbytes == self.ranges.nbytes_of(NAMESPACE) == nbytes
        assert len(self.ranges) == self.ranges.count(NAMESPACE) == len(self.model.responses)

    @invariant()
    def other_namespaces_have_none(self) -> None:
        assert self.ranges.nbytes_of("other") == self.ranges.count("other") == 0

    @rule()
    def evict_all(self) -> None:
        """They go in the order of use."""
        timestamps = []
        while (used_at := self.ranges.oldest_use()) is not None:
            timestamps.append(used_at)
            self.evict()
            self.bytes_and_number_are_those_of_the_spans()

        assert timestamps == sorted(timestamps)
        assert self.ranges.nbytes == 0


TestRanges = Ranges.TestCase
TestRanges.settings = settings(max_examples=100 * STRESS, stateful_step_count=40, print_blob=True)


def add(ranges: RangeCache, request: ByteRequest, data: bytes, stored_at: int) -> None:
    entry = RangeEntry(NAMESPACE, "a", request, data, stored_at, 0, stored_at)
    ranges.add(entry, fence=0)


def get(ranges: RangeCache, request: ByteRequest, *, fresh_after: int = 0) -> Data | None:
    found = ranges.get(NAMESPACE, "a", request, fence=0, fresh_after=fresh_after, used_at=100)
    return None if found is None else found[1]


def test_a_fresh_span_is_found_behind_a_stale_one_that_begins_later() -> None:
    ranges = RangeCache()
    add(ranges, RangeByteRequest(2, 10), b"23456789", stored_at=1)
    add(ranges, RangeByteRequest(0, 8), b"01234567", stored_at=5)

    assert get(ranges, RangeByteRequest(3, 6), fresh_after=2) == b"345"


def test_a_whole_value_takes_the_place_of_its_parts() -> None:
    ranges = RangeCache()
    add(ranges, SuffixByteRequest(9), b"123456789", stored_at=1)
    add(ranges, RangeByteRequest(1, 2), b"1", stored_at=2)
    add(ranges, OffsetByteRequest(0), b"0123456789", stored_at=3)

    assert get(ranges, RangeByteRequest(1, 2)) == b"1"
    assert get(ranges, RangeByteRequest(0, 10)) == b"0123456789"


def test_a_smaller_part_does_not_take_the_place_of_a_larger_one() -> None:
    ranges = RangeCache()
    add(ranges, RangeByteRequest(0, 10), b"0123456789", stored_at=1)
    add(ranges, OffsetByteRequest(9), b"9", stored_at=2)

    assert get(ranges, RangeByteRequest(0, 5)) == b"01234"
    assert get(ranges, OffsetByteRequest(9)) == b"9"


@pytest.mark.parametrize(
    "requests",
    list(permutations([SuffixByteRequest(4), OffsetByteRequest(6), RangeByteRequest(6, 10)])),
    ids=str,
)
def test_the_index_of_a_shard_is_one_entry_however_it_was_requested(
    requests: tuple[ByteRequest, ...],
) -> None:
    ranges = RangeCache()
    for stored_at, request in enumerate(requests):
        add(ranges, request, b"6789", stored_at=stored_at + 1)

    assert len(ranges) == 1
    assert [get(ranges, request) for request in requests] == [b"6789"] * 3


def test_an_older_size_does_not_place_a_suffix_of_a_value_that_has_grown() -> None:
    ranges = RangeCache()
    add(ranges, RangeByteRequest(8, 12), b"89", stored_at=1)
    add(ranges, SuffixByteRequest(4), b"wxyz", stored_at=2)

    # The source has never had "wx" there: it was asked when it had grown past 10 bytes.
    assert get(ranges, RangeByteRequest(6, 8)) is None


def test_a_range_requested_before_a_write_that_another_reader_has_seen_is_not_cached() -> None:
    ranges = RangeCache()
    request = RangeByteRequest(0, 3)
    # Of another part, by who has looked at the key after the write.
    ranges.add(RangeEntry(NAMESPACE, "a", RangeByteRequest(5, 8), b"new", 2, 7, 2), fence=7)
    ranges.add(RangeEntry(NAMESPACE, "a", request, b"old", 1, 3, 3), fence=3)

    assert ranges.get(NAMESPACE, "a", request, fence=7, fresh_after=0, used_at=4) is None


def test_a_range_requested_after_a_write_stays_when_the_write_is_seen() -> None:
    ranges = RangeCache()
    old, new = RangeByteRequest(0, 3), RangeByteRequest(5, 8)
    ranges.add(RangeEntry(NAMESPACE, "a", old, b"old", 1, 3, 1), fence=3)
    # By who has looked at the key before the write of revision 7, and asked after it.
    ranges.add(RangeEntry(NAMESPACE, "a", new, b"new", 2, 7, 2), fence=3)
    found = [
        ranges.get(NAMESPACE, "a", request, fence=7, fresh_after=0, used_at=4)
        for request in (old, new)
    ]

    assert [each and each[1] for each in found] == [None, b"new"]


def test_a_value_that_was_cut_short_leaves_the_accounts_right() -> None:
    ranges = RangeCache()
    add(ranges, RangeByteRequest(2, 6), b"2345", stored_at=1)
    add(ranges, OffsetByteRequest(2), b"23", stored_at=2)
    found = get(ranges, OffsetByteRequest(2))
    while ranges.evict():
        pass

    assert found == b"23"
    assert (len(ranges), ranges.nbytes, ranges.nbytes_of(NAMESPACE)) == (0, 0, 0)
