"""``when_full="auto"`` follows the better of two orders, and changes when the pattern does."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import traces
from tests.sampling.reads_of_traces import MIB, AutoCache, rate, total
from zarr_cache.sampling.decision import MIN_READS


@pytest.mark.parametrize("part", [0.1, 0.5])
@pytest.mark.parametrize("name", traces.TRACES)
def test_it_is_nearly_the_better_of_both_after_a_quarter_of_the_trace(
    name: str, part: float
) -> None:
    trace = traces.TRACES[name](0)
    sizes = traces.equal_sizes(trace) * MIB
    max_size = int(total(trace, sizes) * part)
    late = slice(len(trace) // 4, None)
    hits = AutoCache(sizes, max_size).read(trace)
    better = max(order(trace, sizes, max_size)[late].mean() for order in (traces.lru, traces.keep))

    assert hits[late].mean() >= 0.95 * better


@pytest.mark.parametrize("part", [0.1, 0.5])
def test_it_is_the_better_of_both_where_a_part_of_the_keys_is_sampled(
    part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "KEYS", 20_000)
    trace = traces.shuffled_epochs(0)
    sizes = traces.equal_sizes(trace) * MIB
    max_size = int(total(trace, sizes) * part)
    late = slice(len(trace) // 4, None)
    cache = AutoCache(sizes, max_size)
    hits = cache.read(trace)

    assert cache.sample.scale > 1
    assert hits[late].mean() >= 0.95 * traces.keep(trace, sizes, max_size)[late].mean()


@pytest.mark.parametrize("part", [0.1, 0.5])
def test_it_changes_when_the_pattern_does(part: float) -> None:
    epochs, popular = np.tile(traces.shuffled_epochs(0), 2), traces.popular_regions(1)
    parts = [epochs, popular, epochs + traces.KEYS]
    trace = np.concatenate(parts)
    sizes = traces.equal_sizes(trace) * MIB
    max_size = int(traces.KEYS * part) * MIB
    cache = AutoCache(sizes, max_size)
    # A quarter of each to notice the change; epochs of which the first is no hit for any order.
    hits = [cache.read(each)[len(each) // 4 :] for each in parts]
    better = [
        max(order(each, sizes, max_size)[len(each) // 4 :].mean() for order in orders)
        for each, orders in zip(parts, [(traces.keep,), (traces.lru,), (traces.keep,)], strict=True)
    ]

    assert [found.mean() for found in hits] == pytest.approx(better, rel=0.05, abs=0.01)


@pytest.mark.parametrize(("mib", "expected"), [(250, 0.095), (100, 0.035)])
def test_what_is_kept_is_given_up_when_it_is_not_read_any_more(mib: int, expected: float) -> None:
    epochs = np.tile(traces.epochs_in_order(), 3)
    trace = np.concatenate([epochs, epochs + traces.KEYS])
    sizes = traces.equal_sizes(trace) * MIB
    hits = AutoCache(sizes, mib * MIB).read(trace)

    # The last half of the epochs over other keys. Of the smaller cache, no read is known to be one
    # of the same key again.
    assert rate(hits[-len(epochs) // 2 :], trace[-len(epochs) // 2 :], sizes, np.inf) > expected


def test_it_changes_once_in_some_hundred_misses() -> None:
    chance = np.random.default_rng(3)
    pieces = [traces.shuffled_epochs(0)[:2500], traces.popular_regions(2)[:2500]]
    trace = np.concatenate([pieces[chance.integers(2)] for _ in range(40)])
    sizes = traces.equal_sizes(trace) * MIB
    cache = AutoCache(sizes, 250 * MIB)
    hits = cache.read(trace)

    assert len(cache.changes) <= (~hits).sum() / MIN_READS


def test_few_reads_change_nothing() -> None:
    sizes = np.full(200, MIB)
    cache = AutoCache(sizes, 10 * MIB)
    cache.read(np.arange(200))

    assert not cache.sample.decision.keeps


def test_a_cache_that_holds_everything_is_no_matter() -> None:
    trace = traces.shuffled_epochs(0)
    sizes = traces.equal_sizes(trace) * MIB
    hits = AutoCache(sizes, total(trace, sizes)).read(trace)

    assert hits.sum() == len(trace) - traces.KEYS
