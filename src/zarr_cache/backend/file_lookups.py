"""Lookups in a database: what it has, what waits to be written to it, and ranges in memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, override

from zarr_cache.backend.value_cache import ValueCache
from zarr_cache.core.flow import running_loop, step, threaded
from zarr_cache.disk.read_threads import read_all, read_in_pool
from zarr_cache.index import listing, lookup, ranges
from zarr_cache.index.listing import KnownRanges, ListedRange, Versioned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest

    from zarr_cache.backend.failures import GuardedDatabase
    from zarr_cache.backend.queue import WriteBehindQueue
    from zarr_cache.backend.ranges import RangeEntry
    from zarr_cache.core.clock import PersistentClock
    from zarr_cache.core.flow import Flow
    from zarr_cache.file.database import Database
    from zarr_cache.index.admit import Response
    from zarr_cache.index.listing import Kept
    from zarr_cache.index.lookup import Data, EntryState
    from zarr_cache.index.ranges import KeptVersion


MAX_RANGES_ON_LOOP = 64
"""So many ranges of a value are looked up on an event loop; more would hold it up."""


class FileLookups(ValueCache):
    """The part of a `FileCache` that looks up."""

    _database: Database
    _reads: GuardedDatabase
    _queue: WriteBehindQueue

    @property
    @override
    def is_open(self) -> bool:
        return self._database.is_open

    @override
    def ensure_open(self) -> Flow[None]:
        if not self._database.is_open:
            yield from self._reads.flow(lookup.nothing)

    @property
    @override
    def is_listed(self) -> bool:
        """True: the file has its own index."""
        return True

    @override
    def ensure_listed(self, namespace: str) -> Flow[None]:
        """Open the file: it has its own index."""
        return self.ensure_open()

    @override
    def clock(self) -> PersistentClock:
        return self._database.clock()

    @override
    def lookup_metadata(self, namespace: str, key: str) -> Flow[EntryState]:
        yield from self.ensure_open()
        return self.lookup_metadata_nowait(namespace, key)

    def lookup_metadata_nowait(self, namespace: str, key: str) -> EntryState:
        """The result of `lookup_metadata`. The file must be open."""
        waiting = self._queue.response(namespace, key)
        found = self._reads.run(lookup.lookup_metadata, namespace, key)
        if self._queue.has_ranges:
            found = found._replace(file_ranges=found.file_ranges + 1)
        return found if waiting is None else waiting.overlay_on(found)

    @override
    def lookup_nowait(
        self, namespace: str, key: str, request: ByteRequest | None, fresh_after: int
    ) -> EntryState | None:
        # Before the file is read: a response that leaves the queue is in the file by then.
        waiting = self._queue.response(namespace, key)
        waiting_range = self._waiting_range(namespace, key, request, fresh_after)
        may_wait = running_loop() is None
        found = self._reads.run(
            lookup.lookup, namespace, key, request, fresh_after, may_wait=may_wait
        )
        if waiting is not None and _hides(waiting, found):
            found = waiting.overlay_on(found, request, fresh_after)
        if waiting_range is not None and found.data is None and found.read is None:
            found = _with_range(found, *waiting_range)
        return found

    def _waiting_range(
        self, namespace: str, key: str, request: ByteRequest | None, fresh_after: int
    ) -> tuple[RangeEntry, Data] | None:
        if request is None or not self._queue.has_ranges:
            return None
        used_at = self.clock().timestamp_ns()
        return self._queue.range_for(namespace, key, request, fresh_after, used_at)

    @override
    def lookup(
        self,
        namespace: str,
        key: str,
        request: ByteRequest | None,
        fresh_after: int,
        found: EntryState | None = None,
    ) -> Flow[EntryState]:
        arguments = (namespace, key, request, fresh_after)
        if found is None:
            yield from self.ensure_open()
            found = self.lookup_nowait(*arguments)
            assert found is not None  # noqa: S101 - only another store must be waited for
        (found,) = yield from self._with_bytes([found], namespace, key, [request], fresh_after)
        return found

    @override
    def lookup_many(
        self,
        namespace: str,
        key: str,
        requests: Sequence[ByteRequest | None],
        fresh_after: int,
        row: EntryState,
    ) -> Flow[list[EntryState]]:
        waiting = self._queue.response(namespace, key)
        waiting_ranges = self._waiting_ranges(namespace, key, requests, fresh_after)
        arguments = (namespace, key, requests, fresh_after)
        may_wait = running_loop() is None
        lookup_many = partial(lookup.lookup_many, may_wait=may_wait)
        if len(requests) > MAX_RANGES_ON_LOOP:
            found = yield from self._reads.flow(lookup_many, *arguments, row)
        else:
            found = self._reads.run(lookup_many, *arguments, row)
        if waiting is not None:
            found = [
                waiting.overlay_on(each, request, fresh_after) if _hides(waiting, each) else each
                for each, request in zip(found, requests, strict=True)
            ]
        for index, waiting_range in waiting_ranges.items():
            if found[index].data is None and found[index].read is None:
                found[index] = _with_range(found[index], *waiting_range)
        return (yield from self._with_bytes(found, *arguments))

    def _waiting_ranges(
        self, namespace: str, key: str, requests: Sequence[ByteRequest | None], fresh_after: int
    ) -> dict[int, tuple[RangeEntry, Data]]:
        """Those of the queue, by the index of the request whose bytes they have."""
        if not self._queue.has_ranges:
            return {}
        found = {
            index: self._waiting_range(namespace, key, request, fresh_after)
            for index, request in enumerate(requests)
        }
        return {index: each for index, each in found.items() if each is not None}

    def _with_bytes(
        self,
        found: list[EntryState],
        namespace: str,
        key: str,
        requests: Sequence[ByteRequest | None],
        fresh_after: int,
    ) -> Flow[list[EntryState]]:
        """The same with the bytes that are on the disk: on the async surface read all at once."""
        reads = [each.read for each in found if each.read is not None]
        if not reads:
            return found
        brought = iter((yield from step(partial(read_all, reads), partial(read_in_pool, reads))))
        for index, (each, request) in enumerate(zip(found, requests, strict=True)):
            if each.read is None:
                continue
            data = next(brought)
            if data is not None:
                found[index] = each._replace(data=data, read=None)
            else:
                # Its space was given to another value meanwhile, or it is damaged.
                arguments = (namespace, key, request, fresh_after)
                found[index] = yield from self._reads.flow(lookup.lookup, *arguments)
        return found

    @override
    def list_cached(
        self, namespace: str, prefix: str, fresh_after: int, absent_fresh_after: int
    ) -> Flow[dict[str, Kept]]:
        # Responses that wait are cached as well.
        yield from threaded(self.flush)
        arguments = (namespace, prefix, fresh_after, absent_fresh_after)
        return (yield from self._reads.flow(listing.list_cached, *arguments))

    @override
    def known_ranges(
        self, namespace: str, key: str, found: EntryState, fresh_after: int
    ) -> KnownRanges:
        of_memory = {"fence": found.fence, "fresh_after": fresh_after}
        waiting = self._queue.known_ranges(namespace, key, **of_memory)
        known = self.ranges.known(namespace, key, **of_memory)
        has_any, size = waiting.has_any or known.has_any, waiting.size or known.size
        if found.file_ranges and size is None:
            in_file = self._reads.run(listing.known, namespace, key, fresh_after)
            has_any, size = has_any or in_file.has_any, in_file.size
        return KnownRanges(has_any, size)

    @override
    def kept_version(self, namespace: str, key: str, found: EntryState) -> KeptVersion | None:
        in_memory = (
            self._queue.kept_version(namespace, key, found.fence),
            self.ranges.kept_version(namespace, key, fence=found.fence),
        )
        kept = [each for each in in_memory if each is not None]
        if found.file_ranges:
            in_file = self._reads.run(ranges.version, namespace, key)
            kept += [] if in_file is None else [in_file]
        return max(kept, key=lambda version: version.as_of, default=None)

    @override
    def list_ranges(
        self, namespace: str, prefix: str, fresh_after: int
    ) -> Flow[dict[str, list[ListedRange]]]:
        # Responses that wait are cached as well.
        yield from threaded(self.flush)
        arguments = (namespace, prefix, fresh_after)
        found = yield from self._reads.flow(listing.list_ranges, *arguments)
        for key, spans in self.ranges.list_spans(*arguments).items():
            found.setdefault(key, []).extend(ListedRange(None, span) for span in spans)
        return found

    @override
    def list_versions(self, namespace: str, prefix: str) -> Flow[list[Versioned]]:
        # Responses that wait are cached as well.
        yield from threaded(self.flush)
        found = yield from self._reads.flow(listing.list_versions, namespace, prefix)
        in_memory = self.ranges.list_versions(namespace, prefix)
        return found + [_in_memory(key, version) for key, version in in_memory.items()]


def _in_memory(key: str, version: KeptVersion) -> Versioned:
    return Versioned(0, key, "range", 0, version.as_of, 0, version.validator, None)


def _hides(waiting: Response, found: EntryState) -> bool:
    """Whether a lookup returns the response in the queue, and not what it has found in the file.

    The admission of an absence removes the ranges of the key.
    """
    return waiting.data is None or (found.data is None and found.read is None)


def _with_range(found: EntryState, entry: RangeEntry, data: Data) -> EntryState:
    """The result of a lookup once the range is admitted that has the bytes of the request."""
    if found.is_overtaken(entry.revision, entry.stored_at):
        return found
    return found._replace(
        entry=None,
        kind="range",
        size=len(entry.data),
        stored_at=entry.stored_at,
        validator=entry.validator,
        confirmed_at=None,
        data=data,
        is_damaged=False,
    )
