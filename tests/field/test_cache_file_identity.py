"""What the cache file is and where it lies is checked before it is used."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.cli.conftest import Command
from tests.fakes import buffer, cached_keys, open_file, read, restart
from tests.fault.sources import KEYS, VALUES, drain, new_cache, new_source, told
from tests.field.own_mounts import run_with_own_mounts
from tests.systems import needs_data_file
from zarr_cache import CacheWarning, FileNameTooLongError, ForeignFileError, SqliteStore
from zarr_cache.disk.data_file import MAGIC
from zarr_cache.file import connection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from warnings import WarningMessage

BESIDE = ["-wal", "-shm", "-journal", "-data"]


@pytest.fixture
def warned() -> Iterator[list[WarningMessage]]:
    """What has been warned of since the test began."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        yield record


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


# A file that is mounted by itself (https://github.com/evcc-io/evcc/issues/30903).

TWO_CONTAINERS = """
path.touch()
places = []
for name in ("container1", "container2"):
    place = path.parent / name / "cache.sqlite"
    place.parent.mkdir()
    place.touch()
    mount("--bind", str(path), str(place))
    places.append(place)
source = MemoryStore({"k": buffer(b"1")})
first, second = (new_cache(source, place) for place in places)
found = [first.get_sync("k"), second.get_sync("k")]
first.set_sync("k", buffer(b"2"))
found.append(second.get_sync("k"))
second.set_sync("k", buffer(b"3"))
found.append(first.get_sync("k"))
tell(found=[each.to_bytes().decode() for each in found], size=path.stat().st_size)
"""


def test_two_containers_with_one_mounted_file_read_what_the_other_has_written(path: Path) -> None:
    """Two processes with the file bind-mounted had two WALs for it, lost writes, and damaged it.

    https://github.com/evcc-io/evcc/issues/30903
    """
    facts = run_with_own_mounts(path, TWO_CONTAINERS).facts

    assert facts["found"] == ["1", "1", "2", "3"]
    assert facts["size"] == 0
    assert len(facts["warned"]) == 2
    for name, warning in zip(["container1", "container2"], facts["warned"], strict=True):
        assert warning == (
            "the cache has failed, reads go to the source: "
            f"{path.parent}/{name}/cache.sqlite: mounted by itself, without the files beside it "
            "that processes elsewhere use; mount its folder instead"
        )


MOUNTED = """
SqliteStore(path).set_sync("k", buffer(b"value"))
FileDatabase.registry.by_path.pop(path).close()
mounted = path.with_name(path.name + arguments[0])
mounted.touch()
elsewhere = path.with_name("elsewhere")
elsewhere.write_bytes(mounted.read_bytes())
mount("--bind", str(elsewhere), str(mounted))
before = {each.name: each.read_bytes() for each in path.parent.iterdir()}
try:
    SqliteStore(path).get_sync("k")
except Exception as error:
    raised = f"{type(error).__name__}: {error}"
else:
    raised = None
result = Command(path)("info")
same = before == {each.name: each.read_bytes() for each in path.parent.iterdir()}
tell(raised=raised, same=same, code=result.exit_code, stderr=result.stderr)
"""


@pytest.mark.leaves_damage
@pytest.mark.parametrize("suffix", ["", *BESIDE])
def test_a_file_of_the_cache_that_is_mounted_by_itself_is_named_and_left_as_it_is(
    path: Path, suffix: str
) -> None:
    """A Kubernetes ``subPath``, as https://github.com/evcc-io/evcc/issues/30903 has it."""
    facts = run_with_own_mounts(path, MOUNTED, suffix).facts

    assert facts["raised"].startswith(f"MountedFileError: {path}{suffix}: mounted by itself")
    assert facts["same"]
    assert facts["code"] == 1
    assert facts["stderr"].startswith(f"zarr-cache: {path}{suffix}: mounted by itself")
    assert facts["stderr"].count("\n") == 1


MOUNTED_FOLDER = """
folders = [path.parent / name for name in ("host", "データ 1", "c 2")]
for folder in folders:
    folder.mkdir()
for folder in folders[1:]:
    mount("--bind", str(folders[0]), str(folder))
SqliteStore(folders[1] / "cache.sqlite").set_sync("k", buffer(b"value"))
found = SqliteStore(folders[2] / "cache.sqlite").get_sync("k")
tell(found=found.to_bytes().decode())
"""


