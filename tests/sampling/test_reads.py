"""Reads wait in a list, those of the same bytes as one, until there are many."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from zarr.abc.store import RangeByteRequest, SuffixByteRequest

from zarr_cache.sampling.reads import DUE, DUE_TO_DECIDE, MAX_DUE, MAX_WAITING, Reads, id_of
from zarr_cache.sampling.stored import Sampled

if TYPE_CHECKING:
    import pytest


def fill(reads: Reads, number: int) -> None:
    for key in range(number):
        reads.add("source", str(key), None, 1, False)


def test_what_is_read_again_at_once_is_counted() -> None:
    reads = Reads()
    for key, is_hit in [("a", False), ("a", True), ("a", True), ("b", True), ("a", True)]:
        reads.add("source", key, None, 7, is_hit)
    batch = reads.take()

    assert batch is not None
    a, b = id_of("source", "a"), id_of("source", "b")
    assert batch.ids.tolist() == [a, a, b, a]
    assert batch.sizes.tolist() == [7, 7, 7, 7]
    assert batch.counts.tolist() == [1, 2, 1, 1]
    assert batch.is_hit.tolist() == [False, True, True, True]
    assert reads.take() is None


def test_a_batch_wakes_who_writes_it() -> None:
    woken: list[bool] = []
    reads = Reads(lambda: woken.append(reads.are_due))
    fill(reads, DUE - 1)

    assert woken == []
    fill(reads, 1)
    assert woken == [True]


def test_a_batch_of_a_sampled_cache_is_longer() -> None:
    reads = Reads()
    for scale, due in [(1, DUE), (2, 2 * DUE), (1024, MAX_DUE)]:
        reads.learn(Sampled(keeps=False, scale=scale))
        found = []
        for number in (due - 1, 1):
            fill(reads, number)
            found.append(reads.are_due)
        reads.take()
        assert found == [False, True]


def test_a_batch_is_shorter_while_a_view_asks_what_was_decided() -> None:
    reads = Reads()
    reads.keeps()
    fill(reads, DUE_TO_DECIDE)

    assert reads.are_due
    reads.learn(Sampled(keeps=True, scale=2))
    assert reads.keeps()
    assert not reads.are_due


def test_the_decision_of_another_process_is_known_within_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, looks = [100.0], [None, False, True]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    reads = Reads(look=lambda: looks.pop(0))
    found = []
    for seconds in (0, 0.9, 0.2, 0.9, 0.2):
        now[0] += seconds
        found.append(reads.keeps())

    assert found == [False, False, False, False, True]
    assert looks == []


def test_no_more_wait_than_a_few_batches() -> None:
    reads = Reads()
    fill(reads, MAX_WAITING + 5)

    assert len(reads) == MAX_WAITING


def test_all_ranges_of_a_key_are_sampled_or_none() -> None:
    requests = [None, RangeByteRequest(0, 10), RangeByteRequest(0, 11), SuffixByteRequest(5)]
    ids = [id_of("source", "c/0", request) for request in requests]

    assert len(set(ids)) == len(ids)
    assert len({each >> 31 for each in ids}) == 1
    assert id_of("other", "c/0") >> 31 != ids[0] >> 31
    assert all(0 <= each < 2**63 for each in ids)


def test_a_key_may_be_any_text() -> None:
    assert id_of("source", "\udcff") != id_of("source", "\udcfe")
