"""A cache file as the file system has it: whose it is, where it lies, and setting it aside."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache import clock, migrate
from zarr_cache.errors import (
    FileDamagedError,
    FileLockedError,
    ForeignFileError,
    HardLinkedFileError,
    NetworkFileSystemError,
    NewerSchemaError,
    StorageError,
    is_code,
)

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator

APPLICATION_ID = 0x5A43_4131
"""``PRAGMA application_id`` of our files: "ZCA1" in ASCII."""

BUSY_TIMEOUT_SECONDS = 5.0
"""How long a statement waits for another connection's lock."""

# https://www.sqlite.org/fileformat2.html#the_database_header
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_APPLICATION_ID_AT = slice(68, 72)

# Stands in the first pages of each of our files, whatever becomes of the header.
_OUR_SCHEMA = (b"CREATE TABLE namespace (", b"CREATE TABLE entry (", b"CREATE TABLE value (")
_SCHEMA_BYTES = 64 * 1024

# File systems over a network. Those of virtual machines and containers on one host are not here.
_OVER_A_NETWORK = frozenset(
    {
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "coda",
        "davfs",
        "fuse.ceph",
        "fuse.davfs2",
        "fuse.gcsfuse",
        "fuse.glusterfs",
        "fuse.goofys",
        "fuse.juicefs",
        "fuse.mountpoint-s3",
        "fuse.rclone",
        "fuse.s3fs",
        "fuse.sshfs",
        "glusterfs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "orangefs",
        "pvfs2",
        "smb3",
        "smbfs",
    }
)

MOST_COPIED_BYTES = 32 * 2**20
"""More than is in a file of ours, and its log, of which the log alone tells whose it is."""

MOST_SCHEMA_ROW_BYTES = 2**20
"""Nobody writes a longer text of a table or view, and SQLite holds each in memory."""

MOUNTS = Path("/proc/self/mounts")
"""Where Linux tells what is mounted where, see proc(5)."""


class Place(NamedTuple):
    """Which file a path names: another after it was deleted or replaced."""

    device: int
    inode: int


class State(NamedTuple):
    """What is another as soon as somebody writes to a file, or is about to."""

    size: int
    modified_ns: int
    changed_ns: int
    has_log: bool


def log_of(path: Path) -> Path:
    """Where SQLite keeps the write-ahead log of the file."""
    return path.with_name(f"{path.name}-wal")


def shared_memory_of(path: Path) -> Path:
    """Where SQLite keeps the index of the log, which all who have the file open share."""
    return path.with_name(f"{path.name}-shm")


def place_of(path: Path) -> Place | None:
    """Which file the path names now; None when there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return Place(found.st_dev, found.st_ino)


def state_of(path: Path, found: os.stat_result) -> State:
    """The state of a file of which the system has told `found`.

    Its times go in steps of some milliseconds. To open a file, to write and to close takes longer.
    """
    return State(found.st_size, found.st_mtime_ns, found.st_ctime_ns, log_of(path).exists())


def written_ns(path: Path) -> int:
    """When the file or its log was last written to, in nanoseconds of the wall clock."""
    times = [0]
    for each in (path, log_of(path)):
        with contextlib.suppress(OSError):
            times.append(each.stat().st_mtime_ns)
    return max(times)


@contextlib.contextmanager
def locked_folder(path: Path, *, is_shared: bool, seconds: float | None = None) -> Iterator[None]:
    """Run the block while no process sets a file of this folder aside.

    Parameters
    ----------
    path
        A file in the folder.
    is_shared
        Whether others may hold the lock at once who ask for it to be shared.
    seconds
        How long to wait, if not as long as for any other lock.

    Raises
    ------
    FileLockedError
        Another process holds the lock for longer than we wait: it may be suspended.
    """
    if sys.platform == "win32":
        # A file that is open cannot be renamed there at all.
        yield
        return
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError:
        # It may be entered but not be read. Then nobody sets anything aside in it either.
        yield
        return
    try:
        how = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        _lock(folder, path, how, BUSY_TIMEOUT_SECONDS if seconds is None else seconds)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, path: Path, how: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            # Not a flock that waits: nothing would end that while a process is suspended.
            fcntl.flock(folder, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise FileLockedError(
                    f"{path}: another process keeps its folder locked, to open a file of it or to "
                    "set one aside"
                ) from error
            time.sleep(0.002)
        except OSError:
            return  # some file systems have no such locks
        else:
            return


def set_aside(path: Path, place: tuple[int, int] | None) -> Path | None:
    """Rename a damaged file of ours, with its log, so that another can be begun in its place.

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
        if place is None or place_of(path) != place:
            return None
        # It was ours when the damage was found. Something else may have been copied over it.
        if not (is_ours(path) or _is_cut(path)):
            raise ForeignFileError(path, found="something that is no cache file any more")
        now = datetime.fromtimestamp(clock.wall_ns() / 1e9, UTC)
        aside = path.with_name(f"{path.name}.damaged-{now:%Y%m%dT%H%M%S.%fZ}")
        # The file first: without its log it would be what it was before the last transactions,
        # fences among them. A log without its file is nothing: see `drop_orphans`. All or none,
        # since the folder may let us rename one and not the other.
        with contextlib.ExitStack() as undo:
            path.rename(aside)
            undo.callback(aside.rename, path)
            for beside in (log_of, shared_memory_of):
                with contextlib.suppress(FileNotFoundError):
                    beside(path).rename(beside(aside))
                    undo.callback(beside(aside).rename, beside(path))
            undo.pop_all()
        return aside


