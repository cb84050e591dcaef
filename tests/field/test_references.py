"""File systems of references (Kerchunk, VirtualiZarr) have a name that outlives the process.

Seen with a `ReferenceFileSystem` of Kerchunk's references, a very common way to read archives of
netCDF files as Zarr: its name was private to the process, so that nothing persisted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.reference import LazyReferenceMapper, ReferenceFileSystem
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import FsspecStore

from tests.fakes import buffer, cached_ranges, read, read_ranges, values
from tests.sources.http_server import serving
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.private import is_private
from zarr_cache.sources.names import name_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import ByteRequest

METADATA = {
    ".zarray": json.dumps(
        {"zarr_format": 2, "shape": [30], "chunks": [10], "dtype": "|u1", "compressor": None}
        | {"fill_value": 0, "order": "C", "filters": None}
    ),
    ".zattrs": "{}",
}

READ = """
import sys, zarr
from fsspec.implementations.reference import ReferenceFileSystem
from zarr.storage import FsspecStore
from zarr_cache import CacheStore, SqliteStore
references, file, namespace = sys.argv[1:]
file_system = ReferenceFileSystem(
    fo=references, asynchronous=True, remote_protocol="http" if namespace else "file",
    remote_options={"asynchronous": True} if namespace else {},
)
source = FsspecStore(file_system, path="")
with CacheStore(source, cache_store=SqliteStore(file), namespace=namespace or None) as store:
    array = zarr.open_array(store, mode="r", zarr_format=2)
    print(array[:].tolist() == list(range(30)), store.cache_stats()["misses"] > 1)
