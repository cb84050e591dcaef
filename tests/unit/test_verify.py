"""verify() finds what is wrong, tells it, and with repair removes it: and nothing that is right."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, buffer, open_file, restart
from zarr_cache import CacheStore, SqliteStore, verify_entries
from zarr_cache.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

PART = 4 * 2**20
VALUES = {
    "zarr.json": b"{}",
    "c/0": b"0" * 60_000,
    "c/1": b"1",
    "empty": b"",
    "large": b"5" * 70_000,
    "larger": b"6" * 100_000,
}


def cache(path: Path, values: Mapping[str, bytes] = VALUES) -> CacheStore:
    """A CacheStore that keeps the values, an absence and a fence, beside a value of ours."""
    gone = {"gone": b"4" * 200_000}
    source = MemoryStore({key: buffer(value) for key, value in (gone | {**values}).items()})
    store = CacheStore(
        CountingStore(source),
        cache_store=SqliteStore(path),
        namespace="source",
        max_age_absent_seconds=1000,
    )
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
    return store


def source_of(store: CacheStore) -> CountingStore:
    assert isinstance(store._store, CountingStore)
    return store._store


def problems(store: SqliteStore | CacheStore, *, repair: bool = False) -> list[Problem]:
    return list(store.verify(repair=repair))


def facts(found: list[Problem]) -> set[tuple[str, str | None]]:
    """Which facts are wrong, and of which key; without what SQLite says of the same."""
    return {(each.what, each.key) for each in found if each.what != "page"}


def shell(path: Path, *statements: str) -> None:
    """Change the file past its own checks and triggers."""
    with open_file(path) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
        triggers_dropped = triggers.fetchall()
        for name, _ in triggers_dropped:
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement)
        for _, sql in triggers_dropped:
            db.execute(sql)
        db.commit()


def test_a_file_in_use_has_no_problem(path: Path) -> None:
    store = cache(path)

    assert problems(store) == []
    assert problems(SqliteStore(path)) == []
    assert problems(SqliteStore(path, read_only=True)) == []


def test_a_new_file_has_no_problem(path: Path) -> None:
    assert problems(SqliteStore(path)) == []


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
    "checksums that differ": (
        "UPDATE value SET checksums = zeroblob(8) WHERE length(data) = 60000",
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
    "bytes of a fence": (
        "INSERT INTO value SELECT id, 9, x'00000000', x'00' FROM entry WHERE key = 'fenced'",
        ("bytes", "fenced"),
    ),
    "bytes of an absence": (
        "INSERT INTO value SELECT id, 9, x'00000000', x'00' FROM entry WHERE key = 'absent'",
        ("bytes", "absent"),
    ),
    "another key": ("UPDATE entry SET key = 'c/2' WHERE key = 'c/0'", ("checksum", "c/2")),
    "another size": ("UPDATE entry SET size = 5 WHERE key = 'c/0'", ("checksum", "c/0")),
    "another age": ("UPDATE entry SET stored_at = 1 WHERE key = 'c/0'", ("checksum", "c/0")),
    "another kind": (
        "UPDATE entry SET kind = 'value' WHERE key = 'absent'",
        ("checksum", "absent"),
    ),
    "no kind": ("UPDATE entry SET kind = 'what' WHERE key = 'c/0'", ("entry", "c/0")),
    "a size below zero": ("UPDATE entry SET size = -1 WHERE key = 'c/0'", ("size", "c/0")),
    "an absurd size": ("UPDATE entry SET size = 1 << 62 WHERE key = 'c/0'", ("checksum", "c/0")),
    "a fence with a size": ("UPDATE entry SET size = 1 WHERE key = 'fenced'", ("size", "fenced")),
    "a use at no time": (
        "UPDATE entry SET used_at = 0x7fffffffffffffff WHERE key = 'c/0'",
        ("used_at", "c/0"),
    ),
    "a revision below zero": (
        "UPDATE entry SET revision = -1 WHERE key = 'c/0'",
        ("revision", "c/0"),
    ),
    "a revision that leaves no room": (
        "UPDATE entry SET revision = (1 << 62) - 1 WHERE key = 'c/0'",
        ("revision", "c/0"),
    ),
    "an absurd revision": (
        "UPDATE entry SET revision = 0x7fffffffffffffff WHERE key = 'c/0'",
        ("revision", "c/0"),
    ),
    "writers of a value": ("UPDATE entry SET writers = 1 WHERE key = 'c/0'", ("writers", "c/0")),
    "no namespace": (
        "UPDATE entry SET namespace = 77 WHERE key = 'c/0'",
        ("entry", "c/0"),
    ),
    "bytes of no entry": ("INSERT INTO value VALUES (9999, 0, x'00', x'00')", ("orphan", None)),
}

# The same, of what is not of one entry.
FILE = {
    "usage of a namespace": ("UPDATE usage SET bytes = 7 WHERE kind = 'value'", {"usage"}),
    "usage that is missing": ("DELETE FROM usage WHERE kind = 'fence'", {"usage"}),
    "usage of no namespace": ("INSERT INTO usage VALUES (99, 'value', 1, 1)", {"usage"}),
    "a total": ("UPDATE total SET entries = entries + 1 WHERE kind = 'stored'", {"total"}),
    "a total that is missing": ("DELETE FROM total WHERE kind = 'absent'", {"total"}),
    "statistics that are missing": ("DELETE FROM statistics", {"statistics"}),
    "statistics below zero": ("UPDATE statistics SET hits = -1", {"statistics"}),
    "statistics of no namespace": (
        "INSERT INTO statistics (namespace) VALUES (99)",
        {"statistics"},
    ),
    "a counter set back": ("UPDATE counter SET revision = 0", {"counter"}),
    "a counter without room": (
        "UPDATE counter SET revision = 0x7fffffffffffffff",
        {"counter"},
    ),
    "no counter": ("DELETE FROM counter", {"counter"}),
    "a fence of new namespaces without room": (
        "UPDATE counter SET fence = 0x7fffffffffffffff",
        {"counter"},
    ),
    "a fence that leaves no room": (
        "UPDATE namespace SET fence = (1 << 62) - 1 WHERE name = 'source'",
        {"namespace"},
    ),
    "a fence without room": (
        "UPDATE namespace SET fence = 0x7fffffffffffffff WHERE name = 'source'",
        {"namespace"},
    ),
    "space that is lost": ("DELETE FROM free_extent", {"extent"}),
    "free space that overlaps": (
        "UPDATE free_extent SET place = place - 4096, length = length + 4096",
        {"extent"},
    ),
    "free space in two": (
        "INSERT INTO free_extent SELECT place + 4096, length - 4096 FROM free_extent",
        {"extent"},
    ),
    "free space at the end": ("UPDATE data_file SET length = length + 8192", {"extent"}),
    "an extent outside the file": ("UPDATE data_file SET length = 8192", {"extent"}),
    "an extent of no entry": (
        "INSERT INTO extent SELECT 999, 0, place, length FROM free_extent",
        {"extent"},
    ),
    "an extent of no reservation": (
        "INSERT INTO extent SELECT -999, 0, place, length FROM free_extent",
        {"extent"},
    ),
    "a missing index": ("DROP INDEX entry_by_use", {"schema"}),
    "a missing view": ("DROP VIEW cache_usage", {"schema"}),
    "a trigger of somebody else": (
        "CREATE TRIGGER theirs AFTER DELETE ON entry BEGIN DELETE FROM entry; END",
        {"schema"},
    ),
    "an index that refuses rows": (
        "CREATE UNIQUE INDEX theirs ON entry (checksum, id)",
        {"schema"},
    ),
}


@pytest.mark.parametrize(("statement", "expected"), ENTRIES.values(), ids=ENTRIES)
def test_what_is_wrong_with_an_entry_is_told(
    path: Path, statement: str, expected: tuple[str, str | None]
) -> None:
    store = cache(path)
    shell(path, statement)
    found = facts(problems(store))
    problems(store, repair=True)

    # The totals are wrong with it.
    assert found - {("usage", None), ("total", None)} == {expected}


@pytest.mark.parametrize("statement", [each for each, _ in ENTRIES.values()], ids=ENTRIES)
def test_repair_removes_what_is_wrong_with_an_entry_and_nothing_else(
    path: Path, statement: str
) -> None:
    store = cache(path)
    shell(path, statement)
    repaired = problems(store, repair=True)
    left = problems(store)
    requests = source_of(store).requests.total()
    values = {key: store.get_sync(key) for key in VALUES}

    assert repaired
    assert all(problem.is_repaired for problem in repaired)
    assert left == []
    assert {
        key: value.to_bytes() if value is not None else None for key, value in values.items()
    } == VALUES
    assert source_of(store).requests.total() <= requests + 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE value SET data = x'00' WHERE part = 1",
        "UPDATE value SET data = x'3131' WHERE part = 1",
        "DELETE FROM value WHERE part = 1",
        "UPDATE value SET part = 2 WHERE part = 1",
        "INSERT INTO value SELECT entry, 2, checksums, data FROM value WHERE part = 1",
    ],
)
def test_each_part_of_a_large_value_is_verified(path: Path, statement: str) -> None:
    store = cache(path, {"large": b"1" * (PART + 1), "small": b"2"})
    right = problems(store)
    shell(path, statement)
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
        UPDATE extent SET place = (SELECT place FROM free_extent) WHERE length = 73728
    """,
    "an extent of another value": "UPDATE extent SET place = place + 4096 WHERE length = 73728",
}


