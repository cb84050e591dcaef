"""What happened, counted for this process and, as far as it lasts, for the file."""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr_cache.pending import Pending


# One for all: it is held for an addition only, and the child of a fork needs another.
_counting = threading.Lock()


def _after_fork() -> None:
    global _counting  # noqa: PLW0603 - the child of a fork may have inherited it held
    _counting = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Statistics:
    """What happened through one CacheStore and its views, in this process.

    Parameters
    ----------
    namespace
        Whose hits and misses these are.
    pending
        Tells where what lasts is counted as well.
    """

    def __init__(self, namespace: str, pending: Callable[[], Pending]) -> None:
        self.namespace = namespace
        self._pending = pending
        self._counts: defaultdict[str, int] = defaultdict(int)

    def add(self, **numbers: int) -> None:
        """Add to the counts of these names."""
        counts = self._counts
        with _counting:
            for name, number in numbers.items():
                counts[name] += number
        self._pending().count(self.namespace, numbers)

    def __getitem__(self, name: str) -> int:
        return self._counts[name]
