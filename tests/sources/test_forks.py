"""A fork copies what is in memory: from there on, parent and child are two sources."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest
from obstore.store import LocalStore
from zarr.storage import MemoryStore, ObjectStore, ZipStore

from tests.fakes import buffer, read
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.private import is_private

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]


def read_sync(store: CacheStore, key: str) -> bytes | None:
    found = store.get_sync(key)
    return None if found is None else found.to_bytes()


def in_child(action: Callable[[], None]) -> int:
    """Do something in a child; return its exit code."""
    child = os.fork()
    if not child:
        code = 1
        signal.alarm(60)  # a child that hangs is a failure
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def test_what_a_child_writes_to_its_memory_is_not_the_parents(path: Path) -> None:
    store = CacheStore(MemoryStore(), cache_store=SqliteStore(path))
    store.set_sync("key", buffer(b"before"))

    def write() -> None:
        store.set_sync("key", buffer(b"of the child"))
        assert read_sync(store, "key") == b"of the child"
        store.flush()

    assert in_child(write) == 0
    assert read_sync(store, "key") == b"before"


def test_what_a_parent_wrote_to_its_memory_since_is_not_the_childs(path: Path) -> None:
    store = CacheStore(MemoryStore(), cache_store=SqliteStore(path))
    store.set_sync("key", buffer(b"before"))
    reading, writing = os.pipe()

    def read_then() -> None:
        os.read(reading, 1)
        assert read_sync(store, "key") == b"before"

    child = os.fork()
    if not child:
        code = 1
        try:
            read_then()
            code = 0
        finally:
            os._exit(code)
    store.set_sync("key", buffer(b"after"))
    store.flush()
    os.write(writing, b".")
    _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
    os.close(reading)
    os.close(writing)


def test_an_archive_that_got_a_private_name_when_it_was_first_read_has_another_in_a_child(
    tmp_path: Path, path: Path
) -> None:
    file = tmp_path / "data.zip"
    for each in (file, tmp_path / "other"):
        with zipfile.ZipFile(each, "w") as archive:
            archive.writestr("key", b"value")
    source = ZipStore(file)
    source._sync_open()
    store = CacheStore(source, cache_store=SqliteStore(path))
    (tmp_path / "other").replace(file)
    asyncio.run(read(store, "key"))
    name = store.namespace

    def compare() -> None:
        assert is_private(store.namespace)
        assert store.namespace != name

    assert is_private(name)
    assert in_child(compare) == 0


@pytest.fixture
def objects(tmp_path: Path, path: Path) -> CacheStore:
    """A cache of two keys that obstore reads."""
    folder = tmp_path / "objects"
    folder.mkdir()
    (folder / "first").write_bytes(b"of the first")
    (folder / "second").write_bytes(b"of the second")
    source = ObjectStore(LocalStore(folder), read_only=True)
    return CacheStore(source, cache_store=SqliteStore(path), namespace="objects")


def test_a_child_is_told_that_obstore_was_used_before_the_fork_and_reads_what_is_cached(
    objects: CacheStore,
) -> None:
    assert read_sync(objects, "first") == b"of the first"

    def read_both() -> None:
        assert read_sync(objects, "first") == b"of the first"
        with pytest.raises(RuntimeError, match=r"'second' is not cached.*'forkserver' or 'spawn'"):
            read_sync(objects, "second")

    assert in_child(read_both) == 0
    assert read_sync(objects, "second") == b"of the second"


# Forks before its first read, as a loader does that opens the array and only then starts workers.
FORKED_BEFORE = """\
import os, sys
from obstore.store import LocalStore
from zarr.storage import ObjectStore
from zarr_cache import CacheStore, SqliteStore

source = ObjectStore(LocalStore(sys.argv[1]), read_only=True)
store = CacheStore(source, cache_store=SqliteStore(sys.argv[2]), namespace="objects")
child = os.fork()
sys.stdout.write(store.get_sync("second").to_bytes().decode() + ". ")
sys.stdout.flush()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.usefixtures("objects")
def test_a_child_reads_with_obstore_if_it_was_not_used_before_the_fork(
    tmp_path: Path, path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORKED_BEFORE, tmp_path / "objects", path],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert (ended.returncode, ended.stdout) == (0, "of the second. " * 2), ended.stderr
