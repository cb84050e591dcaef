"""Reuse distances of a batch are those of a walk over the reads, one by one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zarr_cache.sampling.distances import FIRST, reuse_distances


def walked(keys: list[int], sizes: list[int]) -> tuple[list[int], list[int]]:
    """The distances, and the order of use, by the definition."""
    order: list[int] = []
    found = []
    for key in keys:
        if key in order:
            place = order.index(key)
            found.append(sum(sizes[other] for other in order[place + 1 :]))
            order.remove(key)
        else:
            found.append(FIRST)
        order.append(key)
    return found, order


@given(st.lists(st.integers(0, 40), max_size=200), st.integers(1, 120))
def test_they_are_those_of_a_walk_whatever_the_batches(keys: list[int], length: int) -> None:
    sizes = np.array([1 + (7 * key) % 11 for key in range(41)])
    stack = np.zeros(0, np.int64)
    found: list[int] = []
    for start in range(0, len(keys), length):
        ids = np.array(keys[start : start + length], np.int64)
        distances, last = reuse_distances(stack, sizes[stack], ids, sizes[ids])
        found += distances.tolist()
        stack = np.concatenate([stack, ids])[last]

    assert (found, stack.tolist()) == walked(keys, sizes.tolist())


def test_more_than_all_ids_of_a_sample_in_one_batch() -> None:
    ids = np.tile(np.arange(5000), 2)
    distances, last = reuse_distances(ids[:0], ids[:0], ids, np.full(10_000, 2**40))

    assert set(distances[:5000].tolist()) == {FIRST}
    assert set(distances[5000:].tolist()) == {4999 * 2**40}
    assert last.tolist() == list(range(5000, 10_000))
