"""The write-behind queue: responses wait here to be written, and lookups find them meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from zarr_cache.backend.ranges import RangeCache, RangeEntry
from zarr_cache.core.errors import CacheError
from zarr_cache.index import admit as index_admit
from zarr_cache.index import extents, values
from zarr_cache.index.evict import Evictions, evict_ahead
from zarr_cache.index.large_values import max_bytes, written
from zarr_cache.index.ranges import remove_all_but_some
from zarr_cache.index.upkeep import write_counts, write_touches

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from zarr.abc.store import ByteRequest

    from zarr_cache.backend.counters import Pending
    from zarr_cache.backend.failures import GuardedDatabase
    from zarr_cache.file.connection import Connection
    from zarr_cache.file.database import Database
    from zarr_cache.index.admit import Admission, Response
    from zarr_cache.index.listing import KnownRanges
    from zarr_cache.index.lookup import Data
    from zarr_cache.index.ranges import KeptVersion
    from zarr_cache.index.values import Keep


MAX_BATCH = 64
"""At most this many responses are written in one transaction."""


class WriteBehindQueue:
    """Responses that wait to be written, many in one transaction.

    A transaction costs several times what one more entry in it does, and no reader waits for it.

    Any thread may call.

    Parameters
    ----------
    pending
        Uses that wait are written before the responses, since eviction depends on them. Counts are
        written with them: a process that always has responses to write would write none otherwise.
    keep
        Writes the bytes of a small value.

    Attributes
    ----------
    nbytes
        Bytes of the responses that wait or are being written.
    bytes_being_written
        Bytes of those that are being written at the moment.
    """

    def __init__(
        self, database: Database, writes: GuardedDatabase, pending: Pending, keep: Keep
    ) -> None:
        self._database = database
        self._writes = writes
        self._pending = pending
        self._keep = keep
        self._lock = threading.Lock()
        # Held by the thread that writes a batch.
        self._turn = threading.Lock()
        self._waiting: deque[Admission] = deque()
        self._dequeued: list[Admission] = []
        self._by_key: dict[tuple[str, str], Admission] = {}
        self._ranges = RangeCache()
        self._entries: dict[Admission, RangeEntry] = {}
        self.nbytes = 0
        self.bytes_being_written = 0

    def add(self, admission: Admission) -> None:
        """Put a response at the end of the queue."""
        response = admission.response
        with self._lock:
            if response.request is None or response.data is None:
                self._by_key[admission.namespace, admission.key] = admission
                if response.data is None:
                    # They are of a value that was removed.
                    self._ranges.remove_key(admission.namespace, admission.key)
            else:
                entry = RangeEntry(
                    admission.namespace,
                    admission.key,
                    response.request,
                    response.data,
                    response.stored_at,
                    response.revision,
                    response.used_at,
                    response.validator,
                )
                self._ranges.add(entry, fence=0)
                self._entries[admission] = entry
            self._waiting.append(admission)
            self.nbytes += response.size

    def oldest(self) -> Admission | None:
        """The response that is in the queue for longest; None if the queue is empty."""
        with self._lock:
            for queue in (self._dequeued, self._waiting):
                if queue:
                    return queue[0]
        return None

    def response(self, namespace: str, key: str) -> Response | None:
        """The last response for the key that waits or is being written."""
        admission = self._by_key.get((namespace, key))
        return None if admission is None or admission.is_cancelled else admission.response

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the responses that wait, without those that are being written."""
        return self.nbytes - self.bytes_being_written

    @property
    def has_ranges(self) -> bool:
        """Whether a response in the queue is a range."""
        return len(self._ranges) > 0

    def range_for(
        self, namespace: str, key: str, request: ByteRequest, fresh_after: int, used_at: int
    ) -> tuple[RangeEntry, Data] | None:
        """The fresh range in the queue with the bytes of the request, and these; or None.

        It counts as used. A write to the key may have been later.
        """
        return self._ranges.get(
            namespace, key, request, fence=0, fresh_after=fresh_after, used_at=used_at
        )

    def known_ranges(self, namespace: str, key: str, fence: int, fresh_after: int) -> KnownRanges:
        """What the fresh ranges of the key that wait or are being written show."""
        return self._ranges.known(namespace, key, fence=fence, fresh_after=fresh_after)

    def touch(self, namespace: str, key: str, used_at: int) -> None:
        """Record a use of the last response for the key."""
        with self._lock:
            admission = self._by_key.get((namespace, key))
            if admission is not None:
                admission.used_at = used_at

    def kept_version(self, namespace: str, key: str, fence: int) -> KeptVersion | None:
        """The version of the ranges of the key that wait, without those from before `fence`."""
        return self._ranges.kept_version(namespace, key, fence=fence)

    def cancel(self, namespace: str, key: str, *, with_ranges: bool = False) -> None:
        """Write no response for the key that is in the queue, nor ranges of it if so said."""
        with self._lock:
            # Nor those that are being written: they have no entry yet that could be removed.
            for admission in (*self._waiting, *self._dequeued):
                place = (admission.namespace, admission.key)
                is_range = admission.response.request is not None
                if place == (namespace, key) and (with_ranges or not is_range):
                    admission.is_cancelled = True
        if with_ranges:
            self._ranges.remove_key(namespace, key)

    def write_waiting(self) -> None:
        """Write the responses that wait now, and report the outcome of each.

        A response that is added meanwhile is written by the thread that adds it, or by the
        background thread. Otherwise this would not end as long as responses come.
        """
        if self._database.is_gone():
            # The file was deleted: what waits makes no new one.
            self._drop_all()
            return
        left = len(self._waiting)
        while left > 0:
            batch: list[Admission] = []
            failure = None
            try:
                now_ns = self._database.clock().now_ns()
                self._writes.run(self._write_batch, batch, now_ns)
            except CacheError as error:
                failure = error
                if not batch:
                    batch = self._dequeue()
                    self._release(batch)
            finally:
                # Also after Ctrl-C: other threads may wait for these.
                for each in batch:
                    each.end(failure)
            if not batch:
                break  # other threads have dequeued them
            left -= len(batch)

    def drain(self) -> None:
        """Wait until no response is being written."""
        with self._turn:
            pass

    def _drop_all(self) -> None:
        """Write none of the responses, nor the uses of entries of a file that is gone."""
        while batch := self._dequeue():
            self._release(batch)
            for each in batch:
                each.end(None)
        self._pending.take_touches()

    def _dequeue(self, connection: Connection | None = None) -> list[Admission]:
        """The first of the responses, so few that the next one does not wait for long.

        Lookups find them until `_release`.

        Parameters
        ----------
        connection
            That of the file they are written to; None if they are not written.
        """
        batch: list[Admission] = []
        small = large = 0
        with self._lock:
            while self._waiting and len(batch) < MAX_BATCH:
                first = self._waiting[0]
                size = first.response.size
                if connection is not None and extents.is_large(connection, size):
                    large += size
                else:
                    small += size
                if batch and (small > values.MAX_BYTES or large > max_bytes(first.limits)):
                    break
                batch.append(self._waiting.popleft())
            self._dequeued += batch
            self.bytes_being_written += sum(admission.response.size for admission in batch)
        return batch

    def _release(self, batch: Iterable[Admission]) -> None:
        """Remove responses that have been written, or never will be."""
        with self._lock:
            for admission in batch:
                if admission not in self._dequeued:
                    continue
                self._dequeued.remove(admission)
                entry = self._entries.pop(admission, None)
                if entry is not None:
                    admission.used_at = entry.used_at
                    self._ranges.discard(entry)
                is_used = admission.used_at > admission.used_at_in_file
                if admission.entry is not None and is_used:
                    # While it was being written.
                    self._pending.touch(admission.entry, admission.used_at)
                self.nbytes -= admission.response.size
                self.bytes_being_written -= admission.response.size
                place = (admission.namespace, admission.key)
                if self._by_key.get(place) is admission:
                    del self._by_key[place]

    def _write_batch(self, connection: Connection, batch: list[Admission], now_ns: int) -> None:
        """Write some of the responses: an operation.

        Parameters
        ----------
        batch
            Is filled with those that were written, or that could not be if this raises.
        now_ns
            When this was called, by the clock of the file.
        """
        with self._turn:
            # When the file was opened again, the operation is repeated with the same batch.
            if not batch:
                batch += self._dequeue(connection)
            if not batch:
                return
            removed = Evictions()
            try:
                with (
                    self._pending.writing_touches() as touches,
                    self._pending.writing_counts() as counts,
                ):
                    self._admit(connection, batch, touches, counts, now_ns, removed)
            except BaseException:
                for admission in batch:
                    admission.entry = None
                    admission.removed = admission.removed_before
                if _has_any(removed):
                    batch[0].removed = removed
                raise
            finally:
                self._release(batch)

    def _admit(
        self,
        connection: Connection,
        batch: list[Admission],
        touches: dict[int, int],
        counts: Mapping[str, Mapping[str, int]],
        now_ns: int,
        removed: Evictions,
    ) -> None:
        """Write the batch in one transaction, and its large values before that."""
        first = batch[0]
        limits = first.limits
        wanted = [each for each in batch if not each.is_cancelled]
        for admission in wanted:
            if index_admit.replaces_ranges(connection, admission):
                remove_all_but_some(connection, admission.namespace, admission.key)
        large = index_admit.large_values(connection, wanted)
        failure = extents.why_unusable(connection) if large else None
        coming = index_admit.bytes_coming(connection, limits, [] if failure is not None else wanted)
        evict_ahead(connection, limits, touches, removed, coming)
        with written(
            connection, first.namespace, limits, touches, large, now_ns, removed, failure
        ) as values_written:
            if _has_any(removed):
                first.removed = first.removed_before = removed
            with connection.writing_much():
                write_touches(connection, touches)
                for admission in batch:
                    if not admission.is_cancelled:
                        index_admit.admit(connection, admission, self._keep, values_written)
                write_counts(connection, counts)
                values_written.release(connection)


def _has_any(removed: Evictions) -> bool:
    return bool(removed.evicted or removed.evicted_ranges or removed.expired)
