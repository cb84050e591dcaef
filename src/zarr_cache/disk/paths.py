"""A cache file as the file system has it: its names and state, the locks of its folder and WAL."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import platformdirs

from zarr_cache.core import clock
from zarr_cache.core.errors import CacheError, FileLockedError

if TYPE_CHECKING:
    from collections.abc import Iterator


try:
    import fcntl
except ImportError:
    HAS_LOCKS = False
else:
    HAS_LOCKS = True


BUSY_TIMEOUT_SECONDS = 5.0
"""How long a statement waits for another connection's lock."""


class FileId(NamedTuple):
    """Which file a path names: another after it was deleted or replaced."""

    device: int
    inode: int


class State(NamedTuple):
    """What differs as soon as a process has written to a file, or is about to."""

    size: int
    modified_ns: int
    changed_ns: int
    has_wal: bool


def wal_of(path: Path) -> Path:
    """Where SQLite keeps the write-ahead log of the file."""
    return path.with_name(f"{path.name}-wal")


def shared_memory_of(path: Path) -> Path:
    """Where SQLite keeps the index of the WAL, which all processes with the file open share."""
    return path.with_name(f"{path.name}-shm")


def journal_of(path: Path) -> Path:
    """Where SQLite keeps the rollback journal of a file that has no WAL yet."""
    return path.with_name(f"{path.name}-journal")


def data_file_of(path: Path) -> Path:
    """Where the bytes of large values are, see `disk.data_file`."""
    return path.with_name(f"{path.name}-data")


def marker_of(path: Path, namespace: str) -> Path:
    """The invalidation marker of a namespace of the file, see `file.invalidation`."""
    digest = hashlib.blake2b(namespace.encode("utf-8", "surrogateescape"), digest_size=8)
    return path.with_name(f"{path.name}-invalid-{digest.hexdigest()}")


def beside(path: Path) -> tuple[Path, ...]:
    """The files with bytes that belong to the file: SQLite's own, and the data file."""
    return wal_of(path), shared_memory_of(path), journal_of(path), data_file_of(path)


def longest_name_beside(path: Path) -> Path:
    """The longest of the names that this package and SQLite may give to a file beside it."""
    names = (*beside(path), *beside(quarantine_path(path)), marker_of(path, ""))
    return max(names, key=lambda each: len(os.fsencode(each.name)))


def file_id_of(path: Path) -> FileId | None:
    """Which file the path names now; None when there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return FileId(found.st_dev, found.st_ino)


def state_of(path: Path, found: os.stat_result) -> State:
    """The state of a file, from the result of ``stat`` (`found`).

    Its times have steps of some milliseconds. To open a file, to write and to close takes longer.
    """
    return State(found.st_size, found.st_mtime_ns, found.st_ctime_ns, wal_of(path).exists())


def written_ns(path: Path) -> int:
    """When the file or its WAL was last written to, in nanoseconds of the wall clock."""
    times = [0]
    for each in (path, wal_of(path)):
        with contextlib.suppress(OSError):
            times.append(each.stat().st_mtime_ns)
    return max(times)


@contextlib.contextmanager
def locked_folder(path: Path, *, is_shared: bool, seconds: float | None = None) -> Iterator[None]:
    """Run the block while no process renames a damaged file of this folder.

    Parameters
    ----------
    path
        A file in the folder.
    is_shared
        Whether other processes may share the lock.
    seconds
        How long to wait, if not as long as for any other lock.

    Raises
    ------
    FileLockedError
        Another process holds the lock for longer than we wait: it may be suspended.
    """
    if not HAS_LOCKS:
        # Windows, where a file that is open cannot be renamed at all.
        yield
        return
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError:
        # It may be entered but not be read. Then no process renames anything in it either.
        yield
        return
    try:
        how = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
        if not _lock(folder, how, BUSY_TIMEOUT_SECONDS if seconds is None else seconds):
            raise FileLockedError(
                f"{path}: another process keeps its folder locked, to open a file in it or to "
                "rename a damaged one"
            )
        yield
    finally:
        os.close(folder)


@contextlib.contextmanager
def locked_wal(wal: Path) -> Iterator[None]:
    """Run the block while no other process has this lock on the WAL.

    SQLite's own locks are on the database and on ``-shm``, so closing the WAL here ends none of
    them. Windows has no such lock: there the block runs without it, and so it does without a WAL.

    Raises
    ------
    FileLockedError
        Another process has it for longer than we wait.
    """
    try:
        descriptor = os.open(wal, os.O_RDONLY) if HAS_LOCKS else None
    except OSError:
        descriptor = None
    if descriptor is None:
        yield
        return
    try:
        if not _lock(descriptor, fcntl.LOCK_EX, BUSY_TIMEOUT_SECONDS):
            raise FileLockedError(f"{wal}: another process keeps it locked, to write to the file")
        try:
            yield
        finally:
            # Not only by closing: a program that another thread is starting may have it open, too.
            _lock(descriptor, fcntl.LOCK_UN, 0)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int, seconds: float) -> bool:
    """Whether there is the lock, or the file system has no such locks."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            # Not a flock that waits: nothing would end that while a process is suspended.
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        except OSError:
            return True  # some file systems have no such locks
        else:
            return True


