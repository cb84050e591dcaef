"""Reads of several byte ranges of one key: those that are not cached are one request."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr.core.buffer import cpu

from zarr_cache.core import byte_range
from zarr_cache.core.buffers import to_buffer
from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import call
from zarr_cache.flows import ranges, reading
from zarr_cache.flows.reading import to_prototype
from zarr_cache.flows.view import LookupResult
from zarr_cache.sources.range_check import RangeCheckedStore, with_range_check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.backend.ranges import RangeEntry
    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import SourceView
    from zarr_cache.index.lookup import Data, EntryState


FAILED = "chunk read failed"
"""The message of the group that zarr's ``get_ranges`` raises."""

type Batches = list[list[tuple[int, Buffer | None]]]
"""Batches of buffers, each with the index of its byte range."""


class RangeBatches(NamedTuple):
    """The result of a read of several ranges.

    Attributes
    ----------
    batches
        What was cached, and what the source sent before it failed.
    error
        What zarr's ``get_ranges`` would raise after these batches; None if nothing failed.
    """

    batches: Batches
    error: Exception | None


def get_ranges(
    view: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    prototype: BufferPrototype,
    settings: dict[str, int],
) -> Flow[RangeBatches]:
    """The byte ranges: first those that are cached, then those that the source sends.

    If there is no such key, the error is a group with a `FileNotFoundError` in it.

    Parameters
    ----------
    settings
        How the source merges requests: arguments of its ``get_ranges``.
    """
    for request in byte_ranges:
        byte_range.check(request)
    if not byte_ranges:
        return RangeBatches([], None)
    result = yield from reading.lookup(view, key, with_data=False)
    cached: dict[int, Data] = {}
    if result is not None:
        if reading.serve_absence(view, key, result):
            return RangeBatches([], ExceptionGroup(FAILED, [FileNotFoundError(key)]))
        cached = yield from _serve_ranges(view, key, byte_ranges, result)
    batches: Batches = []
    if cached:
        batches.append([(index, to_buffer(prototype, data)) for index, data in cached.items()])
    missing = [index for index in range(len(byte_ranges)) if index not in cached]
    if not missing:
        return RangeBatches(batches, None)
    asked_at = 0 if result is None else view.values.clock().now_ns()
    (fetched, error), unsafe = yield from _read_source(view, key, byte_ranges, missing, settings)
    if result is not None:
        responses = [
            (byte_ranges[index], buffer)
            for batch in fetched
            for index, buffer in batch
            if index not in unsafe
        ]
        yield from reading.admit(view, key, responses, result.state.revision, asked_at)
    for batch in fetched:
        batches.append([(index, to_prototype(prototype, buffer)) for index, buffer in batch])
    return RangeBatches(batches, error)


def _serve_ranges(
    view: SourceView, key: str, byte_ranges: Sequence[ByteRequest | None], result: LookupResult
) -> Flow[dict[int, Data]]:
    """The bytes that are cached and fresh, by the index of their range, counted as hits."""
    state, looked_up_at, fresh_after = result
    states: list[EntryState] = [state] * len(byte_ranges)
    if state.has_bytes(fresh_after) or state.file_ranges:
        try:
            states = yield from view.values.lookup_many(
                view.namespace, key, byte_ranges, fresh_after, state
            )
        except CacheError as error:
            view.faults.note(error)
    cached: dict[int, Data] = {}
    hits: list[EntryState] = []
    nbytes = 0
    in_memory: dict[RangeEntry, None] = {}
    for index, (request, found) in enumerate(zip(byte_ranges, states, strict=True)):
        if found.is_damaged:
            yield from _discard(view, found)
        elif found.data is not None and found.kind != "stored":
            cached[index] = found.data
            hits.append(found)
            nbytes += len(found.data)
            if view.values.ranges and request is not None:
                # Another process has put it into the file since. It counts once for the budget.
                view.values.ranges.discard_copy(view.namespace, key, request)
        if index not in cached and request is not None:
            at = LookupResult(found, looked_up_at, fresh_after)
            served = ranges.serve_from_memory(view, key, request, at)
            if served is not None:
                entry, cached[index] = served
                in_memory[entry] = None
    if hits:
        view.values.touch_all(view.namespace, key, hits, looked_up_at)
        view.statistics.hit(nbytes, len(hits))
    # Only now: one range may have the bytes of several requests.
    yield from ranges.move_to_file(view, in_memory)
    return cached


def _discard(view: SourceView, state: EntryState) -> Flow[None]:
    """Remove a damaged entry."""
    view.statistics.add(damaged=1)
    try:
        yield from view.values.discard(state)
    except CacheError as error:
        view.faults.note(error)


def _read_source(
    view: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    indexes: list[int],
    settings: dict[str, int],
) -> Flow[tuple[RangeBatches, set[int]]]:
    """Read the ranges at `indexes` by one ``get_ranges`` of the source, counted as misses.

    Returns
    -------
    tuple
        The result, and the indexes of ranges that may hold other bytes than were requested.
    """
    requests = [byte_ranges[index] for index in indexes]
    prototype = cpu.buffer_prototype

    async def read(source: Store) -> tuple[Store, RangeBatches]:
        reader = with_range_check(source, "get_ranges")
        batches: Batches = []
        try:
            async for batch in reader.get_ranges(key, requests, prototype=prototype, **settings):
                batches.append(list(batch))
        except Exception as error:  # noqa: BLE001 - raised after earlier batches are admitted
            return reader, RangeBatches(batches, error)
        return reader, RangeBatches(batches, None)

    def read_sync(source: Store) -> tuple[Store, RangeBatches]:
        reader = with_range_check(source, "get_ranges_sync")
        chosen = {name: each for name, each in settings.items() if name != "max_concurrency"}
        batch = reader.get_ranges_sync(key, requests, prototype=prototype, **chosen)
        return reader, RangeBatches([list(batch)], None)

    reader, (batches, error) = yield from call(view.source, read_sync, read)
    for batch in batches:
        for _, buffer in batch:
            view.count_miss(buffer)
    unsafe = set()
    if isinstance(reader, RangeCheckedStore):
        unsafe = {index for index in indexes if reader.may_be_wrong(byte_ranges[index])}
    batches = [[(indexes[position], buffer) for position, buffer in batch] for batch in batches]
    return RangeBatches(batches, error), unsafe
