"""A source, what is kept of it, and under which settings."""

from __future__ import annotations

import contextlib
import os
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core import ages, private
from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import run
from zarr_cache.core.keys import is_storable
from zarr_cache.index.evict import Limits
from zarr_cache.sources.names import name_of

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer

    from zarr_cache.backend.counters import Statistics
    from zarr_cache.backend.failures import Faults
    from zarr_cache.backend.file_cache import FileCache
    from zarr_cache.core.ages import Age
    from zarr_cache.core.flow import Flow
    from zarr_cache.index.evict import Evictions
    from zarr_cache.index.lookup import Data, EntryState


ABSENT_SECONDS = 60


"""For how long a read-only view believes that a key is absent, unless told otherwise."""


_OF_URLS = frozenset("#%?")


_private: weakref.WeakSet[SourceView] = weakref.WeakSet()


def _after_fork() -> None:
    for cached in _private:
        cached.follow_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Settings(NamedTuple):
    """The parameters of `CacheStore` of the same names."""

    max_age_seconds: Age
    max_size: int | None
    cache_set_data: bool
    max_age_absent_seconds: Age


class LookupResult(NamedTuple):
    """What a look-up found.

    Attributes
    ----------
    at
        Stamp of the look-up.
    fresh_after
        A value stored at this time or earlier was stale then.
    """

    found: EntryState
    at: int
    fresh_after: int


