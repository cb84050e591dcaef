"""Icechunk: a snapshot never changes, so its name identifies its values."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import icechunk
import pytest
import zarr

from tests.fakes import CountingStore, cached_keys, restart, values
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.private import is_private
from zarr_cache.sources.names import name_of
from zarr_cache.sources.zarr_stores import FIRST_SNAPSHOT

if TYPE_CHECKING:
    from zarr.abc.store import Store

READ_SNAPSHOT = Path(__file__).with_name("read_snapshot.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the repository lies."""
    return tmp_path / "repository"


@pytest.fixture
def repository(folder: Path) -> icechunk.Repository:
    """A repository with nothing in it."""
    return icechunk.Repository.create(icechunk.local_filesystem_storage(str(folder)))


def committed(repository: icechunk.Repository, number: int) -> str:
    """The snapshot in which every element of the array is `number`."""
    session = repository.writable_session("main")
    # Without compression all have the same length, and differ only in their bytes.
    array = zarr.create_array(
        session.store, name="a", shape=(4,), chunks=(2,), dtype="i4", compressors=None,
        overwrite=True,
    )  # fmt: skip
    array[:] = number
    return session.commit(f"all {number}")


def at(repository: icechunk.Repository, snapshot: str) -> CountingStore:
    """The source at a snapshot."""
    return CountingStore(repository.readonly_session(snapshot_id=snapshot).store)


def read_all(store: Store) -> Any:
    """What the array holds."""
    return values(zarr.open_array(store, path="a", mode="r", zarr_format=3))


def test_neither_of_two_snapshots_is_served_for_the_other(
    repository: icechunk.Repository, path: Path
) -> None:
    snapshots = [committed(repository, number) for number in (1, 2)]
    sources = [at(repository, snapshot) for snapshot in snapshots]
    stores = [CacheStore(source, cache_store=SqliteStore(path)) for source in sources]
    first = [read_all(store) for store in stores]
    for source in sources:
        source.reset()
    second = [read_all(store) for store in stores]

    assert first == second == [[1] * 4, [2] * 4]
    assert [source.requests for source in sources] == [{}, {}]


def test_a_snapshot_opened_again_makes_no_request(
    repository: icechunk.Repository, folder: Path, path: Path
) -> None:
    snapshot = committed(repository, 1)
    committed(repository, 2)
    before = CacheStore(at(repository, snapshot), cache_store=SqliteStore(path))
    read_all(before)
    restart(before)
    reopened = icechunk.Repository.open(icechunk.local_filesystem_storage(str(folder)))
    source = at(reopened, snapshot)

    assert read_all(CacheStore(source, cache_store=SqliteStore(path))) == [1] * 4
    assert source.requests == {}


def test_a_snapshot_opened_in_another_process_makes_no_request(
    repository: icechunk.Repository, folder: Path, path: Path
) -> None:
    snapshots = [committed(repository, number) for number in (1, 2)]
    stores = [CacheStore(at(repository, each), cache_store=SqliteStore(path)) for each in snapshots]
    for store in stores:
        read_all(store)
    restart(*stores)
    read = [
        subprocess.run(
            [sys.executable, READ_SNAPSHOT, folder, snapshot, path, "a"],
            env={"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
            capture_output=True,
            check=True,
        )
        for snapshot in snapshots
    ]

    assert [json.loads(each.stdout) for each in read] == [[[1] * 4, 0], [[2] * 4, 0]]


def test_a_copy_of_a_repository_has_the_name_of_the_original(
    repository: icechunk.Repository, folder: Path, tmp_path: Path
) -> None:
    snapshot = committed(repository, 1)
    shutil.copytree(folder, tmp_path / "copy")
    copy = icechunk.Repository.open(icechunk.local_filesystem_storage(str(tmp_path / "copy")))

    assert name_of(at(copy, snapshot)) == name_of(at(repository, snapshot))


def test_a_branch_and_a_tag_have_the_name_of_their_snapshot(
    repository: icechunk.Repository,
) -> None:
    snapshot = committed(repository, 1)
    repository.create_tag("v1", snapshot)
    sessions = [repository.readonly_session("main"), repository.readonly_session(tag="v1")]

    assert [name_of(session.store) for session in sessions] == [f"icechunk:{snapshot}"] * 2


def test_a_session_that_may_be_written_to_has_a_name_of_its_own(
    repository: icechunk.Repository,
) -> None:
    committed(repository, 1)
    store = repository.writable_session("main").store

    assert is_private(name_of(store))
    assert is_private(name_of(store.with_read_only(read_only=True)))


def test_what_two_sessions_write_is_never_each_others(
    repository: icechunk.Repository, path: Path
) -> None:
    committed(repository, 0)
    stores = [
        CacheStore(repository.writable_session("main").store, cache_store=SqliteStore(path))
        for _ in range(2)
    ]
    for number, store in enumerate(stores, start=1):
        zarr.open_array(store, path="a", mode="r+")[:] = number

    assert [read_all(store) for store in stores] == [[1] * 4, [2] * 4]


def test_the_first_snapshot_which_all_repositories_have_has_a_name_of_its_own(
    repository: icechunk.Repository, tmp_path: Path
) -> None:
    other = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "other")))
    stores = [each.readonly_session("main").store for each in (repository, other)]

    assert [store.session.snapshot_id for store in stores] == [FIRST_SNAPSHOT] * 2
    assert len({name_of(store) for store in stores}) == 2


def with_chunks_elsewhere(
    folder: Path, store: Any, prefix: str = "s3://elsewhere/"
) -> icechunk.Repository:
    """The repository, configured to find virtual chunks."""
    config = icechunk.RepositoryConfig.default()
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(prefix, store))
    return icechunk.Repository.open(icechunk.local_filesystem_storage(str(folder)), config=config)


def test_two_places_of_virtual_chunks_are_two_sources(
    repository: icechunk.Repository, folder: Path
) -> None:
    snapshot = committed(repository, 1)
    stores = [
        icechunk.s3_store(
            region="us-east-1", endpoint_url=f"http://user:hush@{host}:9000/?sig=hush"
        )
        for host in ("a", "b")
    ]
    names = [name_of(at(with_chunks_elsewhere(folder, store), snapshot)) for store in stores]

    assert names == [
        f"icechunk:{snapshot} with =s3://elsewhere at http://a:9000",
        f"icechunk:{snapshot} with =s3://elsewhere at http://b:9000",
    ]


def test_a_place_of_virtual_chunks_that_may_hold_a_secret_makes_the_name_private(
    repository: icechunk.Repository, folder: Path
) -> None:
    snapshot = committed(repository, 1)
    store = icechunk.http_store({"x": "hush"})
    configured = with_chunks_elsewhere(folder, store, prefix="https://elsewhere.org/data/")

    assert is_private(name_of(at(configured, snapshot)))


def test_nothing_of_the_storage_is_in_the_file(
    repository: icechunk.Repository, folder: Path, path: Path
) -> None:
    store = CacheStore(at(repository, committed(repository, 1)), cache_store=SqliteStore(path))
    read_all(store)

    assert cached_keys(path) == {"a/zarr.json", "a/c/0", "a/c/1"}
    assert not [
        file
        for file in path.parent.glob("cache.sqlite*")
        if str(folder).encode() in file.read_bytes()
    ]