@pytest.mark.parametrize("statement", EXTENTS.values(), ids=EXTENTS)
def test_what_is_wrong_with_a_large_value_is_told_and_goes(path: Path, statement: str) -> None:
    store = cache(path)
    shell(path, statement)
    found = facts(problems(store))
    repaired = problems(store, repair=True)
    left = problems(store)
    values = {key: store.get_sync(key) for key in VALUES}

    assert {key for what, key in found if what == "bytes"} <= {"large", "larger"}
    assert {what for what, _ in found} & {"bytes", "extent"}
    assert all(problem.is_repaired for problem in repaired), repaired
    assert left == []
    assert {key: found and found.to_bytes() for key, found in values.items() if key != "empty"} == {
        key: value for key, value in VALUES.items() if key != "empty"
    }


def test_bytes_that_differ_in_the_data_file_are_told_and_go(path: Path) -> None:
    store = cache(path)
    data = path.with_name(f"{path.name}-data")
    with open_file(path) as db:
        query = "SELECT place FROM extent JOIN entry ON id = entry WHERE key = 'large'"
        ((place,),) = db.execute(query)
    with data.open("r+b") as file:
        file.seek(place + 69_999)
        file.write(b"6")
    found = problems(store)
    repaired = problems(store, repair=True)

    assert facts(found) == {("bytes", "large")}
    assert [problem.is_repaired for problem in repaired] == [True]
    assert problems(store) == []


