"""Reads of one value: look it up in the cache; if it is not there, fetch it and admit it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.core.buffer import cpu

from zarr_cache.core import ages, byte_range
from zarr_cache.core.buffers import to_buffer, to_lasting_array
from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import call, call_async
from zarr_cache.core.single_flight import Flight
from zarr_cache.flows import evict, ranges
from zarr_cache.flows.view import LookupResult
from zarr_cache.index.admit import Response
from zarr_cache.index.listing import KnownRanges

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import SourceView
    from zarr_cache.index.lookup import Data, EntryState


CACHED_KINDS = frozenset({"value", "absent"})
"""The kinds of entries that hold a response of the source."""


def get(
    view: SourceView, key: str, prototype: BufferPrototype, request: ByteRequest | None
) -> Flow[Buffer | None]:
    """The bytes of the request; None if there is no such key."""
    if request is not None:
        byte_range.check(request)
    ended = view.values.flights.ended
    result = yield from lookup(view, key, request)
    if result is None:
        return to_prototype(prototype, (yield from _read_source(view, key, request)))
    data = yield from _serve(view, key, request, result)
    if data is not None:
        return to_buffer(prototype, data)
    if serve_absence(view, key, result):
        return None
    buffer = yield from fetch(view, key, request, result.state, ended)
    return to_prototype(prototype, buffer)


def lookup(
    view: SourceView, key: str, request: ByteRequest | None = None, *, with_data: bool = True
) -> Flow[LookupResult | None]:
    """Look the key up in the cache; None if the cache cannot hold the key, or has failed."""
    if not view.may_be_cached(key):
        return None
    view.faults.report()
    values = view.values
    try:
        while True:
            if not view.is_ready():
                yield from _prepare(view)
            now = values.clock().timestamp_ns()
            fresh_after = ages.fresh_after(view.settings.max_age_seconds, now)
            arguments = (view.namespace, key, request, fresh_after)
            state = values.lookup_nowait(*arguments) if with_data else None
            if state is None or state.read is not None:
                state = yield from (
                    values.lookup(*arguments, state)
                    if with_data
                    else values.lookup_metadata(view.namespace, key)
                )
            if state.is_damaged:
                view.statistics.add(damaged=1)
                yield from values.discard(state)
                state = state._replace(entry=None, kind=None, data=None, is_damaged=False)
            is_ahead = state.entry is not None and state.stored_at > now
            if is_ahead and values.clock().catch_up(state.stored_at):
                # With the earlier time, the entry would be fresh for too long.
                continue
            max_size = view.settings.max_size
            if max_size is not None and state.cached_bytes + values.ranges.nbytes > max_size:
                yield from evict.try_to_enforce(view)
            return LookupResult(state, now, fresh_after)
    except CacheError as error:
        view.faults.note(error)
        return None


def _prepare(view: SourceView) -> Flow[None]:
    """Name the source, open the file, and remove entries that a failed write made invalid."""
    view.open_source()
    yield from view.values.ensure_open()
    if view.values.invalidated.is_invalidated(view.namespace):
        yield from evict.clear_cache(view)


def serve_bytes(
    view: SourceView, key: str, request: ByteRequest | None, result: LookupResult
) -> Data | None:
    """The fresh bytes of the request from the file, counted as a hit."""
    state, looked_up_at, _ = result
    if state.data is None or state.kind == "stored":
        return None
    view.values.touch(view.namespace, key, state, looked_up_at)
    if state.kind == "range" and request is not None and view.values.ranges:
        # Another process has put it into the file since. It counts once for the budget.
        view.values.ranges.discard_copy(view.namespace, key, request)
    view.count_hit(state.data)
    return state.data


def _serve(
    view: SourceView, key: str, request: ByteRequest | None, result: LookupResult
) -> Flow[Data | None]:
    """The fresh bytes of the request, from the file or from memory, counted as a hit."""
    data = serve_bytes(view, key, request, result)
    if data is not None or request is None:
        return data
    found = ranges.serve_from_memory(view, key, request, result)
    if found is None:
        return None
    entry, data = found
    yield from ranges.move_to_file(view, [entry])
    return data


def serve_absence(view: SourceView, key: str, result: LookupResult) -> bool:
    """Whether a fresh absence of the key is cached; if so, count a hit."""
    state, looked_up_at, _ = result
    if (
        state.kind != "absent"
        or not view.may_serve_absences()
        or state.stored_at <= view.absent_fresh_after(looked_up_at)
    ):
        return False
    view.values.touch(view.namespace, key, state, looked_up_at)
    view.count_hit(None)
    return True


def fetch(
    view: SourceView, key: str, request: ByteRequest | None, state: EntryState, ended: int
) -> Flow[Buffer | None]:
    """Read from the source, once for all callers with the same request, and admit the response.

    `state` is from the lookup that missed, and `ended` is `Flights.ended` from before it. A caller
    whose lookup saw a later write to the key does not share the response, and reads by itself.

    While the key is being written, each caller reads by itself, and nothing is admitted: the end of
    the write may not be recorded, and then a later caller has the same `EntryState.fence`.
    """
    if state.writes_in_flight and state.is_being_written(view.values.clock().now_ns()):
        return (yield from _read_source(view, key, request))
    flights = view.values.flights
    flight_key = (view.namespace, key, request, state.fence)
    mine: Flight[Buffer | None] = Flight()
    try:
        flight = flights.join(flight_key, mine)
        if flight is not mine:
            is_complete, buffer = yield from flight.wait()
            if is_complete:
                view.count_miss()
                return buffer
        elif flights.ended != ended:
            # Another fetch has ended since the lookup: its response may be cached by now.
            result = yield from lookup(view, key, request)
            data = None
            if result is not None:
                data = yield from _serve(view, key, request, result)
            if data is not None or (result is not None and serve_absence(view, key, result)):
                buffer = None if data is None else to_buffer(cpu.buffer_prototype, data)
                mine.complete(buffer)
                return buffer
        asked_at = view.values.clock().now_ns()
        buffer = yield from _read_source(view, key, request)
        mine.complete(buffer)
        yield from admit(view, key, [(request, buffer)], state.revision, asked_at)
    finally:
        flights.end(flight_key, mine)
    return buffer


def _read_source(view: SourceView, key: str, request: ByteRequest | None) -> Flow[Buffer | None]:
    """The response of the source, in host memory, counted as a miss."""
    prototype = cpu.buffer_prototype
    buffer: Buffer | None = yield from call(
        view.source,
        lambda source: source.get_sync(key, prototype=prototype, byte_range=request),
        lambda source: source.get(key, prototype, request),
    )
    view.count_miss(buffer)
    return buffer


def admit(
    view: SourceView,
    key: str,
    responses: Sequence[tuple[ByteRequest | None, Buffer | None]],
    revision: int,
    asked_at: int,
) -> Flow[None]:
    """Admit the response to each request, where the limits and later writes allow it.

    Parameters
    ----------
    revision
        `EntryState.revision` from before the source was read.
    asked_at
        When the source was read.
    """
    try:
        parts = []
        for request, buffer in responses:
            if request is None or buffer is None:
                yield from _admit_value(view, key, buffer, revision, asked_at)
            else:
                parts.append((request, buffer))
        if parts:
            yield from ranges.admit(view, key, parts, revision, asked_at)
    except CacheError as error:
        view.faults.note(error)


def _admit_value(
    view: SourceView, key: str, buffer: Buffer | None, revision: int, asked_at: int
) -> Flow[None]:
    """Admit a whole value, or the absence of the key; if neither may be, remove its entry."""
    data = None if buffer is None else to_lasting_array(buffer)
    if view.is_cacheable(data):
        response = Response(data, asked_at, view.values.clock().timestamp_ns(), revision)
        yield from view.values.admit(
            view.namespace, key, response, view.limits(), view.record_outcome
        )
    elif (yield from view.values.lookup_metadata(view.namespace, key)).kind in CACHED_KINDS:
        yield from view.values.forget(view.namespace, key, revision, asked_at)


def exists(view: SourceView, key: str) -> Flow[bool]:
    """Whether there is such a key.

    An absence is not admitted: fsspec's ``exists`` and ``info`` also report one for a server that
    is down. Only ``get`` distinguishes the two.
    """
    result = yield from lookup(view, key, with_data=False)
    if result is not None:
        if _is_cached(result) or _known_ranges(view, key, result).has_any:
            view.count_hit(b"")
            return True
        if serve_absence(view, key, result):
            return False
    exists: bool = yield from call_async(view.source, lambda source: source.exists(key))
    view.count_miss()
    return exists


def getsize(view: SourceView, key: str) -> Flow[int]:
    """Bytes of the value.

    Raises
    ------
    FileNotFoundError
        There is no such key, by the cache or by the source. As in `exists`, it is not admitted.
    """
    result = yield from lookup(view, key, with_data=False)
    if result is not None:
        is_cached = _is_cached(result)
        size = result.state.size if is_cached else _known_ranges(view, key, result).size
        if size is not None:
            view.count_hit(b"")
            return size
        if serve_absence(view, key, result):
            raise FileNotFoundError(key)
    view.count_miss()
    size_in_source: int = yield from call_async(view.source, lambda source: source.getsize(key))
    return size_in_source


def _is_cached(result: LookupResult) -> bool:
    return result.state.kind == "value" and result.state.stored_at > result.fresh_after


def _known_ranges(view: SourceView, key: str, result: LookupResult) -> KnownRanges:
    """What the fresh ranges of the key show; nothing if the cache fails."""
    try:
        return view.values.known_ranges(view.namespace, key, result.state, result.fresh_after)
    except CacheError as error:
        view.faults.note(error)
        return KnownRanges(has_any=False, size=None)


def to_prototype(prototype: BufferPrototype, buffer: Buffer | None) -> Buffer | None:
    """The buffer as one of the class that the caller asked for."""
    if buffer is None or isinstance(buffer, prototype.buffer):
        return buffer
    return prototype.buffer.from_buffer(buffer)
