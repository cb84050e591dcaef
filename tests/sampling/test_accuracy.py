"""The hit rate over size is that of a full simulation of LRU, within 0.03, on each trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks import traces
from tests.fakes import STRESS
from tests.sampling.reads_of_traces import MIB, PARTS, in_batches, rate, sample_of, total
from zarr_cache.sampling import histogram
from zarr_cache.sampling.sample import MAX_SAMPLED

if TYPE_CHECKING:
    from benchmarks.traces import Sizes, Trace
    from zarr_cache.sampling.sample import Sample

LARGE_SIDE = 141
"""As many rows, and chunks in a row, of a large array."""


def sampled(sample: Sample, size: float) -> float:
    return histogram.at(*sample.rates(), size)


def errors(sample: Sample, trace: Trace, sizes: Sizes, fading: float) -> list[float]:
    """By how much the rates differ from those of a simulation, at each of `PARTS`."""
    return [
        sampled(sample, size) - rate(traces.lru(trace, sizes, size), trace, sizes, fading)
        for size in (int(total(trace, sizes) * part) for part in PARTS)
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", traces.TRACES)
def test_a_small_cache_is_sampled_whole(name: str, seed: int) -> None:
    trace = traces.TRACES[name](seed)
    sizes = traces.equal_sizes(trace) * MIB
    sample = sample_of(trace, sizes, seed=seed)

    assert sample.scale == 1
    assert errors(sample, trace, sizes, histogram.FADING) == pytest.approx([0] * 8, abs=0.02)


@pytest.mark.parametrize("name", traces.TRACES)
def test_values_may_differ_in_size(name: str) -> None:
    trace = traces.TRACES[name](0)
    chance = np.random.default_rng(5)
    sizes = (2 ** chance.uniform(10, 21, int(trace.max()) + 1)).astype(np.int64)
    sample = sample_of(trace, sizes)

    assert errors(sample, trace, sizes, histogram.FADING) == pytest.approx([0] * 8, abs=0.03)


@pytest.mark.parametrize("seed", [0, 1, 2] if STRESS > 1 else [0])
@pytest.mark.parametrize("name", traces.TRACES)
def test_of_a_large_cache_a_part_of_the_keys_is_enough(
    name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "SIDE", LARGE_SIDE)
    monkeypatch.setattr(traces, "KEYS", LARGE_SIDE**2)
    trace = traces.TRACES[name](seed)
    sizes = traces.equal_sizes(trace) * MIB
    sample = sample_of(trace, sizes, seed=seed)

    assert sample.scale > 1
    assert len(sample.ids) <= MAX_SAMPLED
    # Where all keys fit, the curve may be a step: how many there are is known to a few per cent.
    found = errors(sample, trace, sizes, histogram.FADING * sample.scale)
    assert found[:-1] == pytest.approx([0] * 7, abs=0.03)
    whole = rate(
        traces.lru(trace, sizes, total(trace, sizes)), trace, sizes, histogram.FADING * sample.scale
    )
    assert sampled(sample, 1.03 * total(trace, sizes)) == pytest.approx(whole, abs=0.03)


def test_what_is_long_ago_fades() -> None:
    epochs, popular = traces.shuffled_epochs(0), traces.popular_regions(0)
    trace = np.concatenate([np.tile(epochs, 10), np.tile(popular, 8)])
    sizes = traces.equal_sizes(trace) * MIB
    sample = sample_of(trace, sizes)
    found = errors(sample, trace, sizes, histogram.FADING)

    assert len(trace) > 3 * histogram.FADING
    assert found == pytest.approx([0] * 8, abs=0.03)
    unfaded = rate(traces.lru(trace, sizes, 250 * MIB), trace, sizes, np.inf)
    assert abs(sampled(sample, 250 * MIB) - unfaded) > 0.05


def test_what_is_far_beyond_the_budget_is_forgotten() -> None:
    trace = traces.epochs_in_order()
    sizes = traces.equal_sizes(trace) * MIB
    sample = sample_of(trace, sizes, max_size=100 * MIB)

    assert len(sample.ids) == 1600
    assert max(sample.rates()[1], default=0) == pytest.approx(0)


def test_the_length_of_a_batch_changes_nothing() -> None:
    trace = traces.panning_viewer(0)
    sizes = traces.equal_sizes(trace) * MIB
    long, short = (sample_of(trace, sizes, length=length) for length in (5000, 77))

    assert long.ids.tolist() == short.ids.tolist()
    assert long.rates()[0] == short.rates()[0]
    assert long.rates()[1] == pytest.approx(short.rates()[1])
    assert sum(map(len, in_batches(trace))) == len(trace)
