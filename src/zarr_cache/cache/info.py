"""What a CacheStore reports: its settings, the content of the cache, counts, and problems."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from zarr_cache.backend.store_cache import StoreCache
from zarr_cache.cache import notebook, other_sizes
from zarr_cache.cache.parameters import class_of
from zarr_cache.cache.sqlite_store import SqliteStore
from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import run
from zarr_cache.flows import evict
from zarr_cache.index import listing
from zarr_cache.inspect.verify_store import verify_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zarr.abc.store import Store

    from zarr_cache.core.ages import Age
    from zarr_cache.flows.settings import WhenFull
    from zarr_cache.flows.view import SourceView
    from zarr_cache.index.listing import Usage
    from zarr_cache.inspect.problem import Problem


OWN_COUNTS = (
    "absent_hits", "revalidated", "stale_served", "expirations", "faults", "damaged",
    "bytes_served", "bytes_fetched",
)  # fmt: skip
"""The counts that zarr's CacheStore does not have."""


class CacheInfo:
    """The part of `CacheStore` that reports on the cache."""

    _cache: Store
    _store: Store
    _view: SourceView

    @property
    def max_age_seconds(self) -> Age:
        """For how many seconds a cached value is fresh; ``"infinity"`` or None for ever."""
        return self._view.settings.max_age_seconds

    @property
    def max_age_metadata_seconds(self) -> Age:
        """The same for metadata; None for `max_age_seconds` in read-only views, 0 in others."""
        return self._view.settings.max_age_metadata_seconds

    @property
    def stale_if_error_seconds(self) -> float:
        """For how many seconds a stale value is returned while the source fails."""
        return self._view.settings.stale_if_error_seconds

    @property
    def offline(self) -> bool:
        """Whether the source is never used."""
        return self._view.settings.offline

    @property
    def max_age_absent_seconds(self) -> Age:
        """For how many seconds a cached absence is fresh; None for 60, in read-only views."""
        return self._view.settings.max_age_absent_seconds

    @property
    def max_size(self) -> int | None:
        """Maximum bytes of cached values; None for no limit."""
        return self._view.settings.max_size

    @property
    def when_full(self) -> WhenFull:
        """What makes room when `max_size` is used up: ``"evict"``, ``"keep"`` or ``"auto"``."""
        return self._view.settings.when_full

    @property
    def cache_set_data(self) -> bool:
        """Whether a written value is cached."""
        return self._view.settings.cache_set_data

    @property
    def persist_ranges(self) -> bool:
        """Whether byte ranges are kept in the file."""
        return self._view.settings.persist_ranges

    @property
    def max_memory(self) -> int | None:
        """Maximum memory for the byte ranges of this process; None for no limit of its own."""
        return self._view.settings.max_memory

    @property
    def namespace(self) -> str:
        """Name under which values of the source are cached."""
        return self._view.namespace

    def __str__(self) -> str:
        # Not that of the source, which may be a URL with a token.
        return f"cached-{self.namespace}"

    def __repr__(self) -> str:
        # The repr of the source may have a token in it; the namespace has none.
        cache = repr(self._cache) if isinstance(self._cache, SqliteStore) else class_of(self._cache)
        current_size, cached_keys = self._last_usage()
        return (
            f"{type(self).__name__}(store={class_of(self._store)}, namespace={self.namespace!r}, "
            f"cache_store={cache}, max_age_seconds={self.max_age_seconds!r}, "
            f"max_size={self.max_size!r}, current_size={current_size}, cached_keys={cached_keys})"
        )

    def _last_usage(self) -> tuple[int, int] | tuple[None, None]:
        """Bytes and number of what is cached, as last read; of a cache that is not made yet, none.

        Reads nothing: a debugger may ask while another thread holds the locks of the file.
        """
        last = self._view.statistics.last_usage
        if last is not None:
            return last
        if isinstance(self._cache, SqliteStore):
            is_made = os.path.lexists(self._cache.path)
        else:
            is_made = self._view.values.is_listed
        return (None, None) if is_made else (0, 0)

    def _record(self, usage: Usage) -> tuple[int, int]:
        """Bytes and number of the values and ranges of the namespace, which `repr` shows now."""
        kinds, ranges, namespace = ("value", "range"), self._view.values.ranges, self.namespace
        in_file = sum(usage.bytes.get(kind, 0) for kind in kinds)
        keys = sum(usage.entries.get(kind, 0) for kind in kinds)
        own = in_file + ranges.nbytes_of(namespace), keys + ranges.count(namespace)
        self._view.statistics.last_usage = own
        return own

    def _repr_html_(self) -> str:
        """What a notebook shows. Creates no file and evicts nothing."""
        usage: Usage | str
        if isinstance(self._cache, SqliteStore):
            location = str(self._cache)
            usage = notebook.read_or_reason(self._cache.database, listing.usage, self.namespace)
        else:
            location = class_of(self._cache)
            try:
                usage = self._view.values.usage(self.namespace)
            except CacheError as error:
                usage = str(error)
        if not isinstance(usage, str):
            self._record(usage)
        return notebook.of_cache_store(type(self).__name__, self._view, location, usage)

    def cache_info(self) -> dict[str, Any]:
        """What is cached, and under which settings.

        `repr` shows ``current_size`` and ``cached_keys`` as this last returned them.
        Stale entries that cannot be revalidated are removed first, at most 64 values and as many
        ranges. Those that are left count as cached, and so do all while the file cannot be written.
        The dict has the keys of zarr's CacheStore, of which ``current_size`` and the numbers of
        keys are those of this namespace, and:

        ``namespace``
            Name of the source in the cache.
        ``file_size``
            Bytes of cached values and ranges of all namespaces in the file. `max_size` limits the
            sum of this and ``range_size``.
        ``absent_keys``
            Number of cached absences.
        ``ranges``, ``range_size``
            Number and bytes of the byte ranges in memory, of all namespaces.
        ``file_ranges``, ``file_range_size``
            Number and bytes of those in the file, of all namespaces.
        ``hit_rate_by_size``
            What caches of other sizes would have served, by a sample of the reads of all namespaces
            that have been written to the file: from the size in bytes to the part of the bytes
            read, between 0 and 1. Sizes ascend, to where more brings nothing. Eviction of the
            least recently used is assumed, and reads of long ago count less. Empty while too few
            reads are known.
        ``max_age_metadata_seconds``, ``stale_if_error_seconds``, ``offline``
            The settings of the same names.
        ``when_full``, ``persist_ranges``, ``max_memory``
            The settings of the same names.

        Raises
        ------
        CacheError
            The file cannot be read.
        """
        view = self._view
        run(evict.evict_stale(view))
        usage = view.values.usage(view.namespace)
        settings, ranges = view.settings, view.values.ranges
        current_size, keys = self._record(usage)
        return {
            "cache_store_type": type(self._cache).__name__,
            "max_age_seconds": settings.max_age_seconds,
            "max_size": settings.max_size,
            "current_size": current_size,
            "cache_set_data": settings.cache_set_data,
            "tracked_keys": keys,
            "cached_keys": keys,
            "max_age_absent_seconds": settings.max_age_absent_seconds,
            "max_age_metadata_seconds": settings.max_age_metadata_seconds,
            "stale_if_error_seconds": settings.stale_if_error_seconds,
            "offline": settings.offline,
            "namespace": view.namespace,
            "file_size": usage.total_bytes["value"] + usage.total_bytes["range"],
            "absent_keys": usage.entries.get("absent", 0),
            "ranges": len(ranges),
            "range_size": ranges.nbytes,
            "file_ranges": usage.total_entries["range"],
            "file_range_size": usage.total_bytes["range"],
            "hit_rate_by_size": other_sizes.by_size(usage.curve),
            "when_full": settings.when_full,
            "persist_ranges": settings.persist_ranges,
            "max_memory": settings.max_memory,
        }

    def cache_stats(self) -> dict[str, Any]:
        """Counts of this process, for this CacheStore and its views.

        The dict has the keys of zarr's CacheStore, and: ``absent_hits``, hits on cached absences;
        ``revalidated``, hits on stale values that the source has confirmed; ``stale_served``, hits
        on stale values while the source failed; ``expirations``, stale entries that were removed;
        ``faults``, cache failures, after which
        the source was read instead; ``damaged``, values that were not those that had been cached,
        and were fetched again; ``bytes_served`` from the cache; ``bytes_fetched`` from the source.
        """
        view = self._view
        view.values.flush()
        view.faults.report()
        counts = view.statistics
        total = counts["hits"] + counts["misses"]
        return {
            **{name: counts[name] for name in ("hits", "misses", "evictions")},
            "total_requests": total,
            "hit_rate": counts["hits"] / total if total else 0.0,
            **{name: counts[name] for name in OWN_COUNTS},
        }

    def verify(self, *, repair: bool = False) -> Iterator[Problem]:
        """Yield each problem of the cache, of every namespace in it; nothing if there is none.

        As `SqliteStore.verify`, for the whole file. With another store as `cache_store`, each value
        in it is compared with the index in memory. With `repair`, what is wrong is removed, and
        fetched again when it is read.

        Raises
        ------
        CacheError
            As from `SqliteStore.verify`.
        """
        if isinstance(self._cache, SqliteStore):
            return self._cache.verify(repair=repair)
        values = self._view.values
        assert isinstance(values, StoreCache)  # noqa: S101 - `view_of` makes no other
        return verify_store(values, self._cache, self.namespace, repair=repair)
