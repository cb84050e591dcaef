"""A store that remembers what another store answered: hit, miss, admit, write-through."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, Self

from zarr.abc.store import Store, _store_supports_sync_io
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore, WrapperStore

from zarr_cache.backend.counters import Statistics
from zarr_cache.backend.failures import Faults
from zarr_cache.backend.file_cache import FileCache
from zarr_cache.backend.other_store import StoreCache
from zarr_cache.cache import reading, reading_ranges, writing
from zarr_cache.cache.sqlite_store import SqliteStore
from zarr_cache.cache.view import Settings, SourceView
from zarr_cache.core import ages, private, sizes
from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import call, call_async, run, run_async
from zarr_cache.core.sizes import format_size
from zarr_cache.index import space
from zarr_cache.inspect import html
from zarr_cache.inspect.verify_store import verify_store
from zarr_cache.sources.names import folder_of, name_of, reads_urls

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
    from types import TracebackType

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.core.ages import Age
    from zarr_cache.core.flow import Flow
    from zarr_cache.index.space import Usage
    from zarr_cache.inspect.problem import Problem


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
        Where full values are kept: a `SqliteStore`, or any store that takes writes and deletes,
        which the cache then takes for its own. What other processes do in such a store it cannot
        know: give it one that no other process, and no other source before, keeps values in. None:
        ``SqliteStore()``, one file for each user.
    max_age_seconds
        For how many seconds an answer is fresh; ``"infinity"`` or None for ever. Means the same
        within a process and across restarts.
    max_size
        Bytes that the values in the file and the parts of values in the memory of this process may
        have together, as a number or a string such as ``"20 GiB"`` or ``"500 MB"``; None for no
        limit. A larger value is returned but not kept. With another store as `cache_store`: the
        bytes of what it holds.
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
        not outlive the process, such as a ``MemoryStore``, gets one that no other source has, and
        what is kept under it goes with the process.
    read_only
        Whether to refuse writes; None for what `store` does.

    Raises
    ------
    ValueError
        `cache_store` does not support deletes or is read-only, or an age, a size or a name is not
        one.
    TypeError
        An age or a size is neither a number nor a string nor None, or a name no string.

    Notes
    -----
    Parameters and return values of its methods are those of `zarr.abc.store.Store`; the docstrings
    here say only what differs. Errors are those of `store`; what writes raises ValueError if this
    is read-only.

    Examples
    --------
    >>> import zarr
    >>> from zarr.storage import FsspecStore
    >>> from zarr_cache import CacheStore, SqliteStore
    >>> source = FsspecStore.from_url("s3://bucket/era5.zarr", read_only=True)  # doctest: +SKIP
    >>> store = CacheStore(  # doctest: +SKIP
    ...     source, cache_store=SqliteStore("era5.sqlite"), max_size="20 GiB"
    ... )
    >>> root = zarr.open_group(store, mode="r")  # doctest: +SKIP
    """

    # WrapperStore asks the wrapped store; this one opens and closes two.
    _is_open = False

    def __init__(
        self,
        store: Store,
        *,
        cache_store: Store | None = None,
        max_age_seconds: Age = "infinity",
        max_size: int | str | None = None,
        cache_set_data: bool = True,
        max_age_absent_seconds: Age = None,
        namespace: str | None = None,
        read_only: bool | None = None,
    ) -> None:
        if cache_store is None:
            cache_store = SqliteStore()
        if not cache_store.supports_deletes:
            msg = (
                f"The provided cache store {cache_store} does not support deletes. "
                "The cache_store must support deletes for CacheStore to function properly."
            )
            raise ValueError(msg)
        if cache_store.read_only:
            raise ValueError(
                f"cache_store {_named(cache_store)} is read-only, and what is read is kept in it: "
                "give one that takes writes. To serve what is in a file and keep it as it is, take "
                "away its write permission"
            )
        name = _checked_namespace(namespace) or name_of(store)
        if read_only is not None and store.read_only != read_only:
            store = store.with_read_only(read_only)
        super().__init__(store)
        settings = Settings(
            max_age_seconds=ages.checked("max_age_seconds", max_age_seconds),
            max_size=sizes.checked("max_size", max_size),
            cache_set_data=cache_set_data,
            max_age_absent_seconds=ages.checked("max_age_absent_seconds", max_age_absent_seconds),
        )
        values = (
            FileCache.of(cache_store.database)
            if isinstance(cache_store, SqliteStore)
            else StoreCache.over(cache_store, name_of)
        )
        _refuse_itself(store, values, name)
        values.pending.gather()
        statistics = Statistics(name, lambda: values.pending.counted)
        self._cache = cache_store
        self._given_namespace = namespace
        self._is_open = False
        self._cached = SourceView(
            source=store,
            values=values,
            namespace=name,
            settings=settings,
            statistics=statistics,
            faults=Faults(statistics),
            is_folder=namespace is None and folder_of(store) is not None,
            reads_urls=namespace is None and reads_urls(store),
        )

    @property
    def max_age_seconds(self) -> Age:
        """For how many seconds an answer is fresh; ``"infinity"`` or None for ever."""
        return self._cached.settings.max_age_seconds

    @property
    def max_age_absent_seconds(self) -> Age:
        """For how many seconds an absence is believed; None for 60, by read-only views."""
        return self._cached.settings.max_age_absent_seconds

    @property
    def max_size(self) -> int | None:
        """Bytes that may be kept; None for no limit."""
        return self._cached.settings.max_size

    @property
    def cache_set_data(self) -> bool:
        """Whether a value that is written is kept."""
        return self._cached.settings.cache_set_data

    @property
    def namespace(self) -> str:
        """Name under which the file keeps what is read from the source."""
        return self._cached.namespace

    @classmethod
    async def open(cls, *args: Any, **kwargs: Any) -> Self:
        """Create the CacheStore with the parameters of the class, and open both its stores."""
        store = cls(*args, **kwargs)
        await store._open()
        return store

    async def _open(self) -> None:
        if self._is_open:
            raise ValueError("store is already open")
        await self._ensure_open()

    async def _ensure_open(self) -> None:
        if not self._is_open:
            await self._store._ensure_open()  # noqa: SLF001 - zarr's way to open a wrapped store
            try:
                await self._cache._ensure_open()  # noqa: SLF001 - the same
            except CacheError as error:
                self._cached.faults.note(error)
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
        """Write what waits into the file: answers, uses and counts.

        Answers are at hand at once and in the file within moments. Uses and counts go along with
        them, or after the uses of a thousand entries. To call this is to see them with another tool
        at once.
        """
        self._cached.flush()

    def close(self) -> None:
        """Write what waits, and close `store` and, if it is a `SqliteStore`, the cache store.

        Both open again when they are used again, by this CacheStore or another.
        """
        if isinstance(self._cache, SqliteStore):
            # Which writes what waits.
            self._cache.close()
        else:
            self.flush()
        super().close()
        self._cached.close_source()
        self._is_open = False

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: FBT001, FBT002 - zarr's
        """A view with the same cache, statistics and settings that refuses or takes writes.

        Parameters
        ----------
        read_only
            Whether it refuses writes.

        Returns
        -------
        CacheStore
            The view.

        Raises
        ------
        NotImplementedError
            As from `store`, where that has no such views.
        """
        view = type(self).__new__(type(self))
        source = self._store.with_read_only(read_only)
        cached = dataclasses.replace(self._cached, source=source)
        vars(view).update(vars(self), _store=source, _cached=cached, _is_open=False)
        return view

    def _with_store(self, store: Store) -> Self:
        raise NotImplementedError("CacheStore does not support this operation.")

    def __getstate__(self) -> dict[str, Any]:
        # A cache in memory is of no use to another process, and may be large.
        is_in_memory = isinstance(self._cache, MemoryStore)
        return {
            "store": self._store,
            "cache_store": type(self._cache)() if is_in_memory else self._cache,
            "namespace": self._given_namespace,
            **self._cached.settings._asdict(),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        store = state.pop("store")
        self.__init__(store, **state)  # type: ignore[misc]

    def __str__(self) -> str:
        # Not the source's own, which may be a URL with a token.
        return f"cached-{self.namespace}"

    def __repr__(self) -> str:
        # What the source and its URL say of themselves may have a token in it; the name has not.
        kept = repr(self._cache) if isinstance(self._cache, SqliteStore) else _named(self._cache)
        return (
            f"{type(self).__name__}(store={_named(self._store)}, namespace={self.namespace!r}, "
            f"cache_store={kept}, max_age_seconds={self.max_age_seconds!r}, "
            f"max_size={self.max_size!r})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: how full the budget is, and how many reads were hits.

        Makes no file, removes nothing, and says so where the file cannot be read.
        """
        usage = self._usage()
        named: list[tuple[str, str]] = []
        if isinstance(usage, str):
            parts = [html.notice(usage)]
        else:
            parts, named = self._html_of(usage)
        counts = self._cached.statistics
        reads = counts["hits"] + counts["misses"]
        rate = html.hits(counts["hits"] / reads if reads else None)
        told = f"{rate} ({html.count(reads, 'read')})" if reads else rate
        kept = str(self._cache) if isinstance(self._cache, SqliteStore) else _named(self._cache)
        named += [
            ("namespace", self.namespace),
            ("kept in", kept),
            ("this process", told),
        ]
        if faults := counts["faults"]:
            named.append(("faults", f"the source was asked instead {html.count(faults, 'time')}"))
        return html.card(type(self).__name__, [*parts, html.facts(named)])

    def _usage(self) -> Usage | str:
        """What is kept, or why that cannot be told."""
        if isinstance(self._cache, SqliteStore):
            return self._cache._peek(space.usage, self.namespace)  # noqa: SLF001 - of this package
        try:
            return self._cached.values.usage(self.namespace)
        except CacheError as error:
            return str(error)

    def _html_of(self, usage: Usage) -> tuple[list[str], list[tuple[str, str]]]:
        """A bar, if there is a limit, and the names and texts of facts."""
        ranges = self._cached.values.ranges
        own = html.count(usage.entries.get("value", 0), "value")
        own_bytes = usage.bytes.get("value", 0) + ranges.nbytes_of(self.namespace)
        used = usage.total_bytes["value"] + ranges.nbytes
        limit = ", no limit" if self.max_size is None else f" of {format_size(self.max_size)}"
        named = [
            ("of this source", f"{own}, {format_size(own_bytes)}"),
            ("in all", f"{format_size(used)}{limit}"),
        ]
        return ([] if self.max_size is None else [html.bar(used, self.max_size)]), named

    def cache_info(self) -> dict[str, Any]:
        """What is kept, and under which settings.

        Removes what is stale first, at most 256 values and as many absences: what is left counts
        as kept, and so does all of it while the file cannot be written to. Has the keys of zarr's
        CacheStore, where ``current_size`` and the numbers of keys are those of this namespace, and
        more:

        ``namespace``
            Whose keys these are.
        ``file_size``
            Bytes of the values of every namespace in the file: what `max_size` limits, together
            with ``range_size``.
        ``absent_keys``
            Keys that the source is believed not to have.
        ``ranges``, ``range_size``
            Number and bytes of the parts of values in memory, of every namespace.

        Returns
        -------
        dict
            As above.

        Raises
        ------
        CacheError
            The file cannot be read.
        """
        run(self._cached.enforce())
        usage = self._cached.values.usage(self.namespace)
        ranges = self._cached.values.ranges
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

        Returns
        -------
        dict
            As above.
        """
        self._cached.values.flush()
        self._cached.faults.tell()
        counts = self._cached.statistics
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

    def verify(self, *, repair: bool = False) -> Iterator[Problem]:
        """Yield each problem of what is kept, of every namespace: nothing, if all is well.

        As `SqliteStore.verify`, of the whole file. With another store as `cache_store`, compares
        every value in it with what is known of it in memory.

        Parameters
        ----------
        repair
            Whether to remove what is wrong; it is fetched again when it is asked for.

        Yields
        ------
        Problem
            Something that is not what it should be.

        Raises
        ------
        CacheError
            As from `SqliteStore.verify`.
        """
        if isinstance(self._cache, SqliteStore):
            return self._cache.verify(repair=repair)
        kept = self._cached.values
        assert isinstance(kept, StoreCache)  # noqa: S101 - as the constructor has made it
        return verify_store(kept, self._cache, self.namespace, repair=repair)

    async def clear_cache(self) -> None:
        """Remove what is kept of this source; what is being fetched is not kept either.

        Raises
        ------
        CacheError
            The file cannot be written to: call it again.
        """
        await run_async(self._cached.clear())

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The bytes asked for, from the cache where fresh; None if there is no such key."""
        return await run_async(reading.get(self._cached, key, prototype, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """As `get`, without an event loop where the source has no need of one."""
        return run(
            reading.get(self._cached, key, prototype or default_buffer_prototype(), byte_range)
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
        """The ranges, first those that are at hand, in one batch.

        What is left goes to the source in one ``get_ranges``, and comes in its batches. If that
        fails, what came before is kept, and comes first.

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
        flow = reading_ranges.get_ranges(self._cached, key, byte_ranges, prototype, settings)
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
        """As `get_ranges`, without an event loop where the source has no need of one."""
        settings = _given(max_gap_bytes=max_gap_bytes, max_coalesced_bytes=max_coalesced_bytes)
        flow = reading_ranges.get_ranges(self._cached, key, byte_ranges, prototype, settings)
        batches, error = run(flow)
        if error is not None:
            raise error
        return [piece for batch in batches for piece in batch]

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """The bytes asked for, in the order of the requests; None for absent keys."""
        return await self._answers([(key, prototype, request) for key, request in key_ranges])

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        asked = list(requests)
        responses = await self._answers(asked)
        for (key, _, _), buffer in zip(asked, responses, strict=True):
            yield key, buffer

    async def _answers(
        self, asked: list[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """What each asks for, None for absent keys; of each key, what is not at hand at once."""
        places: dict[str, list[int]] = {}
        for place, (key, _, _) in enumerate(asked):
            places.setdefault(key, []).append(place)
        responses: list[Buffer | None] = [None] * len(asked)

        async def response(key: str, of_key: list[int]) -> None:
            if len(of_key) == 1:
                responses[of_key[0]] = await self.get(*asked[of_key[0]])
                return
            byte_ranges = [asked[place][2] for place in of_key]
            default = default_buffer_prototype()
            try:
                async for batch in self.get_ranges(key, byte_ranges, prototype=default):
                    for number, buffer in batch:
                        place = of_key[number]
                        responses[place] = reading.as_type(asked[place][1], buffer)
            except FileNotFoundError:
                pass  # as a source may raise it by itself; what is absent is None already
            except ExceptionGroup as group:
                # The same. Else, as `get` would raise it.
                _, others = group.split(FileNotFoundError)
                if others is not None:
                    raise others.exceptions[0] from group

        await asyncio.gather(*(response(key, of_key) for key, of_key in places.items()))
        return responses

    async def exists(self, key: str) -> bool:
        """Whether the source has the key, as far as fresh answers tell, or else as it says."""
        return await run_async(reading.exists(self._cached, key))

    async def getsize(self, key: str) -> int:
        """Bytes of the value, as far as a fresh answer tells, or else as the source says.

        Raises
        ------
        FileNotFoundError
            The source has no such key.
        """
        return await run_async(reading.getsize(self._cached, key))

    async def getsize_prefix(self, prefix: str) -> int:
        """Bytes of all values below a folder, as the source says."""
        return await self._store.getsize_prefix(prefix)

    @property
    def _supports_sync_io(self) -> bool:
        """Whether zarr's fused pipeline calls the sync methods: if both stores have some.

        A sync call of a store that has only async methods holds up one of the few threads that
        the pipeline has, while its async path waits for all calls at once. See docs/decisions/0004.
        """
        return (
            _store_supports_sync_io(self._store)
            and _store_supports_sync_io(self._cache)
            and self._cached.values.is_known
        )

    async def set(self, key: str, value: Buffer) -> None:
        """Write the value to the source, and keep it if `cache_set_data`."""
        await run_async(self._set(key, value))

    def set_sync(self, key: str, value: Buffer) -> None:
        """As `set`, without an event loop where the source has no need of one."""
        run(self._set(key, value))

    def _set(self, key: str, value: Buffer) -> Flow[None]:
        write = call(
            self._store,
            lambda source: source.set_sync(key, value),
            lambda source: source.set(key, value),
        )
        return self._write([(key, value)], write)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        items = list(values)
        write = call_async(self._store, lambda source: source._set_many(items))  # noqa: SLF001 - zarr's
        await run_async(self._write(items, write))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write the value to the source, unless it has one."""
        write = call_async(self._store, lambda source: source.set_if_not_exists(key, value))
        # Whose value stands is for the source to say, at the next read.
        await run_async(self._write([(key, None)], write))

    async def delete(self, key: str) -> None:
        """Delete the key from the source, and what is kept of it."""
        await run_async(self._delete(key))

    def delete_sync(self, key: str) -> None:
        """As `delete`, without an event loop where the source has no need of one."""
        run(self._delete(key))

    def _delete(self, key: str) -> Flow[None]:
        write = call(
            self._store,
            lambda source: source.delete_sync(key),
            lambda source: source.delete(key),
        )
        self._check_writable()
        return writing.delete(self._cached, key, write)

    def _write(self, items: Sequence[tuple[str, Buffer | None]], write: Flow[None]) -> Flow[None]:
        self._check_writable()
        return writing.write(self._cached, items, write)

    async def delete_dir(self, prefix: str) -> None:
        """Delete every key below the folder `prefix` from the source, and what is kept of them."""
        self._check_writable()
        delete = call_async(self._store, lambda source: source.delete_dir(prefix))
        await run_async(writing.delete_dir(self._cached, prefix, delete))

    async def clear(self) -> None:
        """Delete every key from the source, and what is kept of them."""
        self._check_writable()
        clear = call_async(self._store, lambda source: source.clear())
        await run_async(writing.remove_folder(self._cached, "", clear))


def _named(store: Store) -> str:
    return f"<{type(store).__name__}>"


def _refuse_itself(source: Store, values: FileCache, namespace: str) -> None:
    """Refuse a source that keeps its answers under the very same keys.

    Raises
    ------
    ValueError
        A fetch of the one CacheStore would wait for itself in the other.
    """
    while isinstance(source, WrapperStore):
        if isinstance(source, CacheStore):
            kept = source._cached  # noqa: SLF001 - of this class
            if kept.values is values and kept.namespace == namespace:
                raise ValueError(
                    f"namespace {namespace!r} is that of the CacheStore that is the source here, "
                    "in the same file: give another one, or none"
                )
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps


def _checked_namespace(namespace: object) -> str | None:
    """`namespace`, if it may be given.

    Raises
    ------
    ValueError
        It would be that of something else.
    TypeError
        It is no string.
    """
    if namespace is not None and not isinstance(namespace, str):
        raise TypeError(f"namespace must be a string or None, got {namespace!r}")
    if namespace == "":
        raise ValueError(
            "namespace must not be empty: the empty one holds what SqliteStore itself stores"
        )
    if namespace is not None and private.is_private(namespace):
        raise ValueError(
            f"namespace must not begin with {private.PREFIX!r}, as the names do that go with the "
            f"process, got {namespace!r}"
        )
    return namespace


def _given(**settings: int | None) -> dict[str, int]:
    """Those that are not left to the source."""
    return {name: each for name, each in settings.items() if each is not None}
