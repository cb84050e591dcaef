"""SqliteStore beyond what zarr's own suite asks: atomicity, modes, pickles, damage."""

from __future__ import annotations

import asyncio
import pickle
import pickletools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr
from zarr.abc.store import RangeByteRequest
from zarr.storage import MemoryStore

from tests.fakes import PROTOTYPE, buffer, open_file, outputs_at_once, read, restart
from zarr_cache import CacheStore, FileDamagedError, FileFullError, SqliteStore
from zarr_cache.file.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

MIB = 2**20


def files_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


CLAIM = """
import asyncio, os, sys
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr_cache import SqliteStore

async def claim():
    store = SqliteStore(sys.argv[1])
    for number in range(50):
        await store.set_if_not_exists(f"k{number}", cpu.Buffer.from_bytes(sys.argv[2].encode()))
    keys = [(f"k{number}", None) for number in range(50)]
    found = await store.get_partial_values(default_buffer_prototype(), keys)
    print(",".join(buffer.to_bytes().decode() for buffer in found))

sys.stdin.readline()
asyncio.run(claim())
"""


def test_of_four_processes_one_sets_a_key_that_does_not_exist(path: Path) -> None:
    arguments = [(str(path), str(number)) for number in range(4)]
    seen = {out for out, _ in outputs_at_once(CLAIM, *arguments)}

    assert len(seen) == 1
    assert len(seen.pop().split(",")) == 50


async def test_set_if_not_exists_sets_and_then_keeps(path: Path) -> None:
    store = SqliteStore(path)
    await store.set_if_not_exists("k", buffer(b"first"))
    await store.set_if_not_exists("k", buffer(b"second"))

    assert await read(store, "k") == b"first"


async def test_many_values_are_set_in_one_transaction(path: Path) -> None:
    store = SqliteStore(path)
    await store.set("k", buffer(b"before"))
    with open_file(path) as db:
        (before,) = db.execute("PRAGMA data_version").fetchone()
        await store._set_many((f"k{number}", buffer(b"value")) for number in range(100))
        (after,) = db.execute("PRAGMA data_version").fetchone()

    assert after == before + 1


