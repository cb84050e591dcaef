"""Responses that wait to be written to the file, and are read from here meanwhile."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from zarr_cache.index import admit as index_admit
from zarr_cache.index import extents, values
from zarr_cache.index.evict import Evictions, evict_ahead
from zarr_cache.index.large_values import max_bytes, written
from zarr_cache.index.uses import write_counts, write_touches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zarr_cache.backend.counters import Pending
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.admit import Admission, Response
    from zarr_cache.index.values import Keep


MAX_TOGETHER = 64


class WriteBehindQueue:
    """Answers that wait to be kept. Whoever comes to write takes many of them along.

    A transaction costs several times what one more entry in it does, and none of that is the
    reader's to wait for. What waits is at hand all the same: `response` tells.

    Any thread may call.

    Attributes
    ----------
    nbytes
        Bytes of those that wait or are being written.
    bytes_being_written
        Bytes of those that are being written just now.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._waiting: deque[Admission] = deque()
        self._taken: list[Admission] = []
        self._by_key: dict[tuple[str, str], Admission] = {}
        self.nbytes = 0
        self.bytes_being_written = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, admission: Admission) -> None:
        """Let it wait."""
        with self._lock:
            self._waiting.append(admission)
            self._by_key[admission.namespace, admission.key] = admission
            self.nbytes += admission.response.size

    def response(self, namespace: str, key: str) -> Response | None:
        """The last answer for the key that waits, or is being kept just now."""
        admission = self._by_key.get((namespace, key))
        return None if admission is None or admission.is_cancelled else admission.response

    def touch(self, namespace: str, key: str, used_at: int) -> None:
        """Note a use of what waits for the key."""
        with self._lock:
            admission = self._by_key.get((namespace, key))
            if admission is not None:
                admission.used_at = used_at

    def forget(self, namespace: str, key: str) -> None:
        """Do not keep what waits for the key."""
        with self._lock:
            # What is being written as well: it has no entry yet that could be removed.
            for admission in (*self._waiting, *self._taken):
                if (admission.namespace, admission.key) == (namespace, key):
                    admission.is_cancelled = True

    def take(self, connection: Connection | None = None) -> list[Admission]:
        """Some of those that wait, but not so many that the next waits for long.

        They are at hand until `release`.

        Parameters
        ----------
        connection
            To what they are to be kept in; None if they are not.
        """
        taken: list[Admission] = []
        small = large = 0
        with self._lock:
            while self._waiting and len(taken) < MAX_TOGETHER:
                first = self._waiting[0]
                size = first.response.size
                if connection is not None and extents.is_large(connection, size):
                    large += size
                else:
                    small += size
                if taken and (small > values.MAX_BYTES or large > max_bytes(first.limits)):
                    break
                taken.append(self._waiting.popleft())
            self._taken += taken
            self.bytes_being_written += sum(admission.response.size for admission in taken)
        return taken

    def release(self, taken: Iterable[Admission], pending: Pending) -> None:
        """They are in the file, or never will be."""
        with self._lock:
            for admission in taken:
                if admission not in self._taken:
                    continue
                self._taken.remove(admission)
                is_used = admission.used_at > admission.used_at_in_file
                if admission.entry is not None and is_used:
                    # While it was written.
                    pending.touch(admission.entry, admission.used_at)
                self.nbytes -= admission.response.size
                self.bytes_being_written -= admission.response.size
                place = (admission.namespace, admission.key)
                if self._by_key.get(place) is admission:
                    del self._by_key[place]

    def drain(self) -> None:
        """Wait until nothing is being kept."""
        with self._turn:
            pass

    def admit_some(
        self,
        connection: Connection,
        ended: list[Admission],
        pending: Pending,
        keep: Keep,
        now_ns: int,
    ) -> None:
        """Keep some of those that wait, in one transaction; large values are written before it.

        Parameters
        ----------
        ended
            Is filled with those that were kept, or that could not be if this raises.
        pending
            Uses that wait to be written: they are first, since eviction goes by them. Counts go
            along: a process that always has something to keep would write none by themselves.
        keep
            Where the bytes of small values go.
        now_ns
            When this was called, by the clock of the file.
        """
        with self._turn:
            # When the file was opened anew, the same ones are tried once more.
            if not ended:
                ended += self.take(connection)
            if not ended:
                return
            touches, counts = pending.take_touches(), pending.take_counts()
            removed = Evictions()
            try:
                first = ended[0]
                limits = first.limits
                wanted = [each for each in ended if not each.is_cancelled]
                large = index_admit.large_values(connection, wanted)
                failure = extents.why_unusable(connection) if large else None
                coming = index_admit.bytes_coming(
                    connection, limits, [] if failure is not None else wanted
                )
                evict_ahead(connection, limits, touches, removed, coming)
                with written(
                    connection, first.namespace, limits, touches, large, now_ns, removed, failure
                ) as values_written:
                    if removed.evicted or removed.evicted_ranges or removed.expired:
                        first.removed = first.removed_before = removed
                    with connection.writing_much():
                        write_touches(connection, touches)
                        for admission in ended:
                            if not admission.is_cancelled:
                                index_admit.admit(connection, admission, keep, values_written)
                        write_counts(connection, counts)
                        values_written.release(connection)
            except BaseException:
                pending.put_back(touches)
                pending.put_back_counts(counts)
                for admission in ended:
                    admission.entry = None
                    admission.removed = admission.removed_before
                if ended and (removed.evicted or removed.evicted_ranges or removed.expired):
                    ended[0].removed = removed
                raise
            finally:
                self.release(ended, pending)
