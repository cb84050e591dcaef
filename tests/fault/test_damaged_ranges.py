"""Ranges whose row or bytes are other ones: never a wrong byte, removed, counted, fetched again."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from tests.fakes import (
    STRESS,
    CountingStore,
    buffer,
    cached_ranges,
    close_everything,
    open_file,
    read,
    read_ranges,
    restart,
    tell_versions,
)
from tests.fault.test_wrong_types import TRIED, forge
from tests.systems import needs_data_file
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core import checksum
from zarr_cache.core.byte_range import span
from zarr_cache.disk.data_file_opening import IS_SUPPORTED
from zarr_cache.file import connection
from zarr_cache.index import extents, lookup, values

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zarr.abc.store import ByteRequest

# Parts and blocks have other lengths when it is looked at afterwards.
pytestmark = pytest.mark.leaves_damage

KEY, OTHER = "c/0", "c/1"
DATA = {KEY: bytes(range(256)) * 40, OTHER: bytes(reversed(range(256))) * 40}
SIZE = 10240

PAGE_SIZE = 1024

# Each is read in another way: with the row, by a blob, in parts, from the data file, from the end.
REQUESTS: list[ByteRequest] = [
    RangeByteRequest(10, 110),
    RangeByteRequest(200, 1000),
    RangeByteRequest(1100, 2600),
    RangeByteRequest(3000, 6000),
    OffsetByteRequest(9000),
    SuffixByteRequest(2000),
]
LARGE = REQUESTS[3]


def of(request: ByteRequest, key: str = KEY) -> bytes:
    return DATA[key][slice(*span(request, SIZE))]


def new_source() -> CountingStore:
    return CountingStore(MemoryStore({key: buffer(data) for key, data in DATA.items()}))


def new_cache(source: CountingStore, path: Path, *, max_age_seconds: float = 10**6) -> CacheStore:
    return CacheStore(
        source,
        cache_store=SqliteStore(path),
        namespace="source",
        persist_ranges=True,
        max_size=100_000,
        max_age_seconds=max_age_seconds,
    )


@pytest.fixture(scope="module", params=[False, True], ids=["without versions", "with versions"])
def whole(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A file with the ranges, as it is when every process has ended; the tests use copies of it.

    With versions, the source has told them, and has confirmed every other range.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "PAGE_SIZE", PAGE_SIZE)
        patch.setattr(checksum, "BLOCK", 256)
        patch.setattr(values, "PART", 1024)
        patch.setattr(lookup, "MAX_INLINE_BYTES", 512)
        patch.setattr(extents, "MIN_BYTES", 2000)
        if request.param:
            tell_versions(patch)
        path = tmp_path_factory.mktemp("made") / "whole.sqlite"
        fill(path, has_versions=request.param)
        yield path


def fill(path: Path, *, has_versions: bool) -> None:
    store = new_cache(new_source(), path)
    for key in DATA:
        for each in REQUESTS:
            store.get_sync(key, byte_range=each)
    store.flush()
    later = new_cache(new_source(), path, max_age_seconds=1e-9)
    for each in REQUESTS[::2] if has_versions else []:
        later.get_sync(KEY, byte_range=each)
    restart(store)
    with open_file(path) as db:
        versions = db.execute("SELECT count(validator), count(confirmed_at) FROM entry").fetchone()
    assert versions == ((2 * len(REQUESTS), len(REQUESTS[::2])) if has_versions else (0, 0))
    assert len(cached_ranges(path)) == 2 * len(REQUESTS)
    assert data_file(path).exists() is IS_SUPPORTED


def data_file(path: Path) -> Path:
    return path.with_name(f"{path.name}-data")


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copied(whole, tmp_path / "copies")


def copied(whole: Path, folder: Path) -> Path:
    """A copy of the file and of its data file, alone in the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / "copy.sqlite"
    shutil.copy(whole, path)
    if IS_SUPPORTED:
        shutil.copy(data_file(whole), data_file(path))
    return path


async def responses(store: CacheStore, key: str) -> list[Any]:
    """All that can be asked of a key but for its whole value, which would replace the ranges."""
    found: list[Any] = [await store.getsize(key), await store.exists(key)]
    found += [await read(store, key, request) for request in REQUESTS]
    found += await read_ranges(store, key, REQUESTS)
    return found


RIGHT = {key: [SIZE, True] + [of(each, key) for each in REQUESTS] * 2 for key in DATA}