@dataclass(slots=True, eq=False, weakref_slot=True)
class SourceView:
    """What `reading` and `writing` work on: one for each view of a CacheStore.

    Attributes
    ----------
    source
        The store that holds the truth.
    values
        What is kept, of this source and of others.
    namespace
        Whose keys these are.
    statistics, faults
        What happened, and what went wrong.
    is_folder
        Whether `source` reads a folder on this machine, after which it is named.
    reads_urls
        Whether `source` takes a key for the end of a URL, which others of its name may not do.
    """

    source: Store
    values: FileCache
    namespace: str
    settings: Settings
    statistics: Statistics
    faults: Faults
    is_folder: bool = False
    reads_urls: bool = False

    # Whether the source is named before it is used: its path may lead elsewhere by then.
    is_to_be_named: bool = field(init=False)

    # For how long an absence is believed by any view.
    absent_age: Age = field(init=False)

    def __post_init__(self) -> None:
        given = self.settings.max_age_absent_seconds
        self.absent_age = ages.least(
            ABSENT_SECONDS if given is None else given, self.settings.max_age_seconds
        )
        if private.is_private(self.namespace):
            _private.add(self)
        self.close_source()

    def close_source(self) -> None:
        """Have `open_source` look again where the path of the source leads."""
        self.is_to_be_named = self.is_folder

    def open_source(self) -> None:
        """Name the source before it is first used.

        The name of a folder is where its path leads now. It stays until `close_source`.
        """
        if self.is_to_be_named:
            self.namespace = self.statistics.namespace = name_of(self.source)
            self.is_to_be_named = False

    def follow_fork(self) -> None:
        """Take another name in the child of a fork, whose source is a copy of the parent's."""
        self.namespace = self.statistics.namespace = private.in_this_process(self.namespace)

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

    def absent_fresh_after(self, now_ns: int) -> int:
        """An absence stored at this time or earlier is stale now."""
        return ages.fresh_after(self.absent_age, now_ns)

    def believes_absent(self) -> bool:
        """Whether this view believes that a key is absent."""
        return self.source.read_only or self.settings.max_age_absent_seconds is not None

    def lookup(
        self, key: str, request: ByteRequest | None = None, *, with_data: bool = True
    ) -> Flow[LookupResult | None]:
        """What is kept of the key; None when the source is to be asked, and nothing is kept."""
        if not self.may_be_cached(key):
            return None
        if self.faults.has_unreported:
            self.faults.tell()
        values = self.values
        try:
            while True:
                if not self.is_ready():
                    yield from self._get_ready()
                at = values.clock().timestamp_ns()
                fresh_after = ages.fresh_after(self.settings.max_age_seconds, at)
                arguments = (self.namespace, key, request, fresh_after)
                found = values.lookup_nowait(*arguments) if with_data else None
                if found is None or found.read is not None:
                    found = yield from (
                        values.lookup(*arguments, found)
                        if with_data
                        else values.lookup_metadata(self.namespace, key)
                    )
                if found.is_damaged:
                    self.statistics.add(damaged=1)
                    yield from values.discard(found)
                    found = found._replace(entry=None, kind=None, data=None)
                is_ahead = found.entry is not None and found.stored_at > at
                if is_ahead and values.clock().catch_up(found.stored_at):
                    # By the time before, it would be fresh for too long.
                    continue
                max_size = self.settings.max_size
                if max_size is not None and found.cached_bytes + values.ranges.nbytes > max_size:
                    yield from self._try_to_make_room()
                return LookupResult(found, at, fresh_after)
        except CacheError as error:
            self.faults.note(error)
            return None

    def may_be_cached(self, key: str) -> bool:
        """Whether the key means the same to every source of this name, and can be in the file."""
        return is_storable(key) and not (self.reads_urls and not _OF_URLS.isdisjoint(key))

    def is_ready(self) -> bool:
        """Whether the file is open, and what it has of this source is to be believed."""
        return (
            self.values.is_open
            and not self.is_to_be_named
            and not self.values.is_invalidated(self.namespace)
        )

    def _get_ready(self) -> Flow[None]:
        self.open_source()
        yield from self.values.opened()
        if self.values.is_invalidated(self.namespace):
            yield from self.clear()

    def _try_to_make_room(self) -> Flow[None]:
        """Come under the limits; where the file cannot be written to, what is in it is read."""
        try:
            yield from self.enforce_now(self.limits())
        except CacheError as error:
            self.faults.note(error)

    def make_room(self, key: str) -> Flow[None]:
        """Come under the limits before the key is written.

        `max_size` may be much smaller than before: in one transaction with the write, all that goes
        on that account would make the log as long as the file.
        """
        try:
            found = yield from self.values.lookup_metadata(self.namespace, key)
        except CacheError as error:
            self.faults.note(error)
            return
        if self.limits().are_exceeded(found.cached_bytes):
            yield from self._try_to_make_room()

    def enforce_now(self, limits: Limits) -> Flow[None]:
        """Make room: too much was left by another process, or by a larger `max_size`."""
        removed = yield from self.values.enforce(self.namespace, limits)
        self.count_removed(removed)

    def hit(self, data: Data | None) -> None:
        """Count a hit, with its bytes or for an absent key."""
        if data is None:
            self.statistics.add(hits=1, absent_hits=1)
        else:
            self.statistics.hit(len(data))

    def miss(self, fetched: Buffer | None = None) -> None:
        """Count a miss, with the bytes that were fetched for it."""
        self.statistics.add(misses=1, bytes_fetched=0 if fetched is None else len(fetched))

    def is_kept(self, data: Data | None) -> bool:
        """Whether such an answer is kept at all: one that is stale at once or too large is not."""
        if data is None:
            return self.believes_absent() and self.absent_age != 0
        return self.settings.max_age_seconds != 0 and (
            self.settings.max_size is None or len(data) <= self.settings.max_size
        )

    def record_outcome(self, result: Evictions | CacheError | None) -> None:
        """Count what an admission removed, or its fault, which the next operation tells of."""
        if isinstance(result, CacheError):
            self.faults.note_later(result)
        else:
            self.count_removed(result)

    def count_removed(self, removed: Evictions | None) -> None:
        """Count what an operation removed."""
        if removed is not None:
            evictions = len(removed.evicted) + removed.evicted_ranges
            self.statistics.add(evictions=evictions, expirations=len(removed.expired))
            if evictions:
                self.values.report_eviction(self.settings.max_size)
            if removed.failure is not None:
                self.faults.note_later(removed.failure)

    def clear(self) -> Flow[None]:
        """Remove what is kept of the source; refuse what is being fetched."""
        self.open_source()
        mark = self.values.marked_ns(self.namespace)
        yield from self.values.fence_prefix(self.namespace, "")
        yield from self.values.revalidate(self.namespace, mark)

    def enforce(self) -> Flow[None]:
        """Come under the limits, as far as the file can be written to."""
        yield from self.values.known(self.namespace)
        self.values.flush()
        # The log tells why, if it cannot be written to.
        with contextlib.suppress(CacheError):
            yield from self.enforce_now(self.limits())

    def flush(self) -> None:
        """Write the answers, uses and counts that wait."""
        self.values.flush()
        try:
            run(self.values.write_pending())
        except CacheError as error:
            self.faults.note(error)
