"""Invalidation markers: files beside the cache file, which make a namespace invalid for all.

A marker is there from a write to the source that could not be recorded in the cache file until the
entries of the namespace have been removed. It is empty: a full disk has room for a name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

from zarr_cache.core.errors import FileLockedError, StorageError
from zarr_cache.disk.paths import locked_folder, marker_of

if TYPE_CHECKING:
    from pathlib import Path


MARK_SECONDS = 0.1
"""How long `mark` waits for a process that removes a marker, which takes no time at all."""

STEP_NS = 1000
"""A file system with times of less than a second tells two times apart that differ by so much."""


class Markers:
    """The invalidation markers of one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: dict[str, str] = {}

    def is_marked(self, namespace: str) -> bool:
        """Whether the namespace has a marker: none of its entries is valid."""
        name = self._names.get(namespace)
        if name is None:
            name = self._names[namespace] = str(marker_of(self._path, namespace))
        # At each operation: it makes no exception where there is none, as a stat would.
        return os.access(name, os.F_OK)

    def mark(self, namespace: str) -> bool:
        """Invalidate the namespace in every process; False if there is no folder for a marker.

        Makes the marker, or gives the one that is there another time.

        Raises
        ------
        StorageError
            The marker cannot be made.
        """
        name = marker_of(self._path, namespace)
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        with contextlib.ExitStack() as stack:
            # Without the lock rather than not at all: the process that holds it may be suspended.
            with contextlib.suppress(FileLockedError):
                stack.enter_context(locked_folder(self._path, is_shared=True, seconds=MARK_SECONDS))
            try:
                os.close(os.open(name, flags, 0o600))
                # Later than the one that is there: the clock of Windows stands still for 15.6 ms.
                later = name.stat().st_mtime_ns + STEP_NS
                modified_ns = max(time.time_ns(), later)
                os.utime(name, ns=(modified_ns, modified_ns))
            except (FileNotFoundError, NotADirectoryError):
                return False
            except OSError as error:
                raise StorageError(f"{self._path}: {error}") from error
        return True

    def marked_ns(self, namespace: str) -> int | None:
        """The time of the marker, by which a later one differs; None if there is none.

        Raises
        ------
        StorageError
            The system does not report it.
        """
        try:
            return marker_of(self._path, namespace).stat().st_mtime_ns
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None  # nor is a file of such a name opened
            raise StorageError(f"{self._path}: {error}") from error

    def unmark(self, namespace: str, since_ns: int) -> None:
        """Remove the marker, unless it has been made again since.

        Raises
        ------
        StorageError
            It cannot be removed.
        """
        with locked_folder(self._path, is_shared=False):
            if self.marked_ns(namespace) != since_ns:
                return
            try:
                marker_of(self._path, namespace).unlink()
            except OSError as error:
                raise StorageError(
                    f"{self._path}: an invalidation marker cannot be removed: {error}"
                ) from error
