"""What is mounted where, as Linux lists it: the file system of a file, and files mounted alone."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

MOUNTS = Path("/proc/self/mountinfo")
"""Where Linux lists the mounts that this process sees, see proc_pid_mountinfo(5)."""

# The kernel writes blanks, line feeds and backslashes so, and every other byte as it is.
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


class Mount(NamedTuple):
    """One line of the list: what is mounted at a place, a folder or a single file.

    Attributes
    ----------
    number, parent
        Of this mount, and of the one that its place lies in.
    place
        The path at which it is mounted.
    file_system
        The type, such as ``ext4`` or ``fuse.sshfs``.
    """

    number: int
    parent: int
    place: str
    file_system: str


class MountTable:
    """The mounts that this process sees, at one moment."""

    def __init__(self, mounts: list[Mount]) -> None:
        numbers = {mount.number for mount in mounts}
        # The mount at the root lies in one that is not listed, or in itself.
        self._at = {
            (mount.parent if mount.parent in numbers - {mount.number} else None, mount.place): mount
            for mount in mounts
        }

    def mount_of(self, path: Path) -> Mount | None:
        """The mount in which the path lies; None if that is not listed, as in some chroots.

        Follows the path as the kernel does: a longer place may be hidden by what was mounted above
        it later. `path` is absolute and without symbolic links.
        """
        found: Mount | None = None
        for folder in (*reversed(path.parents), path):
            while mount := self._at.get((found.number if found else None, str(folder))):
                found = mount
        return found

    def is_place(self, path: Path) -> bool:
        """Whether something is mounted at this very path."""
        mount = self.mount_of(path)
        return mount is not None and mount.place == str(path)


def read_mounts() -> MountTable | None:
    """The mounts as they are now; None where the system does not list them."""
    try:
        lines = MOUNTS.read_bytes()
    except OSError:
        return None
    # Not splitlines(): a name may have a carriage return.
    return MountTable([_parsed(line) for line in lines.split(b"\n") if line])


def _parsed(line: bytes) -> Mount:
    of_mount, _, of_file_system = line.partition(b" - ")
    number, parent, _, _, place, *_ = of_mount.split(b" ")
    file_system, *_ = of_file_system.split(b" ")
    return Mount(int(number), int(parent), _decoded(place), _decoded(file_system))


def _decoded(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), field))
