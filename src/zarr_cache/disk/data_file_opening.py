"""Opening the data file of a cache file: it is made, opened, opened again, replaced or refused.

Its header has the identity that the cache file has as well: the data file of another cache file is
neither read nor written to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from typing import TYPE_CHECKING

from zarr_cache.core.checksum import DamagedValueError
from zarr_cache.core.errors import (
    DataFileError,
    FileDamagedError,
    FileFullError,
    ForeignFileError,
    HardLinkedFileError,
    StorageError,
)
from zarr_cache.disk.data_file import (
    IDENTITY_BYTES,
    MAGIC,
    create,
    header_of,
    open_file,
    size_of,
    translated,
)
from zarr_cache.disk.paths import data_file_of, quarantine_path

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from zarr_cache.disk.data_file import OpenFile


logger = logging.getLogger(__name__)

IS_SUPPORTED = hasattr(os, "preadv") and hasattr(os, "pwrite")
"""Whether the system reads and writes at a place. Where not, as on Windows, there is no data file,
and values of every size are in the database."""

IDENTITY = """
SELECT identity
FROM data_file
"""


class DataFile:
    """The data file of the cache file at `path`, opened when it is needed.

    Any thread may call.
    """

    def __init__(self, path: Path) -> None:
        self._cache_file = path
        self.path = data_file_of(path)
        self._lock = threading.Lock()
        self._file: OpenFile | None = None

    def forget(self) -> None:
        """Open it again when it is next needed."""
        self._file = None

    def abandon(self) -> None:
        """Close it, in the child of a fork, where nothing reads or writes."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def opened(self, connection: sqlite3.Connection) -> OpenFile:
        """The file, open for reading at least.

        Raises
        ------
        DamagedValueError
            There is none, or that of another cache file: the value is not there.
        DataFileError
            It cannot be opened, or something that is not ours is in its place.
        """
        file = self._file
        # Not by its path: that would cost as much again at each read, and an open file has its
        # bytes whatever its name.
        if file is not None and os.fstat(file.descriptor).st_nlink:
            return file
        self._file = None
        return self._open(connection)

    def opened_if_there(self, connection: sqlite3.Connection) -> OpenFile | None:
        """As `opened`; None if there is none that can be opened."""
        try:
            return self.opened(connection)
        except (DamagedValueError, DataFileError):
            return None

    def _open(self, connection: sqlite3.Connection) -> OpenFile:
        with self._lock:
            if self._file is None:
                identity = _identity(connection)
                try:
                    found = open_file(self.path)
                except OSError as error:
                    raise DataFileError(f"{self.path}: {error}") from error
                except (ForeignFileError, HardLinkedFileError) as error:
                    raise DataFileError(str(error)) from error
                if found is None or header_of(found) != MAGIC + identity:
                    raise DamagedValueError(f"{self.path}: not the data file of this cache file")
                self._file = found
            return self._file

    def opened_to_cut(self, connection: sqlite3.Connection) -> OpenFile | None:
        """The file, open for writing, if the path still names it; None otherwise.

        A file that was moved away may be a backup, and is not cut.
        """
        file = self.opened_if_there(connection)
        is_ours = file is not None and file.is_writable and not self.is_replaced(file)
        return file if is_ours else None

    def why_unusable(self, connection: sqlite3.Connection) -> DataFileError | None:
        """Why no value can be written to it, as far as that is known without a transaction."""
        file = self._file
        if file is not None and file.is_writable and not self.is_replaced(file):
            return None
        try:
            found = open_file(self.path)
            if found is not None:
                self._refuse_foreign(found, _identity(connection))
        except (OSError, ForeignFileError, HardLinkedFileError) as error:
            return DataFileError(str(error))
        if found is not None and not found.is_writable:
            return DataFileError(f"{self.path}: may not be written to; large values are not kept")
        return None

    def _refuse_foreign(self, found: OpenFile, identity: bytes) -> None:
        """Raise unless it is a data file, of whichever cache file; it may be damaged or cut."""
        header = header_of(found)
        is_ours = MAGIC.startswith(header[: len(MAGIC)]) or header[len(MAGIC) :] == identity
        # An empty one belongs to no cache file, nor does one of zeros.
        if size_of(found) and any(header) and not is_ours:
            raise ForeignFileError(self.path, found="not a data file of this cache file")

    def is_replaced(self, file: OpenFile) -> bool:
        """Whether the path names another file by now, or none; then it is opened again."""
        try:
            found = self.path.lstat()
        except OSError:
            is_replaced = True
        else:
            # Or it has another name by now: then it may be a copy (``cp -l``).
            is_replaced = (found.st_dev, found.st_ino) != file.file_id or found.st_nlink > 1
        if is_replaced and self._file is file:
            self._file = None
        return is_replaced

    def opened_to_write(self, connection: sqlite3.Connection) -> OpenFile:
        """The file, open for writing; made if there is none of this cache file.

        Call it in a write transaction: then no other process does the same.

        Raises
        ------
        DataFileError
            Something not ours is in its place, and is left as it is; or it cannot be opened.
        FileFullError
            The disk is full.
        """
        identity = _identity(connection)
        file = self._file
        if file is not None and file.is_writable and not self.is_replaced(file):
            if header_of(file) == MAGIC + identity:
                file.lock_owner()
                return file
            self._file = file = None
        try:
            file = self._open_or_create(identity)
        except OSError as error:
            own = translated(error, self.path)
            raise own if isinstance(own, FileFullError) else DataFileError(str(own)) from error
        except (ForeignFileError, HardLinkedFileError) as error:
            raise DataFileError(str(error)) from error
        if not file.is_writable:
            raise DataFileError(f"{self.path}: may not be written to; large values are not kept")
        file.lock_owner()
        self._file = file
        return file

    def _open_or_create(self, identity: bytes) -> OpenFile:
        found = open_file(self.path)
        if found is not None:
            if header_of(found) == MAGIC + identity:
                return found
            self._refuse_foreign(found, identity)
            # Of another cache file, or damaged: a user may want it.
            quarantined = data_file_of(quarantine_path(self._cache_file))
            self.path.rename(quarantined)
            logger.warning(
                "%s: not the data file of this cache file; it is now %s, and another is begun",
                self.path,
                quarantined,
            )
        mode = stat.S_IMODE(self._cache_file.stat().st_mode)
        return create(self.path, identity, mode)


def remove_orphan(path: Path, connection: sqlite3.Connection) -> None:
    """Remove the data file of a cache file that is gone, in whose place this one has been made.

    Where the system has no data file, what has its name is left as it is.
    """
    if not IS_SUPPORTED:
        return
    beside, identity = data_file_of(path), _identity(connection)
    with contextlib.suppress(OSError, StorageError, ForeignFileError):
        found = open_file(beside)
        if found is not None:
            header = header_of(found)
            if header.startswith(MAGIC) and header != MAGIC + identity:
                beside.unlink()


def _identity(connection: sqlite3.Connection) -> bytes:
    row = connection.execute(IDENTITY).fetchone()
    if row is None or not isinstance(row[0], bytes) or len(row[0]) != IDENTITY_BYTES:
        raise FileDamagedError("the row of data_file is missing, or its identity is not one")
    return row[0]
