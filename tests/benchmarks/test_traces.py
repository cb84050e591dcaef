"""Traces read what they say, and orders of eviction do, in cases that are followed by hand."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

TRACES = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "traces.py"))

ORDERS = ("LRU", "keep", "SIEVE", "S3-FIFO", "best")


def hits(order: str, trace: str, capacity: int, sizes: dict[str, int] | None = None) -> str:
    """The hits of a trace of letters, each as the letter, and each miss as a point."""
    keys = np.frombuffer(trace.encode(), np.uint8).astype(np.int64) - ord("A")
    nbytes = np.array([(sizes or {}).get(chr(ord("A") + key), 1) for key in range(58)])
    found = TRACES["ORDERS"][order](keys, nbytes, capacity)
    return "".join(letter if hit else "." for letter, hit in zip(trace, found, strict=True))


def test_lru_evicts_what_was_used_least_recently() -> None:
    # c takes the place of b: a was used after it.
    assert hits("LRU", "abacab", 2) == "..a.a."


def test_keep_evicts_nothing_and_admits_what_there_is_room_for() -> None:
    assert hits("keep", "abcabcd", 2) == "...ab.."
    # c does not fit beside a; d does.
    assert hits("keep", "acdcd", 3, {"a": 2, "c": 2}) == "....d"


def test_sieve_evicts_the_oldest_that_was_not_read_again() -> None:
    # d takes the place of b, the hand having passed a, which was read again.
    assert hits("SIEVE", "abcadab", 3) == "...a.a."


def test_the_hand_of_sieve_goes_on_where_it_stopped() -> None:
    # d takes the place of b, and e that of c. From the oldest, e would take the place of a, which
    # was not read since the hand passed it.
    assert hits("SIEVE", "abcadea", 3) == "...a..a"


def test_the_hand_of_sieve_goes_from_the_newest_to_the_oldest() -> None:
    # d takes the place of c, the newest, since a and b were read again. Now the hand is at the
    # oldest, so that e takes the place of a and not of d.
    assert hits("SIEVE", "abcabdeda", 3) == "...ab..d."


def test_what_sieve_has_admitted_and_nothing_has_read_again_is_evicted_after_what_is_older() -> (
    None
):
    assert hits("SIEVE", "abcda", 3) == "....."
    assert hits("SIEVE", "abcdbcd", 3) == "....bcd"


def test_s3_fifo_evicts_first_what_was_read_once() -> None:
    # a is read twice more while it is in the small queue, and moves to the main one.
    assert hits("S3-FIFO", "aaabcdefghijkla", 10) == ".aa...........a"
    # Once more is not enough.
    assert hits("S3-FIFO", "aabcdefghijkla", 10) == ".a............"


def test_s3_fifo_keeps_what_comes_again_after_it_was_evicted() -> None:
    # k evicts a, whose key is known. So a comes into the main queue, where ten others leave it.
    assert hits("S3-FIFO", "abcdefghijkalmnopqrstua", 10) == "." * 22 + "a"
    # b was not evicted when it came again, and is read once more only.
    assert hits("S3-FIFO", "abcdefghijkblmnopqrstub", 10) == "." * 11 + "b" + "." * 11


def test_s3_fifo_knows_the_keys_of_nine_tenths_of_the_capacity() -> None:
    ten_others = "ABCDEFGHIJ"

    # When a comes again, nine keys were evicted, the first of them a; in the other case, ten.
    assert hits("S3-FIFO", f"abcdefghijklmnopqra{ten_others}a", 10) == "." * 29 + "a"
    assert hits("S3-FIFO", f"abcdefghijklmnopqrsa{ten_others}a", 10) == "." * 31


def test_the_main_queue_of_s3_fifo_has_nine_tenths_of_the_capacity() -> None:
    # U moves what was read three times to the main queue, of 18: s evicts a, and T is evicted too.
    trace = "".join(3 * letter for letter in "abcdefghijklmnopqrs") + "TU"

    assert hits("S3-FIFO", trace + "ab", 20)[-4:] == "...b"
    # While the small queue has less than a tenth, the main one makes room: b leaves, not U.
    assert hits("S3-FIFO", trace + "VUb", 20, {"V": 2})[-5:] == "...U."


def test_what_s3_fifo_has_in_the_main_queue_leaves_when_it_is_not_read_any_more() -> None:
    # a and b are in the main queue, of a cache for two: the small one is empty then.
    assert hits("S3-FIFO", "aaabbbcdab", 2) == ".aa.bb...b"


def test_the_best_order_evicts_what_is_used_last_or_never() -> None:
    assert hits("best", "abcab", 2) == "...ab"


@pytest.mark.parametrize("order", ORDERS)
def test_a_value_larger_than_the_cache_is_not_admitted_and_evicts_nothing(order: str) -> None:
    assert hits(order, "abcacb", 2, {"c": 3}) == "...a.b"


@pytest.mark.parametrize("order", ORDERS)
@given(
    reads=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    sizes=st.lists(st.integers(1, 9), min_size=10, max_size=10),
    capacity=st.integers(1, 60),
)
def test_a_first_read_is_a_miss_and_with_room_for_all_no_other_is(
    order: str, reads: list[int], sizes: list[int], capacity: int
) -> None:
    trace, nbytes = np.array(reads), np.array(sizes)
    firsts = np.unique(trace, return_index=True)[1]

    found = TRACES["ORDERS"][order](trace, nbytes, capacity)
    everything = TRACES["ORDERS"][order](trace, nbytes, sum(sizes))

    assert not found[firsts].any()
    assert len(trace) - everything.sum() == len(firsts)


@pytest.mark.parametrize("order", [each for each in ORDERS if each != "best"])
@given(
    reads=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    capacity=st.integers(1, 10),
)
def test_no_order_has_more_hits_than_the_best(order: str, reads: list[int], capacity: int) -> None:
    trace, equal = np.array(reads), np.ones(10, np.int64)
    of: Any = TRACES["ORDERS"]

    assert of[order](trace, equal, capacity).sum() <= of["best"](trace, equal, capacity).sum()
