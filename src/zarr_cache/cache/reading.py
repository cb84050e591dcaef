"""Reads: out of the cache where the answer is at hand and fresh, and from the source otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.core.buffer import cpu

from zarr_cache.core import byte_range as requests
from zarr_cache.core.buffers import to_buffer, to_lasting_array
from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import call, call_async
from zarr_cache.core.single_flight import Flight
from zarr_cache.index.admit import Response
from zarr_cache.index.ranges import RangeEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.cache.view import LookupResult, SourceView
    from zarr_cache.core.flow import Flow
    from zarr_cache.index.lookup import Data, EntryState


ANSWERS = frozenset({"value", "absent"})


"""The kinds of entries that say what the source holds."""


type Batches = list[list[tuple[int, Buffer | None]]]


"""For each request to the source, buffers by the place of their byte range."""


def get(
    cached: SourceView, key: str, prototype: BufferPrototype, request: ByteRequest | None
) -> Flow[Buffer | None]:
    """The bytes asked for; None if there is no such key."""
    if request is not None:
        requests.check(request)
    ended = cached.values.flights.ended
    seen = yield from cached.lookup(key, request)
    if seen is None:
        return as_type(prototype, (yield from _ask(cached, key, request)))
    data = fresh_data(cached, seen, key, request)
    if data is not None:
        cached.hit(data)
        return to_buffer(prototype, data)
    if is_absent(cached, seen, key):
        cached.hit(None)
        return None
    buffer = yield from fetch(cached, key, request, seen.found, ended)
    return as_type(prototype, buffer)


def fresh_data(
    cached: SourceView, seen: LookupResult, key: str, request: ByteRequest | None
) -> Data | None:
    """The bytes asked for, out of the value in the file or of a part in memory."""
    found, at, fresh_after = seen
    if found.data is not None and found.kind == "value":
        cached.values.touch(cached.namespace, key, found, at)
        return found.data
    if request is None:
        return None
    return cached.values.ranges.get(
        cached.namespace, key, request, fence=found.fence, fresh_after=fresh_after, used_at=at
    )


def is_absent(cached: SourceView, seen: LookupResult, key: str) -> bool:
    """Whether the key is believed to be absent, which is a use."""
    found, at, _ = seen
    is_absent = (
        found.kind == "absent"
        and cached.believes_absent()
        and found.stored_at > cached.absent_fresh_after(at)
    )
    if is_absent:
        cached.values.touch(cached.namespace, key, found, at)
    return is_absent


def fetch(
    cached: SourceView, key: str, request: ByteRequest | None, found: EntryState, ended: int
) -> Flow[Buffer | None]:
    """Ask the source, once for all who ask at once, and keep the answer.

    Parameters
    ----------
    found
        By the look-up that missed. Who found another fence saw another write to the key, and asks
        again.
    ended
        `Flights.ended` from before that look-up.
    """
    place = (cached.namespace, key, request, found.fence)
    mine: Flight[Buffer | None] = Flight()
    try:
        flight = cached.values.flights.join(place, mine)
        leads = flight is mine
        if not leads:
            landed, buffer = yield from flight.wait()
            if landed:
                cached.miss()
                return buffer
        if leads and cached.values.flights.ended != ended:
            is_here, buffer = yield from look_again(cached, key, request)
            if is_here:
                flight.complete(buffer)
                return buffer
        asked_at = cached.values.clock().now_ns()
        buffer = yield from _ask(cached, key, request)
        if leads:
            flight.complete(buffer)
        yield from keep(cached, key, [(request, buffer)], found.revision, asked_at)
    finally:
        cached.values.flights.end(place, mine)
    return buffer


def look_again(
    cached: SourceView, key: str, request: ByteRequest | None
) -> Flow[tuple[bool, Buffer | None]]:
    """Whether an answer has come to hand since the look-up that missed, and the answer."""
    seen = yield from cached.lookup(key, request)
    if seen is None:
        return False, None
    data = fresh_data(cached, seen, key, request)
    if data is None and not is_absent(cached, seen, key):
        return False, None
    cached.hit(data)
    return True, None if data is None else to_buffer(cpu.buffer_prototype, data)


def _ask(cached: SourceView, key: str, request: ByteRequest | None) -> Flow[Buffer | None]:
    """What the source answers, in a buffer of this machine's memory."""
    prototype = cpu.buffer_prototype
    buffer: Buffer | None = yield from call(
        cached.source,
        lambda source: source.get_sync(key, prototype=prototype, byte_range=request),
        lambda source: source.get(key, prototype, request),
    )
    cached.miss(buffer)
    return buffer


