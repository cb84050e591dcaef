"""Renaming a damaged file, and removing what a deleted one has left behind."""

from __future__ import annotations

import contextlib
import sqlite3
import traceback
from typing import TYPE_CHECKING

from zarr_cache.core.errors import FAILURES, ForeignFileError
from zarr_cache.disk import paths
from zarr_cache.disk.paths import data_file_of, file_id_of, locked_folder, shared_memory_of, wal_of
from zarr_cache.file.connection import connect
from zarr_cache.file.identity import is_cut, is_ours

if TYPE_CHECKING:
    from pathlib import Path

    from zarr_cache.disk.paths import FileId
    from zarr_cache.file.connection import Connection, WriteLock


OPERATIONS = "zarr_cache.index."
"""How the names of the modules of operations begin."""

# What was stored with SqliteStore has no source from which it could be fetched again.
STORED_ENTRIES = """
SELECT 1
FROM total
WHERE kind = 'stored' AND entries > 0
"""

# The same without any index or total. Walks all entries.
STORED_ROW = """
SELECT 1
FROM entry NOT INDEXED
WHERE kind = 'stored'
LIMIT 1
"""


def holds_stored(connection: Connection) -> bool:
    """Whether the file holds values stored with SqliteStore, by its total of them."""
    return connection.execute(STORED_ENTRIES).fetchone() is not None


def finds_stored(path: Path, write_lock: WriteLock) -> bool | None:
    """Whether a damaged file holds values stored with SqliteStore; None if that cannot be read."""
    try:
        with contextlib.closing(connect(str(path), write_lock)) as connection:
            with contextlib.suppress(sqlite3.DatabaseError, UnicodeDecodeError):
                if holds_stored(connection):
                    return True
            # A total of zero is not enough: it may be what is damaged.
            with contextlib.suppress(sqlite3.DatabaseError, UnicodeDecodeError):
                return connection.execute(STORED_ROW).fetchone() is not None
    except FAILURES:
        pass  # too damaged
    return None


def quarantine(path: Path, file_id: tuple[int, int] | None) -> Path | None:
    """Rename a damaged file of ours, its WAL and its data file, so that an empty one can be made.

    Nothing in this process may have it open. Returns its name now; None if the path does not name
    the file with this `file_id` any more: another process was first.

    Raises
    ------
    ForeignFileError
        The file is not ours any more, and is left as it is.
    """
    with locked_folder(path, is_shared=False):
        if file_id is None or file_id_of(path) != file_id:
            return None
        # It was ours when the damage was found. Something else may have been copied over it.
        if not (is_ours(path) or is_cut(path)):
            raise ForeignFileError(path, found="something that is no cache file any more")
        quarantined = paths.quarantine_path(path)
        # The file first: without its WAL it would be what it was before the last transactions,
        # tombstones among them. A WAL without its file is nothing: see `drop_orphans`. All or none,
        # since the folder may let us rename one and not the other.
        with contextlib.ExitStack() as undo:
            path.rename(quarantined)
            undo.callback(quarantined.rename, path)
            for beside in (wal_of, shared_memory_of, data_file_of):
                with contextlib.suppress(FileNotFoundError):
                    beside(path).rename(beside(quarantined))
                    undo.callback(beside(quarantined).rename, beside(path))
            undo.pop_all()
        return quarantined


def end_statements(error: BaseException | None) -> None:
    """End what the operations that raised the error were reading.

    A cursor keeps the file open after its connection was closed (``sqlite3_close_v2``), the
    traceback keeps the cursor, and Windows renames no open file.
    """
    seen: set[int] = set()
    # An error may be its own cause.
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for frame, _ in traceback.walk_tb(error.__traceback__):
            # Of operations alone, which have ended: another frame may still wait for something.
            if str(frame.f_globals.get("__name__")).startswith(OPERATIONS):
                with contextlib.suppress(RuntimeError):
                    frame.clear()
        error = error.__cause__


def drop_wal(path: Path, wal: FileId | None) -> None:
    """Remove this WAL of a file that the path names no more, in a `locked_folder`.

    SQLite takes a WAL for that of any file beside it, and would write it over that file. A WAL that
    another process has made since stays.
    """
    if wal is None or file_id_of(wal_of(path)) != wal:
        return
    wal_of(path).unlink(missing_ok=True)
    shared_memory_of(path).unlink(missing_ok=True)


def has_orphans(path: Path) -> bool:
    """Whether there is a WAL, or its index, and no file.

    A process may have died while it quarantined the file, or a user has removed the file alone.
    """
    # The file last: another process may be making one, and makes it before its log.
    beside = (wal_of(path), shared_memory_of(path))
    return any(each.exists(follow_symlinks=False) for each in beside) and not path.exists()


def drop_orphans(path: Path) -> None:
    """Remove what `has_orphans` finds, so that a file can be made there.

    SQLite would remove the WAL, but take the index for that of the new file. Processes that still
    have the earlier file open share that index, which describes another WAL.
    """
    with locked_folder(path, is_shared=False):
        if has_orphans(path):
            wal_of(path).unlink(missing_ok=True)
            shared_memory_of(path).unlink(missing_ok=True)
