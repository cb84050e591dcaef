"""A local file that another process is writing while it is read is returned and not cached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import obstore
import obstore.store
import pytest
import zarr.storage._local as zarr_local
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import RangeByteRequest
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, ObjectStore

from tests.fakes import cached_keys, cached_ranges, read, read_ranges, restart
from tests.freshness.origins import SIZE, settle, version
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import Store

KEY = "c/0"
HALF = version(1)[: SIZE // 2]
PART = RangeByteRequest(0, 100)


class Client(NamedTuple):
    """A store of local files, and the function by which it reads."""

    open: Callable[[Path], Store]
    place: Any
    function: str


def in_folder(root: Path) -> FsspecStore:
    folder = DirFileSystem(path=str(root), fs=LocalFileSystem())
    return FsspecStore(AsyncFileSystemWrapper(folder, asynchronous=True), path="", read_only=True)


CLIENTS = {
    "LocalStore": Client(lambda root: LocalStore(root, read_only=True), zarr_local, "_get"),
    "fsspec": Client(
        lambda root: FsspecStore.from_url(root.as_uri(), read_only=True),
        LocalFileSystem,
        "cat_file",
    ),
    "a folder of fsspec": Client(in_folder, LocalFileSystem, "cat_file"),
    "obstore": Client(
        lambda root: ObjectStore(obstore.store.LocalStore(root), read_only=True),
        obstore,
        "get_async",
    ),
}

READS: dict[str, Any] = {
    "value": lambda store: sync(read(store, KEY)),
    "range": lambda store: sync(read(store, KEY, PART)),
    "ranges": lambda store: sync(read_ranges(store, KEY, [PART]))[0],
}


@pytest.mark.parametrize("ask", READS.values(), ids=READS)
@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)
def test_the_whole_file_is_read_when_it_is_written(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, client: Client, ask: Any
) -> None:
    file = tmp_path / "source" / KEY
    file.parent.mkdir(parents=True)
    file.write_bytes(HALF)
    settle(file, 0)
    original = getattr(client.place, client.function)
    rest = [HALF]

    def write_meanwhile() -> None:
        if rest:
            with file.open("ab") as opened:
                opened.write(rest.pop())
            settle(file, 1)

    def reading(*arguments: Any, **settings: Any) -> Any:
        found = original(*arguments, **settings)
        write_meanwhile()
        return found

    async def reading_async(*arguments: Any, **settings: Any) -> Any:
        found = await original(*arguments, **settings)
        write_meanwhile()
        return found

    is_async = client.function == "get_async"
    # Before it is opened: fsspec takes the functions of a file system when it wraps it.
    monkeypatch.setattr(client.place, client.function, reading_async if is_async else reading)
    source = client.open(tmp_path / "source")
    cache = CacheStore(source, cache_store=SqliteStore(path), persist_ranges=True)
    ask(cache)
    cache.flush()

    assert not rest
    assert cached_keys(path) == set()
    assert cached_ranges(path) == []
    assert ask(cache) == (version(1) if ask is READS["value"] else HALF[:100])
    restart(cache)
