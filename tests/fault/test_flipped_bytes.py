"""A byte of the file is another: each read is right all the same, or comes from the source.

The file is small, and has pages of 1 KiB, so that bytes of every kind are among those that are
tried: all that say what is in a page, and every so many of the others. ``ZARR_CACHE_STRESS=n``
tries n times as many; at 200 it is each byte of the file.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import LocalStore, MemoryStore

from tests.fakes import STRESS, CountingStore, buffer, open_file, restart, versioned
from tests.fault.children import run_child
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.file import connection

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
    from pathlib import Path

PAGE_SIZE = 1024

STRIDE = max(1, 199 // STRESS)
"""A prime, so that it is not the same column of every row."""

# As much of the beginning of a page, and of the file, says what is in it.
HEADER, FILE_HEADER = 8, 108

QUARTERS = 4
"""Of the test, so that none takes so long that it is taken for a hang."""

VALUES = {
    "zarr.json": b'{"zarr_format": 3}',
    "c/0": bytes(range(256)) * 6,
    "c/1": bytes(reversed(range(256))) * 2,
    "empty": b"",
}


VERSIONS = {"zarr.json": "a version", "c/0": "another"}
"""Of two values. Reads of metadata ask whether it still is the one that is cached."""


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with all the values, an absence and a fence, as it is when every process has ended.

    The source has confirmed the version of a value.
    """
    monkeypatch.setattr(connection, "PAGE_SIZE", PAGE_SIZE)
    path = tmp_path / "whole.sqlite"
    store = new_cache(path)
    for key in VALUES:
        store.get_sync(key)
    store.get_sync("absent")
    store.flush()
    new_cache(path, max_age_seconds=1e-9).get_sync("c/0")
    restart(store)
    return path


def new_cache(path: Path, *, max_age_seconds: float = 10**6) -> CacheStore:
    source = CountingStore(MemoryStore({key: buffer(value) for key, value in VALUES.items()}))
    store = CacheStore(
        source,
        cache_store=SqliteStore(path),
        namespace="source",
        max_size=100_000,
        max_age_seconds=max_age_seconds,
        max_age_absent_seconds=1000,
    )
    return versioned(store, VERSIONS)


def positions(path: Path) -> list[int]:
    size = path.stat().st_size
    pages = range(0, size, PAGE_SIZE)
    headers = {page + place for page in pages for place in range(HEADER)}
    return sorted({*range(FILE_HEADER), *headers, *range(0, size, STRIDE)})


def read_all(store: CacheStore) -> dict[str, bytes | None]:
    """Every value, the range of one, and a key that the source does not have."""
    responses = {key: store.get_sync(key) for key in [*VALUES, "absent"]}
    responses["range"] = store.get_sync("c/0", byte_range=RangeByteRequest(3, 1000))
    return {key: None if found is None else found.to_bytes() for key, found in responses.items()}


RIGHT = {**VALUES, "absent": None, "range": VALUES["c/0"][3:1000]}


