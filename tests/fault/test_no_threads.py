"""Where no thread can be started, as at a limit of processes, reads and writes go on."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import assert_accounts, buffer, cached_keys, close_everything, read
from tests.fault.real import held
from tests.fault.sources import KEYS, VALUES, drain, new_cache, new_source, read_all, told
from zarr_cache.disk.data_read import MAX_ON_LOOP
from zarr_cache.file.file_database import FileDatabase
from zarr_cache.index.lookup import nothing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from warnings import WarningMessage


@contextlib.contextmanager
def no_threads() -> Iterator[None]:
    """Let the system start no thread: there is no room for the stack of any."""
    before = threading.stack_size(2**46)
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=int).start()
        yield
    finally:
        threading.stack_size(before)


LARGE = bytes(range(256)) * (MAX_ON_LOOP // 256 + 1)


def test_what_is_read_is_kept(path: Path, warned: list[WarningMessage]) -> None:
    source = new_source()
    store = new_cache(source, path)
    with no_threads():
        first = asyncio.run(read_all(read, store))
        source.reset()
        second = asyncio.run(read_all(read, store))

    assert first == second == VALUES
    assert source.requests.total() == 0
    assert told(warned) == []
    close_everything()
    assert_accounts(path)


def test_a_large_value_is_read_in_a_loop_that_had_none_before(
    path: Path, warned: list[WarningMessage]
) -> None:
    source = MemoryStore({"large": buffer(LARGE)})
    store = new_cache(source, path)
    asyncio.run(read(store, "large"))
    drain(store)
    with no_threads():
        found = [asyncio.run(read(store, "large")) for _ in range(2)]

    assert found == [LARGE] * 2
    assert store.cache_stats()["hits"] == 2
    assert told(warned) == []


def test_what_is_written_is_written(path: Path, warned: list[WarningMessage]) -> None:
    source = new_source()
    store = new_cache(source, path)
    first, second, *_ = KEYS
    asyncio.run(read_all(read, store))
    drain(store)

    async def write() -> None:
        await store.set(first, buffer(b"new"))
        await store.delete(second)

    with no_threads():
        asyncio.run(write())
        found = [asyncio.run(read(store, key)) for key in (first, second)]

    assert found == [b"new", None]
    assert told(warned) == []
    close_everything()
    assert_accounts(path)


@pytest.mark.usefixtures("short_waits", "warned")
def test_a_write_that_cannot_be_recorded_is_followed_by_nothing_from_before_it(path: Path) -> None:
    source = new_source()
    store = new_cache(source, path)
    key, *_ = KEYS
    asyncio.run(read_all(read, store))
    drain(store)
    with no_threads():
        with held(path, "BEGIN IMMEDIATE"):
            asyncio.run(store.set(key, buffer(b"new")))
            meanwhile = asyncio.run(read(store, key))
        after = asyncio.run(read(store, key))

    assert [meanwhile, after] == [b"new"] * 2


def test_a_file_is_closed_inside_a_loop_beside_a_loop_that_has_stopped(path: Path) -> None:
    database = FileDatabase.of(path)
    stopped = asyncio.new_event_loop()
    stopped.run_until_complete(database.run_async(nothing))

    async def close() -> None:
        database.close()

    with no_threads():
        asyncio.run(close())

    stopped.close()
    # Nobody has the file open: the log has gone into it.
    assert not path.with_name(f"{path.name}-wal").exists()
    assert cached_keys(path) == set()
