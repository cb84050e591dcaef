"""Where a cache file can be: on which file systems, and with how long a name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.disk.mount_lines import Mountinfo
from tests.fakes import CountingStore, buffer, read, restart
from tests.fault.sources import new_cache
from zarr_cache import (
    CacheStore,
    CacheWarning,
    FileNameTooLongError,
    ForeignFileError,
    NetworkFileSystemError,
    SqliteStore,
)
from zarr_cache.disk import location, mounts, paths

if TYPE_CHECKING:
    from pathlib import Path

# Of other machines, of the host of a virtual machine, of a cluster, over another folder, and what
# no list of today knows.
NOT_KNOWN = """
    nfs nfs4 cifs smb3 ceph afs 9p virtiofs vboxsf fuse.vmhgfs-fuse vmhgfs prl_fs fakeowner
    fuse.grpcfuse fuse.lxcfs fuse.sshfs fuse.s3fs fuse.juicefs fuse.rclone fuse.mergerfs fuse gpfs
    lustre beegfs ocfs2 gfs2 wekafs aufs ecryptfs a_new_one
""".split()  # noqa: SIM905 - as in the module

LOCAL = """
    ext2 ext3 ext4 xfs btrfs zfs f2fs bcachefs jfs tmpfs ramfs rootfs overlay fuseblk
    fuseblk.ntfs-3g ntfs3 vfat exfat hfsplus apfs squashfs
