"""Faults of the cache: told once, counted each time, and never the reader's."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zarr_cache.errors import StorageError
    from zarr_cache.statistics import Statistics


class CacheWarning(UserWarning):
    """The cache has failed, and the source was asked instead."""


class Faults:
    """Warns of the first fault of each kind, and counts all."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._warned: set[type[StorageError]] = set()

    def note(self, error: StorageError) -> None:
        """Count the fault, and warn of it unless one like it has been warned of."""
        self._statistics.add(faults=1)
        if type(error) in self._warned:
            return
        self._warned.add(type(error))
        warnings.warn(
            f"the cache has failed, the source is asked instead: {error}",
            CacheWarning,
            stacklevel=2,
        )
