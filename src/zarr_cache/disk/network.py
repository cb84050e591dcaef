"""Whether a file lies on a network file system, where SQLite's WAL does not work."""

from __future__ import annotations

from pathlib import Path

from zarr_cache.core.errors import NetworkFileSystemError

# File systems over a network. Those of virtual machines and containers on one host are not here.
_NETWORK_FILE_SYSTEMS = frozenset(
    """
    afs beegfs ceph cifs coda davfs fuse.ceph fuse.davfs2 fuse.gcsfuse fuse.glusterfs fuse.goofys
    fuse.juicefs fuse.mountpoint-s3 fuse.rclone fuse.s3fs fuse.sshfs glusterfs gpfs lustre ncpfs
    nfs nfs4 orangefs pvfs2 smb3 smbfs
    """.split()  # noqa: SIM905 - a name on each line is not easier to read
)

MOUNTS = Path("/proc/self/mounts")
"""Where Linux lists the mounted file systems, see proc(5)."""


def refuse_network(path: Path) -> None:
    """Raise if the file would lie on a network file system, where SQLite's WAL does not work."""
    file_system = _file_system_of(path)
    if file_system in _NETWORK_FILE_SYSTEMS:
        raise NetworkFileSystemError(path, file_system)


def _file_system_of(path: Path) -> str:
    """The type of the file system that the file is in; "" where that is not known."""
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
