"""Ranges: those of a key that are cached are served, others admitted to the file or to memory."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from zarr_cache.backend.ranges import ENTRY_BYTES, RangeEntry
from zarr_cache.core import byte_range
from zarr_cache.core.errors import CacheError, CircuitOpenError
from zarr_cache.core.flow import run
from zarr_cache.flows import evict, versions
from zarr_cache.flows.versions import Found
from zarr_cache.index.admit import Response

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer

    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import LookupResult, SourceView
    from zarr_cache.index.evict import Evictions, Limits
    from zarr_cache.index.lookup import Data, EntryState


def lookup_many(
    view: SourceView,
    key: str,
    requests: Sequence[ByteRequest | None],
    result: LookupResult,
    read_after: int,
) -> Flow[list[Found]]:
    """The entry of each request, with its bytes if they are cached and later than `read_after`."""
    state = result.state
    states: list[EntryState] = [state] * len(requests)
    if state.has_bytes(read_after) or state.file_ranges:
        try:
            states = yield from view.values.lookup_many(
                view.namespace, key, requests, read_after, state
            )
        except CacheError as error:
            view.faults.note(error)
    many = []
    for request, found in zip(requests, states, strict=True):
        in_memory = None
        if found.is_damaged:
            yield from _discard(view, found)
        if found.data is None or found.kind == "stored" or found.is_damaged:
            if request is not None and view.values.ranges:
                in_memory = versions.find_in_memory(view, key, request, result, read_after)
            found = found._replace(data=None)  # noqa: PLW2901 - the same without bytes
        many.append(in_memory or Found(found))
    return many


def _discard(view: SourceView, state: EntryState) -> Flow[None]:
    """Remove a damaged entry."""
    view.statistics.add(damaged=1)
    try:
        yield from view.values.discard(state)
    except CacheError as error:
        view.faults.note(error)


def serve(
    view: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    result: LookupResult,
    read_after: int,
) -> Flow[tuple[dict[int, Data], str | None]]:
    """What is cached and fresh, by the index of its range, counted as hits; and its version.

    All are of one version: that of the one that was cached last.

    Raises
    ------
    SourceChangedError
        Ranges of another version were served a moment ago.
    """
    many = yield from lookup_many(view, key, byte_ranges, result, read_after)
    usable = {
        index: found
        for index, found in enumerate(many)
        if found.state.data is not None
        and result.may_serve(found.state.validator, found.state.as_of)
    }
    if not usable:
        return {}, None
    validator = None
    if view.reader is not None:
        validator = max(usable.values(), key=lambda found: found.state.stored_at).state.validator
        usable = {i: found for i, found in usable.items() if found.state.validator == validator}
        if not (yield from versions.is_current(view, key, result, validator)):
            return {}, None
        versions.check_served(view, key, byte_ranges[0], result, validator)
    yield from _count_hits(view, key, byte_ranges, result, usable)
    served = {i: found.state.data for i, found in usable.items() if found.state.data is not None}
    return served, validator


def _count_hits(
    view: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    result: LookupResult,
    served: dict[int, Found],
) -> Flow[None]:
    """Record the uses of ranges, and move those in memory to the file if they are persisted."""
    known, in_memory = result.known, view.values.ranges
    in_file: list[EntryState] = []
    nbytes = 0
    for index, (state, entry) in served.items():
        nbytes += 0 if state.data is None else len(state.data)
        view.sample_read(key, byte_ranges[index], state.data, is_hit=True)
        if entry is not None:
            continue
        in_file.append(state)
        if known is not None and state.as_of <= result.fresh_after:
            versions.confirm_entry(view, key, state, known.at)
        request = byte_ranges[index]
        if in_memory and request is not None:
            # Another process has put it into the file since. It counts once for the budget.
            in_memory.discard_copy(view.namespace, key, request)
    if in_file:
        view.values.touch_all(view.namespace, key, in_file, result.looked_up_at)
    view.statistics.hit(nbytes, len(served))
    # Only now, and each once: one range may have the bytes of several requests.
    moved = dict.fromkeys(found.in_memory for found in served.values())
    yield from move_to_file(view, [entry for entry in moved if entry is not None])


def move_to_file(view: SourceView, entries: Iterable[RangeEntry]) -> Flow[None]:
    """Admit ranges in memory to the file, if the view persists ranges.

    They were read by a CacheStore that does not persist, or while the file could not be written.
    """
    if not view.settings.persist_ranges:
        return
    try:
        for entry in entries:
            yield from _move(view, entry)
    except CircuitOpenError:
        pass  # the failure that opened the circuit has been noted
    except CacheError as error:
        view.faults.note(error)


def _move(view: SourceView, entry: RangeEntry) -> Flow[None]:
    ranges = view.values.ranges
    if view.may_evict():
        yield from _persist(view, entry)
        ranges.discard(entry)
        return
    # First: its bytes in memory are the room that it needs in the file.
    ranges.discard(entry)
    try:
        yield from _persist(view, entry)
    except CacheError:
        ranges.add(entry, fence=0)
        raise


def admit(
    view: SourceView,
    key: str,
    parts: Sequence[tuple[ByteRequest, Buffer]],
    revision: int,
    asked_at: int,
    validator: str | None,
) -> Flow[None]:
    """Admit ranges of one version of a value to the file, or to memory if not persisted."""
    entries = []
    for request, buffer in parts:
        data = buffer.to_bytes()
        is_cacheable = view.is_cacheable(data, validator)
        if data and is_cacheable and byte_range.may_be_cached(request, len(data)):
            used_at = view.values.clock().timestamp_ns()
            facts = (data, asked_at, revision, used_at, validator)
            entries.append(RangeEntry(view.namespace, key, request, *facts))
    if view.settings.persist_ranges:
        try:
            limits = view.limits()
            for entry in entries:
                size = len(entry.data)
                if (yield from evict.has_room(view, key, entry.request, size, limits)):
                    yield from _persist(view, entry)
        except CacheError as error:
            # They are kept in memory, until they are used when the file can be written again.
            view.faults.note(error)
        else:
            return
    if entries:
        yield from _admit_to_memory(view, entries)


def _persist(view: SourceView, entry: RangeEntry) -> Flow[None]:
    """Admit a range to the file; if it cannot be written, it is served from memory."""

    def on_done(result: Evictions | CacheError | None) -> None:
        view.record_outcome(result)
        if isinstance(result, CacheError):
            with contextlib.suppress(CacheError):
                run(_admit_to_memory(view, [entry]))

    response = Response(
        np.frombuffer(entry.data, np.uint8),
        entry.stored_at,
        entry.used_at,
        entry.revision,
        entry.request,
        entry.validator,
    )
    yield from view.values.admit(view.namespace, entry.key, response, view.limits(), on_done)


def _admit_to_memory(view: SourceView, entries: list[RangeEntry]) -> Flow[None]:
    """Keep ranges of one response in memory."""
    namespace, key = view.namespace, entries[0].key
    state = yield from view.values.lookup_metadata(namespace, key)
    if state.is_overtaken(entries[0].revision, entries[0].stored_at):
        # A write was later than the response. The next lookup sees a write that comes after this.
        return
    limits = view.limits()
    if not limits.may_evict:
        yield from _fill_memory(view, entries, limits, state.fence)
        return
    for entry in entries:
        _keep_in_memory(view, entry, state.fence)
    # The limits may have been checked for values that are being written before these were added.
    bytes_being_written = view.values.bytes_being_written
    state = yield from view.values.lookup_metadata(namespace, key)
    if limits.are_exceeded(state.cached_bytes + bytes_being_written):
        yield from evict.enforce(view, limits)


def _fill_memory(
    view: SourceView, entries: list[RangeEntry], limits: Limits, fence: int
) -> Flow[None]:
    """Keep those ranges in memory that have room, and evict nothing for them.

    A `max_memory` that is smaller than before still evicts.
    """
    ranges, room, key = view.values.ranges, view.values.room, entries[0].key
    max_memory = view.settings.max_memory
    evicted = ranges.evict_to(max_memory)
    # In this order: what leaves the queue meanwhile is counted twice, and not missed.
    queued = room.queued_bytes
    cached = (yield from view.values.lookup_metadata(view.namespace, key)).cached_bytes
    for entry in entries:
        size = len(entry.data)
        more = size - ranges.replaced_bytes(view.namespace, key, entry.request, size)
        excess = limits.excess(cached + queued + more)
        if excess > 0:
            excess -= room.free_memory(limits, excess)
        memory = ranges.memory + more + ENTRY_BYTES
        if excess <= 0 and (max_memory is None or memory <= max_memory):
            ranges.add(entry, fence=fence)
    # Other threads may have taken the same room.
    queued = room.queued_bytes
    cached = (yield from view.values.lookup_metadata(view.namespace, key)).cached_bytes
    for entry in reversed(entries):
        if limits.are_exceeded(cached + queued):
            ranges.discard(entry)
    if evicted:
        view.statistics.add(evictions=evicted)


def _keep_in_memory(view: SourceView, entry: RangeEntry, fence: int) -> None:
    """Keep a range in memory, within `max_memory`; one that is larger evicts nothing.

    `fence` is the revision of the last write to the key, as far as the caller knows.
    """
    ranges, max_memory = view.values.ranges, view.settings.max_memory
    if max_memory is not None and entry.memory > max_memory:
        return
    ranges.add(entry, fence=fence)
    evicted = ranges.evict_to(max_memory)
    if evicted:
        view.statistics.add(evictions=evicted)
