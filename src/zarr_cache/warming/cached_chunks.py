"""Which chunks are cached: stored chunks as values, and inner chunks also as ranges of shards."""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zarr_cache.core.ages import NEVER
from zarr_cache.warming.shard_index import EMPTY

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import SourceView
    from zarr_cache.index.listing import Kept, ListedRange
    from zarr_cache.index.lookup import Data
    from zarr_cache.warming.shard_index import Shard, Sharding, Shards


MISSING, CACHED, ABSENT, PARTLY = range(4)
"""The states of a chunk; and of a shard whose inner chunks have several."""

MAX_LISTED = 16
"""For so many shards, the ranges are listed shard by shard; for more, those of the array."""

PAGE = 256
"""States that are kept together."""


class States:
    """The state of each of many keys, by its number: `MISSING`, unless another was set.

    Memory goes with those that were set: a page for each few of them.
    """

    def __init__(self, count: int) -> None:
        self.size = count
        self._counts = [count, 0, 0, 0]
        self._pages: dict[int, bytearray] = {}

    def __getitem__(self, number: int) -> int:
        page = self._pages.get(number // PAGE)
        return MISSING if page is None else page[number % PAGE]

    def __setitem__(self, number: int, state: int) -> None:
        page = self._pages.get(number // PAGE)
        if page is None:
            page = self._pages[number // PAGE] = bytearray(PAGE)
        self._counts[page[number % PAGE]] -= 1
        self._counts[state] += 1
        page[number % PAGE] = state

    def count(self, state: int) -> int:
        """How many have the state."""
        return self._counts[state]

    def known(self) -> Iterator[tuple[int, int]]:
        """The numbers of those that are not missing, in order, and their states."""
        for page in sorted(self._pages):
            for place, state in enumerate(self._pages[page]):
                if state != MISSING:
                    yield page * PAGE + place, state

    def missing(self) -> Iterator[int]:
        """The numbers of those that are missing, in order. One may be set after it was yielded."""
        for number in range(-(-self.size // PAGE)):
            first, page = number * PAGE, self._pages.get(number)
            every = range(first, min(first + PAGE, self.size))
            if page is None:
                yield from every
            else:
                yield from (each for each in every if page[each - first] == MISSING)

    def some_missing(self, most: int) -> list[int]:
        """At most so many of those that are missing, spread evenly."""
        missing = self.count(MISSING)
        if missing <= most:
            return list(self.missing()) if missing else []
        # How many are missing before each of those that are known.
        before = [number - place for place, (number, _) in enumerate(self.known())]
        ranks = (place * (missing - 1) // max(1, most - 1) for place in range(most))
        return [rank + bisect.bisect_right(before, rank) for rank in ranks]


def list_cached(view: SourceView, prefix: str) -> Flow[dict[str, Kept]]:
    """The cached and fresh entries of this view, of the keys with this prefix."""
    yield from view.values.ensure_open()
    if view.values.invalidated.is_invalidated(view.namespace):
        # The next read removes the entries of the namespace.
        return {}
    now_ns = view.values.clock().now_ns()
    absent_fresh_after = view.absent_fresh_after(prefix, now_ns)
    if not view.may_serve_absences():
        absent_fresh_after = NEVER
    return (
        yield from view.values.list_cached(
            view.namespace, prefix, view.fresh_after(prefix, now_ns), absent_fresh_after
        )
    )


def list_ranges(view: SourceView, prefix: str) -> Flow[dict[str, list[ListedRange]]]:
    """The cached and fresh ranges of this view, in the file and in memory, as `list_cached`."""
    yield from view.values.ensure_open()
    if view.values.invalidated.is_invalidated(view.namespace):
        return {}
    fresh_after = view.fresh_after(prefix, view.values.clock().now_ns())
    return (yield from view.values.list_ranges(view.namespace, prefix, fresh_after))


class InnerChunks(NamedTuple):
    """What is cached of the touched inner chunks of one shard.

    Attributes
    ----------
    states
        `MISSING`, `CACHED` or `ABSENT` for each; or one for all of them. An inner chunk is absent
        if the source does not have the shard, or the shard not the chunk.
    spans
        The interval ``[start, stop)`` of each in the shard, `EMPTY` where the shard does not have
        it; None where the index of the shard was not read.
    entries
        The entries in the file that have them, and the index.
    whole
        Bytes of the shard, if it is cached as a whole.
    """

    states: npt.NDArray[np.uint8] | int
    spans: npt.NDArray[np.int64] | None
    entries: list[Kept]
    whole: int | None = None


def find_inner(
    view: SourceView, shards: Shards, sharding: Sharding, *, is_together: bool, in_memory: bool
) -> Flow[list[tuple[Shard, InnerChunks]]]:
    """The shards of which something is cached that a selection touches. Makes no request.

    Parameters
    ----------
    is_together
        Whether they are read together: then zarr reads the shards of which all are touched as
        wholes, and ranges of these do not count. Otherwise each by itself.
    in_memory
        Whether ranges in memory count, which only this process has.
    """
    prefixes = [shards.prefix]
    if shards.count <= MAX_LISTED:
        prefixes = list(shards.keys())
    kept: dict[str, Kept] = {}
    ranges: dict[str, list[ListedRange]] = {}
    for prefix in prefixes:
        kept |= yield from list_cached(view, prefix)
        ranges |= yield from list_ranges(view, prefix)
    fresh_after = view.limits().fresh_after
    every = []
    for number, key in shards.find({**kept, **ranges}):
        shard, found = shards.at(number), kept.get(key)
        if found is not None:
            is_absent = found[1] is None
            entries = [] if is_absent else [found]
            inner = InnerChunks(ABSENT if is_absent else CACHED, None, entries, found[1])
            every.append((shard, inner))
            continue
        listed = [each for each in ranges[key] if in_memory or each.entry is not None]
        if not listed or (is_together and shard.is_whole):
            continue
        index = yield from _cached_index(view, shard, sharding, fresh_after, in_memory=in_memory)
        if index is not None:
            every.append((shard, _in_ranges(listed, index)))
    return every


def _in_ranges(listed: list[ListedRange], index: _CachedIndex) -> InnerChunks:
    """What the ranges of a shard have, by its index."""
    covering = _covering(listed, index.spans)
    states = np.where(covering >= 0, CACHED, MISSING).astype(np.uint8)
    states[index.spans[..., 0] == EMPTY] = ABSENT
    entries = index.entries
    for place in np.unique(covering[covering >= 0]).tolist():
        entry, span = listed[place]
        if entry is not None:
            entries.append((entry, span.size))
    return InnerChunks(states, index.spans, entries)


class _CachedIndex(NamedTuple):
    """Where the touched inner chunks of a shard are, and the entry in the file that shows it."""

    spans: npt.NDArray[np.int64]
    entries: list[Kept]


def _cached_index(
    view: SourceView, shard: Shard, sharding: Sharding, fresh_after: int, *, in_memory: bool
) -> Flow[_CachedIndex | None]:
    """The index of the shard, if it is cached and fresh. No hit is counted."""
    values, request = view.values, sharding.index_request
    state = yield from values.lookup(view.namespace, shard.key, request, fresh_after)
    data: Data | None = None if state.kind == "stored" else state.data
    entries: list[Kept] = []
    if data is not None and state.entry is not None:
        entries.append((state.entry, state.size))
    if data is None and in_memory:
        found = values.ranges.get(
            view.namespace,
            shard.key,
            request,
            fence=state.fence,
            fresh_after=fresh_after,
            used_at=values.clock().timestamp_ns(),
        )
        data = None if found is None else found[1]
    if data is None:
        return None
    try:
        return _CachedIndex(sharding.locate(data)[shard.inside], entries)
    except ValueError:
        # The shard is damaged in the source: zarr raises this when it reads it.
        return None


def _covering(listed: list[ListedRange], spans: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """For each interval, which of the ranges has all of its bytes; -1 for none.

    Of those that begin at the interval or before it, only the one that reaches furthest is looked
    at. No two are combined: see docs/decisions/0011.
    """
    placed = [place for place, each in enumerate(listed) if each.span.start is not None]
    if not placed:
        return np.full(spans.shape[:-1], -1, np.intp)
    starts, stops = np.array(
        [(listed[place].span.start, listed[place].span.stop) for place in placed], np.int64
    ).T
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], stops[order]
    furthest = np.maximum.accumulate(stops)
    reaches = np.maximum.accumulate(np.where(stops == furthest, np.arange(len(stops)), 0))
    last = np.searchsorted(starts, spans[..., 0], side="right") - 1
    is_covered = (last >= 0) & (spans[..., 1] <= furthest[last]) & (spans[..., 0] < spans[..., 1])
    return np.where(is_covered, np.array(placed)[order[reaches[last]]], -1)