@pytest.mark.parametrize(("statement", "expected"), FILE.values(), ids=FILE)
def test_what_is_wrong_with_the_file_is_told(
    path: Path, statement: str, expected: set[str]
) -> None:
    store = SqliteStore(path)
    cache(path)
    shell(path, statement)
    found = {what for what, _ in facts(problems(store))}
    problems(store, repair=True)

    assert found == expected


@pytest.mark.parametrize("statement", [each for each, _ in FILE.values()], ids=FILE)
def test_repair_makes_the_file_right_again(path: Path, statement: str) -> None:
    store = cache(path)
    shell(path, statement)
    repaired = problems(store, repair=True)
    left = problems(store)

    assert all(problem.is_repaired for problem in repaired)
    assert left == []
    assert store.cache_info()["cached_keys"] == len(VALUES)


@pytest.mark.parametrize("statement", [each for each, _ in FILE.values()], ids=FILE)
def test_a_process_that_could_not_open_the_file_repairs_it(path: Path, statement: str) -> None:
    cached = cache(path)
    shell(path, statement)
    restart(cached)
    repaired = problems(SqliteStore(path), repair=True)
    left = problems(SqliteStore(path))
    again = CacheStore(
        source_of(cached), cache_store=SqliteStore(path), namespace="source", max_size=10**6
    )
    requests = source_of(cached).requests.total()
    values = {key: again.get_sync(key) for key in VALUES}

    assert repaired
    assert all(problem.is_repaired for problem in repaired)
    assert left == []
    assert {
        key: value.to_bytes() if value is not None else None for key, value in values.items()
    } == VALUES
    assert source_of(cached).requests.total() == requests
    assert again.cache_stats()["faults"] == 0