def test_a_folder_that_is_mounted_is_the_way_out(path: Path) -> None:
    """The way out that the message of a mounted file names."""
    facts = run_with_own_mounts(path, MOUNTED_FOLDER).facts

    assert facts["found"] == "value"
    assert facts["warned"] == []


# File systems on which SQLite's WAL does not work.

UNDER_ANY_NAME = """
found = []
for name in map(bytes.fromhex, arguments):
    folder = path.parent / os.fsdecode(name)
    folder.mkdir()
    for file_system in ("proc", "tmpfs"):
        mount("-t", file_system, "none", str(folder))
        try:
            found.append(SqliteStore(folder / "cache.sqlite").get_sync("k"))
        except NetworkFileSystemError as error:
            found.append(str(error).removeprefix(f"{folder}/cache.sqlite: "))
tell(found=found)
"""

FOLDERS = [
    b"cache",
    b"of all nodes",
    "データ".encode(),
    "🧠".encode(),
    b"caf\xe9",  # not UTF-8
    b"a\\040b",  # looks like an escape
    "a\u2028b\x85c\rd\ne".encode(),
]


def test_a_file_system_is_recognised_at_a_mount_point_of_any_name(path: Path) -> None:
    """Mount points with names beyond Latin-1 were not recognised, so a share there was used.

    ``proc`` stands for a share: to mount it needs no server.
    """
    names = [folder.hex() for folder in FOLDERS]
    facts = run_with_own_mounts(path, UNDER_ANY_NAME, *names).facts

    refused = (
        "on a file system that is not known to be local (proc), where SQLite's write-ahead log may "
        "not work; name a file on a local disk or, if the processes of one machine alone use this "
        "file system, set ZARR_CACHE_ALLOW_FILE_SYSTEMS=proc"
    )
    assert facts["found"] == [refused, None] * len(FOLDERS)


# Names that leave no room for others beside them.


@pytest.mark.parametrize("nbytes", [216, 240, 255])
def test_reads_are_the_sources_if_the_name_leaves_no_room_for_those_beside_it(
    tmp_path: Path, warned: list[WarningMessage], nbytes: int
) -> None:
    """With a name of 240 bytes neither a marker nor a quarantined file could be made.

    Nothing healed, and another process read old values after a write.
    """
    path = tmp_path / ("f" * nbytes)
    store = new_cache(new_source(), path)
    found = store.get_sync(KEYS[0])
    store.set_sync("k", buffer(b"value"))

    assert found == buffer(VALUES[KEYS[0]])
    assert list(tmp_path.iterdir()) == []
    assert len(warned) == 1
    assert f"a name of {nbytes} bytes" in told(warned)[0]
    assert told(warned)[0].endswith("choose one of at most 215 bytes")
    with pytest.raises(FileNameTooLongError):
        SqliteStore(path).get_sync("k")


