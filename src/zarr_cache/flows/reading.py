"""Reads of one value: look it up in the cache; if it is not there, fetch it and admit it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.core.buffer import cpu

from zarr_cache.backend.versions import Sent
from zarr_cache.core import byte_range, single_flight
from zarr_cache.core.buffers import to_buffer, to_lasting_array, to_prototype
from zarr_cache.core.errors import CacheError
from zarr_cache.core.single_flight import Flight
from zarr_cache.flows import evict, fetching, ranges, versions
from zarr_cache.flows.versions import Kept
from zarr_cache.flows.view import LookupResult, read_after
from zarr_cache.index.admit import Response

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import SourceView
    from zarr_cache.index.lookup import Data, EntryState


MAX_LEADERS = 2
"""A caller follows so many fetches of others, one after another."""

CACHED_KINDS = frozenset({"value", "absent"})
"""The kinds of entries that hold a response of the source."""


def get(
    view: SourceView, key: str, prototype: BufferPrototype, request: ByteRequest | None
) -> Flow[Buffer | None]:
    """The bytes of the request; None if there is no such key."""
    if request is not None:
        byte_range.check(request)
        versions.begin(view, key, request)
    ended = view.values.flights.ended
    result = yield from lookup(view, key, request)
    if result is None:
        return to_prototype(prototype, (yield from _read_uncached(view, key, request)))
    data = yield from _serve(view, key, request, result)
    if data is not None:
        return to_buffer(prototype, data)
    if serve_absence(view, key, result):
        return None
    view.refuse_if_offline(key)
    buffer = yield from fetch(view, key, request, result, ended)
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
            fresh_after = view.fresh_after(key, now)
            known = values.versions.known.get(view.namespace, key)
            arguments = (view.namespace, key, request, read_after(known, fresh_after))
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
            is_ahead = state.entry is not None and state.as_of > now
            if is_ahead and values.clock().catch_up(state.as_of):
                # With the earlier time, the entry would be fresh for too long.
                continue
            max_size = view.settings.max_size
            if max_size is not None and state.cached_bytes + values.ranges.nbytes > max_size:
                yield from evict.try_to_enforce(view)
            return LookupResult(state, now, fresh_after, known)
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
    state, looked_up_at, fresh_after, known = result
    if state.data is None or state.kind == "stored":
        return None
    if known is not None:
        if not result.may_serve(state.validator, state.as_of):
            return None
        if state.as_of <= fresh_after:
            versions.confirm_entry(view, key, state, known.at)
    view.values.touch(view.namespace, key, state, looked_up_at)
    if state.kind == "range" and request is not None and view.values.ranges:
        # Another process has put it into the file since. It counts once for the budget.
        view.values.ranges.discard_copy(view.namespace, key, request)
    view.count_hit(state.data)
    # By position, as of `Reads.add`.
    view.values.pending.reads.add(view.namespace, key, request, len(state.data), True)  # noqa: FBT003
    return state.data


def _serve(
    view: SourceView, key: str, request: ByteRequest | None, result: LookupResult
) -> Flow[Data | None]:
    """The fresh bytes of the request, from the file or from memory, counted as a hit."""
    state = result.state
    if request is None or view.reader is None:
        may_serve = True
    else:
        may_serve = yield from _may_serve_range(view, key, request, result, state)
    data = serve_bytes(view, key, request, result) if may_serve else None
    if data is not None or request is None:
        return data
    found = versions.find_in_memory(view, key, request, result, result.read_after)
    if found is None or found.in_memory is None:
        return None
    if not (yield from _may_serve_range(view, key, request, result, found.state)):
        return None
    view.count_hit(found.state.data)
    view.sample_read(key, request, found.state.data, is_hit=True)
    yield from ranges.move_to_file(view, [found.in_memory])
    return found.state.data


def _may_serve_range(
    view: SourceView, key: str, request: ByteRequest, result: LookupResult, state: EntryState
) -> Flow[bool]:
    """Whether the range that was found is of the version that the source has, as far as is known.

    Raises
    ------
    SourceChangedError
        Ranges of another version were served a moment ago.
    """
    if state.data is None or not result.may_serve(state.validator, state.as_of):
        return False
    reader = view.reader
    is_asked_first = reader is not None and not reader.can_match
    if is_asked_first and not (yield from versions.is_current(view, key, result, state.validator)):
        return False
    versions.check_served(view, key, request, result, state.validator)
    return True


def serve_absence(view: SourceView, key: str, result: LookupResult) -> bool:
    """Whether a fresh absence of the key is cached; if so, count a hit."""
    state, looked_up_at = result.state, result.looked_up_at
    if state.kind != "absent" and not view.absences_are_doubtful:
        return False
    since: int | None = state.stored_at
    if view.absences_are_doubtful:
        since = view.doubtful_absence(key, looked_up_at)
    if (
        since is None
        or not view.may_serve_absences()
        or since <= view.absent_fresh_after(key, looked_up_at)
    ):
        return False
    if state.kind == "absent":
        view.values.touch(view.namespace, key, state, looked_up_at)
    view.count_hit(None)
    return True


def fetch(
    view: SourceView, key: str, request: ByteRequest | None, result: LookupResult, ended: int
) -> Flow[Buffer | None]:
    """Read from the source, once for all callers with the same request, and admit the response.

    `result` is of the lookup that missed, and `ended` is `Flights.ended` from before it. A caller
    whose lookup saw a later write to the key does not share the response, and reads by itself.

    If the leader fails, is cancelled, or has no response within `LEADER_SECONDS`, one of the
    callers that followed it leads the next fetch, and the others follow that one. A caller that has
    followed `MAX_LEADERS` in vain reads by itself: if the source is down, callers would otherwise
    wait for the timeout of a client one after another.

    While the key is being written, each caller reads by itself, and nothing is admitted: the end of
    the write may not be recorded, and then a later caller has the same `EntryState.fence`.
    """
    state = result.state
    if state.writes_in_flight and state.is_being_written(view.values.clock().now_ns()):
        return (yield from _read_uncached(view, key, request))
    flights = view.values.flights
    flight_key = (view.namespace, key, request, state.fence)
    mine: Flight[Sent] = Flight()
    followed: Flight[Sent] | None = None
    try:
        for _ in range(MAX_LEADERS):
            flight = flights.join(flight_key, mine, followed)
            if flight is mine:
                break
            _, sent = yield from flight.follow(single_flight.LEADER_SECONDS)
            if sent is not None:
                view.count_miss()
                versions.check_fetched(view, key, request, result, sent)
                return sent.buffer
            followed = flight
        if flights.ended != ended:
            # Another fetch has ended since the lookup: its response may be cached by now.
            again = yield from lookup(view, key, request)
            data = None
            if again is not None:
                data = yield from _serve(view, key, request, again)
            if again and (data is not None or serve_absence(view, key, again)):
                buffer = None if data is None else to_buffer(cpu.buffer_prototype, data)
                mine.complete(Sent(buffer, versions.expected(view, key, again, Kept())))
                return buffer
            result = again or result
        buffer = yield from _ask(view, key, request, result, state.revision, mine)
    finally:
        flights.end(flight_key, mine)
    return buffer


def _ask(
    view: SourceView,
    key: str,
    request: ByteRequest | None,
    result: LookupResult,
    revision: int,
    flight: Flight[Sent],
) -> Flow[Buffer | None]:
    """Ask the source, complete the flight, and admit the response.

    What is cached is served if the source confirms it, or fails and it may be stale.
    """
    kept = Kept()
    if request is not None or result.state.kind == "value":
        try:
            kept = yield from versions.find_kept(view, key, request, result)
        except CacheError as error:
            view.faults.note(error)
    asked_at = view.values.clock().now_ns()
    try:
        fetched = yield from fetching.fetch(view, key, request, result, kept, asked_at)
    except Exception as error:
        stale = fetching.serve_stale(view, key, result, kept, error)
        if stale is None:
            raise
        # Not for those who wait: they may not accept a stale one.
        (buffer,) = stale
        return buffer
    if fetched.is_unchanged and kept.found is not None:
        if request is not None:
            versions.check_served(view, key, request, result, kept.found.validator)
        data = fetching.serve_confirmed(view, key, result, kept.found, asked_at)
        view.sample_read(key, request, data, is_hit=True)
        buffer = None if data is None else to_buffer(cpu.buffer_prototype, data)
        flight.complete(Sent(buffer, kept.found.validator))
        return buffer
    buffer, validator = fetched.buffer, fetched.validator
    view.count_miss(buffer)
    view.sample_read(key, request, buffer, is_hit=False)
    sent = Sent(buffer, validator)
    flight.complete(sent)
    if not fetched.is_torn:
        yield from admit(view, key, [(request, buffer)], revision, asked_at, validator)
    versions.check_fetched(view, key, request, result, sent)
    return buffer


def _read_uncached(view: SourceView, key: str, request: ByteRequest | None) -> Flow[Buffer | None]:
    """The response of the source, in host memory, counted as a miss and not cached."""
    view.refuse_if_offline(key)
    buffer = yield from fetching.read_plainly(view, key, request)
    view.count_miss(buffer)
    return buffer


def admit(
    view: SourceView,
    key: str,
    responses: Sequence[tuple[ByteRequest | None, Buffer | None]],
    revision: int,
    asked_at: int,
    validator: str | None = None,
) -> Flow[None]:
    """Admit the response to each request, where the limits and later writes allow it.

    Parameters
    ----------
    revision
        `EntryState.revision` from before the source was read.
    asked_at
        When the source was read.
    validator
        Of the version that all are of.
    """
    try:
        parts = []
        for request, buffer in responses:
            if request is None or buffer is None:
                yield from _admit_value(view, key, buffer, revision, asked_at, validator)
            else:
                parts.append((request, buffer))
        if parts:
            yield from ranges.admit(view, key, parts, revision, asked_at, validator)
    except CacheError as error:
        view.faults.note(error)


def _admit_value(
    view: SourceView,
    key: str,
    buffer: Buffer | None,
    revision: int,
    asked_at: int,
    validator: str | None,
) -> Flow[None]:
    """Admit a whole value, or the absence of the key; if that may not be, remove its entry."""
    if buffer is None and view.absences_are_doubtful:
        # Nothing is removed for it: it may be an expired login.
        view.values.versions.absent.set(view.namespace, key, asked_at)
        return
    data = None if buffer is None else to_lasting_array(buffer)
    if data is None:
        # They are of a value that was removed.
        view.values.ranges.remove_key(view.namespace, key)
    if view.is_cacheable(data, validator):
        limits = view.limits()
        if data is None or (yield from evict.has_room(view, key, None, len(data), limits)):
            if data is not None and not limits.may_evict:
                # They are not needed any more, and nothing would evict them.
                view.values.ranges.remove_key(view.namespace, key)
            used_at = view.values.clock().timestamp_ns()
            response = Response(data, asked_at, used_at, revision, None, validator)
            yield from view.values.admit(view.namespace, key, response, limits, view.record_outcome)
            return
    kept = yield from view.values.lookup_metadata(view.namespace, key)
    if kept.kind in CACHED_KINDS or (data is None and kept.file_ranges):
        yield from view.values.forget(
            view.namespace, key, revision, asked_at, with_ranges=data is None
        )
