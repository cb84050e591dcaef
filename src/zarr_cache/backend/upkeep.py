"""Upkeep of a database in the background: writes what waits, frees space, removes leftovers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from zarr_cache.core import private
from zarr_cache.core.ages import EVER
from zarr_cache.core.errors import CacheError, CircuitOpenError
from zarr_cache.core.flow import run
from zarr_cache.core.sizes import format_size
from zarr_cache.index import listing, removals, upkeep

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.abc.store import ByteRequest

    from zarr_cache.backend.counters import Pending
    from zarr_cache.backend.failures import GuardedDatabase
    from zarr_cache.backend.queue import WriteBehindQueue
    from zarr_cache.backend.ranges import RangeCache
    from zarr_cache.core.flow import Flow
    from zarr_cache.file.database import Database
    from zarr_cache.index.evict import Limits
    from zarr_cache.index.lookup import EntryState


logger = logging.getLogger(__name__)


class Upkeep:
    """What the background thread does for a database, while readers go on.

    Parameters
    ----------
    is_shared
        Whether other processes use the database, and a killed one may have left entries in it that
        were private to it.

    Attributes
    ----------
    max_size
        The last budget that a caller gave; the data file is shortened by it.
    may_have_leftovers
        Whether it was not yet looked for the entries of killed processes.
    """

    def __init__(
        self,
        database: Database,
        reads: GuardedDatabase,
        writes: GuardedDatabase,
        queue: WriteBehindQueue,
        pending: Pending,
        *,
        is_shared: bool,
    ) -> None:
        self._database = database
        self._reads = reads
        self._writes = writes
        self._queue = queue
        self._pending = pending
        self.may_have_leftovers = is_shared
        self.max_size: int | None = None

    def run(self) -> None:
        """Write what waits, remove leftovers, and give free space back."""
        self.write_waiting()
        self.remove_leftovers()
        if self._database.is_gone():
            return
        try:
            while self._reads.run(upkeep.has_much_free):
                self._writes.run(upkeep.give_back)
                self.write_waiting()
            self._shorten_data_file()
        except CacheError as error:
            logger.info("free space stays in the file: %s", error)

    def write_waiting(self) -> None:
        """Write the responses that wait now, and the uses if they are due."""
        self._queue.write_waiting()
        if self._pending.are_due:
            self.write_pending_now(is_all=self._pending.are_uses_due)

    def write_pending(self) -> Flow[None]:
        """Write the uses and counts that wait, and sample the reads."""
        with (
            self._pending.writing_counts() as counts,
            self._pending.writing_confirmations() as confirmations,
        ):
            reads = self._pending.reads
            if not (counts or confirmations or len(self._pending) or len(reads)):
                return
            batch = self._pending.take_reads()
            with self._pending.writing_touches() as touches:
                sampled = yield from self._writes.flow(
                    upkeep.write, counts, touches, confirmations, batch, reads.max_size
                )
            reads.learn(sampled)

    def _sample(self) -> Flow[None]:
        """Sample the reads alone: uses may wait longer."""
        batch, reads = self._pending.take_reads(), self._pending.reads
        if batch is not None:
            reads.learn((yield from self._writes.flow(upkeep.sample, batch, reads.max_size)))

    def write_pending_now(self, *, is_all: bool = True) -> None:
        """Write the uses and counts that wait, in this thread; a failure is logged.

        If not `is_all`, only sample the reads.
        """
        if self._database.is_gone():
            return
        try:
            run(self.write_pending() if is_all else self._sample())
        except CircuitOpenError:
            pass  # the failure that opened the circuit has been logged
        except CacheError as error:
            # What may be lost is the order of some uses: no reason for a program not to end.
            logger.warning("uses and counts could not be written: %s", error)

    def remove_leftovers(self) -> None:
        """Remove the private entries of processes that were killed, once for each process."""
        if self.may_have_leftovers and not self._database.is_gone():
            self.may_have_leftovers = False
            self._remove_private(private.PREFIX, unused_ns=removals.MAX_UNUSED_NS)

    def remove_own_private(self) -> None:
        """Remove the private entries of this process: no later process can use them."""
        self._remove_private(private.own_prefix())

    def _remove_private(self, prefix: str, unused_ns: int = 0) -> None:
        """Remove the namespaces with this prefix of which no entry was used for so long."""
        if self._database.is_gone():
            return
        try:
            unused_since = self._database.clock().now_ns() - unused_ns
            useless = self._reads.run(removals.unused_namespaces, prefix, unused_since)
            for name in useless:
                while self._writes.run(removals.remove_namespace, name):
                    pass
            is_too_long = bool(useless) and self._reads.run(upkeep.has_much_to_cut)
            if is_too_long:
                self._writes.run(upkeep.cut)
        except CacheError as error:
            # They are evicted as the least recently used.
            logger.info("entries that are private to a process could not be removed: %s", error)

    def _shorten_data_file(self) -> None:
        """Move what is at the end of the data file to the front, if the file is too long."""
        while self._reads.run(upkeep.is_too_long, self.max_size):
            if not self._writes.run(upkeep.move_last, self._database.clock().now_ns()):
                break
            self.write_waiting()
        if self._reads.run(upkeep.has_much_to_cut):
            self._writes.run(upkeep.cut)


LOOK_NS = 1_000_000_000
"""The file is searched for stale entries once in so long."""


class Room:
    """How much room the budget has, where nothing is evicted for what is new.

    So a response without room needs no write transaction. The transaction that admits one checks
    again: other processes admit, too.

    Any thread may call.

    Parameters
    ----------
    tidy
        Removes leftovers in the background: nothing else does while nothing is admitted.
    """

    def __init__(
        self,
        database: Database,
        reads: GuardedDatabase,
        queue: WriteBehindQueue,
        ranges: RangeCache,
        tidy: Callable[[], None],
    ) -> None:
        self._database = database
        self._reads = reads
        self._queue = queue
        self._ranges = ranges
        self._tidy = tidy
        # By namespace: when it was searched for stale entries, and how many bytes are left of them.
        self._stale: dict[str, tuple[int, int]] = {}
        self._has_reported = False

    @property
    def queued_bytes(self) -> int:
        """Bytes of the responses that wait or are being written."""
        return self._queue.nbytes

    def is_left(
        self, key: str, request: ByteRequest | None, nbytes: int, limits: Limits, found: EntryState
    ) -> Flow[bool]:
        """Whether the file has room for a response of `nbytes`, or what is stale may make it.

        `found` is what a lookup of the key has just found. What the response replaces makes room.
        """
        # Not those that are being written: they may be in the file by now.
        excess = limits.excess(found.cached_bytes + self._queue.waiting_bytes + nbytes)
        if excess <= 0:
            return True
        of_key = (limits.namespace, key, request, nbytes)
        if found.kind == "value" or found.file_ranges:
            excess -= self._reads.run(listing.replaced_bytes, *of_key)
        if request is None:
            excess -= self._ranges.replaced_bytes(*of_key)
        if excess > 0:
            excess -= self.free_memory(limits, excess)
        # What exceeds the budget besides is what was promised to those that wait.
        if excess <= 0 or (yield from self._promise_stale(limits, min(excess, nbytes))):
            return True
        self._tidy()
        self._report(limits)
        return False

    def free_memory(self, limits: Limits, excess: int) -> int:
        """Remove the oldest stale ranges in memory, of so many bytes; return how many were."""
        before = self._ranges.nbytes
        self._ranges.evict_stale(limits.namespace, limits.expired_after, excess)
        return before - self._ranges.nbytes

    def stale_bytes(self, limits: Limits) -> Flow[int]:
        """Bytes of the stale entries of the namespace in the file, as far as they are looked at."""
        return self._reads.flow(listing.stale_bytes, limits.namespace, limits.expired_after)

    def _promise_stale(self, limits: Limits, nbytes: int) -> Flow[bool]:
        """Promise the room of stale entries to a response; False if too few are known."""
        if limits.expired_after == EVER:
            return False
        namespace = limits.namespace
        looked_at, left = self._stale.get(namespace, (limits.now_ns - LOOK_NS, 0))
        if limits.now_ns - looked_at >= LOOK_NS:
            looked_at = limits.now_ns
            left = yield from self.stale_bytes(limits)
        is_enough = left >= nbytes
        self._stale[namespace] = (looked_at, left - nbytes if is_enough else left)
        return is_enough

    def _report(self, limits: Limits) -> None:
        """Log that the budget is used up, once for each process."""
        if not self._has_reported and limits.max_size is not None:
            self._has_reported = True
            logger.info(
                "%s: max_size of %s is used up; what it has no room for is not cached",
                self._database,
                format_size(limits.max_size),
            )
