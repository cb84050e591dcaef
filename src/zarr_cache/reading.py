"""Reads: out of the cache where the answer is at hand and fresh, and from the source otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr.core.buffer import cpu

from zarr_cache import byte_range as requests
from zarr_cache.answer import Answer
from zarr_cache.buffers import to_buffer, to_lasting_array
from zarr_cache.cached_source import Seen
from zarr_cache.calls import call, call_async
from zarr_cache.errors import CacheError
from zarr_cache.flight import Flight
from zarr_cache.measured import MeasuredStore, measured
from zarr_cache.range_cache import RangeEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.cached_source import CachedSource
    from zarr_cache.flow import Flow
    from zarr_cache.index import Data, Found

ANSWERS = frozenset({"value", "absent"})
"""The kinds of entries that say what the source holds."""

type Batches = list[list[tuple[int, Buffer | None]]]
"""For each request to the source, buffers by the place of their byte range."""


class Pieces(NamedTuple):
    """What came of byte ranges.

    Attributes
    ----------
    batches
        What was at hand, and what the source answered until it failed.
    error
        With what it failed, as zarr's ``get_ranges`` raises it; None if it did not.
    """

    batches: Batches
    error: Exception | None


def get(
    cached: CachedSource, key: str, prototype: BufferPrototype, request: ByteRequest | None
) -> Flow[Buffer | None]:
    """The bytes asked for; None if there is no such key."""
    if request is not None:
        requests.check(request)
    ended = cached.values.flights.ended
    seen = yield from cached.look_up(key, request)
    if seen is None:
        return as_type(prototype, (yield from _ask(cached, key, request)))
    data = _fresh_data(cached, seen, key, request)
    if data is not None:
        cached.hit(data)
        return to_buffer(prototype, data)
    if _is_absent(cached, seen, key):
        cached.hit(None)
        return None
    buffer = yield from _fetch(cached, key, request, seen.found, ended)
    return as_type(prototype, buffer)


def _fresh_data(
    cached: CachedSource, seen: Seen, key: str, request: ByteRequest | None
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


def _is_absent(cached: CachedSource, seen: Seen, key: str) -> bool:
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


def _fetch(
    cached: CachedSource, key: str, request: ByteRequest | None, found: Found, ended: int
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
            is_here, buffer = yield from _look_again(cached, key, request)
            if is_here:
                flight.land(buffer)
                return buffer
        asked_at = cached.values.clock().now_ns()
        buffer = yield from _ask(cached, key, request)
        if leads:
            flight.land(buffer)
        yield from _keep(cached, key, [(request, buffer)], found.revision, asked_at)
    finally:
        cached.values.flights.end(place, mine)
    return buffer


def _look_again(
    cached: CachedSource, key: str, request: ByteRequest | None
) -> Flow[tuple[bool, Buffer | None]]:
    """Whether an answer has come to hand since the look-up that missed, and the answer."""
    seen = yield from cached.look_up(key, request)
    if seen is None:
        return False, None
    data = _fresh_data(cached, seen, key, request)
    if data is None and not _is_absent(cached, seen, key):
        return False, None
    cached.hit(data)
    return True, None if data is None else to_buffer(cpu.buffer_prototype, data)


def _ask(cached: CachedSource, key: str, request: ByteRequest | None) -> Flow[Buffer | None]:
    """What the source answers, in a buffer of this machine's memory."""
    prototype = cpu.buffer_prototype
    buffer: Buffer | None = yield from call(
        cached.source,
        lambda source: source.get_sync(key, prototype=prototype, byte_range=request),
        lambda source: source.get(key, prototype, request),
    )
    cached.miss(buffer)
    return buffer


def _keep(
    cached: CachedSource,
    key: str,
    answers: Sequence[tuple[ByteRequest | None, Buffer | None]],
    revision: int,
    asked_at: int,
) -> Flow[None]:
    """Keep what the source answered to each request, where the limits and later writes allow it."""
    try:
        parts = []
        for request, buffer in answers:
            if request is None or buffer is None:
                yield from _keep_value(cached, key, buffer, revision, asked_at)
            else:
                parts.append((request, buffer.to_bytes()))
        if parts:
            yield from _keep_parts(cached, key, parts, revision, asked_at)
    except CacheError as error:
        cached.faults.note(error)


def _keep_value(
    cached: CachedSource, key: str, buffer: Buffer | None, revision: int, asked_at: int
) -> Flow[None]:
    """Keep a whole value, or that there is none."""
    data = None if buffer is None else to_lasting_array(buffer)
    if cached.is_kept(data):
        answer = Answer(data, asked_at, cached.values.clock().stamp_ns(), revision)
        yield from cached.values.admit(
            cached.namespace, key, answer, cached.limits(), cached.what_became
        )
    elif (yield from cached.values.peek(cached.namespace, key)).kind in ANSWERS:
        yield from cached.values.forget(cached.namespace, key, revision, asked_at)


