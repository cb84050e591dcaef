"""One view of a CacheStore: its source, the source's name, the cache, and the settings."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.backend.counters import Statistics
from zarr_cache.backend.failures import Faults
from zarr_cache.core import ages, private
from zarr_cache.core.errors import CacheError
from zarr_cache.core.keys import is_storable
from zarr_cache.index.evict import Limits
from zarr_cache.sources.names import folder_of, name_of, reads_urls

if TYPE_CHECKING:
    from zarr.abc.store import Store
    from zarr.core.buffer import Buffer

    from zarr_cache.backend.value_cache import ValueCache
    from zarr_cache.core.ages import Age
    from zarr_cache.index.evict import Evictions
    from zarr_cache.index.lookup import Data, EntryState


DEFAULT_ABSENT_SECONDS = 60
"""For how long a read-only view serves a cached absence, unless the user gave another age."""

URL_CHARACTERS = frozenset("#%?")
"""Characters that mean something else in a URL than in a key."""

_private_views: weakref.WeakSet[SourceView] = weakref.WeakSet()


def _after_fork() -> None:
    for view in _private_views:
        view.follow_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Settings(NamedTuple):
    """The parameters of `CacheStore` of the same names."""

    max_age_seconds: Age
    max_size: int | None
    cache_set_data: bool
    max_age_absent_seconds: Age
    persist_ranges: bool
    max_memory: int | None


class LookupResult(NamedTuple):
    """What a lookup found.

    Attributes
    ----------
    state
        The entry of the key, with the bytes of the request if its value is cached and fresh.
    looked_up_at
        When, as a timestamp of the clock of the file.
    fresh_after
        A value stored at this time or earlier was stale then.
    """

    state: EntryState
    looked_up_at: int
    fresh_after: int


@dataclass(slots=True, eq=False, weakref_slot=True)
class SourceView:
    """What reads and writes work on. Each CacheStore has one, and so has each of its views.

    Attributes
    ----------
    source
        The store that is cached.
    values
        The cache, which other sources may share.
    namespace
        Name of the source in the cache.
    settings
        Parameters that the user gave.
    statistics, faults
        Counts of hits and misses, and of failures of the cache.
    is_folder
        Whether `source` is named after the folder that its path leads to.
    reads_urls
        Whether `source` reads a key as part of a URL, which others of its name may not do.
    """

    source: Store
    values: ValueCache
    namespace: str
    settings: Settings
    statistics: Statistics
    faults: Faults
    is_folder: bool = False
    reads_urls: bool = False

    # Whether the source must be named before its next use: its path may lead elsewhere by then.
    must_be_named: bool = field(init=False)

    # Maximum age of an absence, in this view or another.
    absent_age: Age = field(init=False)

    def __post_init__(self) -> None:
        given = self.settings.max_age_absent_seconds
        self.absent_age = ages.least(
            DEFAULT_ABSENT_SECONDS if given is None else given, self.settings.max_age_seconds
        )
        if private.is_private(self.namespace):
            _private_views.add(self)
        self.close_source()

    def open_source(self) -> None:
        """Name the source before its first use.

        A folder has the name of the folder that its path leads to now, until `close_source`.
        """
        if self.must_be_named:
            self.namespace = self.statistics.namespace = name_of(self.source)
            self.must_be_named = False

    def close_source(self) -> None:
        """Have the next `open_source` resolve the path of the source again."""
        self.must_be_named = self.is_folder

    def follow_fork(self) -> None:
        """Rename the source in the child of a fork, where it is a copy of the parent's."""
        self.namespace = self.statistics.namespace = private.in_this_process(self.namespace)

    def is_ready(self) -> bool:
        """Whether the file is open and its entries of this source are valid."""
        return (
            self.values.is_open
            and not self.must_be_named
            and not self.values.invalidated.is_invalidated(self.namespace)
        )

    def may_be_cached(self, key: str) -> bool:
        """Whether the file can hold the key, and it means the same to every source of this name."""
        return (key.isascii() or is_storable(key)) and not (
            self.reads_urls and not URL_CHARACTERS.isdisjoint(key)
        )

    def is_cacheable(self, data: Data | None) -> bool:
        """Whether a response may be cached: not if it is stale at once, or too large."""
        if data is None:
            return self.may_serve_absences() and self.absent_age != 0
        return self.settings.max_age_seconds != 0 and (
            self.settings.max_size is None or len(data) <= self.settings.max_size
        )

    def may_serve_absences(self) -> bool:
        """Whether this view serves a cached absence, and does not read the source again."""
        return self.source.read_only or self.settings.max_age_absent_seconds is not None

    def absent_fresh_after(self, now_ns: int) -> int:
        """An absence stored at this time or earlier is stale now."""
        return ages.fresh_after(self.absent_age, now_ns)

    def limits(self) -> Limits:
        """The limits as of now."""
        settings, now_ns = self.settings, self.values.clock().now_ns()
        return Limits(
            settings.max_size,
            self.values.ranges,
            ages.fresh_after(settings.max_age_seconds, now_ns),
            self.absent_fresh_after(now_ns),
            now_ns,
        )

    def count_hit(self, data: Data | None) -> None:
        """Count a hit, with its bytes or for an absent key."""
        if data is None:
            self.statistics.add(hits=1, absent_hits=1)
        else:
            self.statistics.hit(len(data))

    def count_miss(self, fetched: Buffer | None = None) -> None:
        """Count a miss, with the bytes that were fetched for it."""
        self.statistics.add(misses=1, bytes_fetched=0 if fetched is None else len(fetched))

    def count_evictions(self, evictions: Evictions | None) -> None:
        """Count what an operation evicted; the next operation reports its failure, if any."""
        if evictions is not None:
            number = len(evictions.evicted) + evictions.evicted_ranges
            self.statistics.add(evictions=number, expirations=len(evictions.expired))
            if number:
                self.values.report_eviction(self.settings.max_size)
            if evictions.failure is not None:
                self.faults.note_in_background(evictions.failure)

    def record_outcome(self, result: Evictions | CacheError | None) -> None:
        """Record the outcome of a background write: its evictions, or an error.

        The next operation reports the error.
        """
        if isinstance(result, CacheError):
            self.faults.note_in_background(result)
        else:
            self.count_evictions(result)


def view_of(
    source: Store, values: ValueCache, settings: Settings, namespace: str, *, is_given: bool
) -> SourceView:
    """The view of `source` through the cache.

    Parameters
    ----------
    is_given
        Whether the user gave the namespace; otherwise it is that of `name_of`.
    """
    values.pending.gather()
    statistics = Statistics(namespace, lambda: values.pending.counted)
    return SourceView(
        source=source,
        values=values,
        namespace=namespace,
        settings=settings,
        statistics=statistics,
        faults=Faults(statistics),
        is_folder=not is_given and folder_of(source) is not None,
        reads_urls=not is_given and reads_urls(source),
    )