"""
"""Reads an array in a new process; prints whether it is right, and whether chunks were missing."""


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """A file with 8 bytes before the values 0 to 29, which references cut into chunks."""
    file = tmp_path / "blob.nc"
    file.write_bytes(b"HEADER__" + bytes(range(30)))
    return file


def spoil(file: Path) -> None:
    """Let the file hold other bytes: a read of it from here on is seen."""
    file.write_bytes(b"wrong" * 10)


def chunks_of(url: str) -> dict[str, Any]:
    """References to each of the three chunks of an array."""
    return {**METADATA, **{str(i): [url, 8 + 10 * i, 10] for i in range(3)}}


def source_of(references: Any, path: str = "", **options: Any) -> FsspecStore:
    options = {"remote_protocol": "file", **options}
    file_system = ReferenceFileSystem(fo=references, asynchronous=True, **options)
    return FsspecStore(file_system, path=path, read_only=True)


def https(references: Any, path: str = "", **options: Any) -> FsspecStore:
    """Whose targets are read from a server that is no loopback one."""
    options = {"asynchronous": True, **options}
    return source_of(references, path, remote_protocol="https", remote_options=options)


def name_of_file(url: str) -> str:
    return name_of(source_of(chunks_of(url)))


def run(*arguments: object) -> str:
    return subprocess.check_output([sys.executable, "-c", READ, *map(str, arguments)], text=True)


# What persists


def test_a_second_process_reads_no_target(blob: Path, path: Path) -> None:
    references = blob.with_name("refs.json")
    references.write_text(json.dumps({"version": 1, "refs": chunks_of(str(blob))}))
    first = run(references, path, "")
    spoil(blob)

    assert (first.split(), run(references, path, "").split()) == (["True"] * 2, ["True", "False"])


def test_with_a_namespace_nothing_is_requested_of_a_loopback_server_again(path: Path) -> None:
    with serving() as server:
        server.put("blob.nc", b"HEADER__" + bytes(range(30)))
        references = {"version": 1, "refs": chunks_of(f"{server.url}/blob.nc")}
        file = path.with_name("refs.json")
        file.write_text(json.dumps(references))
        first, asked = run(file, path, "blob-v1"), server.requests.total()
        second = run(file, path, "blob-v1")

        assert (first.split(), second.split()) == (["True"] * 2, ["True", "False"])
        assert 0 < asked == server.requests.total()


def test_references_in_memory_and_in_a_file_are_named_alike(blob: Path) -> None:
    references = {"version": 1, "refs": chunks_of(str(blob))}
    file = blob.with_name("refs.json")
    file.write_text(json.dumps(references))
    written_otherwise = {
        "version": 1,
        "templates": {"folder": str(blob.parent)},
        "refs": {
            key: [f"{{{{folder}}}}/{blob.name}", *value[1:]] if isinstance(value, list) else value
            for key, value in reversed(chunks_of(str(blob)).items())
        },
    }
    names = {
        name_of(source_of(each))
        for each in (references, chunks_of(str(blob)), str(file), file.as_uri(), written_otherwise)
    }

    assert len(names) == 1
    assert not is_private(names.pop())


def test_references_that_were_replaced_at_their_address_have_another_name(blob: Path) -> None:
    file = blob.with_name("refs.json")
    names = []
    for number in range(2):
        other = {**chunks_of(str(blob)), ".zattrs": json.dumps({"version": number})}
        file.write_text(json.dumps({"version": 1, "refs": other}))
        names.append(name_of(source_of(str(file))))

    assert names[0] != names[1]


INLINE: dict[str, Any] = {"text": "abc", "bytes": b"\xff\x00", "base64": "base64:AAEC"}


@pytest.mark.parametrize(
    "changed",
    [
        {"text": "abd"},
        {"bytes": b"\xff\x01"},
        {"base64": "base64:AAED"},
        {"whole": ["https://example.org/other.nc"]},
        {"range": ["https://example.org/x.nc", 1, 5]},
        {"range": ["https://example.org/x.nc", 0, 6]},
        {"more": "x"},
    ],
)
def test_each_part_of_the_references_is_in_the_name(changed: dict[str, Any]) -> None:
    references = {
        **INLINE,
        "whole": ["https://example.org/x.nc"],
        "range": ["https://example.org/x.nc", np.int64(0), np.int64(5)],
    }
    names = [name_of(https(each)) for each in (references, dict(references), references | changed)]

    assert names[0] == names[1] != names[2]
    assert not any(map(is_private, names))


def test_the_target_of_references_without_one_is_in_the_name(blob: Path) -> None:
    references = {"a": [None, 0, 5]}
    one, other = (
        name_of(source_of(references, target=f"{blob}-{each}")) for each in ("one.nc", "other.nc")
    )

    assert one != other


def test_the_path_in_references_is_in_the_name() -> None:
    references = {"group/.zgroup": "{}"}
    names = [name_of(https(references, path)) for path in ("", "/", "group", "group/", "/group")]

    assert names[0] == names[1] != names[2] == names[3]
    # It reads other keys: those that begin with a slash.
    assert names[4] not in names[:4]


def test_references_below_file_systems_that_change_nothing_are_named_alike() -> None:
    references = {"group/.zgroup": "{}"}
    source = https(references)
    stores = [
        FsspecStore(source.fs, path="group"),
        FsspecStore(AsyncFileSystemWrapper(source.fs, asynchronous=True), path="group"),
        FsspecStore(DirFileSystem("group", source.fs, asynchronous=True), path=""),
        FsspecStore.from_url(
            "reference://group",
            {
                "fo": references,
                "remote_protocol": "https",
                "remote_options": {"asynchronous": True},
            },
        ),
    ]

    assert {name_of(store) for store in stores} == {name_of(https(references, "group"))}


# Where the targets are


def test_a_name_shows_where_the_targets_are_and_no_secret() -> None:
    name = name_of(https({"a": ["https://example.org/x.nc?token=SECRET", 0, 5]}))

    assert name.endswith(" of https://example.org")
    assert "SECRET" not in name


@pytest.mark.parametrize(
    ("references", "options"),
    [
        ({"a": ["memory://x.nc", 0, 5]}, {"remote_protocol": "memory"}),
        ({"a": ["x.nc", 0, 5]}, {"remote_protocol": "memory"}),
        # Another server may have the address later.
        (
            {"a": ["http://127.0.0.1:1/x.nc"]},
            {"remote_protocol": "http", "remote_options": {"asynchronous": True}},
        ),
        # A header may choose between two values of one URL.
        (
            {"a": ["https://example.org/x.nc"]},
            {
                "remote_protocol": "https",
                "remote_options": {"asynchronous": True, "headers": {"X-Version": "2"}},
            },
        ),
        # The second scheme has no file system yet: it may get any.
        ({"a": ["https://example.org/x.nc"], "b": ["s3://b/x.nc"]}, {"remote_protocol": "https"}),
        ({"a": [object(), 0, 5]}, {}),
        ({"a": ["/x.nc", object(), 5]}, {}),
    ],
)
def test_references_have_a_private_name_if_a_target_has(
    references: dict[str, Any], options: dict[str, Any]
) -> None:
    if options.get("remote_protocol") == "https":
        options = {"remote_options": {"asynchronous": True}, **options}

    assert is_private(name_of(source_of(references, **options)))


def test_the_file_system_of_each_scheme_is_asked() -> None:
    memory = fsspec.filesystem("memory")
    references = {"a": ["https://example.org/x.nc"], "b": ["other://x.nc"]}
    file_systems = {"https": fsspec.filesystem("https", asynchronous=True), "other": memory}
    named = name_of(source_of({"a": references["a"]}, fs=dict(file_systems)))

    assert is_private(name_of(source_of(references, fs=file_systems)))
    assert not is_private(named)


def test_references_in_parquet_files_have_a_private_name(tmp_path: Path) -> None:
    folder = tmp_path / "refs.parq"
    folder.mkdir()
    (folder / ".zmetadata").write_text(json.dumps({"metadata": {}, "record_size": 10}))
    source = source_of(str(folder))

    assert isinstance(source.fs.references, LazyReferenceMapper)
    assert is_private(name_of(source))


LINKS: dict[str, Callable[[Path], str]] = {
    "a link": lambda folder: str(folder / "latest.nc"),
    "a URL": lambda folder: (folder / "latest.nc").as_uri(),
    "a folder that is a link": lambda folder: str(folder / "latest" / "x.nc"),
}


@pytest.mark.parametrize("url_of", LINKS.values(), ids=LINKS)
async def test_a_local_target_is_named_by_where_its_path_leads_at_the_first_read(
    tmp_path: Path, path: Path, url_of: Callable[[Path], str]
) -> None:
    def turn(target: str) -> None:
        for link, to in ((tmp_path / "latest", target), (tmp_path / "latest.nc", f"{target}/x.nc")):
            link.unlink(missing_ok=True)
            link.symlink_to(tmp_path / to)

    for each in ("one", "two"):
        (tmp_path / each).mkdir()
        (tmp_path / each / "x.nc").write_bytes(each.encode())
    references = {"a": [url_of(tmp_path)]}
    turn("one")
    store = CacheStore(source_of(references), cache_store=SqliteStore(path))
    at_first = store.namespace
    turn("two")
    first = await read(store, "a")
    turn("one")
    other = CacheStore(source_of(references), cache_store=SqliteStore(path))

    assert (first, await read(other, "a")) == (b"two", b"one")
    assert at_first == other.namespace != store.namespace


def test_the_place_of_each_target_is_in_the_name(tmp_path: Path) -> None:
    link = tmp_path / "latest.nc"
    references = {"a": ["/a/x.nc"], "b": [str(link)]}
    names = []
    for target in ("one.nc", "two.nc"):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / target)
        names.append(name_of(source_of(references)))

    assert names[0] != names[1]
    assert all(name.endswith(" of file:///a") for name in names)


def test_a_relative_target_is_named_by_where_it_is(
    blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (blob.parent / "other").mkdir()
    monkeypatch.chdir(blob.parent)
    here, absolute = name_of_file(blob.name), name_of_file(str(blob))
    monkeypatch.chdir(blob.parent / "other")

    assert here != name_of_file(blob.name)
    # The working directory is no part of a name that does not depend on it.
    assert absolute == name_of_file(str(blob))


# Reads and writes


@pytest.mark.parametrize("persist_ranges", [False, True])
async def test_ranges_of_references_are_cached(
    blob: Path, path: Path, *, persist_ranges: bool
) -> None:
    references = {**chunks_of(str(blob)), "whole": [str(blob)], "inline": "base64:AAECAwQ="}
    requests: list[ByteRequest] = [
        *(RangeByteRequest(2, 5), OffsetByteRequest(7), SuffixByteRequest(3))
    ]
    expected = {
        "1": [bytes([12, 13, 14]), bytes([17, 18, 19]), bytes([17, 18, 19])],
        "whole": [b"ADE", b"_" + bytes(range(30)), bytes([27, 28, 29])],
        "inline": [bytes([2, 3, 4]), b"", bytes([2, 3, 4])],
    }
    store = CacheStore(
        source_of(references), cache_store=SqliteStore(path), persist_ranges=persist_ranges
    )
    for key, parts in expected.items():
        assert [await read(store, key, each) for each in requests] == parts
    spoil(blob)
    pieces = await read_ranges(store, "1", [RangeByteRequest(2, 5), SuffixByteRequest(3)])

    assert [await read(store, "1", each) for each in requests] == expected["1"]
    assert pieces == [bytes([12, 13, 14]), bytes([17, 18, 19])]
    store.flush()
    assert bool(cached_ranges(path)) == persist_ranges


async def test_references_are_not_written_to_through_the_cache(blob: Path, path: Path) -> None:
    file_system = source_of(chunks_of(str(blob))).fs
    store = CacheStore(FsspecStore(file_system, path=""), cache_store=SqliteStore(path))
    writes: list[Callable[[], Any]] = [
        lambda: store.set("0", buffer(b"x")),
        lambda: store.set_if_not_exists("new", buffer(b"x")),
        lambda: store.delete("0"),
        lambda: store.delete_dir("group"),
        store.clear,
    ]

    for write in writes:
        with pytest.raises(ValueError, match="named by what they say"):
            await write()
    assert await read(store, "0") == bytes(range(10))


async def test_references_are_written_to_under_a_given_namespace(blob: Path, path: Path) -> None:
    file_system = source_of(chunks_of(str(blob))).fs
    store = CacheStore(
        FsspecStore(file_system, path=""),
        cache_store=SqliteStore(path),
        namespace="references:mine",
    )
    await store.set("0", buffer(b"written"))

    assert await read(store, "0") == file_system.references["0"] == b"written"


def test_references_that_were_changed_before_have_another_name(blob: Path) -> None:
    source = source_of(chunks_of(str(blob)))
    before = name_of(source)
    source.fs.references["0"] = b"other"

    assert name_of(source) != before


def test_references_are_read_by_zarr(blob: Path, path: Path) -> None:
    store = CacheStore(source_of(chunks_of(str(blob))), cache_store=SqliteStore(path))

    assert values(zarr.open_array(store, mode="r", zarr_format=2)) == list(range(30))