async def test_none_of_many_values_is_set_when_one_is_no_buffer(path: Path) -> None:
    store = SqliteStore(path)
    await store.set("a", buffer(b"before"))

    with pytest.raises(TypeError, match="must be a Buffer"):
        await store._set_many([("a", buffer(b"after")), ("b", b"bytes")])  # type: ignore[list-item]
    assert [key async for key in store.list()] == ["a"]
    assert await read(store, "a") == b"before"


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection made from here on is refused a file of more than 4 MiB."""
    initialize = Connection.__init__

    def initialize_with_limit(connection: Connection, *args: Any, **kwargs: Any) -> None:
        initialize(connection, *args, **kwargs)
        connection.execute(f"PRAGMA max_page_count = {4 * MIB // 16384}").fetchone()

    monkeypatch.setattr(Connection, "__init__", initialize_with_limit)


@pytest.mark.usefixtures("little_room")
async def test_none_of_many_values_is_set_when_the_disk_is_full(path: Path) -> None:
    store = SqliteStore(path)
    await store.set("a", buffer(b"before"))

    with pytest.raises(FileFullError, match=str(path)):
        await store._set_many((key, buffer(bytes(MIB))) for key in "abcdefgh")
    assert [key async for key in store.list()] == ["a"]
    assert await read(store, "a") == b"before"


@pytest.mark.usefixtures("little_room")
async def test_a_store_works_after_the_disk_was_full(path: Path) -> None:
    store = SqliteStore(path)
    with pytest.raises(FileFullError):
        await store.set("large", buffer(bytes(8 * MIB)))
    with pytest.raises(FileFullError):
        store.set_sync("large", buffer(bytes(8 * MIB)))
    store.set_sync("small", buffer(b"value"))

    assert await read(store, "small") == b"value"
    assert not await store.exists("large")


@pytest.mark.parametrize("value", [b"bytes", "text", None, 7, memoryview(b"bytes")])
async def test_what_is_no_buffer_is_refused(path: Path, value: Any) -> None:
    store = SqliteStore(path)

    with pytest.raises(TypeError, match="must be a Buffer"):
        await store.set("k", value)
    with pytest.raises(TypeError, match="must be a Buffer"):
        store.set_sync("k", value)
    assert not await store.exists("k")


def test_stores_on_the_same_file_are_equal(path: Path) -> None:
    assert SqliteStore(path) == SqliteStore(str(path))
    assert SqliteStore(path) == SqliteStore(path.parent / ".." / path.parent.name / path.name)
    assert not path.exists()


def test_stores_on_different_files_are_not_equal(path: Path) -> None:
    assert SqliteStore(path) != SqliteStore(path.with_name("other.sqlite"))
    assert SqliteStore(path) != MemoryStore()
    assert SqliteStore(path) != path


@pytest.mark.parametrize("read_only", [False, True])
def test_an_unpickled_store_reads_the_same_file_in_the_same_mode(
    path: Path, read_only: bool
) -> None:
    SqliteStore(path).set_sync("k", buffer(bytes(MIB)))
    store = SqliteStore(path, read_only=read_only)
    pickled = pickle.dumps(store)
    again = pickle.loads(pickled)  # noqa: S301 - our own

    assert len(pickled) < 1000
    assert again == store
    assert again.read_only == read_only
    assert again.get_sync("k") == buffer(bytes(MIB))


def test_pickles_name_the_classes_where_users_import_them(path: Path) -> None:
    store = CacheStore(MemoryStore(), cache_store=SqliteStore(path), namespace="source")
    texts = [text for _, text, _ in pickletools.genops(pickle.dumps(store))]
    named = {text for text in texts if isinstance(text, str) and text.startswith("zarr_cache")}

    assert named == {"zarr_cache"}


def test_a_relative_path_is_pickled_as_an_absolute_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(SqliteStore("cache.sqlite"))
    monkeypatch.chdir("/")

    assert pickle.loads(pickled).path == tmp_path / "cache.sqlite"  # noqa: S301 - our own


async def test_a_read_only_view_sees_what_the_store_writes_and_writes_nothing(path: Path) -> None:
    store = SqliteStore(path)
    view = store.with_read_only(read_only=True)
    await store.set("k", buffer(b"value"))

    assert await read(view, "k") == b"value"
    with pytest.raises(ValueError, match="read-only"):
        await view.set("k", buffer(b"other"))


WRITES: list[Callable[[SqliteStore], Awaitable[None]]] = [
    lambda store: asyncio.to_thread(store.set_sync, "k", buffer(b"other")),
    lambda store: asyncio.to_thread(store.delete_sync, "k"),
    lambda store: store.set("k", buffer(b"other")),
    lambda store: store.set_if_not_exists("k", buffer(b"other")),
    lambda store: store._set_many([("k", buffer(b"other"))]),
    lambda store: store.delete("k"),
    lambda store: store.delete_dir(""),
    lambda store: store.clear(),
]


@pytest.mark.parametrize("number", range(len(WRITES)))
async def test_a_read_only_store_refuses_every_write(path: Path, number: int) -> None:
    await SqliteStore(path).set("k", buffer(b"value"))
    store = SqliteStore(path, read_only=True)

    with pytest.raises(ValueError, match="read-only"):
        await WRITES[number](store)
    assert await read(store, "k") == b"value"


def test_a_read_only_store_has_a_writable_view(path: Path) -> None:
    SqliteStore(path).set_sync("k", buffer(b"value"))
    view = SqliteStore(path, read_only=True).with_read_only(read_only=False)
    view.set_sync("k", buffer(b"other"))

    assert not view.read_only


async def test_a_read_only_store_does_not_make_its_file(path: Path, tmp_path: Path) -> None:
    store = SqliteStore(path, read_only=True)

    with pytest.raises(FileNotFoundError, match=f"{path}: no such file"):
        await read(store, "k")
    with pytest.raises(FileNotFoundError, match="a read-only store does not create one"):
        store.get_sync("k")
    with pytest.raises(FileNotFoundError):
        await SqliteStore.open(path, read_only=True)
    assert files_in(tmp_path) == []


def test_a_store_is_a_context_manager_that_closes_its_file(path: Path, tmp_path: Path) -> None:
    with SqliteStore(path) as store:
        store.set_sync("k", buffer(b"value"))

    assert [file.name for file in tmp_path.iterdir()] == [path.name]


async def test_a_store_can_be_opened_and_used(path: Path) -> None:
    store = await SqliteStore.open(path)
    await store.set("k", buffer(b"value"))

    assert store._is_open
    assert await read(store, "k") == b"value"


async def test_use_after_close_opens_the_file_again(path: Path) -> None:
    store = SqliteStore(path)
    await store.set("k", buffer(b"value"))
    store.close()
    found = await read(store, "k")
    store.close()
    again = store.get_sync("k")

    assert found == b"value"
    assert again is not None


def test_a_store_may_be_closed_before_its_first_use_and_twice(path: Path) -> None:
    store = SqliteStore(path)
    store.close()
    store.close()

    assert not path.exists()


async def test_closing_one_store_does_not_take_the_file_from_another(path: Path) -> None:
    one, other = SqliteStore(path), SqliteStore(path)
    await one.set("k", buffer(b"value"))
    await read(other, "k")
    one.close()

    assert await read(other, "k") == b"value"


def test_a_hierarchy_lives_in_one_file(path: Path, tmp_path: Path) -> None:
    root = zarr.open_group(SqliteStore(path), mode="w")
    array = root.create_array("a", shape=(4, 4), chunks=(2, 2), dtype="i4")
    array[:] = 7
    restart(SqliteStore(path))
    again = zarr.open_array(SqliteStore(path), path="a", mode="r")

    np.testing.assert_array_equal(again[:], np.full((4, 4), 7))
    assert {file.stem for file in tmp_path.iterdir()} == {"cache"}


# Damage


@pytest.fixture(params=[10, 5 * MIB], ids=["small", "large"])
def damaged(path: Path, request: pytest.FixtureRequest) -> SqliteStore:
    """A store whose key ``k`` has one byte that is not the one that was stored: its last."""
    store = SqliteStore(path)
    store.set_sync("k", buffer(bytes(request.param)))
    change(path, "UPDATE value SET data = CAST(substr(data, 1, length(data) - 1) || x'01' AS BLOB)")
    return store


def change(path: Path, statement: str) -> None:
    """Do what SQLite itself would never do."""
    with open_file(path) as db, db:
        db.execute(statement)


@pytest.mark.leaves_damage
async def test_a_flipped_byte_is_not_served(damaged: SqliteStore) -> None:
    with pytest.raises(FileDamagedError, match="'k'"):
        await read(damaged, "k")
    with pytest.raises(FileDamagedError, match="'k'"):
        damaged.get_sync("k")
    with pytest.raises(FileDamagedError):
        await damaged.get_partial_values(PROTOTYPE, [("k", None)])
    with pytest.raises(FileDamagedError):
        damaged.get_ranges_sync("k", [None], prototype=PROTOTYPE)


@pytest.mark.leaves_damage
async def test_a_flipped_byte_fails_every_range_of_its_block(damaged: SqliteStore) -> None:
    size = await damaged.getsize("k")

    with pytest.raises(FileDamagedError):
        await read(damaged, "k", RangeByteRequest(size - 5, size - 4))


@pytest.mark.leaves_damage
async def test_a_block_without_the_flipped_byte_is_served(path: Path) -> None:
    store = SqliteStore(path)
    await store.set("k", buffer(bytes(MIB)))
    change(path, "UPDATE value SET data = CAST(x'01' || substr(data, 2) AS BLOB)")

    assert await read(store, "k", RangeByteRequest(MIB - 4, MIB)) == bytes(4)


async def test_a_damaged_value_can_be_set_again(damaged: SqliteStore) -> None:
    await damaged.set("k", buffer(b"new"))

    assert await read(damaged, "k") == b"new"


@pytest.mark.parametrize("size", [10, 5 * MIB], ids=["small", "large"])
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM value",
        "UPDATE value SET data = x'' WHERE part = 0",
        "UPDATE value SET checksums = x'00000000'",
        "UPDATE value SET part = part + 2",
        "UPDATE entry SET size = size - 1",
        "UPDATE entry SET size = size + 1",
        "UPDATE entry SET stored_at = stored_at + 1",
        "UPDATE entry SET checksum = checksum + 1",
        "UPDATE entry SET kind = 'value'",
    ],
)
async def test_a_value_that_contradicts_its_entry_is_not_served(
    tmp_path: Path, statement: str, size: int
) -> None:
    path = tmp_path / "damaged.db"
    store = SqliteStore(path)
    await store.set("k", buffer(bytes(size)))
    change(path, statement)

    with pytest.raises(FileDamagedError):
        await read(store, "k")


@pytest.mark.leaves_damage
async def test_a_value_under_another_key_is_not_served(path: Path) -> None:
    store = SqliteStore(path)
    await store.set("k", buffer(b"value"))
    change(path, "UPDATE entry SET key = 'other'")

    with pytest.raises(FileDamagedError, match="'other'"):
        await read(store, "other")


@pytest.mark.leaves_damage
async def test_bytes_of_another_entry_are_not_served(path: Path) -> None:
    store = SqliteStore(path)
    await store.set("a", buffer(b"AAAA"))
    await store.set("b", buffer(b"BBBB"))
    change(path, "UPDATE value SET data = (SELECT data FROM value AS other WHERE other.entry = 2)")

    with pytest.raises(FileDamagedError):
        await read(store, "a")
    assert await read(store, "b") == b"BBBB"


async def test_sizes_and_existence_are_known_without_reading_values(tmp_path: Path) -> None:
    path = tmp_path / "emptied.db"
    store = SqliteStore(path)
    await store.set("a/b", buffer(bytes(10)))
    await store.set("a/c", buffer(bytes(5 * MIB)))
    change(path, "DELETE FROM value")

    assert await store.exists("a/b")
    assert await store.getsize("a/c") == 5 * MIB
    assert await store.getsize_prefix("a") == 10 + 5 * MIB
    assert not await store.is_empty("a")
    assert sorted([key async for key in store.list_dir("a")]) == ["b", "c"]


async def test_the_size_of_an_absent_key_is_an_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="k"):
        await SqliteStore(path).getsize("k")


async def test_ranges_of_an_absent_key_are_zarrs_error(path: Path) -> None:
    store = SqliteStore(path)

    with pytest.raises(BaseExceptionGroup) as raised:
        _ = [batch async for batch in store.get_ranges("k", [None], prototype=PROTOTYPE)]
    with pytest.raises(BaseExceptionGroup) as raised_sync:
        store.get_ranges_sync("k", [None], prototype=PROTOTYPE)
    assert raised.group_contains(FileNotFoundError)
    assert raised_sync.group_contains(FileNotFoundError)


@pytest.mark.parametrize("byte_range", [RangeByteRequest(-4, 2), "0-4"])
async def test_ranges_that_are_none_are_refused_before_anything_is_read(
    path: Path, byte_range: Any
) -> None:
    store = SqliteStore(path)
    await store.set("k", buffer(b"value"))

    with pytest.raises((TypeError, ValueError), match="byte_range"):
        _ = [
            batch async for batch in store.get_ranges("k", [None, byte_range], prototype=PROTOTYPE)
        ]
    with pytest.raises((TypeError, ValueError), match="byte_range"):
        store.get_ranges_sync("k", [None, byte_range], prototype=PROTOTYPE)


async def test_what_is_stored_stays_when_a_cache_over_the_same_file_evicts(path: Path) -> None:
    kept = SqliteStore(path)
    await kept.set("k", buffer(bytes(1000)))
    source = MemoryStore({key: buffer(bytes(100)) for key in "abcdef"})
    store = CacheStore(source, cache_store=SqliteStore(path), max_size=200, namespace="source")
    for key in "abcdef":
        await read(store, key)

    assert await read(kept, "k") == bytes(1000)
    assert store.cache_info()["file_size"] == 200
