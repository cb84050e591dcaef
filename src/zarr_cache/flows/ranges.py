"""Ranges: served from memory, and admitted to the file or to memory."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import numpy as np

from zarr_cache.backend.ranges import RangeEntry
from zarr_cache.core import byte_range
from zarr_cache.core.errors import CacheError, CircuitOpenError
from zarr_cache.core.flow import run
from zarr_cache.flows import evict
from zarr_cache.index.admit import Response

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer

    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import LookupResult, SourceView
    from zarr_cache.index.evict import Evictions
    from zarr_cache.index.lookup import Data


def serve_from_memory(
    view: SourceView, key: str, request: ByteRequest, result: LookupResult
) -> tuple[RangeEntry, Data] | None:
    """The entry in memory with the fresh bytes of the request, and these, counted as a hit."""
    state, looked_up_at, fresh_after = result
    found = view.values.ranges.get(
        view.namespace,
        key,
        request,
        fence=state.fence,
        fresh_after=fresh_after,
        used_at=looked_up_at,
    )
    if found is not None:
        view.count_hit(found[1])
    return found


def move_to_file(view: SourceView, entries: Iterable[RangeEntry]) -> Flow[None]:
    """Admit ranges in memory to the file, if the view persists ranges.

    They were read by a CacheStore that does not persist, or while the file could not be written.
    """
    if not view.settings.persist_ranges:
        return
    try:
        for entry in entries:
            yield from _persist(view, entry)
            view.values.ranges.discard(entry)
    except CircuitOpenError:
        pass  # the failure that opened the circuit has been noted
    except CacheError as error:
        view.faults.note(error)


def admit(
    view: SourceView,
    key: str,
    parts: Sequence[tuple[ByteRequest, Buffer]],
    revision: int,
    asked_at: int,
) -> Flow[None]:
    """Admit ranges of a value to the file, or to memory if they are not persisted."""
    entries = []
    for request, buffer in parts:
        data = buffer.to_bytes()
        if data and view.is_cacheable(data) and byte_range.may_be_cached(request, len(data)):
            timestamp = view.values.clock().timestamp_ns()
            entry = RangeEntry(view.namespace, key, request, data, asked_at, revision, timestamp)
            entries.append(entry)
    if view.settings.persist_ranges:
        try:
            for entry in entries:
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
    for entry in entries:
        _keep_in_memory(view, entry, state.fence)
    # The limits may have been checked for values that are being written before these were added.
    bytes_being_written = view.values.bytes_being_written
    state = yield from view.values.lookup_metadata(namespace, key)
    if limits.are_exceeded(state.cached_bytes + bytes_being_written):
        yield from evict.enforce(view, limits)


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
