"""On which file system a cache file lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, buffer, read
from zarr_cache import CacheStore, CacheWarning, SqliteStore
from zarr_cache.core.errors import NetworkFileSystemError
from zarr_cache.disk import network

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The list of mounted file systems, as Linux would give it."""
    file = tmp_path / "mounts"
    file.write_text("/dev/vda1 / ext4 rw 0 0\n", encoding="utf-8")
    monkeypatch.setattr(network, "MOUNTS", file)
    return file


def mount(mounts: Path, folder: Path, file_system: str) -> None:
    folder.mkdir(exist_ok=True)
    name = str(folder).replace(" ", "\\040")
    with mounts.open("a", encoding="utf-8") as file:
        file.write(f"server:/export {name} {file_system} rw,vers=4 0 0\n")


@pytest.mark.parametrize("file_system", ["nfs4", "cifs", "lustre", "fuse.sshfs"])
async def test_reads_are_the_sources_on_a_network_file_system(
    tmp_path: Path, mounts: Path, file_system: str
) -> None:
    folder = tmp_path / "of all nodes"
    mount(mounts, folder, file_system)
    source = CountingStore(MemoryStore({"k": buffer(b"value")}))
    store = CacheStore(source, cache_store=SqliteStore(folder / "cache.sqlite"))

    with pytest.warns(CacheWarning, match=rf"cache\.sqlite.*\({file_system}\).*local disk") as told:
        found = [await read(store, "k") for _ in range(3)]

    assert found == [b"value"] * 3
    assert len(told) == 1
    assert store.cache_stats()["faults"] == 3
    assert list(folder.iterdir()) == []


def test_a_store_on_a_network_file_system_says_so(tmp_path: Path, mounts: Path) -> None:
    mount(mounts, tmp_path / "nodes", "nfs")

    with pytest.raises(NetworkFileSystemError, match="name a file on a local disk"):
        SqliteStore(tmp_path / "nodes" / "cache.sqlite").get_sync("k")


def test_a_local_disk_within_a_network_file_system_is_local(tmp_path: Path, mounts: Path) -> None:
    mount(mounts, tmp_path, "nfs")
    mount(mounts, tmp_path / "scratch", "xfs")

    assert SqliteStore(tmp_path / "scratch" / "cache.sqlite").get_sync("k") is None


def test_a_file_is_used_where_the_mounts_are_unknown(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "MOUNTS", path.parent / "no such file")

    assert SqliteStore(path).get_sync("k") is None
