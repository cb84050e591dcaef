"""CacheStore: zarr's Store that caches the values of another store."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Self

from zarr.abc.store import Store, _store_supports_sync_io
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from zarr_cache.cache import parameters
from zarr_cache.cache.info import CacheInfo
from zarr_cache.cache.many_keys import ManyKeys
from zarr_cache.cache.sqlite_store import SqliteStore
from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import run, run_async
from zarr_cache.flows import evict, existence, reading, reading_ranges, writing
from zarr_cache.flows.naming import copying, name_source
from zarr_cache.flows.view import view_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from types import TracebackType

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.core.ages import Age
    from zarr_cache.flows.settings import WhenFull


class CacheStore(CacheInfo, ManyKeys):
    """A store that reads `store` and caches its values in `cache_store`.

    A drop-in for `zarr.experimental.cache_store.CacheStore` with the same parameters. With a
    `SqliteStore` as `cache_store`, cached values, their order of use and their ages outlive the
    process.

    Whole values are cached in `cache_store`, byte ranges in memory or, with `persist_ranges`, in
    `cache_store`. All share `max_size`, and `when_full` says what makes room. Writes
    go to `store` first, and a read that begins after a write has returned never sees the old value.
    Cache failures (a full disk, a locked file) never fail a read: a `CacheWarning` names the cause,
    and the value is read from `store`.

    All threads and event loops may use one CacheStore concurrently, and any number of processes one
    cache file. Listings read `store`, unless `offline`.

    Parameters
    ----------
    store
        The source, whose values are cached.
    cache_store
        Where whole values are cached: a `SqliteStore`, or another store that supports writes and
        deletes and holds nothing else. The cache does not see changes that another process makes to
        such a store, so no other process and no other source may use it. None: ``SqliteStore()``,
        one file for each user.
    max_age_seconds
        For how many seconds a cached value is fresh, also across restarts; ``"infinity"`` or None
        for ever. A stale value is revalidated, where the source tells which version it has.
    max_age_metadata_seconds
        The same for Zarr's metadata, such as ``zarr.json``. None: as `max_age_seconds` in read-only
        views, and 0 in others.
    max_size
        Maximum total bytes of the cached values and byte ranges, in the file and in the memory of
        this process: a number, or a string such as ``"20 GiB"`` or ``"500 MB"``; None for no limit.
        A larger value is returned and not cached. With another store as `cache_store`, the limit is
        for the bytes in that store.
    when_full
        ``"evict"``: the least recently used entry is evicted for a new one. ``"keep"``: what has no
        room is returned and not cached; stale, removed and overwritten entries make room, and a
        smaller `max_size` still evicts. ``"auto"``: whichever would have had more hits of late.
    cache_set_data
        Whether a written value is cached. If not, the cached value of its key is removed.
    max_age_absent_seconds
        For how many seconds a cached absence of a key is fresh, at most `max_age_seconds`. None: 60
        in read-only views; in others absences are read from the source each time, because zarr
        overwrites keys that it believes to be absent. A number or ``"infinity"`` holds for all
        views; 0 caches no absence.
    namespace
        Name under which values of `store` are cached. Two names are two sets of keys. None derives
        the name from the path or URL of `store`, without passwords and tokens. A source that does
        not outlive the process, such as a ``MemoryStore``, or whose address may be another's later,
        such as ``http://localhost``, gets a private name, and its entries are removed when the
        process ends: the log says so.
    persist_ranges
        Whether byte ranges, such as the chunks in shards, are kept in the file, for all processes.
        If not, this process has them in memory, until it ends.
    max_memory
        Maximum memory for the byte ranges of this process, as `max_size`; None for no limit besides
        `max_size`. A range takes its bytes and about 1 KiB.
    stale_if_error_seconds
        While `store` fails, a value that is stale by no more than this is returned (RFC 5861).
    offline
        Whether `store` is never used, nor opened. What is cached is returned, fresh or stale;
        listings list it; other keys raise OfflineError, and writes ValueError.
    read_only
        Whether to refuse writes; None for the same as `store`.

    Raises
    ------
    ValueError
        `cache_store` does not support deletes or is read-only; an age, a size or `namespace` is
        invalid; `persist_ranges` is true and `cache_store` is no `SqliteStore`.
    TypeError
        A parameter has another type.

    Notes
    -----
    Methods raise the errors of `store`. Writes to a read-only CacheStore raise ValueError. A read
    of some bytes of a value raises SourceChangedError if it was replaced since others were read.

    Examples
    --------
    >>> import zarr
    >>> from zarr.storage import FsspecStore
    >>> from zarr_cache import CacheStore, SqliteStore
    >>> source = FsspecStore.from_url("s3://bucket/era5.zarr", read_only=True)  # doctest: +SKIP
    >>> cache_store = SqliteStore("era5.sqlite")  # doctest: +SKIP
    >>> store = CacheStore(source, cache_store=cache_store, max_size="20 GiB")  # doctest: +SKIP
    >>> root = zarr.open_group(store, mode="r")  # doctest: +SKIP
    """

    # WrapperStore returns that of the wrapped store; this one opens and closes two stores.
    _is_open = False

    def __init__(
        self,
        store: Store,
        *,
        cache_store: Store | None = None,
        max_age_seconds: Age = "infinity",
        max_age_metadata_seconds: Age = None,
        max_size: int | str | None = None,
        when_full: WhenFull = "evict",
        cache_set_data: bool = True,
        max_age_absent_seconds: Age = None,
        namespace: str | None = None,
        persist_ranges: bool = False,
        max_memory: int | str | None = "1 GiB",
        stale_if_error_seconds: float = 0,
        offline: bool = False,
        read_only: bool | None = None,
    ) -> None:
        cache_store = SqliteStore() if cache_store is None else cache_store
        parameters.check_cache_store(cache_store, persist_ranges=persist_ranges, offline=offline)
        name = parameters.checked_namespace(namespace) or name_source(store)
        self._given_namespace = namespace
        settings = parameters.settings_of(
            max_age_seconds=max_age_seconds,
            max_age_metadata_seconds=max_age_metadata_seconds,
            stale_if_error_seconds=stale_if_error_seconds,
            offline=offline,
            max_size=max_size,
            when_full=when_full,
            cache_set_data=cache_set_data,
            max_age_absent_seconds=max_age_absent_seconds,
            persist_ranges=persist_ranges,
            max_memory=max_memory,
        )
        if offline:
            read_only = True
        if read_only is not None and store.read_only != read_only:
            store = store.with_read_only(read_only)
        super().__init__(store)
        self._cache = cache_store
        values = parameters.cache_in(cache_store)
        parameters.refuse_itself(store, values, name)
        self._view = view_of(store, values, settings, name, is_given=namespace is not None)

    @classmethod
    async def open(cls, *args: Any, **kwargs: Any) -> Self:
        """Create a CacheStore with the parameters of the class, and open both its stores."""
        store = cls(*args, **kwargs)
        await store._open()
        return store

    async def _open(self) -> None:
        if self._is_open:
            raise ValueError("store is already open")
        await self._ensure_open()

    async def _ensure_open(self) -> None:
        if not self._is_open:
            if not self._view.settings.offline:
                await self._store._ensure_open()  # noqa: SLF001 - zarr's way to open a wrapped store
            try:
                await self._cache._ensure_open()  # noqa: SLF001 - the same
            except CacheError as error:
                self._view.faults.note(error)
            self._is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def flush(self) -> None:
        """Write pending responses, uses and counts into the file.

        The cache writes responses within moments, and uses and counts with them or after the uses
        of a thousand entries. Call this to see them with another tool at once.
        """
        values = self._view.values
        values.flush()
        try:
            run(values.write_pending())
        except CacheError as error:
            self._view.faults.note(error)

    def close(self) -> None:
        """Write what is pending, and close `store` and, if it is a `SqliteStore`, the cache store.

        The next use, by this CacheStore or another, opens them again.
        """
        if isinstance(self._cache, SqliteStore):
            # It writes what is pending.
            self._cache.close()
        else:
            self.flush()
        super().close()
        self._view.close_source()
        self._is_open = False

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: FBT001, FBT002 - zarr's
        """A view with the same cache, statistics and settings that refuses or accepts writes."""
        other = type(self).__new__(type(self))
        source = self._store.with_read_only(read_only or self._view.settings.offline)
        view = dataclasses.replace(self._view, source=source)
        vars(other).update(vars(self), _store=source, _view=view, _is_open=False)
        return other

    def _with_store(self, store: Store) -> Self:
        # As zarr's CacheStore: what is cached is of one source.
        raise NotImplementedError("CacheStore does not support this operation.")

    def __getstate__(self) -> dict[str, Any]:
        # Another process cannot use a cache in memory, which may be large.
        is_in_memory = isinstance(self._cache, MemoryStore)
        return {
            "store": self._store,
            "cache_store": type(self._cache)() if is_in_memory else self._cache,
            "namespace": self._given_namespace,
            **self._view.settings._asdict(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        store = state.pop("store")
        with copying():
            self.__init__(store, **state)  # type: ignore[misc] # as from a call of the class

    async def clear_cache(self) -> None:
        """Remove what is cached of this source, and admit no response that is being fetched.

        Raises
        ------
        CacheError
            The file cannot be written. Call this again.
        """
        await run_async(evict.clear_cache(self._view))
        self._view.statistics.last_usage = (0, 0)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The bytes of the request, cached and fresh or from the source; None for an absent key."""
        return await run_async(reading.get(self._view, key, prototype, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """As `get`, without an event loop unless the source needs one."""
        return run(
            reading.get(self._view, key, prototype or default_buffer_prototype(), byte_range)
        )

    async def get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
        max_gap_bytes: int | None = None,
        max_coalesced_bytes: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """The ranges: first a batch of those that are cached, then the batches of the source.

        The missing ranges are read by one ``get_ranges`` of the source. If that fails, its earlier
        batches are yielded and cached before the error is raised.

        Raises
        ------
        BaseExceptionGroup
            As from the source. It contains a `FileNotFoundError` if there is no such key.
        """
        settings = parameters.given(
            max_concurrency=max_concurrency,
            max_gap_bytes=max_gap_bytes,
            max_coalesced_bytes=max_coalesced_bytes,
        )
        flow = reading_ranges.get_ranges(self._view, key, byte_ranges, prototype, settings)
        batches, error = await run_async(flow)
        for batch in batches:
            yield batch
        if error is not None:
            raise error

    def get_ranges_sync(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        max_gap_bytes: int | None = None,
        max_coalesced_bytes: int | None = None,
    ) -> Sequence[tuple[int, Buffer | None]]:
        """As `get_ranges`, without an event loop unless the source needs one."""
        settings = parameters.given(
            max_gap_bytes=max_gap_bytes, max_coalesced_bytes=max_coalesced_bytes
        )
        flow = reading_ranges.get_ranges(self._view, key, byte_ranges, prototype, settings)
        batches, error = run(flow)
        if error is not None:
            raise error
        return [piece for batch in batches for piece in batch]

    async def exists(self, key: str) -> bool:
        """Whether there is such a key, by a fresh entry or by the source."""
        return await run_async(existence.exists(self._view, key))

    async def getsize(self, key: str) -> int:
        """Bytes of the value, by a fresh entry or by the source."""
        return await run_async(existence.getsize(self._view, key))

    @property
    def _supports_sync_io(self) -> bool:
        """Whether zarr's fused pipeline calls the sync methods: only if both stores have them.

        A sync call of another store blocks one of the few threads of the pipeline, while its async
        path waits for all calls at once. See docs/decisions/0004.
        """
        return (
            _store_supports_sync_io(self._store)
            and _store_supports_sync_io(self._cache)
            and self._view.values.is_listed
        )

    async def set(self, key: str, value: Buffer) -> None:
        """Write the value to the source, and cache it if `cache_set_data`."""
        self._check_writable()
        await run_async(writing.set_value(self._view, key, value))

    def set_sync(self, key: str, value: Buffer) -> None:
        """As `set`, without an event loop unless the source needs one."""
        self._check_writable()
        run(writing.set_value(self._view, key, value))

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        self._check_writable()
        await run_async(writing.set_many(self._view, list(values)))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write the value to the source, unless it has the key."""
        self._check_writable()
        await run_async(writing.set_if_not_exists(self._view, key, value))

    async def delete(self, key: str) -> None:
        """Delete the key from the source and from the cache."""
        self._check_writable()
        await run_async(writing.delete(self._view, key))

    def delete_sync(self, key: str) -> None:
        """As `delete`, without an event loop unless the source needs one."""
        self._check_writable()
        run(writing.delete(self._view, key))

    async def delete_dir(self, prefix: str) -> None:
        """Delete every key below the folder `prefix` from the source and from the cache."""
        self._check_writable()
        await run_async(writing.delete_dir(self._view, prefix))

    async def clear(self) -> None:
        """Delete every key from the source and from the cache."""
        self._check_writable()
        await run_async(writing.clear(self._view))
