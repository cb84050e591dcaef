"""Range entries: parts of values, in memory, under the same budget and order as the file."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sortedcontainers import SortedDict
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from zarr_cache import byte_range

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest


@dataclass(slots=True, eq=False)
class RangeEntry:
    """Some bytes of a value, and when they were asked for.

    Attributes
    ----------
    start
        Where in the value they begin; None for its last bytes while its size is not known.
    data
        The bytes ``[start, start + len(data))``.
    stored_at, revision
        Time and revision at which the source was asked.
    used_at
        Stamp of the last use.
    """

    namespace: str
    key: str
    start: int | None
    data: bytes
    stored_at: int
    revision: int
    used_at: int

    @property
    def stop(self) -> int:
        """Where in the value they end."""
        return (self.start or 0) + len(self.data)


@dataclass(slots=True, eq=False)
class _Value:
    """What is known of one value.

    Attributes
    ----------
    size, size_stored_at, size_revision
        Its size in bytes, if known, and when and at which revision that was learnt.
    spans
        Range entries by start. None lies inside another, so they are sorted by stop as well, and
        the one that begins last at or before a position reaches furthest.
    tail
        The last bytes, while the size is not known.
    fence
        Revision of the last write to the key that was heard of.
    """

    size: int | None = None
    size_stored_at: int = 0
    size_revision: int = 0
    spans: SortedDict[int, RangeEntry] = field(default_factory=SortedDict)
    tail: RangeEntry | None = None
    fence: int = 0

    @property
    def entries(self) -> list[RangeEntry]:
        """All of them."""
        return [*self.spans.values(), *([self.tail] if self.tail else [])]

    def covering(self, request: ByteRequest) -> tuple[RangeEntry, int, int] | None:
        """The entry that holds what is asked for, and the slice of its data; None if none does."""
        tail = self.tail
        if self.size is None and tail is not None and isinstance(request, SuffixByteRequest):
            length = len(tail.data)
            return (tail, length - request.suffix, length) if request.suffix <= length else None
        match request:
            case RangeByteRequest(start, stop) if self.size is None:
                pass
            case _ if self.size is None:
                return None
            case _:
                start, stop = byte_range.span(request, self.size)
        place = self.spans.bisect_right(start) - 1
        if place < 0:
            return None
        entry = self.spans.peekitem(place)[1]
        if stop > entry.stop or start >= entry.stop:
            return None
        return entry, start - entry.start, stop - entry.start


class RangeCache:
    """Range entries of every namespace of a file, least recently used first.

    Any thread may call. Nothing here knows the budget: `evict` removes the oldest when asked to.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, str], _Value] = {}
        self._by_use: OrderedDict[RangeEntry, None] = OrderedDict()
        self._by_age: dict[str, dict[RangeEntry, None]] = {}
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._by_use)

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
    ) -> bytes | None:
        """The bytes asked for, which become the most recently used; None if they are not here.

        Parameters
        ----------
        fence
            Revision of the last write to the key: what was asked for earlier is removed.
        fresh_after
            What was asked for at this time or earlier is removed.
        used_at
            Stamp of this use.
        """
        with self._lock:
            value = self._known(namespace, key, fence, fresh_after)
            covering = value.covering(request) if value else None
            if covering is None:
                return None
            entry, start, stop = covering
            if entry.stored_at <= fresh_after:
                self._remove(entry)
                return None
            entry.used_at = used_at
            self._by_use.move_to_end(entry)
            return entry.data if stop - start == len(entry.data) else entry.data[start:stop]

    def size(self, namespace: str, key: str, *, fence: int, fresh_after: int) -> int | None:
        """The size of the value in bytes, where range entries have told it."""
        with self._lock:
            value = self._known(namespace, key, fence, fresh_after)
            return value.size if value else None

    def add(self, request: ByteRequest, entry: RangeEntry) -> None:
        """Keep what the source answered to `request`; `entry.start` is set from it.

        What lies inside the new entry, or is of another revision, is removed.
        """
        if not entry.data:
            return
        with self._lock:
            value = self._known(entry.namespace, entry.key, entry.revision, -(2**63)) or _Value()
            self._learn_size(value, request, entry)
            entry.start = self._start(value, request, entry)
            if entry.start is None:
                if value.tail is not None:
                    self._remove(value.tail)
                value.tail = entry
            else:
                self._make_place(value, entry)
                value.spans[entry.start] = entry
            self._by_use[entry] = None
            self._by_age.setdefault(entry.namespace, {})[entry] = None
            self._nbytes += len(entry.data)
            # Removing what was there may have emptied the value out of the table.
            self._values[entry.namespace, entry.key] = value

    @staticmethod
    def _start(value: _Value, request: ByteRequest, entry: RangeEntry) -> int | None:
        match request:
            case RangeByteRequest(start, _) | OffsetByteRequest(start):
                return start
            case SuffixByteRequest():
                return None if value.size is None else value.size - len(entry.data)

    def _learn_size(self, value: _Value, request: ByteRequest, entry: RangeEntry) -> None:
        """Take the size of the value from an answer that reached its end."""
        match request:
            case RangeByteRequest(start, stop) if len(entry.data) < stop - start:
                size = start + len(entry.data)
            case OffsetByteRequest(offset):
                size = offset + len(entry.data)
            case SuffixByteRequest(suffix) if len(entry.data) < suffix:
                size = len(entry.data)
            case _:
                return
        value.size, value.size_stored_at, value.size_revision = (
            size,
            entry.stored_at,
            entry.revision,
        )
        tail, value.tail = value.tail, None
        if tail is not None:
            tail.start = size - len(tail.data)
            self._make_place(value, tail)
            value.spans[tail.start] = tail

    def _make_place(self, value: _Value, entry: RangeEntry) -> None:
        """Remove the spans that lie inside `entry`, or that it lies inside of."""
        start = entry.start or 0
        place = value.spans.bisect_right(start) - 1
        first = value.spans.keys()[place] if place >= 0 else start
        beside = [
            value.spans[other]
            for other in value.spans.irange(first, entry.stop, inclusive=(True, False))
        ]
        for other in beside:
            other_start = other.start or 0
            is_inside = start <= other_start and other.stop <= entry.stop
            is_around = other_start <= start and entry.stop <= other.stop
            if is_inside or is_around:
                self._remove(other)

    def _known(self, namespace: str, key: str, fence: int, fresh_after: int) -> _Value | None:
        """The value, after removing what was overtaken by a write."""
        value = self._values.get((namespace, key))
        if value is None:
            return None
        if value.fence < fence:
            value.fence = fence
            for entry in value.entries:
                if entry.revision < fence:
                    self._remove(entry)
        if value.size_revision < fence or value.size_stored_at <= fresh_after:
            value.size = None
        return value

    def oldest_use(self) -> int | None:
        """Stamp of the last use of the least recently used entry; None when there is none."""
        with self._lock:
            entry = next(iter(self._by_use), None)
            return entry.used_at if entry else None

    def evict(self) -> bool:
        """Remove the least recently used entry. False when there is none."""
        with self._lock:
            entry = next(iter(self._by_use), None)
            if entry is None:
                return False
            self._remove(entry)
            return True

    def expire(self, namespace: str, fresh_after: int) -> int:
        """Remove the entries asked for at this time or earlier; return how many there were."""
        removed = 0
        with self._lock:
            by_age = self._by_age.get(namespace, {})
            while (oldest := next(iter(by_age), None)) and oldest.stored_at <= fresh_after:
                self._remove(oldest)
                removed += 1
        return removed

    def remove(self, namespace: str, prefix: str = "") -> None:
        """Remove the entries of the keys that begin with `prefix`. Walks all keys."""
        with self._lock:
            gone = [
                entry for entry in self._by_age.get(namespace, {}) if entry.key.startswith(prefix)
            ]
            for entry in gone:
                self._remove(entry)

    def remove_key(self, namespace: str, key: str) -> None:
        """Remove the entries of one key."""
        with self._lock:
            value = self._values.get((namespace, key))
            if value is None:
                return
            for entry in value.entries:
                self._remove(entry)

    def has(self, namespace: str, key: str, *, fence: int, fresh_after: int) -> bool:
        """Whether there are bytes of the key: then the source has it."""
        with self._lock:
            value = self._known(namespace, key, fence, fresh_after)
            return value is not None and any(
                entry.stored_at > fresh_after for entry in value.entries
            )

    def _remove(self, entry: RangeEntry) -> None:
        del self._by_use[entry]
        del self._by_age[entry.namespace][entry]
        self._nbytes -= len(entry.data)
        value = self._values[entry.namespace, entry.key]
        if entry is value.tail:
            value.tail = None
        else:
            del value.spans[entry.start]
        if not value.spans and value.tail is None:
            del self._values[entry.namespace, entry.key]
