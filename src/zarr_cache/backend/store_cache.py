"""The cache of values in any other zarr store, with an index of them in memory."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, override

from zarr_cache.backend.file_cache import FileCache
from zarr_cache.backend.store_values import StoreValues, is_name
from zarr_cache.backend.value_cache import ValueCache
from zarr_cache.core import checksum
from zarr_cache.core.checksum import DamagedValueError
from zarr_cache.core.errors import StorageError
from zarr_cache.core.flow import to_its_end
from zarr_cache.core.single_flight import Flight, Flights
from zarr_cache.file.database import MemoryDatabase
from zarr_cache.index import listing, removals, values
from zarr_cache.index.admit import Admission

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zarr.abc.store import ByteRequest, Store

    from zarr_cache.core.clock import PersistentClock
    from zarr_cache.core.errors import CacheError
    from zarr_cache.core.flow import Flow
    from zarr_cache.index.admit import Response
    from zarr_cache.index.evict import Evictions, Limits
    from zarr_cache.index.listing import Kept, KnownRanges, ListedRange, Usage, Versioned
    from zarr_cache.index.lookup import EntryState
    from zarr_cache.index.ranges import KeptVersion


class LockedByTaskError(StorageError):
    """A task of an event loop is at work on a key, and a thread does not wait for it."""


class StoreCache(ValueCache):
    """Full values under their own keys in `store`; one whose bytes have changed is a miss.

    The index is a database in memory, filled at first use from what the store lists. How old the
    values are is not known: they count as older than any finite age. Nor is it known which source
    they are of: they count as those of the first source, until there is another.

    The store has one value for a key, of whatever namespace. So a value of one namespace replaces
    that of another, whose entry is removed first.

    Get one from `registry.store_cache_of`: two over one store would not know of each other's
    values.

    Parameters
    ----------
    store
        Any store that supports deletes.

    Attributes
    ----------
    database
        The index.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.database = MemoryDatabase()
        self._index = FileCache(self.database, values.write_checksums, is_shared=False)
        self._values = StoreValues(store, self.database)
        self._is_listed = not store.supports_listing
        self.invalidated = self._index.invalidated
        # Of all sources whose values are in the store.
        self._namespaces: set[str] = set()
        self._begin()
        # After that of the index, which this reads.
        self.database.after_fork.append(self._begin)

    def _begin(self) -> None:
        """Start with an index that has just begun: at first, and in the child of a fork."""
        self.ranges = self._index.ranges
        self.flights = self._index.flights
        self.pending = self._index.pending
        self.versions = self._index.versions
        self.room = self._index.room
        self._values.forget_writes()
        # Keys of which this process changes the value in the store, and () while it lists them.
        self._locked: Flights[tuple[str, ...], None] = Flights()

    def has_value(self, key: str) -> bool:
        """Whether the index has a value of this key, in whatever namespace."""
        return self.database.run(listing.has_value, key)

    @property
    @override
    def is_open(self) -> bool:
        return self._index.is_open

    @override
    def ensure_open(self) -> Flow[None]:
        return self._index.ensure_open()

    @property
    @override
    def is_listed(self) -> bool:
        return self._is_listed

    @override
    def ensure_listed(self, namespace: str) -> Flow[None]:
        """Take what the store lists into the index, once; other callers wait until it is there."""
        self._namespaces.add(namespace)
        if self._is_listed:
            return
        lock = yield from self._acquire()
        try:
            if not self._is_listed:
                sizes = yield from self._values.sizes()
                self.database.run(listing.adopt, namespace, sizes)
                self._is_listed = True
        finally:
            self._locked.end((), lock)

    @override
    def clock(self) -> PersistentClock:
        return self._index.clock()

    @override
    def lookup_metadata(self, namespace: str, key: str) -> Flow[EntryState]:
        yield from self.ensure_listed(namespace)
        return self._index.lookup_metadata_nowait(namespace, key)

    @override
    def lookup_nowait(
        self, namespace: str, key: str, request: ByteRequest | None, fresh_after: int
    ) -> EntryState | None:
        """None: the other store must be waited for."""
        return None

    @override
    def lookup(
        self,
        namespace: str,
        key: str,
        request: ByteRequest | None,
        fresh_after: int,
        found: EntryState | None = None,
    ) -> Flow[EntryState]:
        found = yield from self.lookup_metadata(namespace, key)
        if found.kind != "value" or found.as_of <= fresh_after:
            return found
        buffer = yield from self._values.get(key)
        data = None if buffer is None else buffer.to_bytes()
        if data is None or not self._is_right(namespace, key, found, data):
            # Unless another value has replaced it since.
            again = self._index.lookup_metadata_nowait(namespace, key)
            return found._replace(is_damaged=True) if again.row == found.row else again
        return found._replace(data=data).cut_to(request)

    def _is_right(self, namespace: str, key: str, found: EntryState, data: bytes) -> bool:
        """Whether these are the bytes that the entry was made for."""
        if len(data) != found.size:
            return False
        sums = self.database.run(values.checksums_of, found.entry or 0)
        if sums is None:
            # The store had it before: it is of this source if there is no other.
            return len(self._namespaces) == 1
        seed = checksum.of_facts(namespace, key, "value", found.size, found.stored_at)
        try:
            values.verify(seed, 0, data, sums)
        except DamagedValueError:
            return False
        return True

    @override
    def lookup_many(
        self,
        namespace: str,
        key: str,
        requests: Sequence[ByteRequest | None],
        fresh_after: int,
        row: EntryState,
    ) -> Flow[list[EntryState]]:
        found = yield from self.lookup(namespace, key, None, fresh_after)
        return [found.cut_to(request) for request in requests]

    @override
    def list_cached(
        self, namespace: str, prefix: str, fresh_after: int, absent_fresh_after: int
    ) -> Flow[dict[str, Kept]]:
        yield from self.ensure_listed(namespace)
        arguments = (namespace, prefix, fresh_after, absent_fresh_after)
        return (yield from self._index.list_cached(*arguments))

    @override
    def known_ranges(
        self, namespace: str, key: str, found: EntryState, fresh_after: int
    ) -> KnownRanges:
        return self._index.known_ranges(namespace, key, found, fresh_after)

    @override
    def kept_version(self, namespace: str, key: str, found: EntryState) -> KeptVersion | None:
        return self._index.kept_version(namespace, key, found)

    @override
    def list_ranges(
        self, namespace: str, prefix: str, fresh_after: int
    ) -> Flow[dict[str, list[ListedRange]]]:
        return self._index.list_ranges(namespace, prefix, fresh_after)

    @override
    def list_versions(self, namespace: str, prefix: str) -> Flow[list[Versioned]]:
        yield from self.ensure_listed(namespace)
        return (yield from self._index.list_versions(namespace, prefix))

    @override
    def usage(self, namespace: str) -> Usage:
        return self._index.usage(namespace)

    @override
    def admit(
        self,
        namespace: str,
        key: str,
        response: Response,
        limits: Limits,
        on_done: Callable[[Evictions | CacheError | None], None],
    ) -> Flow[None]:
        """Admit a response: see `ValueCache.admit`. It has been written when this returns."""
        mine = Admission(namespace, key, response, limits, on_done)
        try:
            lock = yield from self._acquire(key)
        except StorageError:
            # This one is not admitted: the task is about to write the same key.
            mine.end(None)
            return
        try:
            yield from to_its_end(partial(self._admit, mine))
        finally:
            self._locked.end((key,), lock)
        if mine.removed is not None:
            yield from self._values.delete([*mine.removed.evicted, *mine.removed.expired])

    def _admit(self, mine: Admission) -> Flow[None]:
        """Write the bytes and the entry, neither without the other."""
        key, response = mine.key, mine.response
        found = yield from self.lookup_metadata(mine.namespace, key)
        can_be_written = response.data is None or is_name(key)
        if not can_be_written or found.is_overtaken(response.revision, response.stored_at):
            mine.end(None)
            return
        with self._values.writing([] if response.data is None else [key]):
            yield from self._write_bytes(mine.namespace, {key: response})
            # In this thread: an index in memory is not worth another.
            self._index.admit_now(mine)
        if mine.entry is None:
            # The key was written since; whoever wrote it waits for this before it returns.
            yield from self._values.delete([key])

    def _write_bytes(self, namespace: str, responses: Mapping[str, Response]) -> Flow[None]:
        for key, response in responses.items():
            if response.data is not None:
                self.database.run(removals.remove_from_other_namespaces, namespace, key)
                yield from self._values.set(key, response.data)

    @property
    @override
    def bytes_being_written(self) -> int:
        return self._index.bytes_being_written

    @override
    def touch(self, namespace: str, key: str, found: EntryState, used_at: int) -> None:
        if found.entry is not None and self.pending.touch(found.entry, used_at):
            self._index.write_pending_now()

    @override
    def flush(self) -> None:
        self._index.flush()

    @override
    def write_pending(self) -> Flow[None]:
        return self._index.write_pending()

    @override
    def enforce(self, namespace: str, limits: Limits) -> Flow[Evictions]:
        yield from self.ensure_listed(namespace)
        removed = yield from self._index.enforce(namespace, limits)
        yield from self._values.delete([*removed.evicted, *removed.expired])
        return removed

    @override
    def report_eviction(self, max_size: int | None) -> None:
        self._index.report_eviction(max_size)

    @override
    def confirm(self, found: EntryState | Versioned, confirmed_at: int) -> None:
        """Nothing: the index ends with this process, which has it in `versions`."""

    @override
    def forget(
        self, namespace: str, key: str, revision: int, stored_at: int, *, with_ranges: bool = False
    ) -> Flow[list[str]]:
        forgotten = yield from self._index.forget(
            namespace, key, revision, stored_at, with_ranges=with_ranges
        )
        yield from self._values.delete(forgotten)
        return forgotten

    @override
    def discard(self, found: EntryState) -> Flow[list[str]]:
        discarded = yield from self._index.discard(found)
        yield from self._values.delete(discarded)
        return discarded

    @override
    def clear(self, namespace: str) -> Flow[None]:
        yield from self.invalidate_prefix(namespace, "")
        yield from self.invalidated.release(namespace, None)

    @override
    def begin_write(
        self, namespace: str, keys: Sequence[str], now_ns: int, begun: list[int]
    ) -> Flow[None]:
        """As in the interface; the bytes are deleted, too: another process would serve them."""
        yield from self.ensure_listed(namespace)
        yield from self._index.begin_write(namespace, keys, now_ns, begun)
        yield from self._values.delete(keys)

    @override
    def end_write(
        self,
        namespace: str,
        keys: Sequence[str],
        responses: Mapping[str, Response],
        now_ns: int,
        limits: Limits,
    ) -> Flow[Evictions]:
        locks: dict[str, Flight[None]] = {}
        try:
            # In one order, so that no two callers wait for each other.
            for key in sorted(set(keys)):
                locks[key] = yield from self._acquire(key)
            arguments = (namespace, keys, responses, now_ns, limits)
            return (yield from to_its_end(partial(self._end_write, *arguments)))
        except LockedByTaskError:
            # Without a value nothing is written to the store, which needs no lock; the response of
            # the task is refused.
            return (yield from self._index.end_write(namespace, keys, {}, now_ns, limits))
        finally:
            for key, lock in locks.items():
                self._locked.end((key,), lock)

    def _end_write(
        self,
        namespace: str,
        keys: Sequence[str],
        responses: Mapping[str, Response],
        now_ns: int,
        limits: Limits,
    ) -> Flow[Evictions]:
        self._namespaces.add(namespace)
        responses = {key: response for key, response in responses.items() if is_name(key)}
        with self._values.writing(responses):
            yield from self._write_bytes(namespace, responses)
            removed = yield from self._index.end_write(namespace, keys, responses, now_ns, limits)
        yield from self._values.delete([*removed.evicted, *removed.expired, *removed.invalidated])
        return removed

    @override
    def invalidate_prefix(self, namespace: str, prefix: str) -> Flow[list[str]]:
        yield from self.ensure_listed(namespace)
        removed = yield from self._index.invalidate_prefix(namespace, prefix)
        yield from self._values.delete(removed)
        return removed

    @override
    def begin_removal(self, namespace: str, now_ns: int) -> Flow[None]:
        return self._index.begin_removal(namespace, now_ns)

    @override
    def end_removal(self, namespace: str) -> Flow[None]:
        return self._index.end_removal(namespace)

    def _acquire(self, *place: str) -> Flow[Flight[None]]:
        """Wait until no other caller of this process has the lock of `place`, and hold it.

        Raises
        ------
        LockedByTaskError
            A task has it, and this is called in a thread, which waits for none: see `Flight`.
        """
        mine: Flight[None] = Flight()
        dead: Flight[None] | None = None
        while (flight := self._locked.join(place, mine, dead)) is not mine:
            yield from flight.follow()
            if not flight.is_led:
                # Its event loop was closed: it does not go on.
                dead = flight
            elif not flight.is_set:
                raise LockedByTaskError(
                    f"{self.store}: a task of an event loop is at work on it, which a call that is "
                    "not awaited does not wait for"
                )
        return mine