def clear(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def read_flipped(whole: Path, folder: Path, position: int, flip: int) -> dict[str, bytes | None]:
    """What is read of a copy in which one byte is another, in two processes after each other."""
    clear(folder)
    path = folder / "flipped.sqlite"
    data = bytearray(whole.read_bytes())
    data[position] ^= flip
    path.write_bytes(data)
    responses: dict[str, bytes | None] = {}
    for _ in range(2):
        store = new_cache(path)
        responses = read_all(store)
        if responses != RIGHT:
            break
        restart(store)
    return responses


@pytest.mark.filterwarnings("ignore::zarr_cache.CacheWarning")
@pytest.mark.leaves_damage
@pytest.mark.parametrize("turn", range(QUARTERS))
def test_no_byte_of_the_file_can_make_a_read_wrong_or_fail(
    whole: Path, tmp_path: Path, turn: int
) -> None:
    wrong = {}
    for number, position in list(enumerate(positions(whole)))[turn::QUARTERS]:
        # In turns all bits of the byte, and one of them.
        flip = 0xFF if number // QUARTERS % 2 else 1 << number % 8
        try:
            responses = read_flipped(whole, tmp_path / "copies", position, flip)
        except Exception as error:  # noqa: BLE001 - all of them are told at the end
            wrong[position] = repr(error)
        else:
            if responses != RIGHT:
                wrong[position] = str(responses)

    assert wrong == {}


SWAP_VALUES = """
WITH pair (here, there) AS (
    SELECT a.id, b.id
    FROM entry AS a
    JOIN entry AS b ON (a.key, b.key) IN (('c/0', 'c/2'), ('c/2', 'c/0'))
)
UPDATE value
SET data = swapped.data, checksums = swapped.checksums
FROM pair
JOIN (SELECT entry, data, checksums FROM value) AS swapped ON swapped.entry = pair.there
WHERE value.entry = pair.here
"""

SWAP_KEYS = """
UPDATE entry
SET key = CASE key WHEN 'c/0' THEN 'swapped' WHEN 'c/2' THEN 'c/0' ELSE 'c/2' END
WHERE key = :key
"""


def swap_values(db: sqlite3.Connection) -> None:
    db.execute(SWAP_VALUES)


def swap_keys(db: sqlite3.Connection) -> None:
    for key in ("c/0", "c/2", "swapped"):
        db.execute(SWAP_KEYS, {"key": key})


def swap_namespaces(db: sqlite3.Connection) -> None:
    for name in ("swapped", "source", "other"):
        key = {"swapped": "source", "source": "other", "other": "swapped"}
        db.execute("UPDATE namespace SET name = ? WHERE name = ?", (name, key[name]))


@pytest.mark.parametrize("swap", [swap_values, swap_keys, swap_namespaces])
def test_what_was_swapped_in_the_shell_is_noticed(
    path: Path, swap: Callable[[sqlite3.Connection], None]
) -> None:
    source = CountingStore(
        MemoryStore({"c/0": buffer(b"0" * 70_000), "c/2": buffer(b"2" * 70_000)})
    )
    other = MemoryStore({"c/0": buffer(b"a" * 70_000), "c/2": buffer(b"b" * 70_000)})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    beside = CacheStore(other, cache_store=SqliteStore(path), namespace="other")
    for key in ("c/0", "c/2"):
        store.get_sync(key)
        beside.get_sync(key)
    store.flush()
    with open_file(path) as db:
        swap(db)
        db.commit()
    source.reset()
    found = {key: store.get_sync(key) for key in ("c/0", "c/2")}
    store.flush()
    requests = source.requests.total()
    again = {key: store.get_sync(key) for key in ("c/0", "c/2")}
    for key in ("c/0", "c/2"):
        beside.get_sync(key)

    for values in (found, again):
        assert {key: value and bytes(value.to_bytes()[:1]) for key, value in values.items()} == {
            "c/0": b"0",
            "c/2": b"2",
        }
    assert store.cache_stats()["damaged"] == 2
    assert (requests, source.requests.total()) == (2, 2)


def where_keys_are_looked_for(path: Path) -> list[int]:
    """Bytes of the keys that begin with ``c/`` in the pages of indexes, and one behind each."""
    data = path.read_bytes()
    # The first byte of a page tells what it is: https://www.sqlite.org/fileformat2.html#b_tree_pages
    return [
        position
        for page in range(0, len(data), PAGE_SIZE)
        if data[page] in (2, 10)
        for key in re.finditer(rb"c/\d+", data[page : page + PAGE_SIZE])
        for position in range(page + key.start(), page + key.end() + 1)
    ]


FLIPS = (0x01, 0x02, 0x04, 0x80, 0xFF)[:STRESS]


def flipped_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, int]]:
    """Files with ``c/0`` to ``c/11`` in them, each with another byte of an index that is another.

    One of a key, or of the number of its row, which is behind it.
    """
    monkeypatch.setattr(connection, "PAGE_SIZE", PAGE_SIZE)
    whole, flipped = tmp_path / "whole.sqlite", tmp_path / "copies" / "flipped.sqlite"
    store = source_of_numbers(whole)
    for key in NUMBERS:
        store.get_sync(key)
    restart(store)
    for position in where_keys_are_looked_for(whole):
        for flip in FLIPS:
            clear(flipped.parent)
            data = bytearray(whole.read_bytes())
            data[position] ^= flip
            flipped.write_bytes(data)
            yield flipped, position


