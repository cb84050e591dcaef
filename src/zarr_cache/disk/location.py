"""Whether a cache file can be where its path says, which is checked before anything is made there.

SQLite's WAL needs memory that all processes with the file open share, and locks that hold between
them (https://www.sqlite.org/wal.html). Files beside the cache file are found by its name.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from zarr_cache.core.errors import FileNameTooLongError, MountedFileError, NetworkFileSystemError
from zarr_cache.disk.mounts import read_mounts
from zarr_cache.disk.paths import beside, longest_name_beside

if TYPE_CHECKING:
    from pathlib import Path

    from zarr_cache.disk.mounts import MountTable

# Those of which the kernel of this machine alone has the files, so that its processes share memory
# and locks. An overlay writes to a local file system. A FUSE file system with a block device
# (fuseblk) is that of a disk. Not here is what lies over another folder, wherever that is (aufs,
# ecryptfs, fuse.mergerfs), what another machine serves, also the host of a virtual machine
# (virtiofs, 9p, vboxsf), and all else behind FUSE.
_LOCAL_FILE_SYSTEMS = frozenset(
    """
    apfs bcachefs btrfs cramfs devtmpfs erofs exfat ext2 ext3 ext4 f2fs fuseblk hfs hfsplus iso9660
    jfs msdos nilfs2 ntfs ntfs3 overlay ramfs reiser4 reiserfs romfs rootfs squashfs tmpfs ubifs udf
    vfat xfs zfs
    """.split()  # noqa: SIM905 - a name on each line is not easier to read
)

VARIABLE = "ZARR_CACHE_ALLOW_FILE_SYSTEMS"
"""The environment variable with types of file systems, separated by commas, that are used although
they are not known to be local."""

MAX_NAME_BYTES = 255
"""The longest name in most file systems. Some report more (vfat: the bytes of 255 characters)."""

MAX_PATH_BYTES = 504
"""The longest path that SQLite opens: 512 bytes (``MAX_PATHNAME`` in its os_unix.c) with the ending
of a journal."""


def refuse_location(path: Path) -> None:
    """Raise if no cache file can be at the path, which is absolute and without symbolic links.

    Makes nothing. Reads the list of mounts once.

    Raises
    ------
    FileNameTooLongError
        The names of files beside it would be too long, or the path is.
    MountedFileError
        The file, or one that belongs to it, is mounted by itself.
    NetworkFileSystemError
        It would lie on a file system that is not known to be local.
    """
    _refuse_long_names(path)
    with contextlib.suppress(OSError):
        # A look at the path also lets the system mount what it mounts at first use (autofs).
        if not stat.S_ISREG(path.stat().st_mode):
            return  # refused for what it is, wherever that is
    mounts = read_mounts()
    if mounts is not None:
        _refuse_mounted(path, mounts)
    _refuse_file_system(path, _file_system_of(path, mounts))


def _refuse_long_names(path: Path) -> None:
    name, nbytes = _nbytes(path.name), _nbytes(path)
    added, limit = _nbytes(longest_name_beside(path).name) - name, _max_name_bytes(path.parent)
    if name + added > limit:
        raise FileNameTooLongError(
            path,
            f"a name of {name} bytes, and those of files beside it have up to {added} more, where "
            f"the file system allows {limit}; choose one of at most {limit - added} bytes",
        )
    if os.name == "posix" and nbytes > MAX_PATH_BYTES:
        raise FileNameTooLongError(
            path,
            f"a path of {nbytes} bytes, where SQLite opens {MAX_PATH_BYTES}; choose a shorter one",
        )


def _nbytes(name: str | Path) -> int:
    return len(os.fsencode(name))


def _max_name_bytes(folder: Path) -> int:
    """The bytes of the longest name in the folder, which need not be there yet."""
    if hasattr(os, "pathconf"):
        for each in (folder, *folder.parents):
            with contextlib.suppress(OSError):
                return min(os.pathconf(each, "PC_NAME_MAX"), MAX_NAME_BYTES)
    return MAX_NAME_BYTES


def _refuse_mounted(path: Path, mounts: MountTable) -> None:
    for each in (path, *beside(path)):
        if mounts.is_place(each) and each.is_file():
            raise MountedFileError(each)


def _file_system_of(path: Path, mounts: MountTable | None) -> str:
    """The type of the file system that the file is in; "" where that is not known."""
    if mounts is None:
        # A share of Windows is named by its host.
        return "cifs" if str(path).startswith("\\\\") else ""
    mount = mounts.mount_of(path)
    return mount.file_system if mount else ""


def _refuse_file_system(path: Path, file_system: str) -> None:
    # The kernel writes fuseblk.NAME where the program behind it gives its name.
    if not file_system or file_system.partition(".")[0] in _LOCAL_FILE_SYSTEMS:
        return
    allowed = os.environ.get(VARIABLE, "").split(",")
    if file_system not in {each.strip() for each in allowed}:
        raise NetworkFileSystemError(path, file_system)