""".split()  # noqa: SIM905 - as above


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mountinfo:
    """The list of mounts, as Linux would give it."""
    monkeypatch.delenv(location.VARIABLE, raising=False)
    its = Mountinfo(tmp_path / "mountinfo")
    monkeypatch.setattr(mounts, "MOUNTS", its.file)
    return its


@pytest.mark.parametrize("file_system", NOT_KNOWN)
async def test_reads_are_the_sources_on_a_file_system_that_is_not_known_to_be_local(
    tmp_path: Path, mountinfo: Mountinfo, file_system: str
) -> None:
    folder = tmp_path / "of all nodes"
    folder.mkdir()
    mountinfo.mount(folder, file_system)
    source = CountingStore(MemoryStore({"k": buffer(b"value")}))
    store = CacheStore(source, cache_store=SqliteStore(folder / "cache.sqlite"))

    with pytest.warns(
        CacheWarning,
        match=rf"cache\.sqlite.*\({file_system}\).*ZARR_CACHE_ALLOW_FILE_SYSTEMS={file_system}$",
    ) as warned:
        found = [await read(store, "k") for _ in range(3)]

    assert found == [b"value"] * 3
    assert len(warned) == 1
    assert store.cache_stats()["faults"] == 3
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("file_system", LOCAL)
def test_a_file_is_used_on_a_file_system_that_is_known_to_be_local(
    path: Path, mountinfo: Mountinfo, file_system: str
) -> None:
    mountinfo.mount(path.parent, file_system)

    assert SqliteStore(path).get_sync("k") is None


def test_a_store_on_a_network_file_system_raises(tmp_path: Path, mountinfo: Mountinfo) -> None:
    mountinfo.mount(tmp_path / "nodes", "nfs")

    with pytest.raises(NetworkFileSystemError, match="name a file on a local disk") as raised:
        SqliteStore(tmp_path / "nodes" / "cache.sqlite").get_sync("k")
    assert raised.value.file_system == "nfs"
    assert not (tmp_path / "nodes").exists()


@pytest.mark.parametrize("allowed", ["nfs4", "virtiofs,nfs4", " virtiofs , nfs4 ,"])
def test_a_file_system_is_used_that_the_environment_allows(
    path: Path, mountinfo: Mountinfo, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    mountinfo.mount(path.parent, "nfs4")
    monkeypatch.setenv(location.VARIABLE, allowed)

    assert SqliteStore(path).get_sync("k") is None


@pytest.mark.parametrize("allowed", ["", "nfs", "virtiofs", "nfs4 virtiofs", "fuse"])
def test_the_environment_allows_whole_names_of_types_alone(
    path: Path, mountinfo: Mountinfo, monkeypatch: pytest.MonkeyPatch, allowed: str
) -> None:
    mountinfo.mount(path.parent, "nfs4")
    mountinfo.mount(path.parent / "fuse", "fuse.sshfs")
    monkeypatch.setenv(location.VARIABLE, allowed)

    for each in (path, path.parent / "fuse" / "cache.sqlite"):
        with pytest.raises(NetworkFileSystemError):
            SqliteStore(each).get_sync("k")


async def test_a_write_beside_a_file_that_another_process_may_use_leaves_a_marker(
    path: Path, mountinfo: Mountinfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = MemoryStore({"k": buffer(b"old")})
    store = new_cache(source, path)
    await read(store, "k")
    restart(store)
    mountinfo.mount(path.parent, "nfs4")
    refused = new_cache(source, path)
    with pytest.warns(CacheWarning):
        await refused.set("k", buffer(b"new"))
    restart(refused)
    is_marked = paths.marker_of(path, "source").exists()
    monkeypatch.setenv(location.VARIABLE, "nfs4")
    found = await read(new_cache(source, path), "k")

    assert is_marked
    assert found == b"new"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes")
def test_what_is_no_file_is_refused_for_that_on_any_file_system(
    path: Path, mountinfo: Mountinfo
) -> None:
    mountinfo.mount(path.parent, "devpts")
    mountinfo.mount(path, "devpts")
    os.mkfifo(path)

    with pytest.raises(ForeignFileError, match="not a regular file"):
        SqliteStore(path).get_sync("k")


def test_a_folder_that_is_mounted_in_the_place_of_a_wal_is_refused_as_a_folder(
    path: Path, mountinfo: Mountinfo
) -> None:
    paths.wal_of(path).mkdir()
    mountinfo.mount(paths.wal_of(path), "ext4")

    with pytest.raises(ForeignFileError, match="-wal: a folder"):
        SqliteStore(path).get_sync("k")


async def test_a_write_leaves_nothing_on_a_file_system_where_no_file_is(
    path: Path, mountinfo: Mountinfo
) -> None:
    mountinfo.mount(path.parent, "nfs4")
    before = set(path.parent.iterdir())
    store = CacheStore(MemoryStore(), cache_store=SqliteStore(path))

    with pytest.warns(CacheWarning):
        await store.set("k", buffer(b"value"))
    assert set(path.parent.iterdir()) == before


def test_a_local_disk_within_a_network_file_system_is_local(
    tmp_path: Path, mountinfo: Mountinfo
) -> None:
    mountinfo.mount(tmp_path, "nfs")
    mountinfo.mount(tmp_path / "scratch", "xfs")

    assert SqliteStore(tmp_path / "scratch" / "cache.sqlite").get_sync("k") is None


def test_a_file_is_used_where_the_mounts_are_unknown(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "MOUNTS", path.parent / "no such file")

    assert SqliteStore(path).get_sync("k") is None


def test_a_share_of_windows_is_no_local_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "MOUNTS", path.parent / "no such file")
    share = path.with_name("\\\\host\\share\\cache.sqlite")

    with pytest.raises(NetworkFileSystemError, match=r"\(cifs\)"):
        location.refuse_location(type(path)(share.name))


def test_the_list_of_mounts_is_read_once_for_each_opening(
    path: Path, mountinfo: Mountinfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    mountinfo.mount(path.parent, "ext4")

    def counted() -> mounts.MountTable | None:
        reads.append(path)
        return mounts.read_mounts()

    monkeypatch.setattr(location, "read_mounts", counted)
    store = SqliteStore(path)
    for key in "abc":
        store.get_sync(key)

    assert len(reads) == 1


LONGEST = 255 - len(".damaged-20251231T235959.999999Z-journal")


@pytest.mark.parametrize("letter", ["f", "é", "語"])
def test_the_longest_name_that_leaves_room_is_used_and_one_byte_more_is_refused(
    tmp_path: Path, letter: str
) -> None:
    width = len(letter.encode())
    name = letter * (LONGEST // width)
    fits = name + "x" * (LONGEST - len(name.encode()))
    assert SqliteStore(tmp_path / fits).get_sync("k") is None

    with pytest.raises(FileNameTooLongError) as raised:
        SqliteStore(tmp_path / f"{fits}x").get_sync("k")
    assert str(raised.value) == (
        f"{tmp_path / fits}x: a name of {LONGEST + 1} bytes, and those of files beside it have up "
        f"to 40 more, where the file system allows 255; choose one of at most {LONGEST} bytes"
    )


def test_no_name_beside_a_file_is_longer_than_the_longest(path: Path) -> None:
    longest = len(paths.longest_name_beside(path).name)
    quarantined = paths.quarantine_path(path)
    names = [*paths.beside(path), *paths.beside(quarantined), paths.marker_of(path, "source")]

    assert max(len(each.name) for each in names) == longest
    assert longest == len(path.name) + 40


def test_a_folder_that_is_not_there_yet_has_the_limit_of_the_one_it_will_be_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_ecryptfs(folder: Path, _: str) -> int:
        if not folder.exists():
            raise FileNotFoundError(folder)
        return 143

    monkeypatch.setattr(os, "pathconf", of_ecryptfs, raising=False)

    with pytest.raises(FileNameTooLongError, match="allows 143"):
        SqliteStore(tmp_path / "new" / "newer" / ("f" * 104)).get_sync("k")
    assert SqliteStore(tmp_path / "new" / "newer" / ("f" * 103)).get_sync("k") is None


@pytest.mark.skipif(os.name != "posix", reason="SQLite has another limit there")
def test_the_longest_path_that_sqlite_opens_is_used_and_one_byte_more_is_refused(
    tmp_path: Path,
) -> None:
    folder = tmp_path
    while len(str(folder)) < 400:
        folder /= "f" * 60
    longest = folder / ("f" * (location.MAX_PATH_BYTES - len(str(folder)) - 1))
    assert SqliteStore(longest).get_sync("k") is None

    with pytest.raises(FileNameTooLongError, match="a path of 505 bytes, where SQLite opens 504"):
        SqliteStore(longest.with_name(f"{longest.name}f")).get_sync("k")


def test_a_name_that_is_too_long_leaves_nothing_behind(tmp_path: Path) -> None:
    store = CacheStore(
        MemoryStore(), cache_store=SqliteStore(tmp_path / "new" / ("f" * 240)), namespace="source"
    )

    with pytest.warns(CacheWarning, match="a name of 240 bytes"):
        store.set_sync("k", buffer(b"value"))
    assert list(tmp_path.iterdir()) == []