NUMBERS = [f"c/{number}" for number in range(12)]


def source_of_numbers(path: Path) -> CacheStore:
    source = MemoryStore({key: buffer(b"old") for key in NUMBERS})
    return CacheStore(source, cache_store=SqliteStore(path), namespace="source")


def write_half(store: CacheStore) -> dict[str, bytes]:
    """What the source holds when every other key has been written."""
    for key in NUMBERS[::2]:
        store.set_sync(key, buffer(b"new"))
    return {key: b"old" if number % 2 else b"new" for number, key in enumerate(NUMBERS)}


def numbers(store: CacheStore) -> dict[str, bytes]:
    found = {key: store.get_sync(key) for key in NUMBERS}
    return {key: b"" if value is None else value.to_bytes() for key, value in found.items()}


@pytest.mark.filterwarnings("ignore::zarr_cache.CacheWarning")
@pytest.mark.leaves_damage
def test_verify_finds_each_index_that_may_lead_a_write_astray_and_a_repair_brings_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came_back, not_found = {}, []
    for path, position in flipped_copies(tmp_path, monkeypatch):
        store = source_of_numbers(path)
        held = write_half(store)
        found = list(store.verify())
        repaired = list(store.verify(repair=True))
        # A write may have noticed and begun another file.
        is_right = not found or {each.what for each in found} >= {"page"}
        if not (is_right and all(each.is_repaired for each in repaired)) or list(store.verify()):
            not_found.append(position)
        values = numbers(store)
        restart(store)
        if values != held:
            came_back[position] = values

    assert came_back == {}
    assert not_found == []


@pytest.mark.leaves_damage
def test_a_value_that_says_it_is_text_comes_from_the_source(whole: Path, tmp_path: Path) -> None:
    # Before the bytes is the row's header, where their type is a number: odd for text, even for a
    # blob (https://www.sqlite.org/fileformat2.html#record_format).
    value = VALUES["zarr.json"]
    data = whole.read_bytes()
    header = data[: data.index(value)]
    position = header.rindex(2 * len(value) + 12)

    responses = read_flipped(whole, tmp_path / "copies", position, 1)

    assert data.count(value) == 1
    assert responses == RIGHT


WRITE = """
from zarr.storage import LocalStore
store = CacheStore(
    LocalStore(path.parent / "source"), cache_store=SqliteStore(path), namespace="source"
)
store.set_sync("k", buffer(arguments[0].encode()))
tell()
os._exit(0)
"""


def test_a_flipped_byte_in_the_wal_of_a_killed_process_does_what_a_power_cut_may_do(
    path: Path,
) -> None:
    source = LocalStore(path.parent / "source")
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    store.set_sync("k", buffer(b"old"))
    restart(store)
    assert run_child(path, WRITE, "new").code == 0
    log = path.with_name(f"{path.name}-wal")
    content = bytearray(log.read_bytes())
    # Of the first frame. SQLite takes a log to end before the first checksum that does not hold.
    content[100] ^= 1
    log.write_bytes(content)
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    found = store.get_sync("k")
    problems = list(store.verify())
    restart(store)

    # As operations.md says. The file is whole, and what clears it helps.
    assert found == buffer(b"old")
    assert problems == []
