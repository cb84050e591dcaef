"""The range that has the bytes of a request is found by the index, and many are kept together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import MemoryStore

from tests.fakes import (
    CountingStore,
    Statements,
    buffer,
    cached_ranges,
    file_cache,
    open_file,
    read,
    read_ranges,
    restart,
)
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.ages import EVER
from zarr_cache.core.byte_range import Span
from zarr_cache.index import listing, lookup, ranges

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import ByteRequest

    from zarr_cache.file.connection import Connection
    from zarr_cache.index.ranges import FoundRange

KEY = "c/0"

FEW, MANY = 10, 100_000

# One byte in two of the value.
FILL = """
WITH RECURSIVE number (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM number WHERE n + 1 < :number)
INSERT INTO entry (
    namespace, key, kind, start, stop, size, stored_at, used_at, revision, checksum
)
SELECT id, :key, 'range', 2 * n, 2 * n + 1, 1, 5, n, 0, facts(2 * n)
FROM number, namespace
WHERE name = 'source'
"""


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> dict[int, SqliteStore]:
    """A cache file with a few ranges of one key, and one with very many."""
    folder = tmp_path_factory.mktemp("ranges")
    stores = {}
    for number in (FEW, MANY):
        store = SqliteStore(folder / f"{number}.sqlite")
        store.database.run(fill, number)
        stores[number] = store
    return stores


def fill(connection: Connection, number: int) -> None:
    def facts(start: int) -> int:
        return ranges.facts_of("source", KEY, Span(start, 1, reaches_end=False), 5)

    connection.create_function("facts", 1, facts)
    with connection.writing():
        connection.execute(lookup.NEW_NAMESPACE, {"namespace": "source"})
        connection.execute(FILL, {"key": KEY, "number": number})


def steps(connection: Connection, work: Callable[[Connection], object]) -> int:
    """How many instructions of its virtual machine SQLite runs for the work."""
    number = 0

    def count() -> int:
        nonlocal number
        number += 1
        return 0

    connection.set_progress_handler(count, 1)
    try:
        work(connection)
    finally:
        connection.set_progress_handler(None, 1)
    return number


def find(connection: Connection, request: ByteRequest) -> list[FoundRange]:
    found = ranges.find(connection, "source", KEY, [*ranges.places_of(request)], EVER, 1000)
    return [each for each in found if each is not None]


REQUESTS: list[ByteRequest] = [
    RangeByteRequest(0, 1),
    RangeByteRequest(8, 9),
    RangeByteRequest(9, 10),
    OffsetByteRequest(9),
    SuffixByteRequest(3),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_a_range_is_found_in_as_many_steps_among_a_few_as_among_very_many(
    databases: dict[int, SqliteStore], request_: ByteRequest
) -> None:
    taken = {}
    for number, store in databases.items():
        taken[number] = store.database.run(steps, lambda each: find(each, request_))

    assert taken[FEW] == taken[MANY]
    assert 0 < taken[MANY] < 1000


def test_a_whole_lookup_takes_as_many_steps_among_a_few_as_among_very_many(
    databases: dict[int, SqliteStore],
) -> None:
    def look(connection: Connection) -> object:
        # Between two ranges, so that nothing is read of either.
        return lookup.lookup(connection, "source", KEY, RangeByteRequest(9, 10))

    taken = {number: store.database.run(steps, look) for number, store in databases.items()}

    assert taken[FEW] == taken[MANY]


def test_a_place_is_made_in_as_many_steps_among_a_few_as_among_very_many(
    databases: dict[int, SqliteStore],
) -> None:
    def make_place(connection: Connection) -> object:
        return ranges.make_place(connection, "source", KEY, RangeByteRequest(9, 10), 1, EVER)

    taken = {number: store.database.run(steps, make_place) for number, store in databases.items()}

    assert taken[FEW] == taken[MANY]


def test_the_size_is_known_in_as_many_steps_among_a_few_as_among_very_many(
    databases: dict[int, SqliteStore],
) -> None:
    def known(connection: Connection) -> object:
        return listing.known(connection, "source", KEY, EVER)

    taken = {number: store.database.run(steps, known) for number, store in databases.items()}

    assert taken[FEW] == taken[MANY]


def test_what_is_found_is_the_last_range_that_begins_at_the_first_byte_or_before_it(
    databases: dict[int, SqliteStore],
) -> None:
    requests: list[ByteRequest] = [
        RangeByteRequest(50_000, 50_001),
        RangeByteRequest(50_001, 50_002),
        SuffixByteRequest(1),
    ]
    rows = [databases[MANY].database.run(find, request) for request in requests]

    assert [[(row.start, row.stop) for row in found] for found in rows] == [
        [(50_000, 50_001)],
        [(50_000, 50_001)],
        [(199_998, 199_999)],
    ]


# Many at once

INNER = 2000
DATA = bytes(range(250)) * (500 * INNER // 250)
CHUNKS: list[ByteRequest | None] = [
    RangeByteRequest(start, start + INNER) for start in range(0, len(DATA), INNER)
]


def new_store(source: CountingStore, path: Path) -> CacheStore:
    cache = SqliteStore(path)
    return CacheStore(source, cache_store=cache, namespace="source", persist_ranges=True)


async def test_a_window_of_500_inner_chunks_makes_a_few_transactions(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements()
    statements.install(monkeypatch)
    source = CountingStore(MemoryStore({KEY: buffer(DATA)}))
    store = new_store(source, path)
    await read(store, "opened")
    store.flush()
    before = statements.number("BEGIN IMMEDIATE")
    found = await read_ranges(store, KEY, CHUNKS)
    store.flush()
    transactions = statements.number("BEGIN IMMEDIATE") - before
    kept = cached_ranges(path)
    restart(store)
    store = new_store(source, path)
    source.reset()
    again = await read_ranges(store, KEY, CHUNKS)

    assert found == again == [DATA[n * INNER : (n + 1) * INNER] for n in range(500)]
    assert len(kept) == 500
    assert source.requests.total() == 0
    # 64 in each, and the counts.
    assert transactions <= 12


async def test_windows_that_are_read_one_after_another_share_transactions(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements()
    statements.install(monkeypatch)
    source = CountingStore(MemoryStore({KEY: buffer(DATA)}))
    store = new_store(source, path)
    await read(store, "opened")
    store.flush()
    before = statements.number("BEGIN IMMEDIATE")
    # However slow this machine is, the thread that writes is.
    with file_cache(store)._queue._turn:
        for request in CHUNKS:
            await read(store, KEY, request)
    store.flush()
    transactions = statements.number("BEGIN IMMEDIATE") - before

    assert len(cached_ranges(path)) == 500
    assert transactions <= 12


async def test_the_uses_of_many_ranges_are_written_together(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(CountingStore(MemoryStore({KEY: buffer(DATA)})), path)
    await read_ranges(store, KEY, CHUNKS)
    store.flush()
    before = times_of_use(path)
    statements = Statements()
    statements.install(monkeypatch)
    restart(store)
    store = new_store(CountingStore(MemoryStore()), path)
    for request in CHUNKS:
        await read(store, KEY, request)
    written = statements.number("BEGIN IMMEDIATE")
    store.flush()
    after = times_of_use(path)

    assert written == 0
    assert after == sorted(set(after))
    assert min(after) > max(before)
    # 512 in each.
    assert statements.number("BEGIN IMMEDIATE") <= 2


def times_of_use(path: Path) -> list[int]:
    """When each range was used last, in the order of the value."""
    with open_file(path) as db:
        rows = db.execute("SELECT used_at FROM entry WHERE kind = 'range' ORDER BY start")
        return [used_at for (used_at,) in rows]
