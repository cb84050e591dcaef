"""Reads of several byte ranges: of one key in one request, and of many keys concurrently."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from zarr.core.buffer import cpu, default_buffer_prototype

from zarr_cache.cache import reading
from zarr_cache.cache.reading import LookupResult, to_prototype
from zarr_cache.core import byte_range
from zarr_cache.core.buffers import to_buffer
from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import call, run_async
from zarr_cache.sources.range_check import RangeCheckedStore, with_range_check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.cache.view import SourceView
    from zarr_cache.core.flow import Flow
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
    if result is None:
        indexes = list(range(len(byte_ranges)))
        read, _ = yield from _read_source(view, key, byte_ranges, indexes, settings)
        return _to_prototype(prototype, read)
    if reading.serve_absence(view, key, result):
        return RangeBatches([], ExceptionGroup(FAILED, [FileNotFoundError(key)]))
    cached = yield from _serve_ranges(view, key, byte_ranges, result)
    missing = [index for index in range(len(byte_ranges)) if index not in cached]
    fetched = yield from _fetch_ranges(
        view, key, byte_ranges, missing, result.state.revision, settings
    )
    batches, error = _to_prototype(prototype, fetched)
    if cached:
        batches.insert(0, [(index, to_buffer(prototype, data)) for index, data in cached.items()])
    return RangeBatches(batches, error)


def _to_prototype(prototype: BufferPrototype, read: RangeBatches) -> RangeBatches:
    batches = [
        [(index, to_prototype(prototype, buffer)) for index, buffer in batch]
        for batch in read.batches
    ]
    return RangeBatches(batches, read.error)


def _serve_ranges(
    view: SourceView, key: str, byte_ranges: Sequence[ByteRequest | None], result: LookupResult
) -> Flow[dict[int, Data]]:
    """The bytes that are cached and fresh, by the index of their range, counted as hits."""
    state, looked_up_at, fresh_after = result
    states: list[EntryState] = [state] * len(byte_ranges)
    if state.kind == "value" and state.stored_at > fresh_after:
        try:
            states = yield from view.values.lookup_many(
                view.namespace, key, byte_ranges, fresh_after
            )
        except CacheError as error:
            view.faults.note(error)
    cached = {}
    for index, request in enumerate(byte_ranges):
        found = LookupResult(states[index], looked_up_at, fresh_after)
        data = reading.serve_bytes(view, key, request, found)
        if data is not None:
            cached[index] = data
    return cached


def _fetch_ranges(
    view: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    missing: list[int],
    revision: int,
    settings: dict[str, int],
) -> Flow[RangeBatches]:
    """Read the missing ranges in one request, and admit them."""
    if not missing:
        return RangeBatches([], None)
    asked_at = view.values.clock().now_ns()
    read, unsafe = yield from _read_source(view, key, byte_ranges, missing, settings)
    responses = [
        (byte_ranges[index], buffer)
        for batch in read.batches
        for index, buffer in batch
        if index not in unsafe
    ]
    yield from reading.admit(view, key, responses, revision, asked_at)
    return read


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


async def get_many(
    view: SourceView, requests: Sequence[tuple[str, BufferPrototype, ByteRequest | None]]
) -> list[Buffer | None]:
    """The bytes of each request; None for absent keys. All ranges of a key are one request.

    An error is the one that `reading.get` would raise.
    """
    by_key: dict[str, list[int]] = {}
    for index, (key, _, _) in enumerate(requests):
        by_key.setdefault(key, []).append(index)
    buffers: list[Buffer | None] = [None] * len(requests)

    async def read_key(key: str, indexes: list[int]) -> None:
        if len(indexes) == 1:
            (index,) = indexes
            buffers[index] = await run_async(reading.get(view, *requests[index]))
            return
        byte_ranges = [requests[index][2] for index in indexes]
        flow = get_ranges(view, key, byte_ranges, default_buffer_prototype(), {})
        batches, error = await run_async(flow)
        for batch in batches:
            for position, buffer in batch:
                index = indexes[position]
                buffers[index] = to_prototype(requests[index][1], buffer)
        _raise_unless_absent(error)

    await asyncio.gather(*(read_key(key, indexes) for key, indexes in by_key.items()))
    return buffers


def _raise_unless_absent(error: Exception | None) -> None:
    """Raise the first error that does not report an absent key, which a source may raise alone."""
    if isinstance(error, ExceptionGroup):
        _, others = error.split(FileNotFoundError)
        if others is not None:
            raise others.exceptions[0] from error
    elif error is not None and not isinstance(error, FileNotFoundError):
        raise error
