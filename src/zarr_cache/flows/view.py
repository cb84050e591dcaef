"""One view of a CacheStore: its source, the source's name, the cache, and the settings."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.backend.counters import Statistics
from zarr_cache.backend.failures import Faults
from zarr_cache.core import ages, private
from zarr_cache.core.ages import EVER
from zarr_cache.core.errors import CacheError, OfflineError
from zarr_cache.core.keys import is_metadata, is_storable
from zarr_cache.flows.naming import name_source
from zarr_cache.index.evict import Limits
from zarr_cache.sources.names import (
    absences_are_doubtful,
    is_named_by_content,
    open_before_naming,
    reads_urls,
)
from zarr_cache.sources.readers import reader_of
from zarr_cache.sources.urls import is_local

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer

    from zarr_cache.backend.value_cache import ValueCache
    from zarr_cache.backend.versions import Known
    from zarr_cache.core.ages import Age
    from zarr_cache.flows.settings import Settings
    from zarr_cache.index.evict import Evictions
    from zarr_cache.index.lookup import Data, EntryState
    from zarr_cache.sources.source_reader import SourceReader


DEFAULT_ABSENT_SECONDS = 60
"""For how long a read-only view serves a cached absence, unless the user gave another age."""

DOUBTFUL_NS = 60 * 10**9
"""For how long a source is believed that takes other errors for absent keys."""

URL_CHARACTERS = frozenset("#%?")
"""Characters that mean something else in a URL than in a key."""

_private_views: weakref.WeakSet[SourceView] = weakref.WeakSet()


def _after_fork() -> None:
    for view in _private_views:
        view.follow_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class LookupResult(NamedTuple):
    """What a lookup found.

    Attributes
    ----------
    state
        The entry of the key, with the bytes of the request if its value is cached and fresh.
    looked_up_at
        When, as a timestamp of the clock of the file.
    fresh_after
        A value of this time or earlier was stale then.
    known
        What the source has told of its version meanwhile; None if it was not asked.
    """

    state: EntryState
    looked_up_at: int
    fresh_after: int
    known: Known | None = None

    @property
    def read_after(self) -> int:
        """The bytes of entries of this time or earlier are not read: see `may_serve`."""
        return read_after(self.known, self.fresh_after)

    def may_serve(self, validator: str | None, as_of: int) -> bool:
        """Whether an entry may be served: it is fresh, or the source has confirmed its version.

        Not if the source has told since that it has another version.

        Parameters
        ----------
        validator, as_of
            Of the entry.
        """
        known = self.known
        if known is not None and validator is not None:
            if known.validator == validator:
                return max(known.at, as_of) > self.fresh_after
            if known.validator is not None and as_of <= known.at:
                return False
        return as_of > self.fresh_after


def read_after(known: Known | None, fresh_after: int) -> int:
    """The bytes of entries of this time or earlier need not be read: they may not be served.

    A version that the source has confirmed since may be served whatever its age.
    """
    is_confirmed = known is not None and known.validator and known.at > fresh_after
    return EVER if is_confirmed else fresh_after


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
    is_at_path
        Whether `source` is named after a local path, which may lead elsewhere later.
    reads_urls
        Whether `source` reads a key as part of a URL, which others of its name may not do.
    is_named_by_content
        Whether `source` is named after what it holds, so that it must not be written to.
    """

    source: Store
    values: ValueCache
    namespace: str
    settings: Settings
    statistics: Statistics
    faults: Faults
    is_at_path: bool = False
    reads_urls: bool = False
    is_named_by_content: bool = False

    # Reads the source with validators; None if it has none, or is never read.
    reader: SourceReader | None = field(init=False)

    # Whether no value is ever stale.
    is_never_stale: bool = field(init=False)

    # Whether the source says that a key is absent when it may not be.
    absences_are_doubtful: bool = field(init=False)

    # Whether it was said that the source fails and stale values are served.
    has_warned_of_stale: bool = field(default=False, init=False)

    # Whether it was said that the source sent what cannot be a value.
    has_logged_foreign: bool = field(default=False, init=False)

    # Whether the source must be named before its next use: its path may lead elsewhere by then.
    must_be_named: bool = field(init=False)

    # Maximum age of an absence, in this view or another.
    absent_age: Age = field(init=False)

    def __post_init__(self) -> None:
        given = self.settings.max_age_absent_seconds
        self.absent_age = ages.least(
            DEFAULT_ABSENT_SECONDS if given is None else given, self.settings.max_age_seconds
        )
        self.reader = None if self.settings.offline else reader_of(self.source)
        self.absences_are_doubtful = absences_are_doubtful(self.source)
        ages_of_all = {self.settings.max_age_seconds, self.metadata_age}
        self.is_never_stale = self.settings.offline or ages_of_all <= {None, "infinity"}
        if private.is_private(self.namespace):
            _private_views.add(self)
        self.close_source()

    def open_source(self) -> None:
        """Name the source before its first use, after it was opened if it stays what it is then.

        A folder has the name of the folder that its path leads to now, until `close_source`. An
        open archive has the name of its file.

        Raises
        ------
        Exception
            Whatever the source raises when it is opened.
        """
        if self.must_be_named:
            if not self.settings.offline:
                open_before_naming(self.source)
            self.name_source()
            self.must_be_named = False

    def name_source(self) -> None:
        """Name the source by where its path leads now, without a use of it."""
        if self.must_be_named:
            self.namespace = self.statistics.namespace = name_source(self.source)
            if private.is_private(self.namespace):
                _private_views.add(self)

    def close_source(self) -> None:
        """Have the next `open_source` resolve the path of the source again."""
        self.must_be_named = self.is_at_path

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

    def is_cacheable(self, data: Data | None, validator: str | None = None) -> bool:
        """Whether a response may be cached: not if it is too large.

        Nor if it is stale at once, and can neither be revalidated nor be served when the source
        fails.
        """
        if data is None:
            return self.may_serve_absences() and self.absent_age != 0
        return self.may_be_kept(len(data), validator)

    def may_be_kept(self, nbytes: int, validator: str | None) -> bool:
        """As `is_cacheable`, of so many bytes."""
        settings = self.settings
        is_useful = (
            settings.max_age_seconds != 0
            or validator is not None
            or settings.stale_if_error_seconds > 0
        )
        return is_useful and (settings.max_size is None or nbytes <= settings.max_size)

    def may_serve_absences(self) -> bool:
        """Whether this view serves a cached absence, and does not read the source again."""
        settings = self.settings
        return (
            self.source.read_only or settings.max_age_absent_seconds is not None or settings.offline
        )

    @property
    def metadata_age(self) -> Age:
        """The age at which metadata is stale.

        In a writable view it is revalidated at each read by default: a caller who appends to an
        array that another one has resized meanwhile would overwrite what that one has written.
        """
        settings = self.settings
        if settings.max_age_metadata_seconds is not None:
            return settings.max_age_metadata_seconds
        return settings.max_age_seconds if self.source.read_only else 0

    def age_of(self, key: str) -> Age:
        """The age at which the value of the key is stale."""
        return self.metadata_age if is_metadata(key) else self.settings.max_age_seconds

    def fresh_after(self, key: str, now_ns: int) -> int:
        """A value of this time or earlier is stale now."""
        return EVER if self.is_never_stale else ages.fresh_after(self.age_of(key), now_ns)

    def stale_after(self, key: str, now_ns: int) -> int:
        """A value of this time or earlier is not served even if the source fails."""
        more = self.settings.stale_if_error_seconds
        return ages.fresh_after(ages.longer(self.age_of(key), more), now_ns)

    def absent_fresh_after(self, key: str, now_ns: int) -> int:
        """An absence stored at this time or earlier is stale now."""
        if self.settings.offline:
            return EVER
        age = ages.least(self.absent_age, self.age_of(key)) if is_metadata(key) else self.absent_age
        return ages.fresh_after(age, now_ns)

    def doubtful_absence(self, key: str, now_ns: int) -> int | None:
        """When the source said that the key is absent, if that was within a minute."""
        since = self.values.versions.absent.get(self.namespace, key)
        return since if since is not None and since > now_ns - DOUBTFUL_NS else None

    def refuse_if_named_by_content(self) -> None:
        """Raise ValueError if a write would make the name of the source untrue."""
        if self.is_named_by_content:
            raise ValueError(
                f"{self.namespace}: a source of references is named by what they say, so the cache "
                "does not write to it: change the references before the CacheStore is made, or "
                "pass namespace="
            )

    def refuse_if_offline(self, key: str) -> None:
        """Raise OfflineError if the source may not be asked for the key, which is not cached."""
        if self.settings.offline:
            raise OfflineError(key, self.namespace)

    def limits(self) -> Limits:
        """The limits as of now."""
        settings, now_ns = self.settings, self.values.clock().now_ns()
        expired_after = EVER
        if not self.is_never_stale:
            more = settings.stale_if_error_seconds
            expired_after = min(
                ages.fresh_after(ages.longer(age, more), now_ns)
                for age in (settings.max_age_seconds, self.metadata_age)
            )
        return Limits(
            settings.max_size,
            self.values.ranges,
            ages.fresh_after(settings.max_age_seconds, now_ns),
            expired_after,
            now_ns,
            self.namespace,
            self.may_evict(),
        )

    def may_evict(self) -> bool:
        """Whether what is cached is evicted for what is new."""
        when_full = self.settings.when_full
        return not self.values.keeps() if when_full == "auto" else when_full == "evict"

    def count_hit(self, data: Data | None) -> None:
        """Count a hit, with its bytes or for an absent key."""
        if data is None:
            self.statistics.add(hits=1, absent_hits=1)
        else:
            self.statistics.hit(len(data))

    def count_miss(self, fetched: Buffer | None = None) -> None:
        """Count a miss, with the bytes that were fetched for it."""
        self.statistics.add(misses=1, bytes_fetched=0 if fetched is None else len(fetched))

    def sample_read(
        self, key: str, request: ByteRequest | None, data: Data | Buffer | None, *, is_hit: bool
    ) -> None:
        """Record a read of bytes that may be cached, for the sample."""
        if data is not None:
            reads = self.values.pending.reads
            reads.add(self.namespace, key, request, len(data), is_hit)

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
    values.pending.reads.max_size = settings.max_size
    statistics = Statistics(namespace, lambda: values.pending.counted)
    return SourceView(
        source=source,
        values=values,
        namespace=namespace,
        settings=settings,
        statistics=statistics,
        faults=Faults(statistics),
        is_at_path=not is_given and is_local(namespace),
        reads_urls=reads_urls(source),
        is_named_by_content=not is_given and is_named_by_content(namespace),
    )
