"""Whether a path still names the file that was opened, and whether that has been cut."""

from __future__ import annotations

import os
from enum import Enum
from typing import TYPE_CHECKING

from zarr_cache.core.errors import StorageError
from zarr_cache.disk.paths import state_of

if TYPE_CHECKING:
    from pathlib import Path

    from zarr_cache.disk.paths import FileId, State


class Change(Enum):
    """What has happened to a file since it was opened; as a value, in words."""

    DELETED = "it was deleted while it was open"
    REPLACED = "another file was put in its place while it was open"
    EMPTIED = "it was emptied while it was open"
    SHRUNK = "it has become shorter"
    WRITTEN = "it was written to while it was read as a file that does not change"


class Presence:
    """Whether a path still names the file that was opened.

    Attributes
    ----------
    file_id
        Of the file that was opened; None if there was none.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._name = path, str(path)
        self.file_id: FileId | None = None
        self._size = 0
        self._state: State | None = None

    def remember(self, file_id: FileId | None) -> None:
        """Begin with the file that has been opened."""
        self.file_id, self._size, self._state = file_id, 0, None

    def expect(self, state: State) -> None:
        """Report writes as well, after the file was opened as immutable in this state.

        The first state counts, if there are several connections.
        """
        self._state = self._state or state

    def change(self) -> Change | None:
        """What has happened to the file; None if nothing has."""
        try:
            found = os.stat(self._name)  # noqa: PTH116 - at every operation: a Path costs as much again
        except FileNotFoundError:
            return Change.DELETED
        except OSError as error:
            raise StorageError(f"{self._path}: {error}") from error
        if self.file_id != (found.st_dev, found.st_ino):
            return Change.REPLACED
        size = found.st_size
        if size < self._size:
            # The size stays: until the connections are closed, the next call must report the same.
            return Change.SHRUNK if size else Change.EMPTIED
        if self._state is not None and self._state != state_of(self._path, found):
            return Change.WRITTEN
        self._size = size
        return None

    def is_gone(self) -> bool:
        """Whether the path names no file."""
        try:
            os.stat(self._name)  # noqa: PTH116 - as above
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            pass  # unknown; opening the file reports why
        return False
