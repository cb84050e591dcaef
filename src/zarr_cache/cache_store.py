"""A store that remembers what another store answered: hit, miss, admit, write-through."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from zarr.abc.store import Store, _store_supports_sync_io
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import WrapperStore

from zarr_cache import ages, byte_range as requests
from zarr_cache.ages import Age
from zarr_cache.buffers import to_array, to_buffer
from zarr_cache.errors import StorageError
from zarr_cache.faults import Faults
from zarr_cache.flow import run, run_async, step
from zarr_cache.forecast import Forecast
from zarr_cache.admission import Answer
from zarr_cache.budget import Limits
from zarr_cache.namespace import name_of
from zarr_cache.range_cache import RangeEntry
from zarr_cache.sqlite_store import SqliteStore
from zarr_cache.statistics import Statistics
from zarr_cache.store_cache import StoreCache
from zarr_cache.value_cache import MOST_PENDING, ValueCache

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Callable,
        Coroutine,
        Iterable,
        Mapping,
        Sequence,
    )
    from types import TracebackType

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.flow import Flow
    from zarr_cache.budget import Removed
    from zarr_cache.index import Data, Found

ABSENT_SECONDS = 60
"""For how long a read-only view believes that a key is absent, unless told otherwise."""


class CacheStore(WrapperStore[Store]):
    """A store that keeps what `store` answered, and answers from there while that is fresh.

    A drop-in for `zarr.experimental.cache_store.CacheStore`, with the same parameters, whose order,
    sizes and ages outlive the process when `cache_store` is a `SqliteStore`.

    Full values are kept in `cache_store`, parts of values in memory; both share `max_size`, and the
    least recently used goes first. What is written goes to `store` first, and no read that begins
    after a write has returned sees what was there before. A fault of the cache (a full disk, a lock
    held for long) costs a warning and a request to `store`, never the read.

    Any thread and any event loop may use the same CacheStore, and any number of processes the same
    file. ``list``, ``list_dir`` and ``list_prefix`` always ask `store`.

    Parameters
    ----------
    store
        The source. What it holds is the truth.
    cache_store
        Where full values are kept: a `SqliteStore`, or any store that supports deletes, which the
        cache then takes for its own.
    max_age_seconds
        For how many seconds an answer is fresh; ``"infinity"`` or None for ever. Means the same
        within a process and across restarts.
    max_size
        Bytes that the values in the file and the parts of values in the memory of this process may
        have together; None for no limit. A larger value is returned but not kept. With another
        store as `cache_store`: the bytes of what it holds.
    cache_set_data
        Whether a value that is written is kept as well. If not, what was kept of its key goes.
    max_age_absent_seconds
        For how many seconds it is believed that the source has no such key, at most
        `max_age_seconds`. None: 60, and only a read-only view believes it, since zarr overwrites
        what it believes to be absent. A number, or ``"infinity"``, holds for every view; 0 asks the
        source each time.
    namespace
        Name under which the file keeps what is read from `store`: other names are other keys. None
        derives it from what `store` is: its path or URL, without credentials. A source that does
        not outlive the process, such as a ``MemoryStore``, gets one that is dropped with it.
    read_only
        Whether to refuse writes; None for what `store` does.

    Raises
    ------
    ValueError
        `cache_store` does not support deletes, or an age, a size or a name is not one.
    """

    def __init__(  # noqa: PLR0913 - zarr's, and ours
        self,
        store: Store,
        *,
        cache_store: Store,
        max_age_seconds: Age = "infinity",
        max_size: int | None = None,
        cache_set_data: bool = True,
        max_age_absent_seconds: Age = None,
        namespace: str | None = None,
        read_only: bool | None = None,
    ) -> None:
        if not cache_store.supports_deletes:
            msg = (
                f"The provided cache store {cache_store} does not support deletes. "
                "The cache_store must support deletes for CacheStore to function properly."
            )
            raise ValueError(msg)
        if max_size is not None and max_size < 0:
            msg = f"max_size must be a number of bytes or None, got {max_size!r}"
            raise ValueError(msg)
        if namespace == "":
            msg = "namespace must not be empty: the empty one holds what SqliteStore itself stores"
            raise ValueError(msg)
        if read_only is not None and store.read_only != read_only:
            store = store.with_read_only(read_only)
        super().__init__(store)
        self.max_age_seconds = ages.checked("max_age_seconds", max_age_seconds)
        self.max_age_absent_seconds = ages.checked("max_age_absent_seconds", max_age_absent_seconds)
        self.max_size = max_size
        self.cache_set_data = cache_set_data
        self.namespace = name_of(store) if namespace is None else namespace
        self._cache = cache_store
        self._given_namespace = namespace
        self._is_open_here = False
        self._values = (
            ValueCache.of(cache_store.database)
            if isinstance(cache_store, SqliteStore)
            else StoreCache(cache_store)
        )
        self._statistics = Statistics(self.namespace, lambda: self._values.pending)
        self._faults = Faults(self._statistics)
        self._forecast = Forecast()

    # Opening and closing

    @classmethod
    async def open(cls, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override] # not a class
        """Create the CacheStore with the parameters of the class, and open both its stores."""
        store = cls(*args, **kwargs)
        await store._open()
        return store

    @property
    def _is_open(self) -> bool:
        return self._is_open_here

    async def _open(self) -> None:
        if self._is_open_here:
            msg = "store is already open"
            raise ValueError(msg)
        await self._ensure_open()

    async def _ensure_open(self) -> None:
        if not self._is_open_here:
            await self._store._ensure_open()  # noqa: SLF001 - zarr's way to open a wrapped store
            await self._cache._ensure_open()  # noqa: SLF001 - the same
            self._is_open_here = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what waits, and close `store` and, if it is a `SqliteStore`, the cache store.

        Both open again when they are used again, by this CacheStore or another.
        """
        self._write_pending()
        super().close()
        if isinstance(self._cache, SqliteStore):
            self._cache.close()
        self._is_open_here = False

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: FBT001, FBT002 - zarr's
        """A view with the same cache, statistics and settings that refuses or takes writes."""
        view = type(self).__new__(type(self))
        vars(view).update(vars(self), _store=self._store.with_read_only(read_only))
        view._is_open_here = False  # noqa: SLF001 - of the same class
        return view

    def _with_store(self, store: Store) -> Self:
        msg = "CacheStore does not support this operation."
        raise NotImplementedError(msg)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CacheStore)
            and self._store == other._store
            and self._cache == other._cache
        )

    __hash__ = None  # type: ignore[assignment] # as zarr's own stores

    def __getstate__(self) -> dict[str, Any]:
        return {
            "store": self._store,
            "cache_store": self._cache,
            "max_age_seconds": self.max_age_seconds,
            "max_size": self.max_size,
            "cache_set_data": self.cache_set_data,
            "max_age_absent_seconds": self.max_age_absent_seconds,
            "namespace": self._given_namespace,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        store = state.pop("store")
        self.__init__(store, **state)  # type: ignore[misc]

    def __str__(self) -> str:
        return f"cached-{self._store}"

    # Telling what there is

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(store={self._store!r}, cache_store={self._cache!r}, "
            f"max_age_seconds={self.max_age_seconds!r}, max_size={self.max_size!r})"
        )

    def cache_info(self) -> dict[str, Any]:
        """What is kept, and under which settings.

        Removes what is stale first. Has the keys of zarr's CacheStore, where ``current_size`` and
        the numbers of keys are those of this namespace, and more:

        ``namespace``
            Whose keys these are.
        ``file_size``
            Bytes of the values of every namespace in the file: what `max_size` limits, together
            with ``range_size``.
        ``absent_keys``
            Keys that the source is believed not to have.
        ``ranges``, ``range_size``
            Number and bytes of the parts of values in memory, of every namespace.

        Raises
        ------
        CacheError
            The file cannot be read.
        """
        run(self._enforce())
        usage = self._values.usage(self.namespace)
        ranges = self._values.ranges
        own_ranges = ranges.count(self.namespace)
        values = usage.entries.get("value", 0)
        return {
            "cache_store_type": type(self._cache).__name__,
            "max_age_seconds": self.max_age_seconds,
            "max_size": self.max_size,
            "current_size": usage.bytes.get("value", 0) + ranges.nbytes_of(self.namespace),
            "cache_set_data": self.cache_set_data,
            "tracked_keys": values + own_ranges,
            "cached_keys": values + own_ranges,
            "max_age_absent_seconds": self.max_age_absent_seconds,
            "namespace": self.namespace,
            "file_size": usage.total_bytes["value"],
            "absent_keys": usage.entries.get("absent", 0),
            "ranges": len(ranges),
            "range_size": ranges.nbytes,
        }

    def cache_stats(self) -> dict[str, Any]:
        """What happened in this process, through this CacheStore and its views.

        Has the keys of zarr's CacheStore, and more: ``absent_hits`` of the hits said that there is
        no such key; ``expirations`` entries were removed because they were stale; ``faults`` times
        the cache failed and the source was asked instead; ``damaged`` values were not what had been
        stored, and were fetched again; ``bytes_served`` came out of the cache, ``bytes_fetched``
        from the source.
        """
        counts = self._statistics
        total = counts["hits"] + counts["misses"]
        return {
            "hits": counts["hits"],
            "misses": counts["misses"],
            "evictions": counts["evictions"],
            "total_requests": total,
            "hit_rate": counts["hits"] / total if total else 0.0,
            "absent_hits": counts["absent_hits"],
            "expirations": counts["expirations"],
            "faults": counts["faults"],
            "damaged": counts["damaged"],
            "bytes_served": counts["bytes_served"],
            "bytes_fetched": counts["bytes_fetched"],
        }

    async def clear_cache(self) -> None:
        """Remove what is kept of this source; what is being fetched is not kept either."""
        await run_async(self._fence(""))

    # Limits

    def _limits(self) -> Limits:
        now_ns = self._values.clock().now_ns()
        return Limits(
            max_size=self.max_size,
            ranges=self._values.ranges,
            fresh_after=ages.fresh_after(self.max_age_seconds, now_ns),
            absent_fresh_after=ages.fresh_after(self._absent_age(), now_ns),
        )

    def _absent_age(self) -> Age:
        """For how long an absence is believed by any view."""
        given = self.max_age_absent_seconds
        return ages.least(ABSENT_SECONDS if given is None else given, self.max_age_seconds)

    def _believes_absent(self) -> bool:
        """Whether this view believes that a key is absent."""
        return self.read_only or self.max_age_absent_seconds is not None

    # Reading

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The bytes asked for, from the cache where they are fresh; None if there is no such key."""
        return await run_async(self._get(key, prototype, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """As `get`, without an event loop where the source has no need of one."""
        return run(self._get(key, prototype or default_buffer_prototype(), byte_range))

    def _get(
        self, key: str, prototype: BufferPrototype, request: ByteRequest | None
    ) -> Flow[Buffer | None]:
        requests.check(request)
        seen = yield from self._look_up(key, request)
        if seen is None:
            return _as(prototype, (yield from self._ask(key, request)))
        data = self._fresh_data(seen, key, request)
        if data is not None:
            yield from self._hit(data)
            return to_buffer(prototype, data)
        if self._is_absent(seen):
            yield from self._hit(None)
            return None
        return _as(prototype, (yield from self._fetch(key, request, seen.found.revision)))

    def _look_up(
        self, key: str, request: ByteRequest | None = None, *, with_data: bool = True
    ) -> Flow[_Seen | None]:
        """What is kept of the key; None when the cache is faulty and the source is to be asked."""
        try:
            if self.namespace in self._values.unrecorded:
                yield from self._fence("")
            limits = self._limits()
            if with_data:
                found = yield from self._values.look_up(
                    self.namespace, key, request, limits.fresh_after
                )
            else:
                found = yield from self._values.peek(self.namespace, key)
            if found.is_damaged:
                self._statistics.add(damaged=1)
                yield from self._values.discard(found)
                found = found._replace(entry=None, kind=None, data=None)
            yield from self._come_under_budget(found, limits)
        except StorageError as error:
            self._faults.note(error)
            return None
        return _Seen(found, limits)

    def _come_under_budget(self, found: Found, limits: Limits) -> Flow[None]:
        """Make room if there is too much: left by another process, or by a larger `max_size`."""
        if self.max_size is None or found.cached_bytes + limits.ranges.nbytes <= self.max_size:
            return
        removed = yield from self._values.enforce(self.namespace, limits)
        self._count_removed(removed)

    def _fresh_data(self, seen: _Seen, key: str, request: ByteRequest | None) -> Data | None:
        """The bytes asked for, out of the value in the file or of a part in memory."""
        found, limits = seen
        used_at = self._values.clock().stamp_ns()
        if found.kind == "value" and found.data is not None:
            if found.entry is not None:
                self._values.pending.touch(found.entry, used_at)
            return found.data
        if request is None:
            return None
        return limits.ranges.get(
            self.namespace,
            key,
            request,
            fence=found.fence,
            fresh_after=limits.fresh_after,
            used_at=used_at,
        )

    def _is_absent(self, seen: _Seen) -> bool:
        """Whether the key is believed to be absent."""
        found, limits = seen
        is_absent = (
            self._believes_absent()
            and found.kind == "absent"
            and found.stored_at > limits.absent_fresh_after
        )
        if is_absent and found.entry is not None:
            self._values.pending.touch(found.entry, self._values.clock().stamp_ns())
        return is_absent

    def _hit(self, data: Data | None) -> Flow[None]:
        """Count a hit, with its bytes or for an absent key; write what has gathered."""
        self._forecast.hit()
        if data is None:
            self._statistics.add(hits=1, absent_hits=1)
        else:
            self._statistics.add(hits=1, bytes_served=len(data))
        if len(self._values.pending) >= MOST_PENDING:
            try:
                yield from self._values.write_pending()
            except StorageError as error:
                self._faults.note(error)

    def _fetch(self, key: str, request: ByteRequest | None, revision: int) -> Flow[Buffer | None]:
        """Ask the source, once for all who ask at once, and keep the answer.

        Parameters
        ----------
        revision
            Of the look-up that missed. Who asks at another one saw another write, and asks again.
        """
        place = (self.namespace, key, request, revision)
        flight, leads = self._values.flights.join(place)
        if not leads:
            landed, buffer = yield from flight.wait()
            if landed:
                self._miss(buffer, is_fetched=False)
                return buffer
        try:
            asked_at = self._values.clock().now_ns()
            buffer = yield from self._ask(key, request)
            if leads:
                flight.land(buffer)
            yield from self._keep(key, request, buffer, revision, asked_at)
        finally:
            if leads:
                self._values.flights.end(place, flight)
        return buffer

    def _ask(self, key: str, request: ByteRequest | None) -> Flow[Buffer | None]:
        """What the source answers, in a buffer of this machine's memory."""
        source: Any = self._store
        buffer: Buffer | None = yield from self._call(
            partial(source.get_sync, key, prototype=cpu.buffer_prototype, byte_range=request),
            partial(source.get, key, cpu.buffer_prototype, request),
        )
        self._miss(buffer, is_fetched=True)
        return buffer

    def _miss(self, buffer: Buffer | None, *, is_fetched: bool) -> None:
        self._forecast.miss()
        nbytes = len(buffer) if is_fetched and buffer is not None else 0
        self._statistics.add(misses=1, bytes_fetched=nbytes)

    def _call[T](
        self, blocking: Callable[[], T], awaitable: Callable[[], Coroutine[Any, Any, T]]
    ) -> Flow[T]:
        """Call the source; where it has no sync methods, the sync surface waits for zarr's loop."""
        if _store_supports_sync_io(self._store):
            return step(blocking, awaitable)
        return step(lambda: sync(awaitable()), awaitable)

    def _keep(
        self,
        key: str,
        request: ByteRequest | None,
        buffer: Buffer | None,
        revision: int,
        asked_at: int,
    ) -> Flow[None]:
        """Keep what the source answered, where the limits and later writes allow it."""
        try:
            if buffer is not None and request is not None:
                yield from self._keep_range(key, request, buffer, revision, asked_at)
                return
            data = None if buffer is None else to_array(buffer)
            if self._is_kept(data):
                answer = Answer(data, asked_at, self._values.clock().stamp_ns(), revision)
                removed = yield from self._values.admit(self.namespace, key, answer, self._limits())
                self._count_removed(removed)
            else:
                yield from self._values.forget(self.namespace, key, revision, asked_at)
        except StorageError as error:
            self._faults.note(error)

    def _is_kept(self, data: Data | None) -> bool:
        """Whether such an answer is kept at all: one that is stale at once or too large is not."""
        if data is None:
            return self._believes_absent() and self._absent_age() != 0
        return self.max_age_seconds != 0 and (self.max_size is None or len(data) <= self.max_size)

    def _keep_range(
        self, key: str, request: ByteRequest, buffer: Buffer, revision: int, asked_at: int
    ) -> Flow[None]:
        data = buffer.to_bytes()
        if not self._is_kept(data):
            return
        found = yield from self._values.peek(self.namespace, key)
        if found.fence > revision or found.writers:
            return
        limits = self._limits()
        stamp = self._values.clock().stamp_ns()
        entry = RangeEntry(self.namespace, key, None, data, asked_at, revision, stamp)
        limits.ranges.add(request, entry)
        yield from self._come_under_budget(found, limits)

    def _count_removed(self, removed: Removed | None) -> None:
        if removed is not None:
            evictions = len(removed.evicted) + removed.evicted_ranges
            self._statistics.add(evictions=evictions, expirations=len(removed.expired))

    async def get_ranges(  # noqa: PLR0913 - zarr's
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
        max_gap_bytes: int | None = None,
        max_coalesced_bytes: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """The ranges, first those that are at hand, in one batch.

        What is left goes to the source in one ``get_ranges``, and comes in its batches.

        Raises
        ------
        BaseExceptionGroup
            As from the source; with a `FileNotFoundError` in it if there is no such key.
        """
        settings = _given(
            max_concurrency=max_concurrency,
            max_gap_bytes=max_gap_bytes,
            max_coalesced_bytes=max_coalesced_bytes,
        )
        for batch in await run_async(self._get_ranges(key, byte_ranges, prototype, settings)):
            yield batch

    def get_ranges_sync(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        max_gap_bytes: int | None = None,
        max_coalesced_bytes: int | None = None,
    ) -> Sequence[tuple[int, Buffer | None]]:
        """As `get_ranges`, without an event loop where the source has no need of one."""
        settings = _given(max_gap_bytes=max_gap_bytes, max_coalesced_bytes=max_coalesced_bytes)
        batches = run(self._get_ranges(key, byte_ranges, prototype, settings))
        return [piece for batch in batches for piece in batch]

    def _get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        prototype: BufferPrototype,
        settings: dict[str, int],
    ) -> Flow[list[list[tuple[int, Buffer | None]]]]:
        for request in byte_ranges:
            requests.check(request)
        seen = yield from self._look_up(key, with_data=False)
        if seen is None:
            places = list(range(len(byte_ranges)))
            pieces = yield from self._ask_ranges(key, byte_ranges, places, settings)
            return [[(place, _as(prototype, buffer)) for place, buffer in b] for b in pieces]
        if self._is_absent(seen):
            yield from self._hit(None)
            raise _absent(key)
        at_hand = yield from self._ranges_at_hand(seen, key, byte_ranges)
        batches = [[(place, to_buffer(prototype, data)) for place, data in at_hand.items()]]
        missing = [place for place in range(len(byte_ranges)) if place not in at_hand]
        fetched = yield from self._fetch_ranges(key, byte_ranges, missing, seen, settings)
        batches += [
            [(place, _as(prototype, buffer)) for place, buffer in batch] for batch in fetched
        ]
        return [batch for batch in batches if batch]

    def _ranges_at_hand(
        self, seen: _Seen, key: str, byte_ranges: Sequence[ByteRequest | None]
    ) -> Flow[dict[int, Data]]:
        """The bytes that are here, by the place of their request."""
        found, limits = seen
        each: list[Found] = [found] * len(byte_ranges)
        if found.kind == "value" and found.stored_at > limits.fresh_after:
            try:
                each = yield from self._values.look_up_many(
                    self.namespace, key, byte_ranges, limits.fresh_after
                )
            except StorageError as error:
                self._faults.note(error)
        at_hand = {}
        for place, request in enumerate(byte_ranges):
            data = self._fresh_data(_Seen(each[place], limits), key, request)
            if data is not None:
                at_hand[place] = data
                yield from self._hit(data)
        return at_hand

    def _fetch_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        missing: list[int],
        seen: _Seen,
        settings: dict[str, int],
    ) -> Flow[list[list[tuple[int, Buffer | None]]]]:
        """Ask the source once for all that is missing, but for what others are asking it for."""
        revision = seen.found.revision
        flights = self._values.flights
        joined = {
            place: flights.join((self.namespace, key, byte_ranges[place], revision))
            for place in missing
        }
        led = {place: flight for place, (flight, leads) in joined.items() if leads}
        try:
            asked_at = self._values.clock().now_ns()
            batches = []
            if led:
                batches = yield from self._ask_ranges(key, byte_ranges, list(led), settings)
            # All of them land before one is kept: whoever follows waits for nothing else.
            for batch in batches:
                for place, buffer in batch:
                    led[place].land(buffer)
            for batch in batches:
                for place, buffer in batch:
                    yield from self._keep(key, byte_ranges[place], buffer, revision, asked_at)
        finally:
            for place, flight in led.items():
                flights.end((self.namespace, key, byte_ranges[place], revision), flight)
        for place in missing:
            if place in led:
                continue
            flight, _ = joined[place]
            landed, buffer = yield from flight.wait()
            if landed:
                self._miss(buffer, is_fetched=False)
            else:
                buffer = yield from self._fetch(key, byte_ranges[place], revision)
                if buffer is None:
                    raise _absent(key)
            batches.append([(place, buffer)])
        return batches

    def _ask_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        places: list[int],
        settings: dict[str, int],
    ) -> Flow[list[list[tuple[int, Buffer | None]]]]:
        """What the source answers in one ``get_ranges``, in its batches, by place in `byte_ranges`."""
        source: Any = self._store
        asked = [byte_ranges[place] for place in places]

        async def collect() -> list[Sequence[tuple[int, Buffer | None]]]:
            batches = source.get_ranges(key, asked, prototype=cpu.buffer_prototype, **settings)
            return [batch async for batch in batches]

        def collect_sync() -> list[Sequence[tuple[int, Buffer | None]]]:
            chosen = {name: each for name, each in settings.items() if name != "max_concurrency"}
            return [source.get_ranges_sync(key, asked, prototype=cpu.buffer_prototype, **chosen)]

        batches = yield from self._call(collect_sync, collect)
        for batch in batches:
            for _, buffer in batch:
                self._miss(buffer, is_fetched=True)
        return [[(places[place], buffer) for place, buffer in batch] for batch in batches]

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """The bytes asked for, in the order of the requests; None for absent keys."""
        asked = list(key_ranges)
        places: dict[str, list[int]] = {}
        for place, (key, _) in enumerate(asked):
            places.setdefault(key, []).append(place)
        answers: list[Buffer | None] = [None] * len(asked)

        async def answer(key: str) -> None:
            of_key = places[key]
            if len(of_key) == 1:
                answers[of_key[0]] = await self.get(key, prototype, asked[of_key[0]][1])
                return
            byte_ranges = [asked[place][1] for place in of_key]
            try:
                async for batch in self.get_ranges(key, byte_ranges, prototype=prototype):
                    for number, buffer in batch:
                        answers[of_key[number]] = buffer
            except* FileNotFoundError:
                pass  # absent, and None already

        await asyncio.gather(*(answer(key) for key in places))
        return answers

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        async def answer(
            key: str, prototype: BufferPrototype, byte_range: ByteRequest | None
        ) -> tuple[str, Buffer | None]:
            return key, await self.get(key, prototype, byte_range)

        for answered in await asyncio.gather(*(answer(*request) for request in requests)):
            yield answered

    async def exists(self, key: str) -> bool:
        """Whether the source has the key, as far as fresh answers tell, or else as it says."""
        return await run_async(self._exists(key))

    def _exists(self, key: str) -> Flow[bool]:
        seen = yield from self._look_up(key, with_data=False)
        if seen is not None:
            if self._size_at_hand(seen, key) is not None or self._has_range(seen, key):
                yield from self._hit(b"")
                return True
            if self._is_absent(seen):
                yield from self._hit(None)
                return False
            asked_at = self._values.clock().now_ns()
        exists = yield from self._await(partial(self._store.exists, key))
        self._miss(None, is_fetched=True)
        if seen is not None and not exists:
            yield from self._keep(key, None, None, seen.found.revision, asked_at)
        return exists

    async def getsize(self, key: str) -> int:
        """Bytes of the value, as far as a fresh answer tells, or else as the source says.

        Raises
        ------
        FileNotFoundError
            The source has no such key.
        """
        return await run_async(self._getsize(key))

    def _getsize(self, key: str) -> Flow[int]:
        seen = yield from self._look_up(key, with_data=False)
        if seen is not None:
            size = self._size_at_hand(seen, key)
            if size is not None:
                yield from self._hit(b"")
                return size
            if self._is_absent(seen):
                yield from self._hit(None)
                raise FileNotFoundError(key)
            asked_at = self._values.clock().now_ns()
        self._miss(None, is_fetched=True)
        try:
            return (yield from self._await(partial(self._store.getsize, key)))
        except FileNotFoundError:
            if seen is not None:
                yield from self._keep(key, None, None, seen.found.revision, asked_at)
            raise

    async def getsize_prefix(self, prefix: str) -> int:
        """Bytes of all values below a folder, as the source says."""
        return await self._store.getsize_prefix(prefix)

    def _size_at_hand(self, seen: _Seen, key: str) -> int | None:
        found, limits = seen
        if found.kind == "value" and found.stored_at > limits.fresh_after:
            return found.size
        return limits.ranges.size(
            self.namespace, key, fence=found.fence, fresh_after=limits.fresh_after
        )

    def _has_range(self, seen: _Seen, key: str) -> bool:
        found, limits = seen
        return limits.ranges.has(
            self.namespace, key, fence=found.fence, fresh_after=limits.fresh_after
        )

    @staticmethod
    def _await[T](awaitable: Callable[[], Coroutine[Any, Any, T]]) -> Flow[T]:
        """Call what only the async surface has."""
        return step(lambda: sync(awaitable()), awaitable)

    @property
    def _supports_sync_io(self) -> bool:
        """Whether zarr's fused pipeline should call the sync methods for its next batch.

        A sync miss of a source that has only async methods holds up one of the few threads that
        the pipeline has, while its async path waits for all misses at once. So such a source is
        read through the event loop until what is asked for is at hand. See docs/decisions/0004.
        """
        return _store_supports_sync_io(self._store) or self._forecast.is_hit

    # Writing

    async def set(self, key: str, value: Buffer) -> None:
        """Write the value to the source, and keep it if `cache_set_data`."""
        await run_async(self._set(key, value))

    def set_sync(self, key: str, value: Buffer) -> None:
        """As `set`, without an event loop where the source has no need of one."""
        run(self._set(key, value))

    def _set(self, key: str, value: Buffer) -> Flow[None]:
        source: Any = self._store
        write = self._call(partial(source.set_sync, key, value), partial(source.set, key, value))
        return self._write([(key, value)], write)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        items = list(values)
        write = self._await(partial(self._store._set_many, items))  # noqa: SLF001 - zarr's
        await run_async(self._write(items, write))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write the value to the source, unless it has one."""
        write = self._await(partial(self._store.set_if_not_exists, key, value))
        # Whose value stands is for the source to say, at the next read.
        await run_async(self._write([(key, None)], write))

    async def delete(self, key: str) -> None:
        """Delete the key from the source, and what is kept of it."""
        await run_async(self._delete(key))

    def delete_sync(self, key: str) -> None:
        """As `delete`, without an event loop where the source has no need of one."""
        run(self._delete(key))

    def _delete(self, key: str) -> Flow[None]:
        source: Any = self._store
        write = self._call(partial(source.delete_sync, key), partial(source.delete, key))
        return self._write([(key, None)], write)

    def _write(self, items: Sequence[tuple[str, Buffer | None]], write: Flow[None]) -> Flow[None]:
        """Write to the source; no read that begins after it has returned sees what was before.

        Parameters
        ----------
        items
            Each key with what the source will hold then, or None if that is for the source to say.
        write
            Writes to the source.
        """
        self._check_writable()
        keys = [key for key, _ in items]
        begun = yield from self._begin_write(keys)
        answers: dict[str, Answer] = {}
        try:
            yield from write
            if begun is not None and self.cache_set_data:
                answers = self._written(items, begun)
        finally:
            # Also when the write has failed, or was cancelled: then nobody knows what the source
            # holds, and it is asked.
            yield from self._end_write(keys, answers, begun)

    def _begin_write(self, keys: Sequence[str]) -> Flow[int | None]:
        """Make what is kept of the keys unusable; None when the cache cannot."""
        try:
            for key in keys:
                self._values.ranges.remove_key(self.namespace, key)
            now_ns = self._values.clock().stamp_ns()
            return (yield from self._values.begin_write(self.namespace, keys, now_ns))
        except StorageError as error:
            self._values.unrecorded.add(self.namespace)
            self._faults.note(error)
            return None

    def _written(self, items: Sequence[tuple[str, Buffer | None]], begun: int) -> dict[str, Answer]:
        now_ns = self._values.clock().now_ns()
        written = {key: to_array(value) for key, value in items if value is not None}
        return {
            key: Answer(data, now_ns, self._values.clock().stamp_ns(), begun)
            for key, data in written.items()
            if self._is_kept(data)
        }

    def _end_write(
        self, keys: Sequence[str], answers: Mapping[str, Answer], begun: int | None
    ) -> Flow[None]:
        if begun is None:
            return
        try:
            now_ns = self._values.clock().stamp_ns()
            removed = yield from self._values.end_write(
                self.namespace, keys, answers, now_ns, self._limits()
            )
            self._count_removed(removed)
        except StorageError as error:
            # What was begun stands: nothing is kept of the keys until it has been trimmed away.
            self._faults.note(error)

    async def delete_dir(self, prefix: str) -> None:
        """Delete every key below the folder `prefix` from the source, and what is kept of them."""
        folder = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        await run_async(self._remove(folder, partial(self._store.delete_dir, prefix)))

    async def clear(self) -> None:
        """Delete every key from the source, and what is kept of them."""
        await run_async(self._remove("", self._store.clear))

    def _remove(
        self, prefix: str, awaitable: Callable[[], Coroutine[Any, Any, None]]
    ) -> Flow[None]:
        self._check_writable()
        yield from self._fence_or_note(prefix)
        try:
            yield from self._await(awaitable)
        finally:
            # Once more: what was asked for meanwhile may have been answered before or after.
            yield from self._fence_or_note(prefix)

    def _fence_or_note(self, prefix: str) -> Flow[None]:
        try:
            yield from self._fence(prefix)
        except StorageError as error:
            self._values.unrecorded.add(self.namespace)
            self._faults.note(error)

    def _fence(self, prefix: str) -> Flow[None]:
        """Remove what is kept of the keys that begin with `prefix`; refuse what is being fetched."""
        yield from self._values.fence_prefix(self.namespace, prefix)
        if not prefix:
            self._values.unrecorded.discard(self.namespace)

    def _enforce(self) -> Flow[None]:
        removed = yield from self._values.enforce(self.namespace, self._limits())
        self._count_removed(removed)

    def _write_pending(self) -> None:
        try:
            run(self._values.write_pending())
        except StorageError as error:
            self._faults.note(error)


class _Seen(NamedTuple):
    """What a look-up found, and the limits that it was judged by."""

    found: Found
    limits: Limits


def _as(prototype: BufferPrototype, buffer: Buffer | None) -> Buffer | None:
    """The buffer as one of the type asked for."""
    if buffer is None or isinstance(buffer, prototype.buffer):
        return buffer
    return prototype.buffer.from_buffer(buffer)


def _absent(key: str) -> BaseExceptionGroup[FileNotFoundError]:
    """What zarr's ``get_ranges`` raises for a key that is not there."""
    return BaseExceptionGroup("chunk read failed", [FileNotFoundError(key)])


def _given(**settings: int | None) -> dict[str, int]:
    """Those that are not left to the source."""
    return {name: each for name, each in settings.items() if each is not None}
