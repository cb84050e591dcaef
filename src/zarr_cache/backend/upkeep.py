"""Upkeep of a database in the background: writes what waits, frees space, removes leftovers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from zarr_cache.core import private
from zarr_cache.core.errors import CacheError, CircuitOpenError
from zarr_cache.core.flow import run
from zarr_cache.index import evict, upkeep

if TYPE_CHECKING:
    from zarr_cache.backend.counters import Pending
    from zarr_cache.backend.failures import GuardedDatabase
    from zarr_cache.backend.queue import WriteBehindQueue
    from zarr_cache.core.flow import Flow
    from zarr_cache.file.database import Database


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
        self._may_have_leftovers = is_shared
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
        if self._may_have_leftovers and not self._database.is_gone():
            self._may_have_leftovers = False
            self._remove_private(private.PREFIX, unused_ns=evict.MAX_UNUSED_NS)

    def remove_own_private(self) -> None:
        """Remove the private entries of this process: no later process can use them."""
        self._remove_private(private.own_prefix())

    def _remove_private(self, prefix: str, unused_ns: int = 0) -> None:
        """Remove the namespaces with this prefix of which no entry was used for so long."""
        if self._database.is_gone():
            return
        try:
            unused_since = self._database.clock().now_ns() - unused_ns
            useless = self._reads.run(evict.unused_namespaces, prefix, unused_since)
            for name in useless:
                while self._writes.run(evict.remove_namespace, name):
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
