"""Which chunks are cached: stored chunks as values, and inner chunks also as ranges of shards."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from zarr_cache.core.ages import NEVER
from zarr_cache.warming.shard_index import EMPTY

if TYPE_CHECKING:
    import numpy.typing as npt

    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import SourceView
    from zarr_cache.index.listing import Kept, ListedRange
    from zarr_cache.index.lookup import Data
    from zarr_cache.warming.chunk_grid import Shard, Shards
    from zarr_cache.warming.shard_index import Sharding


MISSING, CACHED, ABSENT = range(3)
"""The states of a chunk."""

UNKNOWN = -2
"""The start of an inner chunk of a shard whose index was not read."""

MAX_LISTED = 16
"""For so many shards, the ranges are listed shard by shard; for more, those of the array."""


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
    """What is cached of the inner chunks that a selection touches.

    Attributes
    ----------
    states
        `MISSING`, `CACHED` or `ABSENT` for each: it is absent if the source does not have the
        shard, or the shard not the chunk.
    spans
        The interval ``[start, stop)`` of each in its shard: `EMPTY` where the shard does not have
        it, and `UNKNOWN` where the index of the shard was not read.
    entries
        The entries in the file that have them, and the indexes.
    largest
        Bytes of the largest shard that is cached as a whole; 0 if none is.
    """

    states: npt.NDArray[np.uint8]
    spans: npt.NDArray[np.int64]
    entries: list[Kept]
    largest: int


def find_inner(
    view: SourceView, shards: Shards, sharding: Sharding, *, is_together: bool, in_memory: bool
) -> Flow[InnerChunks]:
    """What is cached of the inner chunks that a selection touches. Makes no request.

    Parameters
    ----------
    is_together
        Whether they are read together: then zarr reads the shards of which all are touched as
        wholes, and ranges of these do not count. Otherwise each by itself.
    in_memory
        Whether ranges in memory count, which only this process has.
    """
    states = np.full(shards.shape, MISSING, np.uint8)
    spans = np.full((*shards.shape, 2), UNKNOWN, np.int64)
    entries: list[Kept] = []
    largest = 0
    prefixes = [shard.key for shard in itertools.islice(shards, MAX_LISTED + 1)]
    if len(prefixes) > MAX_LISTED:
        prefixes = [shards.prefix]
    kept: dict[str, Kept] = {}
    ranges: dict[str, list[ListedRange]] = {}
    for prefix in prefixes:
        kept |= yield from list_cached(view, prefix)
        ranges |= yield from list_ranges(view, prefix)
    fresh_after = view.limits().fresh_after
    for shard in shards:
        found = kept.get(shard.key)
        if found is not None:
            states[shard.where] = ABSENT if found[1] is None else CACHED
            if found[1] is not None:
                entries.append(found)
                largest = max(largest, found[1])
            continue
        listed = [each for each in ranges.get(shard.key, ()) if in_memory or each.entry is not None]
        if not listed or (is_together and shard.is_whole):
            continue
        index = yield from _cached_index(view, shard, sharding, fresh_after, in_memory=in_memory)
        if index is None:
            continue
        entries += index.entries
        spans[shard.where] = index.spans
        covering = _covering(listed, index.spans)
        states[shard.where] = np.where(covering >= 0, CACHED, MISSING)
        states[shard.where][index.spans[..., 0] == EMPTY] = ABSENT
        for place in np.unique(covering[covering >= 0]).tolist():
            entry, span = listed[place]
            if entry is not None:
                entries.append((entry, span.size))
    return InnerChunks(states, spans, entries, largest)


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
