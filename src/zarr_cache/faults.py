"""Faults of the cache: told once, counted each time, and never the reader's."""

from __future__ import annotations

import warnings
from collections import deque
from typing import TYPE_CHECKING

from zarr_cache.errors import LeftAloneError

if TYPE_CHECKING:
    from zarr_cache.errors import CacheError
    from zarr_cache.statistics import Statistics


class CacheWarning(UserWarning):
    """The cache has failed, and the source was asked instead."""


class Faults:
    """Warns of the first fault of each kind, and counts all."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._warned: set[type[CacheError]] = set()
        self._untold: deque[CacheError] = deque()

    def note(self, error: CacheError) -> None:
        """Count the fault, and warn of it unless one like it has been warned of."""
        self._statistics.add(faults=1)
        self._warn(error)

    def note_later(self, error: CacheError) -> None:
        """Count the fault, which no reader waits for; `tell` warns of it."""
        self._statistics.add(faults=1)
        self._untold.append(error)

    @property
    def are_untold(self) -> bool:
        """Whether there is something to `tell`."""
        return bool(self._untold)

    def tell(self) -> None:
        """Warn of what has been noted for later."""
        while self._untold:
            self._warn(self._untold.popleft())

    def _warn(self, error: CacheError) -> None:
        # Of the fault on whose account the file is left alone has been warned.
        if isinstance(error, LeftAloneError) or type(error) in self._warned:
            return
        self._warned.add(type(error))
        warnings.warn(
            f"the cache has failed, the source is asked instead: {error}",
            CacheWarning,
            stacklevel=2,
        )