def is_writable(path: Path) -> bool:
    """Whether this process may write to the file, to its WAL, and to the folder they are in."""
    beside = (wal_of(path), shared_memory_of(path))
    # By the effective user of the process, where the system can.
    acting = os.access in os.supports_effective_ids
    return all(
        os.access(each, os.W_OK, effective_ids=acting)
        for each in (path, path.parent, *filter(Path.exists, beside))
    )


def quarantine_path(path: Path) -> Path:
    """The name of a damaged cache file that is renamed now."""
    now = datetime.fromtimestamp(clock.wall_ns() / 1e9, UTC)
    return path.with_name(f"{path.name}.damaged-{now:%Y%m%dT%H%M%S.%fZ}")


VARIABLE = "ZARR_CACHE_PATH"
"""The environment variable that names it."""

WAY_OUT = (
    f"set {VARIABLE} to a file in a folder that this user may write to, or pass "
    "cache_store=SqliteStore(path) (the commands: -f FILE)"
)
"""What helps where the user's cache folder is not known, or cannot be written to."""


def default_path() -> Path:
    """The file that ``$ZARR_CACHE_PATH`` names, or else one in the user's cache folder.

    That folder is ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS and ``%LOCALAPPDATA%`` on
    Windows, as platformdirs has it. Every source has a namespace of its own in the file.

    Raises
    ------
    CacheError
        That folder is not known: the user of this process has no home folder, as in a container
        with any user number, or ``$HOME`` or ``$XDG_CACHE_HOME`` is no absolute path.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    # Before 4.12, platformdirs uses such a value as it is; since then it takes another folder.
    decisive = "XDG_CACHE_HOME" if os.environ.get("XDG_CACHE_HOME", "").strip() else "HOME"
    value = os.environ.get(decisive)
    if value is not None and sys.platform != "win32" and not value.startswith("/"):
        raise _unknown_folder(f"{decisive} is {value!r}, which is no absolute path")
    try:
        folder = platformdirs.user_cache_path("zarr-cache", appauthor=False)
    except RuntimeError as error:
        raise _unknown_folder(str(error)) from error
    if not folder.is_absolute():
        raise _unknown_folder("HOME is not set, and this user has no home folder")
    return folder / "cache.sqlite"


def named_file(path: str | os.PathLike[str]) -> Path:
    """The absolute path of the cache file that a user names, with symbolic links as given.

    Raises
    ------
    TypeError
        It is neither a string nor a path.
    ValueError
        The path cannot be that of a file.
    """
    name = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(name, str):
        raise TypeError(f"the cache file must be named by a string or a path, got {path!r}")
    if not name:
        raise ValueError("the path of the cache file is empty; name one, such as 'cache.sqlite'")
    if name == ":memory:":
        raise ValueError("the cache file is ':memory:'; name a file, or use zarr's MemoryStore")
    if "://" in name:
        raise ValueError(f"the cache file is {name!r}, a URL; name a file on a local disk")
    named = expanded(Path(name)).absolute()
    # Not is_dir(), which raises without permission: a cache that cannot be opened fails no read.
    if os.path.isdir(named):  # noqa: PTH112 - for this reason
        raise ValueError(
            f"the cache file is the folder {named}; name a file in it, such as {named}/cache.sqlite"
        )
    return named


def expanded(path: Path) -> Path:
    """The path with ``~`` replaced by the home folder.

    Raises
    ------
    CacheError
        The user of this process has none.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise CacheError(f"{path}: the home folder is not known: {error}; {WAY_OUT}") from error


def _unknown_folder(why: str) -> CacheError:
    return CacheError(f"no folder for the cache file is known: {why}; {WAY_OUT}")