@pytest.mark.leaves_damage
def test_a_file_with_a_table_that_is_not_ours_is_told_and_left_as_it_is(path: Path) -> None:
    cached = cache(path)
    with open_file(path) as db:
        db.execute("ALTER TABLE entry ADD COLUMN theirs INTEGER AS (size + 1)")
        db.execute("DROP VIEW cache_usage")
        db.commit()
        before = db.execute("SELECT sql FROM sqlite_schema").fetchall()
    restart(cached)
    told = problems(SqliteStore(path), repair=True)
    with open_file(path) as db:
        after = db.execute("SELECT sql FROM sqlite_schema").fetchall()

    assert {each.what for each in told} == {"schema"}
    assert not any(each.is_repaired for each in told)
    assert after == before


def test_an_index_that_lacks_a_row_is_told_and_made_anew(path: Path) -> None:
    cached = cache(path)
    with open_file(path) as db:
        # The index is another one while a row is added.
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET sql = sql || ' WHERE 0' WHERE name = 'entry_by_use'")
        db.commit()
    with open_file(path) as db:
        db.execute("UPDATE entry SET used_at = used_at + 1 WHERE key = 'c/0'")
        db.execute("PRAGMA writable_schema = ON")
        sql = "replace(sql, ' WHERE 0', '')"
        db.execute(f"UPDATE sqlite_schema SET sql = {sql} WHERE name = 'entry_by_use'")  # noqa: S608 - our own
        db.commit()
    restart(cached)
    store = SqliteStore(path)
    found = problems(store)
    repaired = problems(store, repair=True)
    with open_file(path) as db:
        kept = db.execute("SELECT key FROM entry WHERE kind <> 'fence'").fetchall()
        fences = db.execute(
            "SELECT DISTINCT namespace.fence = revision FROM namespace, counter"
        ).fetchall()

    assert {problem.what for problem in found} == {"page"}
    assert any("entry_by_use" in str(problem) for problem in found)
    assert all(problem.is_repaired for problem in repaired)
    assert problems(store) == []
    # Whether a write was led astray by it is not known: nothing is kept that a source answered.
    assert kept == [("mine",)]
    assert fences == [(1,)]


STORED = {
    "bytes": "UPDATE value SET data = zeroblob(14) WHERE length(data) = 14",
    "checksum": "UPDATE entry SET stored_at = 1 WHERE key = 'mine'",
    "size": "UPDATE entry SET size = -1 WHERE key = 'mine'",
    "entry": "UPDATE entry SET kind = 'what' WHERE key = 'mine'",
}


@pytest.mark.parametrize(("what", "statement"), STORED.items(), ids=STORED)
@pytest.mark.leaves_damage
def test_what_somebody_stored_is_told_and_stays(path: Path, what: str, statement: str) -> None:
    store = cache(path)
    shell(path, statement)
    repaired = [each for each in problems(store, repair=True) if each.key == "mine"]
    with open_file(path) as db:
        rows = db.execute("SELECT count(*) FROM value WHERE length(data) = 14").fetchone()

    assert [(each.what, each.is_repaired) for each in repaired] == [(what, False)]
    assert rows == (1,)