def is_writable(path: Path) -> bool:
    """Whether this process may write to the file and to what lies beside it."""
    beside = (log_of(path), shared_memory_of(path))
    # As whom the process acts, where the system tells that from who has started it.
    acting = os.access in os.supports_effective_ids
    return all(
        os.access(each, os.W_OK, effective_ids=acting)
        for each in (path, *filter(Path.exists, beside))
    )


def drop_log(path: Path, log: Place | None) -> None:
    """Remove the log of a file that the path names no more, in a `locked_folder`.

    SQLite takes a log for that of whatever file lies beside it, and would write it over that file.

    Parameters
    ----------
    log
        Of the log that is to go. One that another process has begun since stays.
    """
    if log is None or place_of(log_of(path)) != log:
        return
    log_of(path).unlink(missing_ok=True)
    shared_memory_of(path).unlink(missing_ok=True)


def has_orphans(path: Path) -> bool:
    """Whether a log, or its index, lies where there is no file.

    A process may have died while it set the file aside, or somebody has removed the file alone.
    """
    # The file last: another process may be making one, and makes it before its log.
    beside = (log_of(path), shared_memory_of(path))
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
            log_of(path).unlink(missing_ok=True)
            shared_memory_of(path).unlink(missing_ok=True)


def is_ours(path: Path) -> bool:
    """Whether the file was one of ours before it was damaged, as far as its first bytes tell.

    Reads it by ``open()``, and closing that drops the locks that SQLite holds on the file in this
    process ("How To Corrupt An SQLite Database File", 2.2): not for a file that is in use.
    """
    start = _start_of(path)
    return start[_APPLICATION_ID_AT] == APPLICATION_ID.to_bytes(4) or all(
        table in start for table in _OUR_SCHEMA
    )


def _is_cut(path: Path) -> bool:
    """Whether so little is left of the file that nothing tells whose it was."""
    start = _start_of(path)
    return len(start) < _HEADER_BYTES and _MAGIC.startswith(start[: len(_MAGIC)])


def _start_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_SCHEMA_BYTES)


def refuse_network(path: Path) -> None:
    """Raise if the file would lie on a network file system, where SQLite's log does not work.

    Raises
    ------
    NetworkFileSystemError
        The message names the file system.
    """
    file_system = _file_system_of(path)
    if file_system in _OVER_A_NETWORK:
        raise NetworkFileSystemError(path, file_system)


def _file_system_of(path: Path) -> str:
    """The type of the file system that the file is in; "" where nothing tells."""
    try:
        mounts = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        # A share of Windows is named by its host.
        return "cifs" if str(path).startswith("\\\\") else ""
    found, deepest = "", -1
    for mount in mounts:
        _, folder, file_system, *_ = mount.split(" ")
        # Blanks are written as octal escapes.
        folder = folder.encode("latin-1", "replace").decode("unicode_escape")
        if path.is_relative_to(folder) and len(folder) >= deepest:
            found, deepest = file_system, len(folder)
    return found


# Tells our files from others when the application id is damaged.
OUR_TABLES = """
SELECT count(*)
FROM sqlite_schema
WHERE type = 'table' AND name IN ('counter', 'entry', 'namespace', 'total', 'usage', 'value')
"""
ALL_OUR_TABLES = 6


class _Identity(NamedTuple):
    """The application id, the schema version, how many tables, views... and tables of our names."""

    application_id: int = 0
    version: int = 0
    objects: int = 0
    ours: int = 0


