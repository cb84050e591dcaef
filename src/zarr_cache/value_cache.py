"""Full values and what is known about them, in one database: each operation is one transaction."""

from __future__ import annotations

import logging
import weakref
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Concatenate

from zarr_cache import admission, budget, fence, index, pending, values
from zarr_cache.admission import Admission, Admissions
from zarr_cache.errors import StorageError
from zarr_cache.flight import Flights
from zarr_cache.flow import run, step
from zarr_cache.pending import Pending
from zarr_cache.range_cache import RangeCache

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer

    from zarr_cache.admission import Answer
    from zarr_cache.budget import Limits, Removed
    from zarr_cache.clock import PersistentClock
    from zarr_cache.connection import Connection
    from zarr_cache.database import Database
    from zarr_cache.flow import Flow
    from zarr_cache.index import Found, Usage
    from zarr_cache.values import Keep

logger = logging.getLogger(__name__)

MOST_PENDING = 1024
"""So many uses are gathered before they are written: a crash may lose as many."""


MOST_ON_LOOP = 512 * 1024
"""Values of up to this many bytes are read on the event loop. See docs/decisions/0005."""


class ValueCache:
    """What this process keeps over one database, shared by every CacheStore over it.

    Get one from `of`: two would not know of each other's range entries.

    Attributes
    ----------
    ranges
        Range entries, of every namespace.
    flights
        Fetches under way.
    pending
        Uses and counts that wait to be written.
    unrecorded
        Namespaces in which a write to the source could not be recorded: nothing kept of them is
        believed until it has been removed.
    """

    _by_database: ClassVar[weakref.WeakKeyDictionary[Database, weakref.ref[ValueCache]]] = (
        weakref.WeakKeyDictionary()
    )

    _keep: Keep = staticmethod(values.write)

    def __init__(self, database: Database) -> None:
        self._database = database
        self._begin()
        # These keep this object as long as the database: what waits to be written is not lost with
        # the last CacheStore.
        database.before_close.append(self._write_pending_now)
        database.after_fork.append(self._begin)

    def _begin(self) -> None:
        """Start empty: at first, and in the child of a fork, where locks may be held for ever."""
        self.ranges = RangeCache()
        self.flights: Flights[tuple[object, ...], Buffer | None] = Flights()
        self.pending = Pending()
        self.unrecorded: set[str] = set()
        self._admissions = Admissions()

    @classmethod
    def of(cls, database: Database) -> ValueCache:
        """The one of this process for the database."""
        reference = cls._by_database.get(database)
        cache = reference() if reference else None
        if cache is None:
            cache = cls(database)
            cls._by_database[database] = weakref.ref(cache)
        return cache

    def clock(self) -> PersistentClock:
        """The clock that stamps what is kept.

        Raises
        ------
        CacheError
            The file cannot be opened.
        """
        return self._database.clock()

    def _run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Flow[T]:
        return step(
            partial(self._database.run, operation, *args, **kwargs),
            partial(self._database.run_async, operation, *args, **kwargs),
        )

    def opened(self) -> Flow[None]:
        """Wait until the file is open: then its clock and its small answers are there at once.

        What is small is then read on the event loop itself: a step to another thread and back costs
        some times as much as the read, and a reader waits for no lock. See docs/decisions/0005.
        """
        if not self._database.is_open:
            yield from self._run(index.nothing)

    def peek(self, namespace: str, key: str) -> Flow[Found]:
        """What is known of the key, without its bytes."""
        yield from self.opened()
        return self._database.run(index.peek, namespace, key)

    def look_up(
        self, namespace: str, key: str, request: ByteRequest | None, fresh_after: int
    ) -> Flow[Found]:
        """What is kept of the key, with the bytes asked for where they are fresh."""
        yield from self.opened()
        found = self._database.run(index.look_up_small, namespace, key, request, fresh_after)
        if found.data is not None or not found.is_large(fresh_after):
            return found
        if found.size <= MOST_ON_LOOP:
            return self._database.run(index.look_up, namespace, key, request, fresh_after)
        return (yield from self._run(index.look_up, namespace, key, request, fresh_after))

    def look_up_many(
        self, namespace: str, key: str, requests: Sequence[ByteRequest | None], fresh_after: int
    ) -> Flow[list[Found]]:
        """`look_up` for each request."""
        return self._run(index.look_up_many, namespace, key, requests, fresh_after)

    def admit(
        self, namespace: str, key: str, answer: Answer, limits: Limits
    ) -> Flow[Removed | None]:
        """Keep an answer, under the limits; None when a write has overtaken it."""
        mine = Admission(namespace, key, answer, limits)
        self._admissions.add(mine)
        return (yield from self._run(self._admissions.admit, mine, self.pending, self._keep))

    def enforce(self, namespace: str, limits: Limits) -> Flow[Removed]:
        """Come under the limits."""
        return self._with_touches(budget.enforce, namespace, limits)

    def forget(self, namespace: str, key: str, revision: int, stored_at: int) -> Flow[list[str]]:
        """Remove what is kept of the key, unless it is newer; return the keys removed."""
        return self._run(admission.forget, namespace, key, revision=revision, stored_at=stored_at)

    def discard(self, found: Found) -> Flow[list[str]]:
        """Remove a damaged entry; return the keys removed."""
        return self._run(admission.discard, found)

    def begin_write(self, namespace: str, keys: Sequence[str], now_ns: int) -> Flow[int]:
        """Make what is kept of the keys unusable while the source is written to."""
        return self._run(fence.begin_write, namespace, keys, now_ns)

    def end_write(
        self,
        namespace: str,
        keys: Sequence[str],
        answers: Mapping[str, Answer],
        now_ns: int,
        limits: Limits,
    ) -> Flow[Removed]:
        """Let the keys be asked for again, and keep what the source is known to hold."""
        end_write = partial(fence.end_write, keep=self._keep)
        return self._with_touches(end_write, namespace, keys, answers, now_ns, limits)

    def fence_prefix(self, namespace: str, prefix: str) -> Flow[list[str]]:
        """Remove what is kept under a prefix, and refuse what is being fetched."""
        self.ranges.remove(namespace, prefix)
        return self._run(fence.fence_prefix, namespace, prefix)

    def _with_touches[T](self, operation: Callable[..., T], *args: object) -> Flow[T]:
        """Run an operation that writes the pending uses first: eviction goes by them."""
        touches = self.pending.take_touches()
        try:
            return (yield from self._run(operation, *args, touches))
        except BaseException:
            self.pending.put_back(touches)
            raise

    def usage(self, namespace: str) -> Usage:
        """What the namespace and the database hold."""
        return self._database.run(index.usage, namespace)

    def write_pending(self) -> Flow[None]:
        """Write the uses and counts that wait."""
        counts = self.pending.take_counts()
        if counts or len(self.pending):
            yield from self._with_touches(pending.write, counts)

    def _write_pending_now(self) -> None:
        try:
            run(self.write_pending())
        except StorageError as error:
            # What is lost is the order of some uses: no reason for a program not to end.
            logger.warning("uses and counts could not be written: %s", error)