@pytest.mark.leaves_damage
@pytest.mark.parametrize("statement", STORED.values(), ids=STORED)
def test_after_a_repair_that_leaves_what_somebody_stored_the_file_is_used_as_before(
    path: Path, statement: str
) -> None:
    store = cache(path)
    shell(path, statement)
    problems(store, repair=True)
    restart(store)
    again = CacheStore(source_of(store), cache_store=SqliteStore(path), namespace="source")
    source_of(store).reset()
    for key in VALUES:
        again.get_sync(key)

    assert source_of(store).requests.total() == 0


async def test_what_somebody_stored_is_right_again_when_it_is_stored_again(path: Path) -> None:
    store = SqliteStore(path)
    cache(path)
    shell(path, STORED["bytes"])
    await store.set("mine", buffer(b"stored again"))

    assert problems(store) == []


def test_a_problem_says_where_it_is_what_is_found_and_what_is_expected() -> None:
    problem = Problem("size", -1, "0 or more", "s3://bucket", "c/0", is_repaired=True)

    assert str(problem) == (
        "size of 'c/0' in namespace 's3://bucket': found -1, expected 0 or more; repaired"
    )


def test_a_write_that_could_not_have_been_is_not_remembered_for_ever(path: Path) -> None:
    store = cache(path)
    shell(path, "UPDATE entry SET revision = 0x7fffffffffffffff, size = -1 WHERE key = 'c/0'")
    problems(store, repair=True)
    store.get_sync("c/0")
    store.flush()
    source_of(store).reset()
    store.get_sync("c/0")

    assert source_of(store).requests.total() == 0


def test_many_entries_are_verified_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_entries, "MOST_ENTRIES", 3)
    monkeypatch.setattr(verify_entries, "MOST_BYTES", 1000)
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


def test_a_row_at_the_end_of_all_numbers_is_verified_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify_entries, "MOST_ENTRIES", 1)
    store = SqliteStore(path)
    store.set_sync("first", buffer(b""))
    store.set_sync("last", buffer(b""))
    shell(
        path,
        "UPDATE entry SET id = -9223372036854775808, stored_at = 1 WHERE key = 'first'",
        "UPDATE entry SET id = 0x7fffffffffffffff, stored_at = 1 WHERE key = 'last'",
    )
    found = problems(store)
    for key in ("first", "last"):
        store.delete_sync(key)

    assert [problem.key for problem in found] == ["first", "last"]


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


def test_another_store_in_use_has_no_problem() -> None:
    store, _ = in_memory(VALUES)

    assert problems(store) == []


def test_what_another_store_held_before_is_no_problem() -> None:
    other = MemoryStore({"c/0": buffer(b"kept before"), "c/1": buffer(b"")})
    store = CacheStore(MemoryStore(), cache_store=other, namespace="source")

    assert problems(store) == []


@pytest.mark.parametrize("value", [None, b"short", b"0" * 99_999 + b"1"])
def test_another_value_in_another_store_is_a_problem(value: bytes | None) -> None:
    store, other = in_memory(VALUES)
    if value is None:
        other.delete_sync("c/0")
    else:
        other.set_sync("c/0", buffer(value))
    found = problems(store)
    repaired = problems(store, repair=True)

    assert facts(found) == {("bytes", "c/0")}
    assert [problem.is_repaired for problem in repaired] == [True]
    assert problems(store) == []


def test_a_value_that_another_store_has_besides_is_a_problem() -> None:
    store, other = in_memory(VALUES)
    other.set_sync("c/9", buffer(b"nobody knows it"))
    found = problems(store)
    repaired = problems(store, repair=True)

    assert facts(found) == {("orphan", "c/9")}
    assert [problem.is_repaired for problem in repaired] == [True]
    assert "c/9" not in other._store_dict
    assert problems(store) == []