def _keep_parts(
    cached: CachedSource,
    key: str,
    parts: list[tuple[ByteRequest, bytes]],
    revision: int,
    asked_at: int,
) -> Flow[None]:
    """Keep parts of a value as range entries."""
    found = yield from cached.values.peek(cached.namespace, key)
    if found.is_overtaken(revision, asked_at):
        # A write has overtaken the answer. One that comes after this is seen at the next look-up.
        return
    limits = cached.limits()
    for request, data in parts:
        if cached.is_kept(data) and requests.may_be_kept(request, len(data)):
            stamp = cached.values.clock().stamp_ns()
            entry = RangeEntry(cached.namespace, key, request, data, asked_at, revision, stamp)
            limits.ranges.add(entry, fence=found.fence)
    # What is being written now may have been weighed before these were here.
    being_kept = cached.values.being_kept
    found = yield from cached.values.peek(cached.namespace, key)
    if limits.are_exceeded(found.cached_bytes + being_kept):
        yield from cached.enforce_now(limits)


def get_ranges(
    cached: CachedSource,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    prototype: BufferPrototype,
    settings: dict[str, int],
) -> Flow[Pieces]:
    """The byte ranges by their place: what is at hand first, then the source's.

    If there is no such key, the error is a group with a `FileNotFoundError` in it.
    """
    for request in byte_ranges:
        requests.check(request)
    if not byte_ranges:
        return Pieces([], None)
    ended = cached.values.flights.ended
    seen = yield from cached.look_up(key, with_data=False)
    if seen is None:
        places = list(range(len(byte_ranges)))
        pieces, _ = yield from _ask_ranges(cached, key, byte_ranges, places, settings)
        return _as_types(prototype, pieces)
    if _is_absent(cached, seen, key):
        cached.hit(None)
        return Pieces([], _absent(key))
    at_hand = yield from _ranges_at_hand(cached, seen, key, byte_ranges)
    first: Batches = [[(place, to_buffer(prototype, data)) for place, data in at_hand.items()]]
    missing = [place for place in range(len(byte_ranges)) if place not in at_hand]
    fetched = yield from _fetch_ranges(
        cached, key, byte_ranges, missing, seen.found, ended, settings
    )
    batches, error = _as_types(prototype, fetched)
    return Pieces([*first, *batches] if at_hand else batches, error)


def _as_types(prototype: BufferPrototype, pieces: Pieces) -> Pieces:
    batches = [
        [(place, as_type(prototype, buffer)) for place, buffer in batch] for batch in pieces.batches
    ]
    return Pieces(batches, pieces.error)


def _ranges_at_hand(
    cached: CachedSource, seen: Seen, key: str, byte_ranges: Sequence[ByteRequest | None]
) -> Flow[dict[int, Data]]:
    """The bytes that are here, by the place of their request."""
    found, at, fresh_after = seen
    each: list[Found] = [found] * len(byte_ranges)
    if found.kind == "value" and found.stored_at > fresh_after:
        try:
            each = yield from cached.values.look_up_many(
                cached.namespace, key, byte_ranges, fresh_after
            )
        except CacheError as error:
            cached.faults.note(error)
    at_hand = {}
    for place, request in enumerate(byte_ranges):
        data = _fresh_data(cached, Seen(each[place], at, fresh_after), key, request)
        if data is not None:
            at_hand[place] = data
            cached.hit(data)
    return at_hand


def _fetch_ranges(
    cached: CachedSource,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    missing: list[int],
    found: Found,
    ended: int,
    settings: dict[str, int],
) -> Flow[Pieces]:
    """Ask the source once for all that is missing, but for what others are asking it for."""
    flights = cached.values.flights
    asks = {place: (cached.namespace, key, byte_ranges[place], found.fence) for place in missing}
    mine: dict[int, Flight[Buffer | None]] = {place: Flight() for place in missing}
    try:
        joined = {place: flights.join(ask, mine[place]) for place, ask in asks.items()}
        led = {place: flight for place, flight in joined.items() if flight is mine[place]}
        batches: Batches = []
        for place, flight in led.items() if flights.ended != ended else ():
            is_here, buffer = yield from _look_again(cached, key, byte_ranges[place])
            if is_here:
                flight.land(buffer)
                batches.append([(place, buffer)])
        still = {place: flight for place, flight in led.items() if not flight.is_set}
        fetched, error = yield from _lead_ranges(
            cached, key, byte_ranges, still, found.revision, settings
        )
    finally:
        for place, flight in mine.items():
            flights.end(asks[place], flight)
    batches += fetched
    for place in missing:
        if place not in led and error is None:
            flight = joined[place]
            try:
                buffer = yield from _follow_range(cached, key, byte_ranges[place], flight, found)
            except Exception as failure:  # noqa: BLE001 - whatever the source raises
                error = ExceptionGroup(FAILED, [failure])
            else:
                batches.append([(place, buffer)])
    return Pieces(batches, error)


