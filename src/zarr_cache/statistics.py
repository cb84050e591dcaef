"""What happened, counted for this process and, as far as it lasts, for the file."""

from __future__ import annotations

import os
import threading
import weakref
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LASTING = ("hits", "misses", "bytes_served", "bytes_fetched", "evictions", "expirations")
"""What is added up in the file: the columns of the table ``statistics``."""

# One for all: it is held for an addition only, and the child of a fork needs another.
_counting = threading.Lock()
_all: weakref.WeakSet[Statistics] = weakref.WeakSet()


def _after_fork() -> None:
    global _counting  # noqa: PLW0603 - the child of a fork may have inherited it held
    _counting = threading.Lock()
    for statistics in _all:
        # What the parent has counted is the parent's to add up in the file.
        statistics.take()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Statistics:
    """What happened through one CacheStore and its views, in this process.

    Parameters
    ----------
    namespace
        Whose hits and misses these are.
    counted
        Tells where those wait whose counts are to be added up in the file.
    """

    def __init__(self, namespace: str, counted: Callable[[], set[Statistics]]) -> None:
        self.namespace = namespace
        self._counted = counted
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._taken = dict.fromkeys(LASTING, 0)
        _all.add(self)

    def add(self, **numbers: int) -> None:
        """Add to the counts of these names."""
        counts = self._counts
        with _counting:
            for name, number in numbers.items():
                counts[name] += number
        self._counted().add(self)

    def hit(self, nbytes: int) -> None:
        """Add one to the hits, and so many bytes served: ``add`` for what happens most."""
        counts = self._counts
        with _counting:
            counts["hits"] += 1
            counts["bytes_served"] += nbytes
        self._counted().add(self)

    def take(self) -> dict[str, int]:
        """What has come to each of `LASTING` since the last call."""
        with _counting:
            now = {name: self._counts[name] for name in LASTING}
            before, self._taken = self._taken, now
        return {name: number - before[name] for name, number in now.items()}

    def __getitem__(self, name: str) -> int:
        return self._counts[name]
