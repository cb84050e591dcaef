"""The cache of values in one database: entries in a cache file, or an index in memory."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, override

from zarr_cache.backend.counters import Pending
from zarr_cache.backend.failures import GuardedDatabase, InvalidatedNamespaces
from zarr_cache.backend.file_lookups import FileLookups
from zarr_cache.backend.queue import WriteBehindQueue
from zarr_cache.backend.ranges import RangeCache
from zarr_cache.backend.upkeep import Room, Upkeep
from zarr_cache.backend.versions import Versions
from zarr_cache.core.background import BackgroundWorker
from zarr_cache.core.errors import CacheError
from zarr_cache.core.single_flight import Flights
from zarr_cache.core.sizes import format_size
from zarr_cache.index import evict, invalidate, listing, removals, values
from zarr_cache.index.admit import Admission
from zarr_cache.index.upkeep import Confirmation
from zarr_cache.sampling import stored
from zarr_cache.sampling.reads import Reads

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zarr_cache.core.flow import Flow
    from zarr_cache.file.database import Database
    from zarr_cache.index.admit import Response
    from zarr_cache.index.evict import Evictions, Limits
    from zarr_cache.index.listing import Usage, Versioned
    from zarr_cache.index.lookup import EntryState
    from zarr_cache.index.values import Keep


logger = logging.getLogger(__name__)

URGENT_BYTES = 8 * 2**20
"""While responses of so many bytes wait, they are written without delay."""

MAX_WAITING_BYTES = 32 * 2**20
"""While responses of so many bytes wait, a caller that adds another waits for the oldest."""


class FileCache(FileLookups):
    """The values in one database, which every CacheStore over it shares.

    Get one from `registry.file_cache_of`: two would not know of each other's range entries.

    Parameters
    ----------
    database
        The cache file, or a database in memory.
    keep
        Writes the bytes of a small value.
    is_shared
        Whether other processes use the database.
    """

    def __init__(
        self, database: Database, keep: Keep = values.write, *, is_shared: bool = True
    ) -> None:
        self._database = database
        self._keep = keep
        self._is_shared = is_shared
        self.pending = Pending()
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
        self.flights = Flights()
        self.versions = Versions()
        reads = Reads(self._wake_to_sample, self._decision, self.pending.reads.max_size)
        self.pending = Pending(reads)
        # One for reads and one for writes: while the file is locked or full, hits go on.
        self._reads = GuardedDatabase(self._database)
        self._writes = GuardedDatabase(self._database)
        self._queue = WriteBehindQueue(self._database, self._writes, self.pending, self._keep)
        self._upkeep = Upkeep(
            self._database,
            self._reads,
            self._writes,
            self._queue,
            self.pending,
            is_shared=self._is_shared,
        )
        self._writer = BackgroundWorker(self._upkeep.run)
        self.room = Room(self._database, self._reads, self._queue, self.ranges, self._tidy)
        self._has_evicted = False

    def _tidy(self) -> None:
        """Remove leftovers in the background, if that was not done."""
        if self._upkeep.may_have_leftovers:
            self._writer.wake()

    def _forget_file(self) -> None:
        """Forget what is known of one file: it does not hold for another in its place."""
        self.ranges.clear()
        self.versions = Versions()
        self.pending.take_touches()
        self.pending.reads.take()

    def _wake_to_sample(self) -> None:
        if not self._writes.breaker.is_open:
            self._writer.wake()

    def _decision(self) -> bool | None:
        """Whether a full cache keeps what is there, says the file; None if it cannot be read."""
        if not self.is_open:
            return None
        try:
            return self._reads.run(stored.keeps)
        except CacheError:
            # The next lookup reports it.
            return None

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

    @override
    def usage(self, namespace: str) -> Usage:
        return self._reads.run(listing.usage, namespace)

    @override
    def admit(
        self,
        namespace: str,
        key: str,
        response: Response,
        limits: Limits,
        on_done: Callable[[Evictions | CacheError | None], None],
    ) -> Flow[None]:
        """Admit a response: see `ValueCache.admit`.

        Waits only while responses of more than `MAX_WAITING_BYTES` wait.
        """
        if not self._writes.breaker.is_closed:
            self._writes.breaker.raise_if_open()
        self._upkeep.max_size = limits.max_size
        self._queue.add(Admission(namespace, key, response, limits, on_done))
        nbytes = self._queue.nbytes
        self._writer.wake(is_urgent=nbytes > URGENT_BYTES)
        oldest = self._queue.oldest() if nbytes > MAX_WAITING_BYTES else None
        if oldest is not None:
            # Not for the new one: a queue of small responses takes seconds to be written.
            yield from oldest.wait()

    def admit_now(self, admission: Admission) -> None:
        """Admit a response, and write it before this returns, with the others that wait."""
        self._queue.add(admission)
        self._upkeep.write_waiting()

    @property
    @override
    def bytes_being_written(self) -> int:
        return self._queue.bytes_being_written

    @override
    def touch(self, namespace: str, key: str, found: EntryState, used_at: int) -> None:
        if found.entry is None:
            self._queue.touch(namespace, key, used_at)
        elif self.pending.touch(found.entry, used_at) and not self._writes.breaker.is_open:
            self._writer.wake()

    @override
    def touch_all(
        self, namespace: str, key: str, found: Sequence[EntryState], used_at: int
    ) -> None:
        entries = [each.entry for each in found if each.entry is not None]
        if len(entries) < len(found):
            # Of ranges that wait, the queue has recorded the use.
            self._queue.touch(namespace, key, used_at)
        are_due = bool(entries) and self.pending.touch_all(entries, used_at)
        if are_due and not self._writes.breaker.is_open:
            self._writer.wake()

    @override
    def flush(self) -> None:
        self._upkeep.write_waiting()
        self._queue.drain()

    @override
    def write_pending(self) -> Flow[None]:
        return self._upkeep.write_pending()

    def write_pending_now(self) -> None:
        """Write the uses and counts that wait, in this thread; a failure is logged."""
        self._upkeep.write_pending_now()

    @override
    def enforce(self, namespace: str, limits: Limits) -> Flow[Evictions]:
        if not self._writes.breaker.is_closed:
            # Before the uses are taken for nothing, at each hit.
            self._writes.breaker.raise_if_open()
        self._upkeep.max_size = limits.max_size
        with self.pending.writing_touches() as touches:
            removed = yield from self._writes.flow(evict.apply_limits, namespace, limits, touches)
        if removed.evicted:
            # The pages that are free now may be many.
            self._writer.wake()
        return removed

    @override
    def report_eviction(self, max_size: int | None) -> None:
        if self._has_evicted or max_size is None:
            return
        self._has_evicted = True
        logger.info(
            "%s: max_size of %s is used up; the least recently used is evicted",
            self._database,
            format_size(max_size),
        )

    @override
    def confirm(self, found: EntryState | Versioned, confirmed_at: int) -> None:
        if not found.entry or found.validator is None:
            # It waits to be written, and is as good as new.
            return
        row = (found.entry, found.checksum, found.validator, found.confirmed_at)
        self.pending.confirm(Confirmation(*row, confirmed_at))
        if not self._writes.breaker.is_open:
            self._writer.wake()

    @override
    def forget(
        self, namespace: str, key: str, revision: int, stored_at: int, *, with_ranges: bool = False
    ) -> Flow[list[str]]:
        self._queue.cancel(namespace, key, with_ranges=with_ranges)
        if with_ranges:
            self.ranges.remove_key(namespace, key)
        return self._writes.flow(
            partial(removals.forget, with_ranges=with_ranges),
            namespace,
            key,
            revision=revision,
            stored_at=stored_at,
        )

    @override
    def discard(self, found: EntryState) -> Flow[list[str]]:
        return self._writes.flow(removals.discard, found)

    @override
    def clear(self, namespace: str) -> Flow[None]:
        marked_ns = self._database.marked_ns(namespace)
        yield from self.invalidate_prefix(namespace, "")
        try:
            yield from self.invalidated.release(namespace, marked_ns)
        except CacheError as error:
            # Then the next reads need not try.
            raise self._writes.record_failure(error) from error

    @override
    def begin_write(
        self, namespace: str, keys: Sequence[str], now_ns: int, begun: list[int]
    ) -> Flow[None]:
        for key in keys:
            self.ranges.remove_key(namespace, key)
            self.versions.forget(namespace, key)
        return self._writes.flow(invalidate.begin_write, namespace, keys, now_ns, begun)

    @override
    def end_write(
        self,
        namespace: str,
        keys: Sequence[str],
        responses: Mapping[str, Response],
        now_ns: int,
        limits: Limits,
    ) -> Flow[Evictions]:
        for key in keys:
            # Reads may have come between.
            self.versions.forget(namespace, key)
        self._upkeep.max_size = limits.max_size
        end_write = partial(invalidate.end_write, keep=self._keep)
        arguments = (namespace, keys, responses, now_ns, limits)
        if not responses:
            # Nothing is admitted for which an entry would have to be evicted.
            return (yield from self._writes.flow(end_write, *arguments, {}))
        with self.pending.writing_touches() as touches:
            return (yield from self._writes.flow(end_write, *arguments, touches))

    @override
    def invalidate_prefix(self, namespace: str, prefix: str) -> Flow[list[str]]:
        self.ranges.remove(namespace, prefix)
        self.versions.forget_prefix(namespace, prefix)
        return self._writes.flow(removals.invalidate_prefix, namespace, prefix)

    @override
    def begin_removal(self, namespace: str, now_ns: int) -> Flow[None]:
        return self._writes.flow(removals.begin_removal, namespace, now_ns)

    @override
    def end_removal(self, namespace: str) -> Flow[None]:
        return self._writes.flow(removals.end_removal, namespace)
