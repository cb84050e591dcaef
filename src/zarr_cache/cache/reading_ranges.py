"""Several byte ranges of a key at once, as a flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr.core.buffer import cpu

from zarr_cache.cache import reading
from zarr_cache.cache.view import LookupResult
from zarr_cache.core import byte_range as requests
from zarr_cache.core.buffers import to_buffer
from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import call
from zarr_cache.core.single_flight import Flight
from zarr_cache.sources.range_check import RangeCheckedStore, with_range_check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.cache.reading import Batches
    from zarr_cache.cache.view import SourceView
    from zarr_cache.core.flow import Flow
    from zarr_cache.index.lookup import Data, EntryState


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


def get_ranges(
    cached: SourceView,
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
    seen = yield from cached.lookup(key, with_data=False)
    if seen is None:
        places = list(range(len(byte_ranges)))
        pieces, _ = yield from _ask_ranges(cached, key, byte_ranges, places, settings)
        return _as_types(prototype, pieces)
    if reading.is_absent(cached, seen, key):
        cached.hit(None)
        return Pieces([], _absent(key))
    list_cached = yield from _cached_ranges(cached, seen, key, byte_ranges)
    first: Batches = [[(place, to_buffer(prototype, data)) for place, data in list_cached.items()]]
    missing = [place for place in range(len(byte_ranges)) if place not in list_cached]
    fetched = yield from _fetch_ranges(
        cached, key, byte_ranges, missing, seen.found, ended, settings
    )
    batches, error = _as_types(prototype, fetched)
    return Pieces([*first, *batches] if list_cached else batches, error)


def _as_types(prototype: BufferPrototype, pieces: Pieces) -> Pieces:
    batches = [
        [(place, reading.as_type(prototype, buffer)) for place, buffer in batch]
        for batch in pieces.batches
    ]
    return Pieces(batches, pieces.error)


def _cached_ranges(
    cached: SourceView, seen: LookupResult, key: str, byte_ranges: Sequence[ByteRequest | None]
) -> Flow[dict[int, Data]]:
    """The bytes that are here, by the place of their request."""
    found, at, fresh_after = seen
    each: list[EntryState] = [found] * len(byte_ranges)
    if found.kind == "value" and found.stored_at > fresh_after:
        try:
            each = yield from cached.values.lookup_many(
                cached.namespace, key, byte_ranges, fresh_after
            )
        except CacheError as error:
            cached.faults.note(error)
    list_cached = {}
    for place, request in enumerate(byte_ranges):
        data = reading.fresh_data(cached, LookupResult(each[place], at, fresh_after), key, request)
        if data is not None:
            list_cached[place] = data
            cached.hit(data)
    return list_cached


def _fetch_ranges(
    cached: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    missing: list[int],
    found: EntryState,
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
            is_here, buffer = yield from reading.look_again(cached, key, byte_ranges[place])
            if is_here:
                flight.complete(buffer)
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
    cached: SourceView,
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
        led[place].complete(buffer)
    responses = [(byte_ranges[place], buffer) for place, buffer in pieces if place not in odd]
    yield from reading.keep(cached, key, responses, revision, asked_at)
    return asked


def _follow_range(
    cached: SourceView,
    key: str,
    request: ByteRequest | None,
    flight: Flight[Buffer | None],
    found: EntryState,
) -> Flow[Buffer]:
    """What another is asking the source for; if it gets no answer, ask for oneself."""
    landed, buffer = yield from flight.wait()
    if landed:
        cached.miss()
    else:
        ended = cached.values.flights.ended
        buffer = yield from reading.fetch(cached, key, request, found, ended)
    if buffer is None:
        raise FileNotFoundError(key)
    return buffer


def _ask_ranges(
    cached: SourceView,
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
        reader = with_range_check(source, "get_ranges")
        batches: Batches = []
        try:
            async for batch in reader.get_ranges(key, asked, prototype=prototype, **settings):
                batches.append(list(batch))
        except Exception as error:  # noqa: BLE001 - raised when what came before it is kept
            return reader, Pieces(batches, error)
        return reader, Pieces(batches, None)

    def collect_sync(source: Store) -> tuple[Store, Pieces]:
        reader = with_range_check(source, "get_ranges_sync")
        chosen = {name: each for name, each in settings.items() if name != "max_concurrency"}
        pieces = reader.get_ranges_sync(key, asked, prototype=prototype, **chosen)
        return reader, Pieces([list(pieces)], None)

    reader, (batches, error) = yield from call(cached.source, collect_sync, collect)
    for batch in batches:
        for _, buffer in batch:
            cached.miss(buffer)
    is_odd = reader.may_be_wrong if isinstance(reader, RangeCheckedStore) else lambda _: False
    odd = {place for place in places if is_odd(byte_ranges[place])}
    batches = [[(places[place], buffer) for place, buffer in batch] for batch in batches]
    return Pieces(batches, error), odd


FAILED = "chunk read failed"


def _absent(key: str) -> ExceptionGroup[FileNotFoundError]:
    """What zarr's ``get_ranges`` raises for a key that is not there."""
    return ExceptionGroup(FAILED, [FileNotFoundError(key)])
