"""The list of mounts, as the kernel writes it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.disk.mount_lines import Mountinfo
from zarr_cache.disk import mounts
from zarr_cache.disk.mounts import MountTable, read_mounts

NAMES = {
    "blanks": "of all nodes",
    "a backslash": "a\\b",
    "what looks like an escape": "a\\040b",
    "line feed and tabulator": "a\nb\tc",
    "carriage return": "a\rb",
    "Latin-1": "Müller",
    "beyond Latin-1": "データ",
    "beyond 16 bits": "🧠",
    "a line separator of Unicode": "a\u2028b",
    "a next line of Unicode": "a\x85b",
    "not UTF-8": os.fsdecode(b"caf\xe9"),
    "a number sign": "#1",
    "a hyphen between blanks": "a - b",
}


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mountinfo:
    """The list of mounts, as Linux would give it."""
    its = Mountinfo(tmp_path / "mountinfo")
    monkeypatch.setattr(mounts, "MOUNTS", its.file)
    return its


def table() -> MountTable:
    found = read_mounts()
    assert found is not None
    return found


def file_system_of(path: str | Path) -> str | None:
    mount = table().mount_of(Path(path))
    return mount.file_system if mount else None


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_place_of_any_name_is_found(mountinfo: Mountinfo, name: str) -> None:
    mountinfo.mount(Path("/mnt", name), "nfs")

    assert file_system_of(Path("/mnt", name, "cache.sqlite")) == "nfs"
    assert file_system_of("/mnt/cache.sqlite") == "ext4"
    assert table().is_place(Path("/mnt", name))


def test_a_name_that_begins_like_a_place_is_another(mountinfo: Mountinfo) -> None:
    mountinfo.mount(Path("/mnt/a"), "nfs")

    assert file_system_of("/mnt/ab/cache.sqlite") == "ext4"


def test_of_two_mounts_at_one_place_the_later_counts(mountinfo: Mountinfo) -> None:
    mountinfo.mount(Path("/mnt"), "nfs")
    mountinfo.mount(Path("/mnt"), "xfs")

    assert file_system_of("/mnt/cache.sqlite") == "xfs"


def test_a_mount_that_is_hidden_by_one_above_it_does_not_count(mountinfo: Mountinfo) -> None:
    mountinfo.mount(Path("/mnt/a"), "nfs")
    mountinfo.mount(Path("/mnt"), "xfs")

    assert file_system_of("/mnt/a/cache.sqlite") == "xfs"


def test_a_single_file_that_is_mounted_is_a_place(mountinfo: Mountinfo) -> None:
    mountinfo.mount(Path("/mnt/cache.sqlite"), "ext4")

    assert table().is_place(Path("/mnt/cache.sqlite"))
    assert not table().is_place(Path("/mnt/cache.sqlite-wal"))
    assert not table().is_place(Path("/mnt"))


def test_in_a_chroot_without_a_mount_at_its_root_only_what_is_listed_is_known(
    mountinfo: Mountinfo,
) -> None:
    # The mount in which the root lies has another place, outside, and is not listed.
    mountinfo.file.write_text("40 29 0:5 / /proc rw - proc proc rw\n41 29 0:6 / /n rw - nfs n rw\n")

    assert file_system_of("/var/cache.sqlite") is None
    assert file_system_of("/n/cache.sqlite") == "nfs"


def test_where_the_system_does_not_list_them_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mounts, "MOUNTS", tmp_path / "no such file")

    assert read_mounts() is None


@pytest.mark.skipif(not mounts.MOUNTS.exists(), reason="the system does not list its mounts")
def test_the_folder_of_each_real_mount_lies_in_it(tmp_path: Path) -> None:
    mount = table().mount_of(tmp_path.resolve())

    assert mount is not None
    assert os.path.ismount(mount.place)