def read_all(store: CacheStore) -> dict[str, list[Any]]:
    return {key: sync(responses(store, key)) for key in DATA}


def use(path: Path) -> None:
    """Read everything in two processes, write a key, and read it again."""
    source = new_source()
    for _ in range(2):
        store = new_cache(source, path)
        assert read_all(store) == RIGHT
        store.flush()
        assert sync(store.exists("c/2")) is False
        restart(store)
    store = new_cache(source, path)
    store.set_sync(KEY, buffer(DATA[OTHER]))
    found = sync(responses(store, KEY))
    restart(store)
    assert found == RIGHT[OTHER]


# One range


def zeros(path: Path, request: ByteRequest) -> None:
    with open_file(path) as db:
        db.execute(
            "UPDATE value SET data = zeroblob(length(data)) WHERE entry = ?", (row(db, request),)
        )
        db.commit()


def row(db: Any, request: ByteRequest) -> int:
    """The number of the entry."""
    start = -2 if isinstance(request, SuffixByteRequest) else span(request, SIZE)[0]
    found = db.execute("SELECT id FROM entry WHERE key = ? AND start = ?", (KEY, start))
    return int(found.fetchone()[0])


def zeros_in_the_data_file(path: Path, request: ByteRequest) -> None:
    with open_file(path) as db:
        where = db.execute("SELECT offset FROM extent WHERE entry = ?", (row(db, request),))
        (offset,) = where.fetchone()
    with data_file(path).open("r+b") as file:
        file.seek(offset + 50)
        file.write(bytes(100))


def no_bytes(path: Path, request: ByteRequest) -> None:
    with open_file(path) as db:
        db.execute("DELETE FROM value WHERE entry = ?", (row(db, request),))
        db.commit()


def one_byte_later(path: Path, request: ByteRequest) -> None:
    changed(path, request, "start = start + 1, stop = stop + 1")


def one_byte_shorter(path: Path, request: ByteRequest) -> None:
    changed(path, request, "size = size - 1, stop = stop - 1")


def to_the_end(path: Path, request: ByteRequest) -> None:
    changed(path, request, "stop = NULL")


def later_in_time(path: Path, request: ByteRequest) -> None:
    changed(path, request, "stored_at = stored_at + 1")


def of_another_version(path: Path, request: ByteRequest) -> None:
    changed(path, request, "validator = 'another'")


def confirmed_later(path: Path, request: ByteRequest) -> None:
    changed(path, request, "confirmed_at = stored_at + 1")


def changed(path: Path, request: ByteRequest, change: str) -> None:
    with open_file(path) as db:
        number = row(db, request)
        db.execute(f"UPDATE entry SET {change} WHERE id = ?", (number,))  # noqa: S608 - from above
        db.commit()


SMALL = [REQUESTS[0], REQUESTS[1], REQUESTS[2], REQUESTS[4], REQUESTS[5]]
PLACED = REQUESTS[:4]

DAMAGES: list[Any] = [
    *((zeros, request) for request in SMALL[:4]),
    *((no_bytes, request) for request in SMALL[:4]),
    pytest.param(zeros_in_the_data_file, LARGE, marks=needs_data_file),
    pytest.param(zeros_in_the_data_file, REQUESTS[5], marks=needs_data_file),
    *((one_byte_later, request) for request in PLACED),
    *((one_byte_shorter, request) for request in PLACED),
    *((to_the_end, request) for request in PLACED),
    *((later_in_time, request) for request in REQUESTS),
    *((of_another_version, request) for request in REQUESTS),
    *((confirmed_later, request) for request in REQUESTS),
]


async def ask_for_many(store: CacheStore, key: str, request: ByteRequest) -> bytes | None:
    (found,) = await read_ranges(store, key, [request])
    return found


async def ask_sync(store: CacheStore, key: str, request: ByteRequest) -> bytes | None:
    found = store.get_sync(key, byte_range=request)
    return None if found is None else found.to_bytes()


