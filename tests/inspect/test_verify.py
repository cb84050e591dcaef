"""verify() reports what is wrong; a repair removes it, or replaces a damaged database."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, buffer, file_cache, forge, open_file, restart, versioned
from tests.systems import needs_data_file
from zarr_cache import CacheStore, SqliteStore, StorageError
from zarr_cache.core import checksum
from zarr_cache.core.errors import FileFullError
from zarr_cache.file import file_database
from zarr_cache.index import stored
from zarr_cache.inspect import verify_entries
from zarr_cache.inspect.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from zarr.abc.store import ByteRequest

    from zarr_cache.file.connection import Connection

PART = 4 * 2**20
VALUES = {
    "small": b"{}",
    "c/0": b"0" * 60_000,
    "c/1": b"1",
    "empty": b"",
    "large": b"5" * 70_000,
    "larger": b"6" * 100_000,
}


def cache(path: Path, values: Mapping[str, bytes] = VALUES) -> CacheStore:
    """A CacheStore that keeps the values, an absence and a fence, beside a value of ours.

    Of one value, it is known which version it is.
    """
    gone = {"gone": b"4" * 200_000}
    source = MemoryStore({key: buffer(value) for key, value in (gone | {**values}).items()})
    store = CacheStore(
        CountingStore(source),
        cache_store=SqliteStore(path),
        namespace="source",
        max_age_absent_seconds=1000,
    )
    versioned(store, {"c/0": "a version"})
    for key in gone | {**values}:
        store.get_sync(key)
    store.get_sync("absent")
    store.delete_sync("fenced")
    store.flush()
    with open_file(path) as db:
        # So that there is free space before another value.
        db.execute("DELETE FROM entry WHERE key = 'gone'")
        db.commit()
    SqliteStore(path).set_sync("mine", buffer(b"stored by hand"))
    store.flush()
    # Otherwise its upkeep may meet the damage that a test does, and open the circuit.
    file_cache(store)._writer.stop()
    return store


def source_of(store: CacheStore) -> CountingStore:
    assert isinstance(store._store, CountingStore)
    return store._store


def values_of(
    store: SqliteStore | CacheStore, keys: Iterable[str] = VALUES
) -> dict[str, bytes | None]:
    found = {key: store.get_sync(key) for key in keys}
    return {key: None if each is None else each.to_bytes() for key, each in found.items()}


def problems(store: SqliteStore | CacheStore, *, repair: bool = False) -> list[Problem]:
    return list(store.verify(repair=repair))


def facts(found: list[Problem]) -> set[tuple[str, str | None]]:
    """Which facts are wrong, and of which key; without what SQLite says of the same."""
    return {(each.what, each.key) for each in found if each.what != "page"}


def test_a_file_in_use_has_no_problem(path: Path) -> None:
    store = cache(path)

    assert problems(store) == []
    assert problems(SqliteStore(path)) == []
    assert problems(SqliteStore(path, read_only=True)) == []


def test_to_verify_a_missing_file_for_reading_creates_none(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        problems(SqliteStore(path, read_only=True))

    assert not path.exists()


def test_a_read_only_store_repairs_nothing(path: Path) -> None:
    SqliteStore(path).set_sync("k", buffer(b"value"))

    with pytest.raises(ValueError, match="read-only"):
        SqliteStore(path, read_only=True).verify(repair=True)


# What is done to the file, the fact that is wrong then, and its key.
ENTRIES = {
    "bytes that differ": (
        "UPDATE value SET data = zeroblob(60000) WHERE length(data) = 60000",
        ("bytes", "c/0"),
    ),
    "bytes that are too short": (
        "UPDATE value SET data = x'30' WHERE length(data) = 60000",
        ("bytes", "c/0"),
    ),
    "checksums of another number": (
        "UPDATE value SET checksums = zeroblob(12) WHERE length(data) = 60000",
        ("bytes", "c/0"),
    ),
    "no part at all": ("DELETE FROM value WHERE length(data) = 60000", ("bytes", "c/0")),
    "a part too many": (
        "INSERT INTO value SELECT id, 9, x'00000000', x'00' FROM entry WHERE key = 'c/0'",
        ("bytes", "c/0"),
    ),
    "bytes of an absence": (
        "INSERT INTO value SELECT id, 9, x'00000000', x'00' FROM entry WHERE key = 'absent'",
        ("bytes", "absent"),
    ),
    "another key": ("UPDATE entry SET key = 'c/2' WHERE key = 'c/0'", ("checksum", "c/2")),
    "an absurd size": ("UPDATE entry SET size = 1 << 62 WHERE key = 'c/0'", ("checksum", "c/0")),
    "another version": (
        "UPDATE entry SET validator = 'another' WHERE key = 'c/0'",
        ("checksum", "c/0"),
    ),
    "a version that is no longer known": (
        "UPDATE entry SET validator = NULL WHERE key = 'c/0'",
        ("checksum", "c/0"),
    ),
    "a confirmation that was never made": (
        "UPDATE entry SET confirmed_at = stored_at + 1 WHERE key = 'c/0'",
        ("checksum", "c/0"),
    ),
    "a version of an absence": (
        "UPDATE entry SET validator = 'another' WHERE key = 'absent'",
        ("checksum", "absent"),
    ),
    "another kind": (
        "UPDATE entry SET kind = 'value' WHERE key = 'absent'",
        ("checksum", "absent"),
    ),
    "a fence with a size": ("UPDATE entry SET size = 1 WHERE key = 'fenced'", ("size", "fenced")),
    "a use at no time": (
        "UPDATE entry SET used_at = 0x7fffffffffffffff WHERE key = 'c/0'",
        ("used_at", "c/0"),
    ),
    "a revision below zero": (
        "UPDATE entry SET revision = -1 WHERE key = 'c/0'",
        ("revision", "c/0"),
    ),
    "writers of a value": (
        "UPDATE entry SET writes_in_flight = 1 WHERE key = 'c/0'",
        ("writes_in_flight", "c/0"),
    ),
    "no namespace": ("UPDATE entry SET namespace = 77 WHERE key = 'c/0'", ("entry", "c/0")),
    "bytes of no entry": ("INSERT INTO value VALUES (9999, 0, x'00', x'00')", ("orphan", None)),
}

# The same, for what is recomputed.
COUNTED = {
    "usage of a namespace": ("UPDATE usage SET entries = 7 WHERE kind = 'value'", "usage"),
    "usage that is missing": ("DELETE FROM usage WHERE kind = 'absent'", "usage"),
    "usage of no namespace": ("INSERT INTO usage VALUES (99, 'value', 1, 0)", "usage"),
    "a total": ("UPDATE total SET entries = entries + 1 WHERE kind = 'stored'", "total"),
    "space that is lost": ("DELETE FROM free_extent", "extent"),
    "free space that overlaps": (
        "UPDATE free_extent SET offset = offset - 4096, length = length + 4096",
        "extent",
    ),
    "free space in two": (
        "INSERT INTO free_extent SELECT offset + 4096, length - 4096 FROM free_extent",
        "extent",
    ),
    "free space at the end": ("UPDATE data_file SET length = length + 8192", "extent"),
    "an extent outside the file": ("UPDATE data_file SET length = 8192", "extent"),
    "an extent of no entry": (
        "INSERT INTO extent SELECT 999, 0, offset, length FROM free_extent",
        "extent",
    ),
}

# The same, for damage of the database itself.
DAMAGE = {
    "no kind": ("UPDATE entry SET kind = 'what' WHERE key = 'c/0'", "page"),
    "a size below zero": ("UPDATE entry SET size = -1 WHERE key = 'c/0'", "page"),
    "a revision that was not counted": (
        "UPDATE entry SET revision = 0x7fffffffffffffff WHERE key = 'c/0'",
        "counter",
    ),
    "a counter set back": ("UPDATE counter SET revision = 0", "counter"),
    "a counter without room": ("UPDATE counter SET revision = 0x7fffffffffffffff", "counter"),
    "no counter": ("DELETE FROM counter", "counter"),
    "a fence without room": ("UPDATE namespace SET fence = 0x7fffffffffffffff", "namespace"),
    "no data file": ("DELETE FROM data_file", "data_file"),
    "a missing index": ("DROP INDEX entry_by_use", "schema"),
    "a missing view": ("DROP VIEW cache_usage", "schema"),
}


DAMAGE_BESIDE = "DROP VIEW cache_usage"


def cases[E](of: Mapping[str, tuple[str, E]]) -> list[Any]:
    """The statements, and what is found after each; there are extents only where a data file is."""
    return [
        pytest.param(*case, id=name, marks=[needs_data_file] if "extent" in case[0] else [])
        for name, case in of.items()
    ]


def quarantined(path: Path) -> list[Path]:
    """The quarantined databases."""
    return sorted(path.parent.glob(f"{path.name}.damaged-*Z"))


@pytest.mark.parametrize(("statement", "expected"), ENTRIES.values(), ids=ENTRIES)
def test_a_wrong_entry_is_reported_and_removed_and_nothing_else(
    path: Path, statement: str, expected: tuple[str, str | None]
) -> None:
    store = cache(path)
    forge(path, statement)
    found = facts(problems(store))
    repaired = problems(store, repair=True)
    left = problems(store)
    requests = source_of(store).requests.total()
    values = values_of(store)

    # The totals are wrong with it.
    assert found - {("usage", None), ("total", None)} == {expected}
    assert all(problem.is_repaired for problem in repaired)
    assert left == []
    assert values == VALUES
    assert source_of(store).requests.total() <= requests + 1
    assert quarantined(path) == []


@pytest.mark.parametrize(("statement", "expected"), cases(COUNTED))
def test_wrong_totals_are_reported_and_recomputed_and_nothing_is_removed(
    path: Path, statement: str, expected: str
) -> None:
    store = cache(path)
    forge(path, statement)
    found = {what for what, _ in facts(problems(store))}
    repaired = problems(store, repair=True)
    left = problems(store)

    assert found == {expected}
    assert all(problem.is_repaired for problem in repaired)
    assert left == []
    assert store.cache_info()["cached_keys"] == len(VALUES)
    assert quarantined(path) == []


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize(("statement", "expected"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_database_is_replaced_by_one_with_the_stored_values(
    path: Path, statement: str, expected: str, *, is_open: bool
) -> None:
    cached = cache(path)
    forge(path, statement)
    found = {each.what for each in problems(SqliteStore(path))}
    if not is_open:
        # The file is refused when it is opened.
        restart(cached)
    repaired = problems(SqliteStore(path), repair=True)
    left = problems(SqliteStore(path))
    again = CacheStore(source_of(cached), cache_store=SqliteStore(path), namespace="source")
    kept = again.cache_info()["cached_keys"]
    values = values_of(again)

    assert expected in found
    assert repaired
    assert all(problem.is_repaired for problem in repaired)
    assert left == []
    assert SqliteStore(path).get_sync("mine") == buffer(b"stored by hand")
    assert kept == 0
    assert values == VALUES
    assert [each.name in str(repaired[-1]) for each in quarantined(path)] == [True]
    assert again.cache_stats()["faults"] == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE value SET data = x'00' WHERE part = 1",
        "DELETE FROM value WHERE part = 1",
        "INSERT INTO value SELECT entry, 2, checksums, data FROM value WHERE part = 1",
    ],
)
def test_each_part_of_a_large_value_is_verified(path: Path, statement: str) -> None:
    store = cache(path, {"large": b"1" * (PART + 1), "small": b"2"})
    right = problems(store)
    forge(path, statement)
    wrong = problems(store, repair=True)

    assert right == []
    assert [(each.what, each.key, each.is_repaired) for each in wrong] == [("bytes", "large", True)]


EXTENTS = {
    "a part too few": "DELETE FROM value WHERE data = x'' AND length(checksums) = 16",
    "checksums that differ": "UPDATE value SET checksums = zeroblob(16) WHERE data = x''",
    "bytes beside it": "UPDATE value SET data = x'00' WHERE data = x''",
    "no extent": "DELETE FROM extent WHERE length = 73728",
    "an extent that is too short": "UPDATE extent SET length = 69632 WHERE length = 73728",
    "an extent that begins later": "UPDATE extent SET start = 4096 WHERE length = 73728",
    "an extent of other bytes": """
        UPDATE extent SET offset = (SELECT offset FROM free_extent) WHERE length = 73728
    """,
    "an extent of another value": "UPDATE extent SET offset = offset + 4096 WHERE length = 73728",
}


@needs_data_file
@pytest.mark.parametrize("statement", EXTENTS.values(), ids=EXTENTS)
def test_a_wrong_large_value_is_reported_and_removed(path: Path, statement: str) -> None:
    store = cache(path)
    forge(path, statement)
    found = facts(problems(store))
    repaired = problems(store, repair=True)
    left = problems(store)
    values = values_of(store)

    assert {key for what, key in found if what == "bytes"} <= {"large", "larger"}
    assert {what for what, _ in found} & {"bytes", "extent"}
    assert all(problem.is_repaired for problem in repaired), repaired
    assert left == []
    assert values == VALUES


@needs_data_file
def test_wrong_bytes_in_the_data_file_are_reported_and_removed(path: Path) -> None:
    store = cache(path)
    data = path.with_name(f"{path.name}-data")
    with open_file(path) as db:
        query = "SELECT offset FROM extent JOIN entry ON id = entry WHERE key = 'large'"
        ((place,),) = db.execute(query)
    with data.open("r+b") as file:
        file.seek(place + 69_999)
        file.write(b"6")
    found = problems(store)
    repaired = problems(store, repair=True)

    assert facts(found) == {("bytes", "large")}
    assert [problem.is_repaired for problem in repaired] == [True]
    assert problems(store) == []


SHARD = bytes(range(256)) * 1000
# Nothing else of the second key is kept, so the place of its last bytes is unknown.
SPANS: list[tuple[str, ByteRequest]] = [
    ("shard", RangeByteRequest(100, 300)),
    ("shard", RangeByteRequest(4096, 4096 + 80_000)),
    ("shard", OffsetByteRequest(186_000)),
    ("another", SuffixByteRequest(16)),
]


def with_ranges(path: Path) -> CacheStore:
    """A CacheStore that keeps ranges, two of them in the data file, in the file of `cache`."""
    cache(path)
    store = CacheStore(
        CountingStore(MemoryStore({"shard": buffer(SHARD), "another": buffer(SHARD)})),
        cache_store=SqliteStore(path),
        namespace="sharded",
        persist_ranges=True,
    )
    for key, span in SPANS:
        store.get_sync(key, byte_range=span)
    store.flush()
    return store


# What is done to the file, and the facts that are wrong then.
RANGES = {
    "bytes that differ": (
        "UPDATE value SET data = zeroblob(200) WHERE length(data) = 200",
        {"bytes"},
    ),
    "bytes that are missing": (
        "DELETE FROM value WHERE length(data) = 200",
        {"bytes"},
    ),
    "bytes of the end that differ": (
        "UPDATE value SET data = zeroblob(16) WHERE length(data) = 16",
        {"bytes"},
    ),
    "no extent": ("DELETE FROM extent WHERE length = 81920", {"bytes", "extent"}),
    "an extent of other bytes": (
        "UPDATE extent SET offset = (SELECT offset FROM free_extent) WHERE length = 81920",
        {"bytes", "extent"},
    ),
    "another start": (
        "UPDATE entry SET start = 101, stop = 301 WHERE start = 100",
        {"checksum"},
    ),
    "a start that is not known": (
        "UPDATE entry SET start = -2, stop = NULL, key = 'other' WHERE start = 100",
        {"checksum"},
    ),
    "an end that is not known": ("UPDATE entry SET stop = NULL WHERE start = 100", {"checksum"}),
    "an end that is known": (
        "UPDATE entry SET stop = start + size WHERE start = 186000",
        {"checksum"},
    ),
    "another size": (
        "UPDATE entry SET size = 199, stop = 299 WHERE start = 100",
        {"checksum", "usage", "total"},
    ),
    "another key": ("UPDATE entry SET key = 'other' WHERE start = 4096", {"checksum"}),
    "another age": ("UPDATE entry SET stored_at = stored_at + 1 WHERE start = 4096", {"checksum"}),
    "a use at no time": ("UPDATE entry SET used_at = -1 WHERE start = 4096", {"used_at"}),
    "a revision": ("UPDATE entry SET revision = 1 WHERE start = 4096", {"revision"}),
    "writes in flight": (
        "UPDATE entry SET writes_in_flight = 1 WHERE start = 100",
        {"writes_in_flight"},
    ),
    "no namespace": (
        "UPDATE entry SET namespace = 77 WHERE start = 100",
        {"entry", "usage", "total"},
    ),
}

# The same, where the table forbids it.
FORBIDDEN = {
    "a value with a start": "UPDATE entry SET start = 7 WHERE kind = 'value' AND key = 'c/0'",
    "a range without a start": "UPDATE entry SET start = -1 WHERE start = 100",
    "an end before the last byte": "UPDATE entry SET stop = 299 WHERE start = 100",
    "an end of unknown start": "UPDATE entry SET stop = 7 WHERE start = -2",
}


def test_a_file_with_ranges_has_no_problem(path: Path) -> None:
    store = with_ranges(path)

    assert problems(store) == []
    assert store.cache_info()["file_ranges"] == len(SPANS)


@pytest.mark.parametrize(("statement", "expected"), cases(RANGES))
def test_a_wrong_range_is_reported_and_removed_and_nothing_else(
    path: Path, statement: str, expected: set[str]
) -> None:
    store = with_ranges(path)
    forge(path, statement)
    found = {what for what, _ in facts(problems(store))}
    repaired = problems(store, repair=True)
    left = problems(store)
    kept = store.cache_info()["file_ranges"]
    source_of(store).reset()
    values = [store.get_sync(key, byte_range=span) for key, span in SPANS]

    assert found == expected
    assert all(problem.is_repaired for problem in repaired), repaired
    assert left == []
    assert kept == len(SPANS) - 1
    assert values == [
        buffer(SHARD[100:300]),
        buffer(SHARD[4096:84_096]),
        buffer(SHARD[186_000:]),
        buffer(SHARD[-16:]),
    ]
    assert source_of(store).requests.total() == 1
    assert quarantined(path) == []


@pytest.mark.parametrize("statement", FORBIDDEN.values(), ids=FORBIDDEN)
def test_a_span_that_the_table_forbids_is_damage_of_the_database(
    path: Path, statement: str
) -> None:
    store = with_ranges(path)
    forge(path, statement)
    found = {each.what for each in problems(store)}
    repaired = problems(store, repair=True)

    assert found == {"page"}
    assert all(problem.is_repaired for problem in repaired)
    assert problems(store) == []
    assert SqliteStore(path).get_sync("mine") == buffer(b"stored by hand")


@needs_data_file
def test_wrong_bytes_of_a_range_in_the_data_file_are_reported_with_their_place(path: Path) -> None:
    store = with_ranges(path)
    data = path.with_name(f"{path.name}-data")
    with open_file(path) as db:
        query = "SELECT offset FROM extent WHERE length = 81920"
        ((place,),) = db.execute(query)
    with data.open("r+b") as file:
        file.seek(place + 79_999)
        file.write(b"\xff")
    (found,) = problems(store)
    repaired = problems(store, repair=True)

    assert (found.what, found.key) == ("bytes", "shard")
    assert found.expected == "bytes [4096, 84096) that were written"
    assert [problem.is_repaired for problem in repaired] == [True]
    assert problems(store) == []


def test_no_range_is_copied_into_the_new_file(path: Path) -> None:
    store = with_ranges(path)
    forge(path, DAMAGE_BESIDE)
    repaired = problems(store, repair=True)

    assert all(problem.is_repaired for problem in repaired)
    assert store.cache_info()["file_ranges"] == 0
    assert SqliteStore(path).get_sync("mine") == buffer(b"stored by hand")


def test_a_file_that_is_refused_for_a_total_is_replaced(path: Path) -> None:
    cached = cache(path)
    forge(path, "UPDATE total SET bytes = 1 WHERE kind = 'value'")
    restart(cached)
    repaired = problems(SqliteStore(path), repair=True)

    assert [(each.what, each.is_repaired) for each in repaired] == [("file", True)] * 2
    assert problems(SqliteStore(path)) == []
    assert SqliteStore(path).get_sync("mine") == buffer(b"stored by hand")


def test_an_index_that_lacks_a_row_is_reported_and_the_file_replaced(path: Path) -> None:
    cached = cache(path)
    with open_file(path) as db:
        # The index is another one while a row is added.
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET sql = sql || ' WHERE 0' WHERE name = 'entry_by_use'")
        db.commit()
    with open_file(path) as db:
        db.execute("UPDATE entry SET used_at = used_at + 1 WHERE key = 'mine'")
        db.execute("PRAGMA writable_schema = ON")
        sql = "replace(sql, ' WHERE 0', '')"
        db.execute(f"UPDATE sqlite_schema SET sql = {sql} WHERE name = 'entry_by_use'")  # noqa: S608 - our own
        db.commit()
    restart(cached)
    store = SqliteStore(path)
    found = problems(store)
    repaired = problems(store, repair=True)

    assert {problem.what for problem in found} == {"page"}
    assert any("entry_by_use" in str(problem) for problem in found)
    assert all(problem.is_repaired for problem in repaired)
    assert problems(store) == []
    assert store.get_sync("mine") == buffer(b"stored by hand")


def test_what_is_behind_a_foreign_table_is_reported_and_stays_in_quarantine(
    path: Path,
) -> None:
    cached = cache(path)
    with open_file(path) as db:
        db.execute("ALTER TABLE entry ADD COLUMN theirs INTEGER AS (size + 1)")
        db.commit()
        before = db.execute("SELECT * FROM entry").fetchall()
    restart(cached)
    reported = problems(SqliteStore(path), repair=True)
    (damaged,) = quarantined(path)
    with open_file(damaged) as db:
        after = db.execute("SELECT * FROM entry").fetchall()

    assert [each.is_repaired for each in reported] == [True, True, False]
    assert "table 'entry'" in str(reported[-1])
    assert after == before


def test_a_damaged_file_that_cannot_be_renamed_is_reported_and_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError("not ours")

    store = cache(path)
    forge(path, DAMAGE_BESIDE)
    reported: list[Problem] = []
    with monkeypatch.context() as patch:
        patch.setattr(file_database, "quarantine", fail)
        with pytest.raises(StorageError, match="cannot be renamed: not ours"):
            reported.extend(store.verify(repair=True))
    before = quarantined(path)
    repaired = problems(store, repair=True)

    assert [(each.what, each.is_repaired) for each in reported] == [("schema", False)]
    assert before == []
    assert all(problem.is_repaired for problem in repaired)


STORED = {
    "bytes": "UPDATE value SET data = zeroblob(14) WHERE length(data) = 14",
    "checksum": "UPDATE entry SET stored_at = 1 WHERE key = 'mine'",
}


@pytest.mark.parametrize(("what", "statement"), STORED.items(), ids=STORED)
@pytest.mark.leaves_damage
def test_a_wrong_stored_value_is_reported_and_stays(path: Path, what: str, statement: str) -> None:
    store = cache(path)
    forge(path, statement)
    repaired = [each for each in problems(store, repair=True) if each.key == "mine"]
    with open_file(path) as db:
        rows = db.execute("SELECT count(*) FROM value WHERE length(data) = 14").fetchone()
    restart(store)
    again = CacheStore(source_of(store), cache_store=SqliteStore(path), namespace="source")
    source_of(store).reset()
    for key in VALUES:
        again.get_sync(key)

    assert [(each.what, each.is_repaired) for each in repaired] == [(what, False)]
    assert rows == (1,)
    assert source_of(store).requests.total() == 0


@pytest.mark.parametrize(("what", "statement"), STORED.items(), ids=STORED)
def test_a_wrong_stored_value_of_a_damaged_file_is_reported_and_stays_in_quarantine(
    path: Path, what: str, statement: str
) -> None:
    store = cache(path)
    SqliteStore(path).set_sync("another", buffer(b"another"))
    forge(path, statement, DAMAGE_BESIDE)
    reported = problems(store, repair=True)
    (damaged,) = quarantined(path)
    with open_file(damaged) as db:
        rows = db.execute("SELECT count(*) FROM value WHERE length(data) = 14").fetchone()

    assert [(each.what, each.key) for each in reported if not each.is_repaired] == [(what, "mine")]
    assert rows == (1,)
    assert SqliteStore(path).get_sync("another") == buffer(b"another")
    assert SqliteStore(path).get_sync("mine") is None


def test_all_stored_values_are_copied_before_the_first_problem_is_yielded(path: Path) -> None:
    values = {f"k{number}": bytes([number]) * number * 3 * 2**20 for number in range(4)}
    store = SqliteStore(path)
    for key, value in values.items():
        store.set_sync(key, buffer(value))
    forge(path, DAMAGE_BESIDE)
    next(store.verify(repair=True))

    assert values_of(store, values) == values


def test_what_cannot_be_copied_into_the_new_file_is_reported_and_the_rest_is_copied(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SqliteStore(path)
    for key in ("first", "second"):
        store.set_sync(key, buffer(b"value"))
    forge(path, DAMAGE_BESIDE)
    put = stored.put

    def fail_at_first(connection: Connection, items: Any, *args: Any, **kwargs: Any) -> None:
        if items[0][0] == "first":
            raise FileFullError("no room")
        put(connection, items, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(stored, "put", fail_at_first)
        reported = problems(store, repair=True)

    assert [each.key for each in reported if not each.is_repaired] == ["first"]
    assert "no room" in str(reported[-1])
    assert store.get_sync("second") == buffer(b"value")


def test_the_rest_is_copied_beside_a_row_whose_facts_are_no_numbers(path: Path) -> None:
    store = SqliteStore(path)
    for key in ("first", "second"):
        store.set_sync(key, buffer(b"value"))
    restart(store)
    with open_file(path) as db:
        db.execute("PRAGMA writable_schema = ON")
        query = "SELECT sql FROM sqlite_schema WHERE name = 'entry'"
        ((sql,),) = db.execute(query).fetchall()
        update = "UPDATE sqlite_schema SET sql = ? WHERE name = 'entry'"
        db.execute(update, (sql.replace("STRICT", ""),))
        db.commit()
    with open_file(path) as db:
        db.execute("UPDATE entry SET stored_at = 'what' WHERE key = 'first'")
        db.execute("PRAGMA writable_schema = ON")
        db.execute(update, (sql,))
        db.commit()
    reported = problems(SqliteStore(path), repair=True)

    assert [each.key for each in reported if not each.is_repaired] == ["first"]
    assert store.get_sync("second") == buffer(b"value")


def test_rows_on_either_side_of_an_unreadable_page_are_copied(path: Path) -> None:
    store = SqliteStore(path)
    keys = [f"{number:03}" for number in range(300)]
    for key in keys:
        store.set_sync(key, buffer(f"value {key}".encode()))
    restart(store)
    page = path.read_bytes().index(b"value 150") // 4096
    with path.open("r+b") as file:
        file.seek(page * 4096)
        file.write(b"\xff" * 4096)
    reported = problems(SqliteStore(path), repair=True)
    there = [key for key in keys if SqliteStore(path).get_sync(key) is not None]

    assert {keys[0], keys[-1]} < set(there)
    assert {each.key for each in reported if each.what == "bytes"} == {*keys} - {*there}
    assert [each.what for each in reported if not each.is_repaired and each.key is None] == ["file"]
    assert problems(SqliteStore(path)) == []


def test_of_two_rows_of_a_key_the_newer_is_copied(path: Path) -> None:
    store = SqliteStore(path)
    store.set_sync("k", buffer(b"old"))
    restart(store)
    unique = "sqlite_autoindex_entry_1"
    columns = "id, namespace, key, kind, size, stored_at, used_at, revision, checksum"
    with open_file(path) as db:
        query = "SELECT * FROM sqlite_schema WHERE name IN ('entry', ?) ORDER BY type"
        index, table = db.execute(query, (unique,)).fetchall()
        db.execute("PRAGMA writable_schema = ON")
        db.execute("DELETE FROM sqlite_schema WHERE name = ?", (unique,))
        sql = "replace(sql, 'UNIQUE (namespace, key, start)', 'CHECK (true)')"
        db.execute(f"UPDATE sqlite_schema SET sql = {sql} WHERE name = 'entry'")  # noqa: S608 - our own
        db.commit()
    with open_file(path) as db:
        # As a write does that a damaged index has led past the row.
        seed = checksum.of_facts("", "k", "stored", 3, 2**61)
        sums = checksum.of_blocks(seed, 0, b"new")
        db.execute(
            f"INSERT INTO entry ({columns}) SELECT 7, id, 'k', 'stored', 3, 1 << 61, 1 << 61, 0, ?"  # noqa: S608 - our own
            " FROM namespace WHERE name = ''",
            (seed,),
        )
        db.execute("INSERT INTO value VALUES (7, 0, ?, ?)", (sums, b"new"))
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET sql = ? WHERE name = 'entry'", (table[-1],))
        db.execute("INSERT INTO sqlite_schema VALUES (?, ?, ?, ?, ?)", index)
        db.commit()
    reported = problems(SqliteStore(path), repair=True)

    assert all(each.is_repaired for each in reported)
    assert SqliteStore(path).get_sync("k") == buffer(b"new")


async def test_a_wrong_stored_value_is_right_again_when_it_is_stored_again(path: Path) -> None:
    store = SqliteStore(path)
    cache(path)
    forge(path, STORED["bytes"])
    await store.set("mine", buffer(b"stored again"))

    assert problems(store) == []


def test_a_problem_says_where_it_is_what_is_found_and_what_is_expected() -> None:
    problem = Problem("size", -1, "0 or more", "s3://bucket", "c/0", is_repaired=True)

    assert str(problem) == (
        "size of 'c/0' in namespace 's3://bucket': found -1, expected 0 or more; repaired"
    )


def test_many_entries_are_verified_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_entries, "MAX_ENTRIES", 3)
    monkeypatch.setattr(verify_entries, "MAX_BYTES", 1000)
    store = SqliteStore(path)
    for number in range(20):
        store.set_sync(f"k{number}", buffer(b"x" * 100 * number))
    with open_file(path) as db:
        db.execute("UPDATE value SET data = zeroblob(length(data))")
        db.commit()
    found = facts(problems(store))
    for number in range(20):
        store.delete_sync(f"k{number}")

    assert found == {("bytes", f"k{number}") for number in range(1, 20)}


def test_writers_beside_it_are_no_problem(path: Path) -> None:
    store = cache(path)
    is_over = threading.Event()

    def write() -> None:
        other = SqliteStore(path)
        number = 0
        while not is_over.is_set():
            number += 1
            other.set_sync(f"k{number % 7}", buffer(bytes(number % 9 * 20_000)))
            store.set_sync(f"c/{number % 5}", buffer(bytes(number % 11 * 10_000)))
            store.delete_sync(f"c/{number % 3}")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        found = [problems(store, repair=repair) for repair in (False, True) for _ in range(10)]
    finally:
        is_over.set()
        thread.join()

    assert found == [[]] * 20


def in_memory(values: dict[str, bytes]) -> tuple[CacheStore, MemoryStore]:
    """A CacheStore that keeps `values` in a MemoryStore, and that store."""
    source = MemoryStore({key: buffer(value) for key, value in values.items()})
    other = MemoryStore()
    store = CacheStore(source, cache_store=other, namespace="source")
    for key in values:
        store.get_sync(key)
    return store, other


def test_what_another_store_held_before_is_no_problem() -> None:
    other = MemoryStore({"c/0": buffer(b"kept before"), "c/1": buffer(b"")})
    store = CacheStore(MemoryStore(), cache_store=other, namespace="source")

    assert problems(store) == []


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("c/0", None, "bytes"),
        ("c/0", b"short", "bytes"),
        ("c/0", b"0" * 99_999 + b"1", "bytes"),
        ("c/9", b"not in the index", "orphan"),
    ],
)
def test_another_value_in_another_store_is_a_problem(
    key: str, value: bytes | None, what: str
) -> None:
    store, other = in_memory(VALUES)
    if value is None:
        other.delete_sync(key)
    else:
        other.set_sync(key, buffer(value))
    found = problems(store)
    repaired = problems(store, repair=True)

    assert facts(found) == {(what, key)}
    assert [problem.is_repaired for problem in repaired] == [True]
    assert "c/9" not in other._store_dict
    assert problems(store) == []
