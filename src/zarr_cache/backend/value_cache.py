"""The interface to cached values, whether they are in a cache file or in another store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from zarr.abc.store import ByteRequest

    from zarr_cache.backend.counters import Pending
    from zarr_cache.backend.failures import InvalidatedNamespaces
    from zarr_cache.backend.ranges import RangeCache
    from zarr_cache.backend.upkeep import Room
    from zarr_cache.backend.versions import Sent, Versions
    from zarr_cache.core.clock import PersistentClock
    from zarr_cache.core.errors import CacheError
    from zarr_cache.core.flow import Flow
    from zarr_cache.core.single_flight import Flights
    from zarr_cache.index.admit import Response
    from zarr_cache.index.evict import Evictions, Limits
    from zarr_cache.index.listing import Kept, KnownRanges, ListedRange, Usage, Versioned
    from zarr_cache.index.lookup import EntryState
    from zarr_cache.index.ranges import KeptVersion


class ValueCache(ABC):
    """Values of keys of several sources, ranges of them, and what is known about them.

    One for each cache file, or each other store, in a process; every CacheStore over it shares it.
    Every method may raise a `CacheError`, at the call or while its flow runs. Any thread may call.

    Attributes
    ----------
    ranges
        Ranges in memory, of every namespace.
    flights
        Fetches in flight.
    pending
        Uses and counts that wait to be written.
    invalidated
        Namespaces of which no entry may be served.
    versions
        What the source has told this process of its versions of values.
    room
        How much room the budget has left.
    """

    ranges: RangeCache
    flights: Flights[tuple[object, ...], Sent]
    pending: Pending
    invalidated: InvalidatedNamespaces
    versions: Versions
    room: Room

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether `clock` and `lookup_nowait` can be called."""

    @abstractmethod
    def ensure_open(self) -> Flow[None]:
        """Open what holds the values, if it is not open: `is_open` is true then."""

    @property
    @abstractmethod
    def is_listed(self) -> bool:
        """Whether the index of the values is complete: `ensure_listed` has nothing to wait for."""

    @abstractmethod
    def ensure_listed(self, namespace: str) -> Flow[None]:
        """Open what holds the values, and complete its index; `namespace` is one that is used."""

    @abstractmethod
    def clock(self) -> PersistentClock:
        """The clock that gives entries their timestamps."""

    @abstractmethod
    def lookup_nowait(
        self, namespace: str, key: str, request: ByteRequest | None, fresh_after: int
    ) -> EntryState | None:
        """Look the key up without blocking; None if that would need another thread.

        Where the bytes are not in memory, and this thread runs an event loop, the result has a
        `EntryState.read`, and `lookup` reads them. It must be open. See docs/decisions/0013.
        """

    @abstractmethod
    def lookup(
        self,
        namespace: str,
        key: str,
        request: ByteRequest | None,
        fresh_after: int,
        found: EntryState | None = None,
    ) -> Flow[EntryState]:
        """The entry of the key, or of a range of it, with the bytes requested if it is fresh.

        Parameters
        ----------
        fresh_after
            A value stored at this time or earlier is stale.
        found
            The result of `lookup_nowait`, if the caller has just called it.
        """

    @abstractmethod
    def lookup_many(
        self,
        namespace: str,
        key: str,
        requests: Sequence[ByteRequest | None],
        fresh_after: int,
        row: EntryState,
    ) -> Flow[list[EntryState]]:
        """The result of `lookup` for each request; `row` is that of a `lookup_metadata` before."""

    @abstractmethod
    def lookup_metadata(self, namespace: str, key: str) -> Flow[EntryState]:
        """The entry of the key, without its bytes."""

    @abstractmethod
    def list_cached(
        self, namespace: str, prefix: str, fresh_after: int, absent_fresh_after: int
    ) -> Flow[dict[str, Kept]]:
        """The fresh values and absences of the keys with this prefix, without their bytes."""

    @abstractmethod
    def known_ranges(
        self, namespace: str, key: str, found: EntryState, fresh_after: int
    ) -> KnownRanges:
        """What the fresh ranges of the key show; `found` is what a lookup of it has found."""

    @abstractmethod
    def kept_version(self, namespace: str, key: str, found: EntryState) -> KeptVersion | None:
        """The version of the ranges of the key, fresh or stale; None if there is none.

        `found` is what a lookup of the key has found.
        """

    @abstractmethod
    def list_ranges(
        self, namespace: str, prefix: str, fresh_after: int
    ) -> Flow[dict[str, list[ListedRange]]]:
        """The fresh ranges of the keys with this prefix, in the file and in memory."""

    @abstractmethod
    def list_versions(self, namespace: str, prefix: str) -> Flow[list[Versioned]]:
        """The facts that tell the versions of what is cached of the keys with this prefix.

        Of ranges in memory too: their `Versioned.entry` is 0.
        """

    @abstractmethod
    def usage(self, namespace: str) -> Usage:
        """How much is cached, of the namespace and in all, and what another size would bring."""

    @abstractmethod
    def admit(
        self,
        namespace: str,
        key: str,
        response: Response,
        limits: Limits,
        on_done: Callable[[Evictions | CacheError | None], None],
    ) -> Flow[None]:
        """Admit a response under the limits, unless the key was written since it was fetched.

        Lookups find it from now on. It is written soon, or has been.

        Parameters
        ----------
        on_done
            Called with the outcome, by any thread: the evictions, None if the response was not
            admitted, or the error.
        """

    @property
    @abstractmethod
    def bytes_being_written(self) -> int:
        """Bytes of the responses that are being written at the moment."""

    @abstractmethod
    def touch(self, namespace: str, key: str, found: EntryState, used_at: int) -> None:
        """Record a use of the entry that a lookup found; it is written with others."""

    def touch_all(
        self, namespace: str, key: str, found: Sequence[EntryState], used_at: int
    ) -> None:
        """Record a use of each entry that lookups of the key found."""
        for each in found:
            self.touch(namespace, key, each, used_at)

    def keeps(self) -> bool:
        """Whether a full cache with ``when_full="auto"`` evicts nothing at present.

        As the reads of late would have been served best, in all processes that use the file: see
        `sampling.decision`.
        """
        return self.pending.reads.keeps()

    @abstractmethod
    def flush(self) -> None:
        """Write the responses that wait: when this returns, they are written, or have failed."""

    @abstractmethod
    def write_pending(self) -> Flow[None]:
        """Write the uses and counts that wait."""

    @abstractmethod
    def enforce(self, namespace: str, limits: Limits) -> Flow[Evictions]:
        """Evict and expire entries until the limits hold."""

    @abstractmethod
    def report_eviction(self, max_size: int | None) -> None:
        """Log that `max_size` is used up, the first time that this is called in a process."""

    @abstractmethod
    def confirm(self, found: EntryState | Versioned, confirmed_at: int) -> None:
        """Record that the source still had the version of an entry; it is written soon."""

    @abstractmethod
    def forget(
        self, namespace: str, key: str, revision: int, stored_at: int, *, with_ranges: bool = False
    ) -> Flow[list[str]]:
        """Remove the entry of the key, and its ranges if so said, unless they are newer.

        Returns the keys of the values removed.
        """

    @abstractmethod
    def discard(self, found: EntryState) -> Flow[list[str]]:
        """Remove a damaged entry; return the keys removed."""

    @abstractmethod
    def clear(self, namespace: str) -> Flow[None]:
        """Remove all entries of the namespace, and revalidate it.

        No response that is being fetched is admitted.
        """

    @abstractmethod
    def begin_write(
        self, namespace: str, keys: Sequence[str], now_ns: int, begun: list[int]
    ) -> Flow[None]:
        """Invalidate the keys before the source is written.

        Each entry becomes a tombstone with a new revision and one more write in flight; until
        `end_write`, no response fetched for them is admitted.

        Parameters
        ----------
        begun
            The revision is appended to it, so that a cancelled caller can still end its own write.
        """

    @abstractmethod
    def end_write(
        self,
        namespace: str,
        keys: Sequence[str],
        responses: Mapping[str, Response],
        now_ns: int,
        limits: Limits,
    ) -> Flow[Evictions]:
        """End a write that has begun: responses fetched from now on are admitted again.

        Parameters
        ----------
        responses
            What the source holds now, where that is known; it is admitted.
        """

    @abstractmethod
    def invalidate_prefix(self, namespace: str, prefix: str) -> Flow[list[str]]:
        """Remove the entries below the prefix, and return their keys.

        No response that is being fetched is admitted.
        """

    @abstractmethod
    def begin_removal(self, namespace: str, now_ns: int) -> Flow[None]:
        """Admit no response of the namespace while the source removes a folder."""

    @abstractmethod
    def end_removal(self, namespace: str) -> Flow[None]:
        """Admit responses again, unless another folder is being removed."""