def _lead_ranges(
    cached: CachedSource,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    led: dict[int, Flight[Buffer | None]],
    revision: int,
    settings: dict[str, int],
) -> Flow[Pieces]:
    """Ask the source for the byte ranges at the places in `led`, and keep the answers."""
    if not led:
        return Pieces([], None)
    asked_at = cached.values.clock().now_ns()
    asked, odd = yield from _ask_ranges(cached, key, byte_ranges, list(led), settings)
    pieces = [piece for batch in asked.batches for piece in batch]
    # All of them land before one is kept: whoever follows waits for nothing else.
    for place, buffer in pieces:
        led[place].land(buffer)
    answers = [(byte_ranges[place], buffer) for place, buffer in pieces if place not in odd]
    yield from _keep(cached, key, answers, revision, asked_at)
    return asked


def _follow_range(
    cached: CachedSource,
    key: str,
    request: ByteRequest | None,
    flight: Flight[Buffer | None],
    found: Found,
) -> Flow[Buffer]:
    """What another is asking the source for; if it gets no answer, ask for oneself."""
    landed, buffer = yield from flight.wait()
    if landed:
        cached.miss()
    else:
        ended = cached.values.flights.ended
        buffer = yield from _fetch(cached, key, request, found, ended)
    if buffer is None:
        raise FileNotFoundError(key)
    return buffer


def _ask_ranges(
    cached: CachedSource,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    places: list[int],
    settings: dict[str, int],
) -> Flow[tuple[Pieces, set[int]]]:
    """What the source answers in one ``get_ranges``, by place in `byte_ranges`.

    Returns
    -------
    tuple
        What came of it, and the places whose bytes may be others than were asked for.
    """
    asked = [byte_ranges[place] for place in places]
    prototype = cpu.buffer_prototype

    async def collect(source: Store) -> tuple[Store, Pieces]:
        reader = measured(source, "get_ranges")
        batches: Batches = []
        try:
            async for batch in reader.get_ranges(key, asked, prototype=prototype, **settings):
                batches.append(list(batch))
        except Exception as error:  # noqa: BLE001 - raised when what came before it is kept
            return reader, Pieces(batches, error)
        return reader, Pieces(batches, None)

    def collect_sync(source: Store) -> tuple[Store, Pieces]:
        reader = measured(source, "get_ranges_sync")
        chosen = {name: each for name, each in settings.items() if name != "max_concurrency"}
        pieces = reader.get_ranges_sync(key, asked, prototype=prototype, **chosen)
        return reader, Pieces([list(pieces)], None)

    reader, (batches, error) = yield from call(cached.source, collect_sync, collect)
    for batch in batches:
        for _, buffer in batch:
            cached.miss(buffer)
    is_odd = reader.is_odd if isinstance(reader, MeasuredStore) else lambda _: False
    odd = {place for place in places if is_odd(byte_ranges[place])}
    batches = [[(places[place], buffer) for place, buffer in batch] for batch in batches]
    return Pieces(batches, error), odd


def exists(cached: CachedSource, key: str) -> Flow[bool]:
    """Whether there is such a key.

    That there is none is not kept: fsspec's ``exists`` and ``info`` say so of a server that is down
    as well. Only ``get`` tells.
    """
    seen = yield from cached.look_up(key, with_data=False)
    if seen is not None:
        if _size_at_hand(cached, seen, key) is not None or _has_range(cached, seen, key):
            cached.hit(b"")
            return True
        if _is_absent(cached, seen, key):
            cached.hit(None)
            return False
    exists: bool = yield from call_async(cached.source, lambda source: source.exists(key))
    cached.miss()
    return exists


def getsize(cached: CachedSource, key: str) -> Flow[int]:
    """Bytes of the value.

    Raises
    ------
    FileNotFoundError
        There is no such key, as far as the source can tell: as with `exists`, nothing is kept.
    """
    seen = yield from cached.look_up(key, with_data=False)
    if seen is not None:
        size = _size_at_hand(cached, seen, key)
        if size is not None:
            cached.hit(b"")
            return size
        if _is_absent(cached, seen, key):
            cached.hit(None)
            raise FileNotFoundError(key)
    cached.miss()
    told: int = yield from call_async(cached.source, lambda source: source.getsize(key))
    return told


def _size_at_hand(cached: CachedSource, seen: Seen, key: str) -> int | None:
    found, _, fresh_after = seen
    if found.kind == "value" and found.stored_at > fresh_after:
        return found.size
    return cached.values.ranges.size(
        cached.namespace, key, fence=found.fence, fresh_after=fresh_after
    )


def _has_range(cached: CachedSource, seen: Seen, key: str) -> bool:
    found, _, fresh_after = seen
    return cached.values.ranges.has(
        cached.namespace, key, fence=found.fence, fresh_after=fresh_after
    )


def as_type(prototype: BufferPrototype, buffer: Buffer | None) -> Buffer | None:
    """The buffer as one of the type asked for."""
    if buffer is None or isinstance(buffer, prototype.buffer):
        return buffer
    return prototype.buffer.from_buffer(buffer)


FAILED = "chunk read failed"
"""What zarr's ``get_ranges`` says when it raises."""


def _absent(key: str) -> ExceptionGroup[FileNotFoundError]:
    """What zarr's ``get_ranges`` raises for a key that is not there."""
    return ExceptionGroup(FAILED, [FileNotFoundError(key)])
