"""The cache of values in one database: lookups, admissions and writes, in a file or in memory."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

from zarr_cache.backend.counters import Pending
from zarr_cache.backend.failures import GuardedDatabase
from zarr_cache.backend.invalidated import InvalidatedNamespaces
from zarr_cache.backend.queue import WriteBehindQueue
from zarr_cache.backend.upkeep import Upkeep
from zarr_cache.core.background import BackgroundWorker
from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import running_loop, step, threaded
from zarr_cache.core.single_flight import Flights
from zarr_cache.core.sizes import format_size
from zarr_cache.disk.read_threads import read_all, read_in_pool
from zarr_cache.index import admit, evict, invalidate, lookup, removals, space, values
from zarr_cache.index.admit import Admission
from zarr_cache.index.ranges import RangeCache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer

    from zarr_cache.core.clock import PersistentClock
    from zarr_cache.core.flow import Flow
    from zarr_cache.file.database import Database
    from zarr_cache.index.admit import Response
    from zarr_cache.index.evict import Evictions, Limits
    from zarr_cache.index.lookup import EntryState, Kept
    from zarr_cache.index.space import Usage
    from zarr_cache.index.values import Keep


logger = logging.getLogger(__name__)

URGENT_BYTES = 8 * 2**20
"""While responses of so many bytes wait, they are written without delay."""

MAX_WAITING_BYTES = 32 * 2**20
"""While responses of so many bytes wait, the caller that adds another waits with it."""

MAX_RANGES_ON_LOOP = 64
"""So many ranges of a value are looked up on an event loop; more would hold it up."""


class ValueCache:
    """The values in one database, which every CacheStore over it shares, of several sources.

    Get one from `registry.file_cache_of`: two would not know of each other's range entries. Every
    method may raise a `CacheError`, at the call or while its flow runs. Any thread may call.

    Parameters
    ----------
    database
        The cache file, or a database in memory.
    keep
        Writes the bytes of a small value.
    is_shared
        Whether other processes use the database, and a killed one may have left private entries.

    Attributes
    ----------
    ranges
        Range entries, of every namespace.
    flights
        Fetches in flight.
    pending
        Uses and counts that wait to be written.
    invalidated
        Namespaces of which no entry may be served.
    is_listed
        Whether the index of the values is complete: `ensure_listed` has nothing to wait for.
    """

    is_listed = True

    def __init__(
        self, database: Database, keep: Keep = values.write, *, is_shared: bool = True
    ) -> None:
        self._database = database
        self._keep = keep
        self._is_shared = is_shared
        self.invalidated = InvalidatedNamespaces(database)
        self._begin()
        # These keep this object as long as the database: what waits to be written is not lost with
        # the last CacheStore.
        database.before_close.append(self._close)
        database.before_end.append(self._end)
        database.before_pause.append(self._pause)
        database.after_fork.append(self._begin)
        database.after_loss.append(self._forget_file)

    def _begin(self) -> None:
        """Start empty: at first, and in the child of a fork, where locks may be held for ever."""
        self.ranges = RangeCache()
        self.flights: Flights[tuple[object, ...], Buffer | None] = Flights()
        self.pending = Pending()
        # One for reads and one for writes: while the file is locked or full, hits go on.
        self._reads = GuardedDatabase(self._database)
        self._writes = GuardedDatabase(self._database)
        self._queue = WriteBehindQueue(self._database, self._writes, self.pending, self._keep)
        guarded = (self._reads, self._writes)
        self._upkeep = Upkeep(
            self._database, *guarded, self._queue, self.pending, is_shared=self._is_shared
        )
        self._writer = BackgroundWorker(self._upkeep.run)
        self._has_evicted = False

    def _forget_file(self) -> None:
        """Forget what is known of one file: it does not hold for another in its place."""
        self.ranges.clear()
        self.pending.take_touches()

    def _close(self) -> None:
        """Write what waits, before the file is closed."""
        self._writer.stop()
        # There is no later trial.
        self._writes.breaker.half_open()
        self._pause()

    def _end(self) -> None:
        """Write what waits at the end of the interpreter, and remove what was private to it."""
        self._close()
        self._upkeep.remove_own_private()

    def _pause(self) -> None:
        """Write what waits, unless the circuit is open."""
        self._writer.stop()
        self.flush()
        self._upkeep.remove_leftovers()
        self._upkeep.write_pending_now()

    @property
    def is_open(self) -> bool:
        """Whether `clock` and `lookup_nowait` can be called."""
        return self._database.is_open

    def ensure_open(self) -> Flow[None]:
        """Open the database, if it is not open: `is_open` is true then."""
        if not self._database.is_open:
            yield from self._reads.flow(lookup.nothing)

    def ensure_listed(self, namespace: str) -> Flow[None]:  # noqa: ARG002 - of a store
        """Open the database, and complete its index; `namespace` is one that is used."""
        return self.ensure_open()

    def clock(self) -> PersistentClock:
        """The clock that gives entries their timestamps."""
        return self._database.clock()

    def lookup_metadata(self, namespace: str, key: str) -> Flow[EntryState]:
        """The entry of the key, without its bytes."""
        yield from self.ensure_open()
        waiting = self._queue.response(namespace, key)
        found = self._reads.run(lookup.lookup_metadata, namespace, key)
        return found if waiting is None else waiting.overlay_on(found)

    def lookup_nowait(
        self, namespace: str, key: str, request: ByteRequest | None, fresh_after: int
    ) -> EntryState | None:
        """Look the key up without blocking; None if that would need another thread.

        Where the bytes are not in memory, and this thread runs an event loop, the result has a
        `EntryState.read`, and `lookup` reads them. It must be open. See docs/decisions/0013.
        """
        # Before the file is read: a response that leaves the queue is in the file by then.
        waiting = self._queue.response(namespace, key)
        may_wait = running_loop() is None
        found = self._reads.run(
            lookup.lookup, namespace, key, request, fresh_after, may_wait=may_wait
        )
        if waiting is not None and found.data is None:
            return waiting.overlay_on(found, request, fresh_after)
        return found

    def lookup(
        self,
        namespace: str,
        key: str,
        request: ByteRequest | None,
        fresh_after: int,
        found: EntryState | None = None,
    ) -> Flow[EntryState]:
        """The entry of the key, with the bytes requested if it was stored after `fresh_after`.

        `found` is the result of `lookup_nowait`, if the caller has just called it.
        """
        if found is None:
            yield from self.ensure_open()
            found = self.lookup_nowait(namespace, key, request, fresh_after)
            assert found is not None  # noqa: S101 - only another store must be waited for
        (found,) = yield from self._with_bytes([found], namespace, key, [request], fresh_after)
        return found

    def lookup_many(
        self, namespace: str, key: str, requests: Sequence[ByteRequest | None], fresh_after: int
    ) -> Flow[list[EntryState]]:
        """The result of `lookup` for each request."""
        waiting = self._queue.response(namespace, key)
        arguments = (namespace, key, requests, fresh_after)
        may_wait = running_loop() is None
        lookup_many = partial(lookup.lookup_many, may_wait=may_wait)
        if len(requests) > MAX_RANGES_ON_LOOP:
            found = yield from self._reads.flow(lookup_many, *arguments)
        else:
            found = self._reads.run(lookup_many, *arguments)
        if waiting is not None:
            found = [
                each if each.data is not None else waiting.overlay_on(each, request, fresh_after)
                for each, request in zip(found, requests, strict=True)
            ]
        return (yield from self._with_bytes(found, *arguments))

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
        loaded = iter((yield from step(partial(read_all, reads), partial(read_in_pool, reads))))
        for index, (each, request) in enumerate(zip(found, requests, strict=True)):
            if each.read is None:
                continue
            data = next(loaded)
            if data is not None:
                found[index] = each._replace(data=data, read=None)
            else:
                # Its space was given to another value meanwhile, or it is damaged.
                arguments = (namespace, key, request, fresh_after)
                found[index] = yield from self._reads.flow(lookup.lookup, *arguments)
        return found

    def list_cached(
        self, namespace: str, prefix: str, fresh_after: int, absent_fresh_after: int
    ) -> Flow[dict[str, Kept]]:
        """The fresh entries of the keys with this prefix, without their bytes."""
        # Responses that wait are cached as well.
        yield from threaded(self.flush)
        arguments = (namespace, prefix, fresh_after, absent_fresh_after)
        return (yield from self._reads.flow(lookup.list_cached, *arguments))

    def usage(self, namespace: str) -> Usage:
        """How much is cached, of the namespace and in all."""
        return self._reads.run(space.usage, namespace)

    def admit(
        self,
        namespace: str,
        key: str,
        response: Response,
        limits: Limits,
        on_done: Callable[[Evictions | CacheError | None], None],
    ) -> Flow[None]:
        """Admit a response under the limits, unless the key was written since it was fetched.

        Lookups find it from now on; it is written soon. This waits only while responses of more
        than `MAX_WAITING_BYTES` wait. `on_done` is called with the outcome, by any thread: the
        evictions, None if the response was not admitted, or the error.
        """
        self._writes.breaker.raise_if_open()
        self._upkeep.max_size = limits.max_size
        mine = Admission(namespace, key, response, limits, on_done)
        self._queue.add(mine)
        nbytes = self._queue.nbytes
        self._writer.wake(is_urgent=nbytes > URGENT_BYTES)
        if nbytes > MAX_WAITING_BYTES:
            yield from mine.wait()

    @property
    def bytes_being_written(self) -> int:
        """Bytes of the responses that are being written at the moment."""
        return self._queue.bytes_being_written

    def touch(self, namespace: str, key: str, found: EntryState, used_at: int) -> None:
        """Record a use of the entry that a lookup found; it is written with others."""
        if found.entry is None:
            self._queue.touch(namespace, key, used_at)
        elif self.pending.touch(found.entry, used_at) and not self._writes.breaker.is_open:
            self._writer.wake()

    def flush(self) -> None:
        """Write the responses that wait: when this returns, they are written, or have failed."""
        self._upkeep.write_waiting()
        self._queue.drain()

    def write_pending(self) -> Flow[None]:
        """Write the uses and counts that wait."""
        return self._upkeep.write_pending()

    def enforce(self, namespace: str, limits: Limits) -> Flow[Evictions]:
        """Evict and expire entries until the limits hold."""
        # Before the uses are taken for nothing, at each hit.
        self._writes.breaker.raise_if_open()
        self._upkeep.max_size = limits.max_size
        with self.pending.writing_touches() as touches:
            removed = yield from self._writes.flow(evict.apply_limits, namespace, limits, touches)
        if removed.evicted:
            # The pages that are free now may be many.
            self._writer.wake()
        return removed

    def report_eviction(self, max_size: int | None) -> None:
        """Log that `max_size` is used up, the first time that this is called in a process."""
        if self._has_evicted or max_size is None:
            return
        self._has_evicted = True
        logger.info(
            "%s: max_size of %s is used up; the least recently used is evicted",
            self._database,
            format_size(max_size),
        )

    def forget(self, namespace: str, key: str, revision: int, stored_at: int) -> Flow[list[str]]:
        """Remove the entry of the key, unless it is newer; return the keys removed."""
        self._queue.cancel(namespace, key)
        return self._writes.flow(
            admit.forget, namespace, key, revision=revision, stored_at=stored_at
        )

    def discard(self, found: EntryState) -> Flow[list[str]]:
        """Remove a damaged entry; return the keys removed."""
        return self._writes.flow(admit.discard, found)

    def clear(self, namespace: str) -> Flow[None]:
        """Remove all entries of the namespace, and revalidate it.

        No response that is being fetched is admitted.
        """
        marked_ns = self._database.marked_ns(namespace)
        yield from self.invalidate_prefix(namespace, "")
        try:
            yield from self.invalidated.revalidate(namespace, marked_ns)
        except CacheError as error:
            # Then the next reads need not try.
            raise self._writes.record_failure(error) from error

    def begin_write(
        self, namespace: str, keys: Sequence[str], now_ns: int, begun: list[int]
    ) -> Flow[None]:
        """Invalidate the keys before the source is written.

        Each entry becomes a tombstone with a new revision and one more write in flight; until
        `end_write`, no response fetched for them is admitted. The revision is appended to `begun`,
        so that a cancelled caller can still end its own write.
        """
        for key in keys:
            self.ranges.remove_key(namespace, key)
        return self._writes.flow(invalidate.begin_write, namespace, keys, now_ns, begun)

    def end_write(
        self,
        namespace: str,
        keys: Sequence[str],
        responses: Mapping[str, Response],
        now_ns: int,
        limits: Limits,
    ) -> Flow[Evictions]:
        """End a write that has begun: responses fetched from now on are admitted again.

        `responses` are what the source holds now, where that is known; they are admitted.
        """
        self._upkeep.max_size = limits.max_size
        end_write = partial(invalidate.end_write, keep=self._keep)
        arguments = (namespace, keys, responses, now_ns, limits)
        if not responses:
            # Nothing is admitted for which an entry would have to be evicted.
            return (yield from self._writes.flow(end_write, *arguments, {}))
        with self.pending.writing_touches() as touches:
            return (yield from self._writes.flow(end_write, *arguments, touches))

    def invalidate_prefix(self, namespace: str, prefix: str) -> Flow[list[str]]:
        """Remove the entries below the prefix, and return their keys.

        No response that is being fetched is admitted.
        """
        self.ranges.remove(namespace, prefix)
        return self._writes.flow(removals.invalidate_prefix, namespace, prefix)

    def begin_removal(self, namespace: str, now_ns: int) -> Flow[None]:
        """Admit no response of the namespace while the source removes a folder."""
        return self._writes.flow(removals.begin_removal, namespace, now_ns)

    def end_removal(self, namespace: str) -> Flow[None]:
        """Admit responses again, unless another folder is being removed."""
        return self._writes.flow(removals.end_removal, namespace)
