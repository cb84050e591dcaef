"""Full values in any zarr store, and what is known about them in a database in memory."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from zarr.core.buffer import cpu

from zarr_cache.backend import file_cache
from zarr_cache.backend.file_cache import FileCache
from zarr_cache.core import byte_range, checksum
from zarr_cache.core import keys as core_keys
from zarr_cache.core.checksum import DamagedValueError
from zarr_cache.core.errors import StorageError
from zarr_cache.core.flow import call, call_async, to_its_end
from zarr_cache.core.single_flight import Flight
from zarr_cache.file.database import MemoryDatabase
from zarr_cache.index import admit, lookup, values
from zarr_cache.index.admit import Admission

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.core.errors import CacheError
    from zarr_cache.core.flow import Flow
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.admit import Response
    from zarr_cache.index.evict import Evictions, Limits
    from zarr_cache.index.lookup import EntryState, Kept


HAS_VALUES_BELOW = """
SELECT 1
FROM entry
WHERE namespace IN (SELECT id FROM namespace)
  AND key >= :first
  AND key < :end
  AND kind = 'value'
LIMIT 1
"""


class StoreCache(FileCache):
    """Full values under their own keys in `store`; one that is not what was put there is a miss.

    The index is filled at first use from what the store lists. Nothing tells how old that is, so
    it counts as older than any finite age; nor whose it is, so it counts as that of the first
    source, until there is another.

    The store has one place for a key, whoever's it is. So a value of one namespace takes the place
    of that of another, and its entry goes first.

    Get one from `over`: two over one store would not know of each other's values.

    Parameters
    ----------
    store
        Any store that supports deletes.
    """

    _all: ClassVar[weakref.WeakSet[StoreCache]] = weakref.WeakSet()

    _keep = staticmethod(values.write_checksums)

    def __init__(self, store: Store) -> None:
        super().__init__(MemoryDatabase())
        self.store = store
        self._is_filled = not store.supports_listing
        # Keys of which there may be bytes in the store that the index does not know of.
        self._left: set[str] = set()
        # Of all sources that are kept in the store, which has one key for all of them.
        self._namespaces: set[str] = set()

    def _begin(self) -> None:
        super()._begin()
        # No other process has left anything in memory, and what the store lists counts as old.
        self._is_unswept = False
        # Keys of which there are bytes in the store that the index is about to know of.
        self._coming: set[str] = set()

    @classmethod
    def over(cls, store: Store, name_of: Callable[[Store], str]) -> StoreCache:
        """The one of this process for what `store` is.

        Parameters
        ----------
        name_of
            Tells which stores have the same values. What a relative path leads to, or what the
            object is in the child of a fork, may be another now than it was.
        """
        name = name_of(store)
        with file_cache.making():
            for each in cls._all:
                if name_of(each.store) == name:
                    return each
            cache = cls(store)
            cls._all.add(cache)
            return cache

    def has_value(self, key: str) -> bool:
        """Whether the store has a value of this key that the index knows of."""
        return self._reads.run(admit.has_value, key)

    def lookup_nowait(
        self,
        namespace: str,  # noqa: ARG002 - whatever it is, the other store is asked
        key: str,  # noqa: ARG002 - the same
        request: ByteRequest | None,  # noqa: ARG002 - the same
        fresh_after: int,  # noqa: ARG002 - the same
    ) -> EntryState | None:
        """None: the other store must be waited for."""
        return None

    def lookup(
        self,
        namespace: str,
        key: str,
        request: ByteRequest | None,
        fresh_after: int,
        found: EntryState | None = None,
    ) -> Flow[EntryState]:
        """What is kept of the key, with the bytes asked for where they are fresh."""
        found = yield from self.lookup_metadata(namespace, key)
        if found.kind != "value" or found.stored_at <= fresh_after:
            return found
        buffer = yield from self._get(key)
        data = None if buffer is None else buffer.to_bytes()
        if data is None or not self._is_right(namespace, key, found, data):
            # Unless another value has taken its place since.
            again = self.lookup_metadata_nowait(namespace, key)
            return found._replace(is_damaged=True) if again.row == found.row else again
        start, stop = byte_range.span(request, found.size)
        return found._replace(data=data[start:stop])

    def _is_right(self, namespace: str, key: str, found: EntryState, data: bytes) -> bool:
        """Whether these are the bytes that the entry was made for."""
        if len(data) != found.size:
            return False
        sums = self._reads.run(lookup.checksums, found.entry or 0)
        if sums is None:
            # It was there before: is it still that, and of this source?
            return len(self._namespaces) == 1
        seed = checksum.of_facts(namespace, key, "value", found.size, found.stored_at)
        try:
            values.verify(seed, 0, data, sums)
        except DamagedValueError:
            return False
        return True

    def lookup_many(
        self, namespace: str, key: str, requests: Sequence[ByteRequest | None], fresh_after: int
    ) -> Flow[list[EntryState]]:
        """`lookup` for each request."""
        found: list[EntryState] = []
        for request in requests:
            found += [(yield from self.lookup(namespace, key, request, fresh_after))]
        return found

    def list_cached(
        self, namespace: str, prefix: str, fresh_after: int, absent_fresh_after: int
    ) -> Flow[dict[str, Kept]]:
        """What is kept and fresh of the keys with this prefix, without its bytes."""
        yield from self.known(namespace)
        return (yield from super().list_cached(namespace, prefix, fresh_after, absent_fresh_after))

    def admit(
        self,
        namespace: str,
        key: str,
        response: Response,
        limits: Limits,
        on_done: Callable[[Evictions | CacheError | None], None],
    ) -> Flow[None]:
        """Keep an answer, under the limits, unless a write has overtaken it."""
        mine = Admission(namespace, key, response, limits, on_done)
        try:
            turn = yield from self._turn(key)
        except StorageError:
            # Then this one is not kept: the task is at work on the same key.
            mine.end(None)
            return
        try:
            yield from to_its_end(partial(self._put_away, mine))
        finally:
            self.flights.end((key,), turn)
        if mine.removed is not None:
            yield from self._delete([*mine.removed.evicted, *mine.removed.expired])

    def _put_away(self, mine: Admission) -> Flow[None]:
        """Keep the bytes and the entry, the one not without the other."""
        key, response = mine.key, mine.response
        found = yield from self.lookup_metadata(mine.namespace, key)
        can_be_kept = response.data is None or _is_name(key)
        if not can_be_kept or found.is_overtaken(response.revision, response.stored_at):
            mine.end(None)
            return
        try:
            if response.data is not None:
                yield from self._set(mine.namespace, key, response.data)
            self._queue.add(mine)
            # Nothing in memory is worth another thread.
            self.write_waiting()
        finally:
            self._coming.discard(key)
        if mine.removed is None:
            # Overtaken since. Who did that has its turn before it returns.
            yield from self._delete([key])

    def write_soon(self) -> None:
        """Write the uses and counts that wait."""
        self._write_pending_now()

    def enforce(self, namespace: str, limits: Limits) -> Flow[Evictions]:
        """Come under the limits."""
        yield from self.known(namespace)
        removed = yield from super().enforce(namespace, limits)
        yield from self._delete([*removed.evicted, *removed.expired])
        return removed

    def forget(self, namespace: str, key: str, revision: int, stored_at: int) -> Flow[list[str]]:
        """Remove what is kept of the key, unless it is newer."""
        forgotten = yield from super().forget(namespace, key, revision, stored_at)
        yield from self._delete(forgotten)
        return forgotten

    def discard(self, found: EntryState) -> Flow[list[str]]:
        """Remove a damaged entry."""
        discarded = yield from super().discard(found)
        yield from self._delete(discarded)
        return discarded

    def end_write(
        self,
        namespace: str,
        keys: Sequence[str],
        responses: Mapping[str, Response],
        now_ns: int,
        limits: Limits,
    ) -> Flow[Evictions]:
        """Let the keys be asked for again, and keep what the source is known to hold."""
        turns: dict[str, Flight[Buffer | None]] = {}
        try:
            # In one order, so that no two wait for each other.
            for key in sorted(set(keys)):
                turns[key] = yield from self._turn(key)
            arguments = (namespace, keys, responses, now_ns, limits)
            return (yield from to_its_end(partial(self._put_away_written, *arguments)))
        finally:
            for key, turn in turns.items():
                self.flights.end((key,), turn)

    def _put_away_written(
        self,
        namespace: str,
        keys: Sequence[str],
        responses: Mapping[str, Response],
        now_ns: int,
        limits: Limits,
    ) -> Flow[Evictions]:
        self._namespaces.add(namespace)
        responses = {
            key: response
            for key, response in responses.items()
            if response.data is None or _is_name(key)
        }
        try:
            for key, response in responses.items():
                if response.data is not None:
                    yield from self._set(namespace, key, response.data)
            removed = yield from super().end_write(namespace, keys, responses, now_ns, limits)
        finally:
            self._coming.difference_update(responses)
        yield from self._delete([*removed.evicted, *removed.expired, *removed.invalidated])
        return removed

    def fence_prefix(self, namespace: str, prefix: str) -> Flow[list[str]]:
        """Remove what is kept under a prefix, and refuse what is being fetched."""
        yield from self.known(namespace)
        removed = yield from super().fence_prefix(namespace, prefix)
        yield from self._delete(removed)
        return removed

    def abandon_write(self, keys: Sequence[str]) -> Flow[None]:
        """Leave the keys as `begin_write` has left them, and their bytes not at all."""
        return self._delete(keys)

    def known(self, namespace: str) -> Flow[None]:
        """Take what the store lists into the index, once; who comes meanwhile waits."""
        self._namespaces.add(namespace)
        if self._is_filled:
            return
        turn = yield from self._turn()
        try:
            if not self._is_filled:
                sizes = yield from self._checked(call_async(self.store, _sizes))
                self._writes.run(admit.adopt, namespace, sizes)
                self._is_filled = True
        finally:
            self.flights.end((), turn)

    @property
    def is_known(self) -> bool:
        """Whether the store has been listed."""
        return self._is_filled

    def _turn(self, *place: str) -> Flow[Flight[Buffer | None]]:
        """Wait until nobody else of this process is at `place`, and hold it until it is ended.

        Raises
        ------
        StorageError
            A task is, and this is called in a thread, which waits for none: see `Flight`.
        """
        mine: Flight[Buffer | None] = Flight()
        while True:
            flight = self.flights.join(place, mine)
            if flight is mine:
                return mine
            yield from flight.wait()
            if not flight.is_set:
                raise StorageError(
                    f"{self.store}: a task of an event loop is at work on it, which a call that is "
                    "not awaited does not wait for"
                )

    def _get(self, key: str) -> Flow[Buffer | None]:
        prototype = cpu.buffer_prototype
        return self._checked(
            call(
                self.store,
                lambda store: store.get_sync(key, prototype=prototype),
                lambda store: store.get(key, prototype),
            )
        )

    def _set(self, namespace: str, key: str, data: ByteArray) -> Flow[None]:
        """Put bytes in the place of the key; in `_coming` until the index knows of them."""
        buffer = cpu.Buffer.from_array_like(data)
        self._coming.add(key)
        self._writes.run(admit.remove_from_other_namespaces, namespace, key)
        self._left.discard(key)
        try:
            yield from self._checked(
                call(
                    self.store,
                    lambda store: store.set_sync(key, buffer),
                    lambda store: store.set(key, buffer),
                )
            )
        except StorageError:
            # What is there now is not known.
            self._left.add(key)
            raise

    def _delete(self, keys: Iterable[str]) -> Flow[None]:
        """Delete these and those of which that has failed before, where nothing else is there."""
        self._left.update(filter(_is_name, keys))
        if self._left:
            yield from to_its_end(self._delete_left)

    def _delete_left(self) -> Flow[None]:
        failure = None
        for key in sorted(self._left):
            # Unless it has been put there anew, or has been deleted by another.
            if key in self._left and key not in self._coming:
                try:
                    if not self.has_value(key):
                        yield from self._delete_one(key)
                except StorageError as error:
                    # It is tried again with what goes next. The others can go all the same.
                    failure = error
                else:
                    self._left.discard(key)
        if failure is not None:
            raise failure

    def _delete_one(self, key: str) -> Flow[None]:
        """Delete a value; a folder of that name stays, with all that is in it."""
        if self._may_be_folder(key) and (yield from self._get(key)) is None:
            return
        try:
            yield from self._checked(
                call(
                    self.store,
                    lambda store: store.delete_sync(key),
                    lambda store: store.delete(key),
                )
            )
        except StorageError:
            # As fsspec's local file system refuses to delete an empty folder.
            if (yield from self._get(key)) is not None:
                raise

    def _may_be_folder(self, key: str) -> bool:
        """Whether there are values below the key, or may be.

        A store of files has no value of that name then, and some delete the folder: a `LocalStore`
        does. In other stores there may be both.
        """
        folder = f"{key}/"
        return (
            not self._is_filled
            or any(each.startswith(folder) for each in tuple(self._coming))
            or self._reads.run(_has_values_below, folder)
        )

    def _checked[T](self, called: Flow[T]) -> Flow[T]:
        """What the store raises is a fault of the cache, not of the read."""
        try:
            return (yield from called)
        except Exception as error:
            raise StorageError(f"{self.store}: {type(error).__name__}: {error}") from error


def _is_name(key: str) -> bool:
    """Whether it can be that of a value: to some stores, what ends with a slash is a folder.

    They would delete all that is in it, and the empty key is all there is.
    """
    return key != "" and not key.endswith("/")


def _has_values_below(connection: Connection, folder: str) -> bool:
    parameters = {"first": folder, "end": core_keys.prefix_end(folder)}
    return connection.execute(HAS_VALUES_BELOW, parameters).fetchone() is not None


async def _sizes(store: Store) -> list[tuple[str, int]]:
    return [(key, await store.getsize(key)) async for key in store.list() if _is_name(key)]
