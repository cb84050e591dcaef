"""Ranges in memory: parts of values, under the same budget and order as those in the file."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sortedcontainers import SortedDict
from zarr.abc.store import RangeByteRequest

from zarr_cache.core.byte_range import span_of
from zarr_cache.index.listing import KnownRanges
from zarr_cache.index.ranges import KeptVersion

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from zarr_cache.core.byte_range import Span
    from zarr_cache.index.lookup import Data


ENTRY_BYTES = 1024
"""About how much memory a range takes besides its bytes."""


@dataclass(slots=True, eq=False)
class RangeEntry:
    """Some bytes of a value: the response of the source to one request.

    Two responses are never combined: another process may have written to the source in between, and
    a read must return a response that the source gave.

    Attributes
    ----------
    request
        Of which bytes.
    data
        The bytes.
    stored_at, revision
        Time and revision at which the source was read.
    used_at
        Time of the last use.
    validator
        Of the version that they are of; None if it is not known.
    """

    namespace: str
    key: str
    request: ByteRequest
    data: Data
    stored_at: int
    revision: int
    used_at: int
    validator: str | None = None

    @property
    def span(self) -> Span:
        """Which bytes of the value it has."""
        return span_of(self.request, len(self.data))

    @property
    def memory(self) -> int:
        """How much memory it takes, in bytes."""
        return len(self.data) + ENTRY_BYTES


@dataclass(slots=True, eq=False)
class _Value:
    """The range entries of one value.

    Attributes
    ----------
    spans
        Entries whose start is known, by start. None lies inside another, so they are sorted by stop
        as well, and the last that begins at or before a position reaches furthest.
    tail
        The last bytes of the value, whose start is not known.
    fence
        The latest revision of a write to the key that a caller gave.
    """

    spans: SortedDict[int, RangeEntry] = field(default_factory=SortedDict)
    tail: RangeEntry | None = None
    fence: int = 0

    @property
    def entries(self) -> list[RangeEntry]:
        """The spans and the tail."""
        return [*self.spans.values(), *([self.tail] if self.tail else [])]

    def candidates(self, request: ByteRequest) -> list[RangeEntry]:
        """The entries that may have the bytes of the request, the best first."""
        if isinstance(request, RangeByteRequest):
            index = self.spans.bisect_right(request.start) - 1
            return [self.spans.peekitem(index)[1]] if index >= 0 else []
        # Only the last span can be known to reach the end.
        last = [self.spans.peekitem()[1]] if self.spans else []
        return [self.tail, *last] if self.tail else last


class RangeCache:
    """Range entries of every namespace of a file, least recently used first.

    Any thread may call. The budget is not known here: `index.evict` calls `oldest_use` and `evict`.

    Attributes
    ----------
    nbytes
        Bytes of all entries.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, str], _Value] = {}
        self._by_use: OrderedDict[RangeEntry, None] = OrderedDict()
        self._by_age: dict[str, dict[RangeEntry, None]] = {}
        # Those without a validator.
        self._expiring: dict[str, dict[RangeEntry, None]] = {}
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._by_use)

    @property
    def memory(self) -> int:
        """About how much memory all entries take."""
        return self.nbytes + len(self) * ENTRY_BYTES

    def count(self, namespace: str) -> int:
        """Number of entries of a namespace."""
        return len(self._by_age.get(namespace, ()))

    def nbytes_of(self, namespace: str) -> int:
        """Bytes of the entries of a namespace. Walks them."""
        with self._lock:
            return sum(len(entry.data) for entry in self._by_age.get(namespace, ()))

    def get(
        self,
        namespace: str,
        key: str,
        request: ByteRequest,
        *,
        fence: int,
        fresh_after: int,
        used_at: int,
    ) -> tuple[RangeEntry, Data] | None:
        """The entry with the bytes of the request, and these; None if they are not here.

        The entry becomes the most recently used.

        Parameters
        ----------
        fence
            Revision of the last write to the key: entries of earlier revisions are removed.
        fresh_after
            Entries of this time or earlier are stale, and removed if they have no validator.
        used_at
            Time of this use.
        """
        with self._lock:
            value = self._known(namespace, key, fence)
            while value is not None:
                entry, part = self._covering(value, request)
                if entry is None:
                    return None
                if entry.stored_at > fresh_after:
                    entry.used_at = used_at
                    self._by_use.move_to_end(entry)
                    return entry, entry.data[part]
                if entry.validator is not None:
                    # The source may confirm it.
                    return None
                # An entry that begins earlier may have the bytes too, and be fresh.
                self._remove(entry)
            return None

    @staticmethod
    def _covering(value: _Value, request: ByteRequest) -> tuple[RangeEntry | None, slice]:
        for entry in value.candidates(request):
            part = entry.span.part_for(request)
            if part is not None:
                return entry, slice(*part)
        return None, slice(0)

    def known(self, namespace: str, key: str, *, fence: int, fresh_after: int) -> KnownRanges:
        """What the fresh entries of the key show, without those from before `fence`."""
        with self._lock:
            value = self._known(namespace, key, fence)
            if value is None:
                return KnownRanges(has_any=False, size=None)
            has_any = any(entry.stored_at > fresh_after for entry in value.entries)
            last = value.spans.peekitem()[1] if value.spans else None
            is_known = last is not None and last.span.reaches_end and last.stored_at > fresh_after
            size = last.span.stop if last is not None and is_known else None
            return KnownRanges(has_any, size)

    def add(self, entry: RangeEntry, *, fence: int) -> None:
        """Add a response, unless its bytes are here already.

        Entries inside it are removed, those of a revision before `fence`, and those of an earlier
        version. It is refused if its own revision is before that of the last write to the key that
        a caller gave, or if it is of an earlier version.
        """
        if not len(entry.data):
            return
        with self._lock:
            value = self._known(entry.namespace, entry.key, fence) or _Value(fence=fence)
            if entry.revision < value.fence:
                # Another caller knows of a later write.
                return
            kept = self._version(value)
            if kept is not None and kept.validator != entry.validator:
                if kept.as_of > entry.stored_at:
                    return
                for other in value.entries:
                    self._remove(other)
            if self._covering(value, entry.request)[0] is not None:
                return
            for inside in self._inside(value, entry.request, len(entry.data)):
                self._remove(inside)
            # `_remove` removes the value with its last entry.
            self._values[entry.namespace, entry.key] = value
            start = entry.span.start
            if start is None:
                value.tail = entry
            else:
                value.spans[start] = entry
            self._by_use[entry] = None
            self._by_age.setdefault(entry.namespace, {})[entry] = None
            if entry.validator is None:
                self._expiring.setdefault(entry.namespace, {})[entry] = None
            self.nbytes += len(entry.data)

    def kept_version(self, namespace: str, key: str, *, fence: int) -> KeptVersion | None:
        """The version of the entries of the key, fresh or stale; None if there is none."""
        with self._lock:
            value = self._known(namespace, key, fence)
            return None if value is None else self._version(value)

    @staticmethod
    def _version(value: _Value) -> KeptVersion | None:
        entry = value.tail or (value.spans.peekitem()[1] if value.spans else None)
        return None if entry is None else KeptVersion(entry.validator, entry.stored_at)

    @staticmethod
    def _inside(value: _Value, request: ByteRequest, size: int) -> list[RangeEntry]:
        """The entries that a new one replaces: those inside it, and one with the same start."""
        span = span_of(request, size)
        if span.start is None:
            return [value.tail] if value.tail else []
        starts = value.spans.irange(span.start, span.stop, inclusive=(True, False))
        inside = [
            value.spans[start]
            for start in starts
            if start == span.start or value.spans[start].span.stop <= span.stop
        ]
        if value.tail and span.reaches_end and len(value.tail.data) <= span.size:
            # So the last bytes are one entry, whatever the kind of the requests.
            inside.append(value.tail)
        return inside

    def _known(self, namespace: str, key: str, fence: int) -> _Value | None:
        """The value, after removing entries of a revision before `fence`."""
        value = self._values.get((namespace, key))
        if value is not None and value.fence < fence:
            value.fence = fence
            for entry in value.entries:
                if entry.revision < fence:
                    self._remove(entry)
        return value

    def oldest_use(self) -> int | None:
        """Time of the last use of the least recently used entry; None if there is no entry."""
        with self._lock:
            entry = next(iter(self._by_use), None)
            return entry.used_at if entry else None

    def evict(self) -> bool:
        """Remove the least recently used entry; False if there is no entry."""
        with self._lock:
            entry = next(iter(self._by_use), None)
            if entry is None:
                return False
            self._remove(entry)
            return True

    def evict_to(self, max_memory: int | None) -> int:
        """Remove the least recently used until they fit into so much memory; return how many."""
        removed = 0
        while max_memory is not None and self.memory > max_memory:
            if not self.evict():
                break
            removed += 1
        return removed

    def discard(self, entry: RangeEntry) -> None:
        """Remove the entry, if it is still here."""
        with self._lock:
            if entry in self._by_use:
                self._remove(entry)

    def discard_copy(self, namespace: str, key: str, request: ByteRequest) -> None:
        """Remove the response to the same request, if it is here: the file has its bytes."""
        with self._lock:
            value = self._values.get((namespace, key))
            for entry in value.candidates(request) if value else ():
                if entry.request == request:
                    self._remove(entry)

    def expire(self, namespace: str, expired_after: int) -> int:
        """Remove those of this time or earlier without a validator; return how many there were."""
        removed = 0
        with self._lock:
            by_age = self._expiring.get(namespace, {})
            while (oldest := next(iter(by_age), None)) and oldest.stored_at <= expired_after:
                self._remove(oldest)
                removed += 1
        return removed

    def evict_stale(self, namespace: str, expired_after: int, excess: int) -> bool:
        """Remove the oldest of this time or earlier, of so many bytes; False if there are none."""
        before = self.nbytes
        with self._lock:
            by_age = self._by_age.get(namespace, {})
            while before - self.nbytes < excess and (oldest := next(iter(by_age), None)):
                if oldest.stored_at > expired_after:
                    break
                self._remove(oldest)
            return self.nbytes < before

    def replaced_bytes(self, of: str, key: str, request: ByteRequest | None, size: int) -> int:
        """Bytes of the entries that a range of `size` bytes, or the whole value, replaces."""
        with self._lock:
            value = self._values.get((of, key)) or _Value()
            replaced = value.entries if request is None else self._inside(value, request, size)
            return sum(len(entry.data) for entry in replaced)

    def remove(self, namespace: str, prefix: str = "") -> None:
        """Remove the entries of the keys that begin with `prefix`. Walks all keys."""
        with self._lock:
            below = [
                entry for entry in self._by_age.get(namespace, {}) if entry.key.startswith(prefix)
            ]
            for entry in below:
                self._remove(entry)

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._values.clear()
            self._by_use.clear()
            self._by_age.clear()
            self._expiring.clear()
            self.nbytes = 0

    def list_spans(self, namespace: str, prefix: str, fresh_after: int) -> dict[str, list[Span]]:
        """The fresh entries of the keys that begin with `prefix`. Walks all keys."""
        found: dict[str, list[Span]] = {}
        with self._lock:
            for entry in self._by_age.get(namespace, ()):
                if entry.key.startswith(prefix) and entry.stored_at > fresh_after:
                    found.setdefault(entry.key, []).append(entry.span)
        return found

    def list_versions(self, namespace: str, prefix: str) -> dict[str, KeptVersion]:
        """The versions of the keys that begin with `prefix`. Walks all keys."""
        with self._lock:
            return {
                key: version
                for (of, key), value in self._values.items()
                if of == namespace and key.startswith(prefix)
                if (version := self._version(value)) is not None
            }

    def remove_key(self, namespace: str, key: str) -> None:
        """Remove the entries of one key."""
        with self._lock:
            value = self._values.get((namespace, key))
            if value is None:
                return
            for entry in value.entries:
                self._remove(entry)

    def _remove(self, entry: RangeEntry) -> None:
        del self._by_use[entry]
        del self._by_age[entry.namespace][entry]
        self._expiring.get(entry.namespace, {}).pop(entry, None)
        self.nbytes -= len(entry.data)
        value = self._values[entry.namespace, entry.key]
        if entry is value.tail:
            value.tail = None
        else:
            del value.spans[entry.span.start or 0]
        if not value.spans and value.tail is None:
            del self._values[entry.namespace, entry.key]
