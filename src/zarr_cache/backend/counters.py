"""Counters of hits and misses, and the uses and counts that wait to be written to the file."""

from __future__ import annotations

import os
import threading
import weakref
from collections import Counter, defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING

from zarr_cache.sampling.reads import Reads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from zarr_cache.index.upkeep import Confirmation
    from zarr_cache.sampling.sample import Batch


MAX_PENDING = 1024

MAX_PENDING_NS = 10 * 10**9

MAX_TOUCHES = 100_000


class Pending:
    """Uses and counts that wait to be written to the file, so that a hit writes nothing.

    Any thread may call.

    Attributes
    ----------
    counted
        Those that have counted since `gather`.
    reads
        Reads that wait to be sampled.
    """

    def __init__(self, reads: Reads | None = None) -> None:
        self.reads = Reads() if reads is None else reads
        self._lock = threading.Lock()
        self._touches: dict[int, int] = {}
        # Timestamps of the first use since these were last taken, and of the last.
        self._since = self._until = 0
        self._counts: dict[str, Counter[str]] = {}
        self._confirmations: dict[int, Confirmation] = {}
        self.counted: set[Statistics] = set()

    def __len__(self) -> int:
        """Number of entries whose last use is not in the file yet."""
        return len(self._touches)

    @property
    def are_due(self) -> bool:
        """Whether it is time to write: there are many uses or reads, or the first is old.

        Or a version was confirmed, which saves other processes a request.
        """
        return self.are_uses_due or self.reads.are_due

    @property
    def are_uses_due(self) -> bool:
        """As `are_due`, of uses and confirmations."""
        is_old = self._until - self._since >= MAX_PENDING_NS
        return len(self._touches) >= MAX_PENDING or is_old or bool(self._confirmations)

    def take_reads(self) -> Batch | None:
        """The reads that wait to be sampled; None while they are few and the uses are many.

        They are lost if they cannot be written: the sample is no more than a record of the past.
        """
        may_wait = len(self._touches) >= MAX_PENDING and not self.reads.are_due
        return None if may_wait else self.reads.take()

    def confirm(self, confirmation: Confirmation) -> None:
        """Record that the source still has the version of an entry."""
        with self._lock:
            if len(self._confirmations) < MAX_TOUCHES:
                self._confirmations[confirmation.entry] = confirmation

    @contextmanager
    def writing_confirmations(self) -> Iterator[list[Confirmation]]:
        """The confirmations since they were last taken; they wait again if the block raises."""
        with self._lock:
            confirmations, self._confirmations = self._confirmations, {}
        try:
            yield list(confirmations.values())
        except BaseException:
            with self._lock:
                self._confirmations = {**confirmations, **self._confirmations}
            raise

    def touch(self, entry: int, used_at: int) -> bool:
        """Record a use of the entry; return whether the uses are due."""
        return self.touch_all((entry,), used_at)

    def touch_all(self, entries: Sequence[int], used_at: int) -> bool:
        """Record a use of each entry; return whether the uses are due."""
        with self._lock:
            if not self._touches:
                self._since = used_at
            self._until = used_at
            if len(self._touches) < MAX_TOUCHES:
                for entry in entries:
                    self._touches[entry] = used_at
            return self.are_uses_due

    def take_touches(self) -> dict[int, int]:
        """The uses recorded since the last call."""
        with self._lock:
            touches, self._touches = self._touches, {}
            self._since = self._until
        return touches

    @contextmanager
    def writing_touches(self) -> Iterator[dict[int, int]]:
        """The uses recorded since they were last taken; they wait again if the block raises."""
        touches = self.take_touches()
        try:
            yield touches
        except BaseException:
            with self._lock:
                self._touches = {**touches, **self._touches}
            raise

    @contextmanager
    def writing_counts(self) -> Iterator[dict[str, dict[str, int]]]:
        """The counts since they were last taken; they wait again if the block raises.

        By namespace, with each of `PERSISTED`.
        """
        self.gather()
        with self._lock:
            counts, self._counts = self._counts, {}
        try:
            yield {name: dict(added) for name, added in counts.items() if any(added.values())}
        except BaseException:
            with self._lock:
                for namespace, added in counts.items():
                    self._counts.setdefault(namespace, Counter()).update(added)
            raise

    def gather(self) -> None:
        """Take over what was counted, so that no `Statistics` is kept only because it counted."""
        with self._lock:
            for _ in range(len(self.counted)):
                # Removed before its counts are read: if it counts meanwhile, it is added again.
                statistics = self.counted.pop()
                counts = self._counts.setdefault(statistics.namespace, Counter())
                counts.update(statistics.take())


PERSISTED = ("hits", "misses", "bytes_served", "bytes_fetched", "evictions", "expirations")
"""What is added up in the file: the columns of the table ``statistics``."""

# One for all: it is held for an addition only, and the child of a fork needs another.
_counting = threading.Lock()

_all: weakref.WeakSet[Statistics] = weakref.WeakSet()


def _after_fork() -> None:
    global _counting  # noqa: PLW0603 - the child of a fork may have inherited it held
    _counting = threading.Lock()
    for statistics in _all:
        # What the parent has counted, the parent adds up in the file.
        statistics.take()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Statistics:
    """What happened through one CacheStore and its views, in this process.

    Parameters
    ----------
    namespace
        The namespace of these hits and misses.
    counted
        Returns the set of those whose counts wait to be added up in the file.

    Attributes
    ----------
    last_usage
        Bytes and number of what was cached when that was last read; None if it was not read.
    """

    last_usage: tuple[int, int] | None = None

    def __init__(self, namespace: str, counted: Callable[[], set[Statistics]]) -> None:
        self.namespace = namespace
        self._counted = counted
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._taken = dict.fromkeys(PERSISTED, 0)
        _all.add(self)

    def add(self, **numbers: int) -> None:
        """Add to the counts of these names."""
        counts = self._counts
        with _counting:
            for name, number in numbers.items():
                counts[name] += number
        self._counted().add(self)

    def hit(self, nbytes: int, hits: int = 1) -> None:
        """Count hits and their bytes: ``add`` for what happens most."""
        counts = self._counts
        with _counting:
            counts["hits"] += hits
            counts["bytes_served"] += nbytes
        self._counted().add(self)

    def take(self) -> dict[str, int]:
        """What each of `PERSISTED` has grown by since the last call."""
        with _counting:
            now = {name: self._counts[name] for name in PERSISTED}
            before, self._taken = self._taken, now
        return {name: number - before[name] for name, number in now.items()}

    def __getitem__(self, name: str) -> int:
        return self._counts[name]
