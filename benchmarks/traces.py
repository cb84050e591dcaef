"""Traces of reads: training, patches, popular regions, a viewer. And orders of eviction over them.

A trace is a sequence of keys, each a number. An order of eviction is simulated over it, and returns
for each read whether it is a hit. `best` knows the future.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt

    type Trace = npt.NDArray[np.int64]
    type Sizes = npt.NDArray[np.int64]
    type Hits = npt.NDArray[np.bool_]

KEYS = 2500
"""Keys of a trace: chunks in 50 rows of 50."""

ROUNDS = 6

SIDE = 50

STEPS = 500
SCANS = {125, 375}
"""So often the viewer moves, and before these moves it scans the whole image."""


def shuffled_epochs(seed: int = 0) -> Trace:
    """Each epoch reads every chunk once, in an order of its own."""
    chance = np.random.default_rng(seed)
    return np.concatenate([chance.permutation(KEYS) for _ in range(ROUNDS)])


def epochs_in_order(seed: int = 0) -> Trace:  # noqa: ARG001 - as of the others
    """Each epoch reads every chunk once, in the same order."""
    return np.tile(np.arange(KEYS), ROUNDS)


def overlapping_patches(seed: int = 0) -> Trace:  # noqa: ARG001 - as of the others
    """Patches of five by five chunks, a chunk apart, in the order of rows."""
    of_patch = (np.arange(5)[:, None] * SIDE + np.arange(5)).ravel()
    corners = (np.arange(SIDE - 4)[:, None] * SIDE + np.arange(SIDE - 4)).ravel()
    return (corners[:, None] + of_patch).ravel()


def popular_regions(seed: int = 0) -> Trace:
    """Each chunk is read as often as its rank to the power of -0.9."""
    chance = np.random.default_rng(seed)
    weights = np.arange(1, KEYS + 1) ** -0.9
    return chance.permutation(KEYS)[chance.choice(KEYS, ROUNDS * KEYS, p=weights / weights.sum())]


def panning_viewer(seed: int = 0) -> Trace:
    """A window of six by six chunks that moves a chunk at a time, and a whole scan now and then."""
    chance = np.random.default_rng(seed)
    of_window = (np.arange(6)[:, None] * SIDE + np.arange(6)).ravel()
    row, column = SIDE // 2, SIDE // 2
    steps = []
    for step in range(STEPS):
        row = int(np.clip(row + chance.integers(-1, 2), 0, SIDE - 6))
        column = int(np.clip(column + chance.integers(-1, 2), 0, SIDE - 6))
        steps.append(row * SIDE + column + of_window)
        if step in SCANS:
            steps.append(np.arange(KEYS))
    return np.concatenate(steps)


TRACES: Mapping[str, Callable[[int], Trace]] = {
    "epochs, shuffled": shuffled_epochs,
    "epochs, in order": epochs_in_order,
    "overlapping patches, in order": overlapping_patches,
    "popular regions": popular_regions,
    "a viewer that pans, with whole scans": panning_viewer,
}


def equal_sizes(trace: Trace) -> Sizes:
    """One byte for each key of the trace."""
    return np.ones(int(trace.max()) + 1, np.int64)


def lru(trace: Trace, sizes: Sizes, capacity: int) -> Hits:
    """Evict the least recently used."""
    cached: OrderedDict[int, int] = OrderedDict()
    used, hits = 0, np.zeros(len(trace), bool)
    for position, key in enumerate(trace.tolist()):
        if key in cached:
            cached.move_to_end(key)
            hits[position] = True
            continue
        size = int(sizes[key])
        if size > capacity:
            continue
        while used + size > capacity:
            used -= cached.popitem(last=False)[1]
        cached[key] = size
        used += size
    return hits


def keep(trace: Trace, sizes: Sizes, capacity: int) -> Hits:
    """Evict nothing, and admit nothing for which there is no room."""
    cached: set[int] = set()
    used, hits = 0, np.zeros(len(trace), bool)
    for position, key in enumerate(trace.tolist()):
        size = int(sizes[key])
        if key in cached:
            hits[position] = True
        elif used + size <= capacity:
            cached.add(key)
            used += size
    return hits


def best(trace: Trace, sizes: Sizes, capacity: int) -> Hits:
    """Evict what is used last in the future, or do not admit it: Belady's MIN."""
    never = len(trace)
    following = np.full(len(trace), never)
    seen: dict[int, int] = {}
    for position in range(len(trace) - 1, -1, -1):
        key = int(trace[position])
        following[position] = seen.get(key, never)
        seen[key] = position
    cached: dict[int, int] = {}
    queue: list[tuple[int, int]] = []
    used, hits = 0, np.zeros(len(trace), bool)
    for position, key in enumerate(trace.tolist()):
        hits[position] = key in cached
        if key not in cached:
            used += int(sizes[key])
        cached[key] = int(following[position])
        heapq.heappush(queue, (-cached[key], key))
        while used > capacity:
            when, farthest = heapq.heappop(queue)
            if cached.get(farthest) == -when:
                del cached[farthest]
                used -= int(sizes[farthest])
    return hits


ORDERS: Mapping[str, Callable[[Trace, Sizes, int], Hits]] = {"LRU": lru, "keep": keep, "best": best}


def hit_rates(trace: Trace, sizes: Sizes, capacities: Sequence[int]) -> dict[str, list[float]]:
    """The part of the reads that are hits, by order and for each capacity."""
    return {
        name: [float(order(trace, sizes, capacity).mean()) for capacity in capacities]
        for name, order in ORDERS.items()
    }


if __name__ == "__main__":
    for name, make in TRACES.items():
        trace = make(0)
        sizes = equal_sizes(trace)
        total = int(sizes[np.unique(trace)].sum())
        print(name, len(trace), hit_rates(trace, sizes, [total // 10, total // 2]))