def keep(
    cached: SourceView,
    key: str,
    responses: Sequence[tuple[ByteRequest | None, Buffer | None]],
    revision: int,
    asked_at: int,
) -> Flow[None]:
    """Keep what the source answered to each request, where the limits and later writes allow it."""
    try:
        parts = []
        for request, buffer in responses:
            if request is None or buffer is None:
                yield from _keep_value(cached, key, buffer, revision, asked_at)
            else:
                parts.append((request, buffer.to_bytes()))
        if parts:
            yield from _keep_parts(cached, key, parts, revision, asked_at)
    except CacheError as error:
        cached.faults.note(error)


def _keep_value(
    cached: SourceView, key: str, buffer: Buffer | None, revision: int, asked_at: int
) -> Flow[None]:
    """Keep a whole value, or that there is none."""
    data = None if buffer is None else to_lasting_array(buffer)
    if cached.is_kept(data):
        response = Response(data, asked_at, cached.values.clock().timestamp_ns(), revision)
        yield from cached.values.admit(
            cached.namespace, key, response, cached.limits(), cached.record_outcome
        )
    elif (yield from cached.values.lookup_metadata(cached.namespace, key)).kind in ANSWERS:
        yield from cached.values.forget(cached.namespace, key, revision, asked_at)


def _keep_parts(
    cached: SourceView,
    key: str,
    parts: list[tuple[ByteRequest, bytes]],
    revision: int,
    asked_at: int,
) -> Flow[None]:
    """Keep parts of a value as range entries."""
    found = yield from cached.values.lookup_metadata(cached.namespace, key)
    if found.is_overtaken(revision, asked_at):
        # A write has overtaken the answer. One that comes after this is seen at the next look-up.
        return
    limits = cached.limits()
    for request, data in parts:
        if cached.is_kept(data) and requests.may_be_cached(request, len(data)):
            timestamp = cached.values.clock().timestamp_ns()
            entry = RangeEntry(cached.namespace, key, request, data, asked_at, revision, timestamp)
            limits.ranges.add(entry, fence=found.fence)
    # What is being written now may have been weighed before these were here.
    bytes_being_written = cached.values.bytes_being_written
    found = yield from cached.values.lookup_metadata(cached.namespace, key)
    if limits.are_exceeded(found.cached_bytes + bytes_being_written):
        yield from cached.enforce_now(limits)


def exists(cached: SourceView, key: str) -> Flow[bool]:
    """Whether there is such a key.

    That there is none is not kept: fsspec's ``exists`` and ``info`` say so of a server that is down
    as well. Only ``get`` tells.
    """
    seen = yield from cached.lookup(key, with_data=False)
    if seen is not None:
        if _cached_size(cached, seen, key) is not None or _has_range(cached, seen, key):
            cached.hit(b"")
            return True
        if is_absent(cached, seen, key):
            cached.hit(None)
            return False
    exists: bool = yield from call_async(cached.source, lambda source: source.exists(key))
    cached.miss()
    return exists


def getsize(cached: SourceView, key: str) -> Flow[int]:
    """Bytes of the value.

    Raises
    ------
    FileNotFoundError
        There is no such key, as far as the source can tell: as with `exists`, nothing is kept.
    """
    seen = yield from cached.lookup(key, with_data=False)
    if seen is not None:
        size = _cached_size(cached, seen, key)
        if size is not None:
            cached.hit(b"")
            return size
        if is_absent(cached, seen, key):
            cached.hit(None)
            raise FileNotFoundError(key)
    cached.miss()
    told: int = yield from call_async(cached.source, lambda source: source.getsize(key))
    return told


def _cached_size(cached: SourceView, seen: LookupResult, key: str) -> int | None:
    found, _, fresh_after = seen
    if found.kind == "value" and found.stored_at > fresh_after:
        return found.size
    return cached.values.ranges.size(
        cached.namespace, key, fence=found.fence, fresh_after=fresh_after
    )


def _has_range(cached: SourceView, seen: LookupResult, key: str) -> bool:
    found, _, fresh_after = seen
    return cached.values.ranges.has(
        cached.namespace, key, fence=found.fence, fresh_after=fresh_after
    )


def as_type(prototype: BufferPrototype, buffer: Buffer | None) -> Buffer | None:
    """The buffer as one of the type asked for."""
    if buffer is None or isinstance(buffer, prototype.buffer):
        return buffer
    return prototype.buffer.from_buffer(buffer)


"""What zarr's ``get_ranges`` says when it raises."""