def refuse_foreign(path: Path) -> None:
    """Raise unless the file is ours and of a schema that we know, or an empty database.

    Raises
    ------
    ForeignFileError, NewerSchemaError
        The file is left byte for byte as it was.
    HardLinkedFileError
        It has more than one name.
    FileDamagedError
        It is ours, and its header is damaged.
    """
    _refuse_what_is_no_file(path)
    # Not by plain open(): closing it drops the locks that SQLite holds on the file in this process
    # ("How To Corrupt An SQLite Database File", 2.2).
    # First without the log and without locks, which leaves nothing beside somebody else's file.
    log = log_of(path)
    # The log goes when another process is the last to close the file: then look again.
    with contextlib.suppress(FileNotFoundError):
        try:
            identity = _identity(path, "immutable=1")
        except sqlite3.DatabaseError as error:
            # What a log would make of it is not asked: it may be that of a file that was here
            # before, and SQLite would write it over this one.
            if not _is_database_by_now(path):
                _refuse_what_is_no_database(path, error)
        else:
            _judge(path, identity)
            # Beside a file without a page SQLite removes whatever log there is.
            if not (path.stat().st_size and log.exists() and log.stat().st_size):
                return
            if identity == _Identity():
                _judge(path, _identity_of_copy(path, log))
                return
    # What is ours, or still empty, may be another thing with its log, or be written just now.
    try:
        identity = _identity(path, "mode=ro")
    except sqlite3.DatabaseError as error:
        _refuse_what_is_no_database(path, error)
        if is_code(error, sqlite3.SQLITE_NOTADB):
            raise ForeignFileError(path, found="not an SQLite database") from error
        raise
    _judge(path, identity)


def _refuse_what_is_no_file(path: Path) -> None:
    """Raise unless there is a file, and nothing but files where SQLite has its own beside it.

    To read a pipe or a terminal may take for ever, and to open a device may do something. A link
    would lead to a file that is somebody else's, and so may another name of a file.
    """
    journal = path.with_name(f"{path.name}-journal")
    found = {path: path.stat()}
    for beside in (log_of(path), shared_memory_of(path), journal):
        with contextlib.suppress(FileNotFoundError):
            found[beside] = beside.lstat()
    for each, its in found.items():
        if not stat.S_ISREG(its.st_mode):
            raise ForeignFileError(each, found=_kind_of(its))
        if its.st_nlink > 1:
            raise HardLinkedFileError(each, its.st_nlink)


def _kind_of(found: os.stat_result) -> str:
    if stat.S_ISDIR(found.st_mode):
        return "a folder"
    return "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a regular file"


def _is_database_by_now(path: Path) -> bool:
    """Whether it may be one that another process was making when it was looked at without locks."""
    return _start_of(path).startswith(_MAGIC)


def _refuse_what_is_no_database(path: Path, error: sqlite3.DatabaseError) -> None:
    if not is_code(error, sqlite3.SQLITE_NOTADB) or not any(_start_of(path)[:_HEADER_BYTES]):
        # A page of zeros is one that another process is making.
        return
    # Nobody can have it open through SQLite.
    if is_ours(path):
        raise FileDamagedError(f"{path}: its header is damaged") from error
    raise ForeignFileError(path, found="not an SQLite database") from error


def _identity_of_copy(path: Path, log: Path) -> _Identity:
    """As `_identity`, of a copy of the file with its log: SQLite writes beside what it reads.

    The file itself has nothing in it yet, and nothing in this process has it open.

    Raises
    ------
    ForeignFileError
        They are too long to be ours, and are not copied.
    """
    nbytes = path.stat().st_size + log.stat().st_size
    if nbytes > MOST_COPIED_BYTES:
        found = f"an empty database with a log, of {nbytes} bytes together"
        raise ForeignFileError(path, found=found)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        shutil.copyfile(path, copy)
        shutil.copyfile(log, copy.with_name(f"{path.name}-wal"))
        return _identity(copy, "mode=ro")


def _identity(path: Path, how: str) -> _Identity:
    """What the file says of itself."""
    connection = sqlite3.connect(  # noqa: TID251 - without our pragmas, which would write
        f"{path.absolute().as_uri()}?{how}",
        uri=True,
        timeout=BUSY_TIMEOUT_SECONDS,
        autocommit=True,
    )
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MOST_SCHEMA_ROW_BYTES)
    try:
        # All of one state of the file: another process may be creating it.
        connection.execute("BEGIN")
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        count, ours = _objects(connection)
    except sqlite3.DataError as error:
        if application_id == APPLICATION_ID:
            raise StorageError(
                f"{path}: its schema has a text of more than {MOST_SCHEMA_ROW_BYTES} bytes and is "
                "not read; remove what somebody has added to it, or use another file"
            ) from error
        return _Identity(application_id, version, objects=1)
    finally:
        connection.close()
    return _Identity(application_id, version, count, ours)


def _objects(connection: sqlite3.Connection) -> tuple[int, int]:
    """How many tables, views... there are, and how many tables of our names."""
    (count,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (ours,) = connection.execute(OUR_TABLES).fetchone()
    return count, ours


def _judge(path: Path, identity: _Identity) -> None:
    if identity == _Identity():
        return
    if identity.application_id != APPLICATION_ID:
        found = f"an SQLite database with application_id {identity.application_id:#x}"
        if identity.ours == ALL_OUR_TABLES:
            raise FileDamagedError(f"{path}: {found}, and tables of zarr-cache")
        raise ForeignFileError(path, found=found)
    if identity.version > migrate.newest():
        raise NewerSchemaError(path, found=identity.version, known=migrate.newest())
