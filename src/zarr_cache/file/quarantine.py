"""Setting a damaged file aside, and removing what a file that is gone has left behind."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from zarr_cache.core.errors import ForeignFileError
from zarr_cache.disk import paths
from zarr_cache.disk.paths import data_file_of, file_id_of, locked_folder, shared_memory_of, wal_of
from zarr_cache.file.identity import is_cut, is_ours

if TYPE_CHECKING:
    from pathlib import Path

    from zarr_cache.disk.paths import FileId


def quarantine(path: Path, place: tuple[int, int] | None) -> Path | None:
    """Rename a damaged file of ours, so that another can be begun in its place.

    Its log and its data file go with it.

    Nothing in this process may have it open.

    Parameters
    ----------
    place
        Of the file in which the damage was found.

    Returns
    -------
    Path or None
        Where it is now. None when the path names another file by now: somebody else was first.

    Raises
    ------
    ForeignFileError
        The file is not ours any more, and is left as it is.
    FileLockedError
        As `locked_folder`.
    OSError
        It cannot be renamed.
    """
    with locked_folder(path, is_shared=False):
        if place is None or file_id_of(path) != place:
            return None
        # It was ours when the damage was found. Something else may have been copied over it.
        if not (is_ours(path) or is_cut(path)):
            raise ForeignFileError(path, found="something that is no cache file any more")
        aside = paths.quarantine_path(path)
        # The file first: without its log it would be what it was before the last transactions,
        # fences among them. A log without its file is nothing: see `drop_orphans`. All or none,
        # since the folder may let us rename one and not the other.
        with contextlib.ExitStack() as undo:
            path.rename(aside)
            undo.callback(aside.rename, path)
            for beside in (wal_of, shared_memory_of, data_file_of):
                with contextlib.suppress(FileNotFoundError):
                    beside(path).rename(beside(aside))
                    undo.callback(beside(aside).rename, beside(path))
            undo.pop_all()
        return aside


def drop_wal(path: Path, log: FileId | None) -> None:
    """Remove the log of a file that the path names no more, in a `locked_folder`.

    SQLite takes a log for that of whatever file lies beside it, and would write it over that file.

    Parameters
    ----------
    log
        Of the log that is to go. One that another process has begun since stays.
    """
    if log is None or file_id_of(wal_of(path)) != log:
        return
    wal_of(path).unlink(missing_ok=True)
    shared_memory_of(path).unlink(missing_ok=True)


def has_orphans(path: Path) -> bool:
    """Whether a log, or its index, lies where there is no file.

    A process may have died while it set the file aside, or somebody has removed the file alone.
    """
    # The file last: another process may be making one, and makes it before its log.
    beside = (wal_of(path), shared_memory_of(path))
    return any(each.exists(follow_symlinks=False) for each in beside) and not path.exists()


def drop_orphans(path: Path) -> None:
    """Remove what `has_orphans` tells of, so that a file can be begun there.

    SQLite would remove the log, but take the index for that of the new file. That is shared with
    whoever still has the file open that was here, and says what is in another log.

    Raises
    ------
    FileLockedError
        As `locked_folder`.
    OSError
        It cannot be removed.
    """
    with locked_folder(path, is_shared=False):
        if has_orphans(path):
            wal_of(path).unlink(missing_ok=True)
            shared_memory_of(path).unlink(missing_ok=True)