@pytest.mark.pairs
@pytest.mark.parametrize("ask", [read, ask_sync, ask_for_many])
@pytest.mark.parametrize(("damage", "request_"), DAMAGES)
async def test_a_damaged_range_is_removed_counted_and_fetched_again(
    copy: Path, damage: Any, request_: ByteRequest, ask: Any
) -> None:
    damage(copy, request_)
    source = new_source()
    store = new_cache(source, copy)
    start, stop = span(request_, SIZE)
    # What the row says that it has.
    is_moved = damage in {one_byte_later, one_byte_shorter}
    asked = RangeByteRequest(start + 1, stop - 1) if is_moved else request_
    first = await ask(store, KEY, asked)
    store.flush()
    requests, stats = source.requests.total(), store.cache_stats()
    restart(store)
    store = new_cache(source, copy)
    source.reset()
    again = await ask(store, KEY, asked)

    assert first == again == of(asked)
    assert (requests, source.requests.total()) == (1, 0)
    assert (stats["damaged"], stats["faults"]) == (1, 0)
    assert store.cache_stats()["damaged"] == 0
    assert list(store.verify()) == []


@pytest.mark.parametrize("request_", PLACED, ids=str)
async def test_a_range_that_says_falsely_that_the_value_ends_tells_no_size(
    copy: Path, request_: ByteRequest
) -> None:
    with open_file(copy) as db:
        (number,) = db.execute("SELECT max(start) FROM entry WHERE start < 9000").fetchone()
        db.execute("DELETE FROM entry WHERE key = ? AND (start > ? OR start = -2)", (KEY, number))
        db.commit()
    for each in PLACED[PLACED.index(request_) + 1 :]:
        changed(copy, each, "key = 'elsewhere'")
    to_the_end(copy, request_)
    store = new_cache(new_source(), copy)

    assert await store.getsize(KEY) == SIZE


async def test_a_range_under_a_key_that_is_not_its_own_does_not_make_that_key_exist(
    copy: Path,
) -> None:
    changed(copy, REQUESTS[0], "key = 'c/2'")
    store = new_cache(new_source(), copy)

    assert await store.exists("c/2") is False
    assert await store.exists(KEY) is True


# Any byte


@pytest.mark.filterwarnings("ignore::zarr_cache.CacheWarning")
def test_no_byte_beside_a_key_can_make_a_read_wrong_or_fail(whole: Path, tmp_path: Path) -> None:
    """These are the bytes of the rows of ranges, in the table and in its indexes."""
    content = whole.read_bytes()
    stride = max(1, 11 // STRESS)
    around = {
        position
        for found in re.finditer(rb"c/[01]", content)
        for position in range(found.start() - 20, found.end() + 40)
    }
    wrong = {}
    for number, position in enumerate(sorted(around)[::stride]):
        path = copied(whole, tmp_path / "copies")
        flipped = bytearray(content)
        flipped[position] ^= 0xFF if number % 2 else 1 << number % 8
        path.write_bytes(flipped)
        try:
            use(path)
        except Exception as error:  # noqa: BLE001 - all are told at the end
            wrong[position] = repr(error)[:300]
            close_everything()

    assert len(around) > 700
    assert wrong == {}


@needs_data_file
def test_no_byte_of_the_data_file_can_make_a_read_wrong_or_fail(copy: Path) -> None:
    source = new_source()
    store = new_cache(source, copy)
    end = data_file(copy).stat().st_size
    wrong, damaged = [], 0
    for position in range(4096, end, max(1, 307 // STRESS)):
        with data_file(copy).open("r+b") as file:
            file.seek(position)
            byte = file.read(1)
            file.seek(position)
            file.write(bytes([byte[0] ^ 0xFF]))
        if read_all(store) != RIGHT:
            wrong.append(position)
        store.flush()
    damaged = store.cache_stats()["damaged"]

    assert wrong == []
    assert damaged > 20
    assert store.cache_stats()["faults"] == 0


# Any type


COLUMNS = {
    "entry": [
        "namespace",
        "key",
        "kind",
        "start",
        "stop",
        "size",
        "stored_at",
        "used_at",
        "revision",
        "writes_in_flight",
        "checksum",
        "validator",
        "confirmed_at",
    ],
    "value": ["entry", "part", "checksums", "data"],
    "extent": ["entry", "start", "offset", "length"],
}


@pytest.mark.pairs
@pytest.mark.filterwarnings("ignore::zarr_cache.CacheWarning")
@pytest.mark.parametrize("content", TRIED)
@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table in COLUMNS for column in COLUMNS[table]]
)
def test_a_column_of_another_type_makes_no_read_wrong_and_nothing_fail(
    copy: Path, table: str, column: str, content: str
) -> None:
    forge(copy, table, column, content)

    use(copy)
