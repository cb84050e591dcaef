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
    """Evict what is used last in the future, or do not admit it: Belady's MIN.

    No order has more hits, if all values have the same size.
    """
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
        if sizes[key] > capacity:
            continue
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


def sieve(trace: Trace, sizes: Sizes, capacity: int) -> Hits:
    """Evict the next that was not read since the hand passed it: SIEVE.

    As algorithm 1 of Zhang et al., "SIEVE is Simpler than LRU", NSDI '24, with sizes. The queue is
    in the order of admission, the oldest first.
    """
    queue: list[int] = []
    was_read: dict[int, bool] = {}
    used, hand, hits = 0, 0, np.zeros(len(trace), bool)
    for position, key in enumerate(trace.tolist()):
        if key in was_read:
            was_read[key] = hits[position] = True
            continue
        size = int(sizes[key])
        if size > capacity:
            continue
        while used + size > capacity:
            while was_read[queue[hand]]:
                was_read[queue[hand]] = False
                hand = (hand + 1) % len(queue)
            evicted = queue.pop(hand)
            del was_read[evicted]
            used -= int(sizes[evicted])
            # Beyond the newest the hand begins again with the oldest, not with what comes next.
            hand = hand if hand < len(queue) else 0
        queue.append(key)
        was_read[key] = False
        used += size
    return hits


class S3Fifo:
    """Three queues, each in the order of admission, and how often what is in two of them was read.

    As algorithm 1 of Yang et al., "FIFO queues are all you need for cache eviction", SOSP '23, with
    sizes. What comes first goes into `small`, of a tenth of the capacity. What was read twice more
    when it leaves `small`, and what comes again while `ghost` knows its key, goes into `main`.
    """

    def __init__(self, sizes: Sizes, capacity: int) -> None:
        self._sizes = sizes
        self._capacity = capacity
        self._small: OrderedDict[int, int] = OrderedDict()
        self._main: OrderedDict[int, int] = OrderedDict()
        self._ghost: OrderedDict[int, None] = OrderedDict()
        self._in_small = self._in_main = self._in_ghost = 0

    def read(self, key: int) -> bool:
        """Read the key, and tell whether it is a hit."""
        for queue in (self._small, self._main):
            if key in queue:
                queue[key] = min(queue[key] + 1, 3)
                return True
        if self._sizes[key] <= self._capacity:
            self._insert(key, int(self._sizes[key]))
        return False

    def _insert(self, key: int, size: int) -> None:
        while self._in_small + self._in_main + size > self._capacity:
            if 10 * self._in_small >= self._capacity or not self._main:
                self._evict_from_small()
            else:
                self._evict_from_main()
        if key in self._ghost:
            del self._ghost[key]
            self._in_ghost -= size
            self._main[key] = 0
            self._in_main += size
        else:
            self._small[key] = 0
            self._in_small += size

    def _evict_from_small(self) -> None:
        while self._small:
            key, reads = self._small.popitem(last=False)
            size = int(self._sizes[key])
            self._in_small -= size
            if reads <= 1:
                self._remember(key, size)
                return
            self._main[key] = 0
            self._in_main += size
            if 10 * self._in_main > 9 * self._capacity:
                self._evict_from_main()

    def _evict_from_main(self) -> None:
        while self._main:
            key, reads = self._main.popitem(last=False)
            if not reads:
                self._in_main -= int(self._sizes[key])
                return
            self._main[key] = reads - 1

    def _remember(self, key: int, size: int) -> None:
        """Keep the key in `ghost`, of which there are as many as `main` has room for."""
        self._ghost[key] = None
        self._in_ghost += size
        while 10 * self._in_ghost > 9 * self._capacity:
            self._in_ghost -= int(self._sizes[self._ghost.popitem(last=False)[0]])


def s3_fifo(trace: Trace, sizes: Sizes, capacity: int) -> Hits:
    """Evict early what is not read again soon: S3-FIFO."""
    cache = S3Fifo(sizes, capacity)
    return np.array([cache.read(key) for key in trace.tolist()], bool)


ORDERS: Mapping[str, Callable[[Trace, Sizes, int], Hits]] = {
    "LRU": lru,
    "keep": keep,
    "SIEVE": sieve,
    "S3-FIFO": s3_fifo,
    "best": best,
}


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
