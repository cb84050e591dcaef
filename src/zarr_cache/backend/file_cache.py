"""Full values and what is known about them, in one database: in operations."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from zarr_cache.backend.counters import Pending
from zarr_cache.backend.failures import Guarded
from zarr_cache.backend.queue import WriteBehindQueue
from zarr_cache.core import private
from zarr_cache.core.background import BackgroundWorker
from zarr_cache.core.errors import CacheError, CircuitOpenError
from zarr_cache.core.flow import run, running_loop, step, threaded
from zarr_cache.core.single_flight import Flights
from zarr_cache.core.sizes import format_size
from zarr_cache.disk.read_threads import read_all, read_in_pool
from zarr_cache.index import admit, evict, invalidate, lookup, removals, space, uses, values
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


MANY_WAITING_BYTES = 8 * 2**20


"""Answers of so many bytes are written at once."""


MAX_RANGES_ON_LOOP = 64


"""So many ranges of a value are looked up on an event loop; more would hold it up."""


MAX_WAITING_BYTES = 32 * 2**20


"""While answers of so many bytes wait to be kept, who brings another waits with it."""


_making = threading.Lock()


def _after_fork() -> None:
    global _making  # noqa: PLW0603 - the child of a fork may have inherited it held
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def making() -> threading.Lock:
    """Held by who looks for one of this process, and makes it if there is none."""
    return _making


class FileCache:
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
    """

    _by_database: ClassVar[weakref.WeakKeyDictionary[Database, weakref.ref[FileCache]]] = (
        weakref.WeakKeyDictionary()
    )

    # Those with something in `_unrecorded`, which must not be forgotten with the last CacheStore.
    _invalidated: ClassVar[set[FileCache]] = set()

    _keep: Keep = staticmethod(values.write)

    def __init__(self, database: Database) -> None:
        self._database = database
        # Namespaces that are distrusted without a mark to tell it. A child of a fork inherits them.
        self._unrecorded: set[str] = set()
        self._begin()
        # These keep this object as long as the database: what waits to be written is not lost with
        # the last CacheStore.
        database.before_close.append(self._end)
        database.before_end.append(self._drop_private)
        database.before_pause.append(self._pause)
        database.after_fork.append(self._begin)
        database.after_loss.append(self._forget_file)

    def _begin(self) -> None:
        """Start empty: at first, and in the child of a fork, where locks may be held for ever."""
        self.ranges = RangeCache()
        self.flights: Flights[tuple[object, ...], Buffer | None] = Flights()
        self.pending = Pending()
        self._queue = WriteBehindQueue()
        # The last that somebody has asked for, by which the data file is made shorter.
        self._max_size: int | None = None
        # Whether it is still to be seen what killed processes have left.
        self._is_unswept = True
        self._has_evicted = False
        self._writer = BackgroundWorker(self._work)
        # Of reading the file, and of writing to it: while it is locked or full, hits go on.
        self._reads = Guarded(self._database)
        self._writes = Guarded(self._database)

    def _forget_file(self) -> None:
        """What is known of one file does not hold for another in its place."""
        self.ranges.clear()
        self.pending.take_touches()

    @classmethod
    def of(cls, database: Database) -> FileCache:
        """The one of this process for the database."""
        with making():
            reference = cls._by_database.get(database)
            cache = reference() if reference else None
            if cache is None:
                cache = cls(database)
                cls._by_database[database] = weakref.ref(cache)
            return cache

    def invalidate(self, namespace: str) -> Flow[None]:
        """Believe nothing that is kept of the namespace until it has been removed, in any process.

        All find a mark beside the file. Where none can be made this process remembers it.
        """
        is_known = namespace in self._unrecorded
        self._unrecorded.add(namespace)
        self._invalidated.add(self)
        try:
            is_marked = yield from threaded(partial(self._database.mark, namespace))
        except CacheError as error:
            if not is_known:
                logger.warning(
                    "%s; other processes may answer with what was there before a write", error
                )
        else:
            if is_marked:
                self._forget_unrecorded(namespace)

    def is_invalidated(self, namespace: str) -> bool:
        """Whether a write to this source could not be recorded."""
        return namespace in self._unrecorded or self._database.is_marked(namespace)

    def marked_ns(self, namespace: str) -> int | None:
        """What to give `revalidate`, from before what is kept of the namespace was removed."""
        return self._database.marked_ns(namespace)

    def revalidate(self, namespace: str, mark: int | None) -> Flow[None]:
        """Believe what is kept of the namespace: what could be wrong has been removed."""
        self._forget_unrecorded(namespace)
        if mark is not None:
            try:
                yield from threaded(partial(self._database.unmark, namespace, mark))
            except CacheError as error:
                # Then the next reads need not try.
                raise self._writes.failed(error) from error

    def _forget_unrecorded(self, namespace: str) -> None:
        self._unrecorded.discard(namespace)
        if not self._unrecorded:
            self._invalidated.discard(self)

    def clock(self) -> PersistentClock:
        """The clock that stamps what is kept.

        Raises
        ------
        CacheError
            The file cannot be opened.
        """
        return self._database.clock()

    def opened(self) -> Flow[None]:
        """Wait until the file is open: then its clock and its small answers are there at once."""
        if not self._database.is_open:
            yield from self._reads.flow(lookup.nothing)

    def known(self, namespace: str) -> Flow[None]:  # noqa: ARG002 - as in `StoreCache`
        """Wait until what is kept can be told."""
        return self.opened()

    def lookup_metadata(self, namespace: str, key: str) -> Flow[EntryState]:
        """What is known of the key, without its bytes."""
        yield from self.known(namespace)
        return self.lookup_metadata_nowait(namespace, key)

    def lookup_metadata_nowait(self, namespace: str, key: str) -> EntryState:
        """As `lookup_metadata`, of a file that is open, at once."""
        waiting = self._queue.response(namespace, key)
        found = self._reads.run(lookup.lookup_metadata, namespace, key)
        return found if waiting is None else waiting.instead_of(found)

    def lookup_nowait(
        self, namespace: str, key: str, request: ByteRequest | None, fresh_after: int
    ) -> EntryState | None:
        """Look the key up without another thread; None if that cannot be. The file must be open.

        Where the bytes are not in memory, and this thread runs an event loop, which is not to wait
        for a disk, what is found is for `lookup`: its `EntryState.read` is not None. See
        docs/decisions/0013.
        """
        # Before the file is looked at: what waits no more is in it.
        waiting = self._queue.response(namespace, key)
        may_wait = running_loop() is None
        found = self._reads.run(
            lookup.lookup, namespace, key, request, fresh_after, may_wait=may_wait
        )
        if waiting is not None and found.data is None:
            return waiting.instead_of(found, request, fresh_after)
        return found

    def lookup(
        self,
        namespace: str,
        key: str,
        request: ByteRequest | None,
        fresh_after: int,
        found: EntryState | None = None,
    ) -> Flow[EntryState]:
        """What is kept of the key, with the bytes asked for where they are fresh.

        Parameters
        ----------
        found
            What `lookup_nowait` has found just now, if it was asked.
        """
        arguments = (namespace, key, request, fresh_after)
        if found is None:
            yield from self.opened()
            found = self.lookup_nowait(*arguments)
            assert found is not None  # noqa: S101 - only another store must be waited for
        (found,) = yield from self._finished([found], namespace, key, [request], fresh_after)
        return found

    def lookup_many(
        self, namespace: str, key: str, requests: Sequence[ByteRequest | None], fresh_after: int
    ) -> Flow[list[EntryState]]:
        """`lookup` for each request."""
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
                each if each.data is not None else waiting.instead_of(each, request, fresh_after)
                for each, request in zip(found, requests, strict=True)
            ]
        return (yield from self._finished(found, *arguments))

    def _finished(
        self,
        found: list[EntryState],
        namespace: str,
        key: str,
        requests: Sequence[ByteRequest | None],
        fresh_after: int,
    ) -> Flow[list[EntryState]]:
        """The same, with what must be read from the disk: on the async surface all at once."""
        reads = [each.read for each in found if each.read is not None]
        if not reads:
            return found
        brought = iter((yield from step(partial(read_all, reads), partial(read_in_pool, reads))))
        finished = []
        for each, request in zip(found, requests, strict=True):
            data = None if each.read is None else next(brought)
            if data is not None:
                finished.append(each._replace(data=data, read=None))
            elif each.read is None:
                finished.append(each)
            else:
                # Evicted and written over meanwhile, or damaged.
                arguments = (namespace, key, request, fresh_after)
                finished.append((yield from self._reads.flow(lookup.lookup, *arguments)))
        return finished

    def admit(
        self,
        namespace: str,
        key: str,
        response: Response,
        limits: Limits,
        on_done: Callable[[Evictions | CacheError | None], None],
    ) -> Flow[None]:
        """Keep an answer, under the limits, unless a write has overtaken it.

        It is at hand at once, and in the file soon. Waits only while more waits than
        `MAX_WAITING_BYTES`.

        Parameters
        ----------
        on_done
            Called with what became of it: what was removed, None if a write has overtaken it, or
            why it could not be kept. By whatever thread.
        """
        if not self._writes.breaker.is_closed:
            self._writes.breaker.look()
        self._max_size = limits.max_size
        mine = Admission(namespace, key, response, limits, on_done)
        self._queue.add(mine)
        nbytes = self._queue.nbytes
        self._writer.wake(is_urgent=nbytes > MANY_WAITING_BYTES)
        if nbytes > MAX_WAITING_BYTES:
            yield from mine.wait()

    def touch(self, namespace: str, key: str, found: EntryState, used_at: int) -> None:
        """Note a use of what was found; let what has gathered be written."""
        if found.entry is None:
            self._queue.touch(namespace, key, used_at)
        elif self.pending.touch(found.entry, used_at):
            self.write_soon()

    def write_waiting(self) -> None:
        """Write the answers that wait now, and the uses if they are due."""
        if self._database.is_gone():
            # Whoever deleted it wants no other, until somebody reads.
            self._forget_waiting()
            return
        # What comes meanwhile is for who brings it: otherwise this would not end while any comes.
        left = len(self._queue)
        while left > 0:
            ended: list[Admission] = []
            failure = None
            try:
                now_ns = self._database.clock().now_ns()
                arguments = (ended, self.pending, self._keep, now_ns)
                self._writes.run(self._queue.admit_some, *arguments)
            except CacheError as error:
                failure = error
                if not ended:
                    ended = self._queue.take()
                    self._queue.release(ended, self.pending)
            finally:
                # Also when Ctrl-C comes: others may wait for these.
                for each in ended:
                    each.end(failure)
            if not ended:
                break  # others have taken them
            left -= len(ended)
        if self.pending.are_due:
            self._write_pending_now()
        if self._is_unswept:
            self._is_unswept = False
            self._drop(private.PREFIX, unused_ns=evict.MAX_UNUSED_NS)

    def _forget_waiting(self) -> None:
        """Keep nothing of the answers that wait, nor the uses of what was in the file."""
        while ended := self._queue.take():
            self._queue.release(ended, self.pending)
            for each in ended:
                each.end(None)
        self.pending.take_touches()

    def _work(self) -> None:
        """What is done while readers go on."""
        self.write_waiting()
        if self._database.is_gone():
            return
        try:
            while self._reads.run(space.has_much_free):
                self._writes.run(space.give_back)
                self.write_waiting()
            self._shorten_data_file()
        except CacheError as error:
            logger.info("free space stays in the file: %s", error)

    def _shorten_data_file(self) -> None:
        """Move what is at the end of the data file to the front, if the file is too long."""
        while self._reads.run(space.is_too_long, self._max_size):
            if not self._writes.run(space.move_last, self.clock().now_ns()):
                break
            self.write_waiting()
        if self._reads.run(space.has_much_to_cut):
            self._writes.run(space.cut)

    def flush(self) -> None:
        """Write the answers that wait; what is being written is in the file as well."""
        self.write_waiting()
        self._queue.drain()

    def write_soon(self) -> None:
        """Write the uses and counts that wait, in another thread."""
        if not self._writes.breaker.is_open:
            self._writer.wake()

    def enforce(self, namespace: str, limits: Limits) -> Flow[Evictions]:
        """Come under the limits."""
        if not self._writes.breaker.is_closed:
            # Before the uses are gathered for nothing, at each hit.
            self._writes.breaker.look()
        self._max_size = limits.max_size
        removed = yield from self._with_touches(evict.apply_limits, namespace, limits)
        if removed.evicted:
            # The pages that are free now may be many.
            self._writer.wake()
        return removed

    def report_eviction(self, max_size: int | None) -> None:
        """Say once for each file and process that the budget is used up."""
        if self._has_evicted or max_size is None:
            return
        self._has_evicted = True
        size = format_size(max_size)
        logger.info(
            "%s: max_size of %s is used up; the least recently used goes", self._database, size
        )

    def forget(self, namespace: str, key: str, revision: int, stored_at: int) -> Flow[list[str]]:
        """Remove what is kept of the key, unless it is newer; return the keys removed."""
        self._queue.forget(namespace, key)
        return self._writes.flow(
            admit.forget, namespace, key, revision=revision, stored_at=stored_at
        )

    def discard(self, found: EntryState) -> Flow[list[str]]:
        """Remove a damaged entry; return the keys removed."""
        return self._writes.flow(admit.discard, found)

    def begin_write(
        self, namespace: str, keys: Sequence[str], now_ns: int, begun: list[int]
    ) -> Flow[None]:
        """Make what is kept of the keys unusable while the source is written to.

        Parameters
        ----------
        begun
            Is given the revision of the write as soon as it has begun.
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
        """Let the keys be asked for again, and keep what the source is known to hold."""
        self._max_size = limits.max_size
        end_write = partial(invalidate.end_write, keep=self._keep)
        arguments = (namespace, keys, responses, now_ns, limits)
        if responses:
            return self._with_touches(end_write, *arguments)
        # Nothing comes for which anything would have to go.
        return self._writes.flow(end_write, *arguments, {})

    def fence_prefix(self, namespace: str, prefix: str) -> Flow[list[str]]:
        """Remove what is kept under a prefix, and refuse what is being fetched."""
        self.ranges.remove(namespace, prefix)
        return self._writes.flow(removals.invalidate_prefix, namespace, prefix)

    def begin_removal(self, namespace: str, now_ns: int) -> Flow[None]:
        """Keep no answer of the namespace while the source removes a folder."""
        return self._writes.flow(removals.begin_removal, namespace, now_ns)

    def end_removal(self, namespace: str) -> Flow[None]:
        """Keep answers again, unless another folder is being removed."""
        return self._writes.flow(removals.end_removal, namespace)

    def abandon_write(self, keys: Sequence[str]) -> Flow[None]:  # noqa: ARG002 - as in `StoreCache`
        """Leave the keys as `begin_write` has left them: nobody knows when the source is done."""
        yield from ()

    def _with_touches[T](self, operation: Callable[..., T], *args: object) -> Flow[T]:
        """Run an operation that writes the pending uses first: eviction goes by them."""
        touches = self.pending.take_touches()
        try:
            return (yield from self._writes.flow(operation, *args, touches))
        except BaseException:
            self.pending.put_back(touches)
            raise

    @property
    def is_known(self) -> bool:
        """Whether `known` has nothing to wait for that an event loop would do."""
        return True

    @property
    def is_open(self) -> bool:
        """Whether the file is open."""
        return self._database.is_open

    @property
    def bytes_being_written(self) -> int:
        """Bytes of the answers that are being written into the file just now."""
        return self._queue.bytes_being_written

    def usage(self, namespace: str) -> Usage:
        """What the namespace and the database hold."""
        return self._reads.run(space.usage, namespace)

    def list_cached(
        self, namespace: str, prefix: str, fresh_after: int, absent_fresh_after: int
    ) -> Flow[dict[str, Kept]]:
        """What is kept and fresh of the keys with this prefix, without its bytes."""
        # What waits to be written is at hand as well.
        yield from threaded(self.flush)
        arguments = (namespace, prefix, fresh_after, absent_fresh_after)
        return (yield from self._reads.flow(lookup.list_cached, *arguments))

    def write_pending(self) -> Flow[None]:
        """Write the uses and counts that wait."""
        counts = self.pending.take_counts()
        if not counts and not len(self.pending):
            return
        try:
            yield from self._with_touches(uses.write, counts)
        except BaseException:
            self.pending.put_back_counts(counts)
            raise

    def _end(self) -> None:
        """Write what waits, before the file is closed."""
        self._writer.stop()
        # Later is too late.
        self._writes.breaker.try_again()
        self._pause()

    def _pause(self) -> None:
        """Write what waits, unless the file is left alone just now."""
        self._writer.stop()
        self.flush()
        self._write_pending_now()

    def _drop_private(self) -> None:
        """Remove what is of no use when this process has ended."""
        # First what waits is written: it would come after this.
        self._end()
        self._drop(private.own_prefix())

    def _drop(self, prefix: str, unused_ns: int = 0) -> None:
        """Remove the namespaces whose names begin so and of which nothing was used for so long."""
        if self._database.is_gone():
            return
        try:
            unused_since = self.clock().now_ns() - unused_ns
            useless = self._reads.run(evict.unused_namespaces, prefix, unused_since)
            for name in useless:
                while self._writes.run(evict.remove_namespace, name):
                    pass
            is_too_long = bool(useless) and self._reads.run(space.has_much_to_cut)
            if is_too_long:
                self._writes.run(space.cut)
        except CacheError as error:
            # Then it goes as the least recently used.
            logger.info("what is of no use any more could not be removed: %s", error)

    def _write_pending_now(self) -> None:
        if self._database.is_gone():
            return
        try:
            run(self.write_pending())
        except CircuitOpenError:
            pass  # why has been told
        except CacheError as error:
            # What may be lost is the order of some uses: no reason for a program not to end.
            logger.warning("uses and counts could not be written: %s", error)