@pytest.mark.parametrize("name", ["f" * 215, "語" * 71 + "ff"], ids=["ASCII", "beyond ASCII"])
def test_a_file_with_the_longest_name_is_healed_and_has_markers(
    tmp_path: Path, warned: list[WarningMessage], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """What did not work with a name of 240 bytes works with the longest one that is used."""
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_SECONDS", 0.05)
    path = tmp_path / name
    source = MemoryStore({"k": buffer(b"old")})
    store = new_cache(source, path)
    store.get_sync("k")
    restart(store)
    path.write_bytes(path.read_bytes()[:5000])
    store = new_cache(source, path)
    found = [store.get_sync("k") for _ in range(2)]
    drain(store)
    with open_file(path) as db:
        db.execute("BEGIN IMMEDIATE")
        store.set_sync("k", buffer(b"new"))
        names = " ".join(each.name for each in tmp_path.iterdir())
    found.append(store.get_sync("k"))

    assert found == [buffer(b"old"), buffer(b"old"), buffer(b"new")]
    assert f"{name}.damaged-" in names
    assert f"{name}-invalid-" in names
    assert "a new file takes its place" in told(warned)[0]


# Small files that are not ours.

SMALL = {
    "text": lambda nbytes: (b"a,b\n1,2\n" * 20)[:nbytes],
    "zeros": bytes,
    "a beginning of SQLite's magic": lambda nbytes: (b"SQLite format 3\0" + b"x" * 99)[:nbytes],
}
"""What a file of so many bytes holds."""


@pytest.mark.parametrize("kind", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("nbytes", [1, 2, 15, 16, 17, 99, 100])
def test_a_small_file_that_is_not_ours_is_refused_and_left_as_it_is(
    path: Path, kind: Callable[[int], bytes], nbytes: int
) -> None:
    """A file of one byte was taken for empty, as SQLite takes it, and overwritten."""
    path.write_bytes(kind(nbytes))
    before = contents(path.parent)
    store = new_cache(new_source(), path)

    with pytest.warns(CacheWarning, match="not a file of zarr-cache; it is left as it is"):
        store.set_sync("k", buffer(b"value"))
    with pytest.raises(ForeignFileError, match=f"^{path}: .*name another file"):
        SqliteStore(path).set_sync("k", buffer(b"value"))
    for command in (["info"], ["clear", "--yes"], ["compact"], ["verify", "--repair"]):
        result = Command(path)(*command)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "not a file of zarr-cache" in result.stderr
    store.close()
    assert contents(path.parent) == before


FOREIGN_BESIDE = {
    "one byte": b"x",
    "a note": b"my notes on shells and wales\n",
    "a long text": b"my notes on shells and wales\n" * 999,
}


@pytest.mark.parametrize("content", FOREIGN_BESIDE.values(), ids=FOREIGN_BESIDE)
@pytest.mark.parametrize("main", ["absent", "empty", "ours"])
@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_what_has_a_name_of_sqlites_files_and_is_none_is_left_as_it_is(
    path: Path, suffix: str, main: str, content: bytes
) -> None:
    """As a file of one byte: SQLite writes over them, or deletes them, without a look at them."""
    if main == "ours":
        SqliteStore(path).set_sync("k", buffer(b"value"))
        restart(SqliteStore(path))
    elif main == "empty":
        path.touch()
    theirs = path.with_name(path.name + suffix)
    theirs.write_bytes(content)
    before = contents(path.parent)
    store = SqliteStore(path)

    with pytest.raises(ForeignFileError, match=f"^{theirs}: not .* of SQLite, .*left as it is"):
        store.get_sync("k")
    store.close()
    assert contents(path.parent) == before
    theirs.unlink()
    restart(store)
    assert (SqliteStore(path).get_sync("k") is None) == (main != "ours")


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
@pytest.mark.parametrize("content", [b"", bytes(512)], ids=["empty", "zeros"])
def test_what_sqlite_leaves_without_a_header_is_its_own(
    path: Path, suffix: str, content: bytes
) -> None:
    SqliteStore(path).set_sync("k", buffer(b"value"))
    restart(SqliteStore(path))
    path.with_name(path.name + suffix).write_bytes(content * (8 if suffix == "-shm" else 1))

    assert SqliteStore(path).get_sync("k") == buffer(b"value")


@pytest.mark.parametrize("at", range(8))
def test_a_damaged_byte_in_the_header_of_a_wal_does_not_make_it_foreign(
    path: Path, at: int
) -> None:
    SqliteStore(path).set_sync("k", buffer(b"value"))
    wal = path.with_name(f"{path.name}-wal")
    content = bytearray(wal.read_bytes())
    store = SqliteStore(path)
    restart(store)
    content[at] ^= 0xFF
    wal.write_bytes(content)

    assert SqliteStore(path).get_sync("k") == buffer(b"value")


@needs_data_file
@pytest.mark.parametrize("content", [b"x", b"zarr-cachf", b"my notes", b"{}\n", MAGIC[1:]])
async def test_a_small_file_with_the_name_of_the_data_file_is_left_as_it_is(
    path: Path, warned: list[WarningMessage], content: bytes
) -> None:
    """As a file of one byte: it was left as it is before, and has to be."""
    theirs = path.with_name(f"{path.name}-data")
    theirs.write_bytes(content)
    large = os.urandom(100_000)
    store = new_cache(MemoryStore({"large": buffer(large), "small": buffer(b"value")}), path)
    found = []
    for key in ("large", "small", "large"):
        found.append(await read(store, key))
        drain(store)

    assert found == [large, b"value", large]
    assert theirs.read_bytes() == content
    assert cached_keys(path) == {"small"}
    assert "not a data file of this cache file" in told(warned)[0]
