"""A column is of another type than its table allows: each read is right all the same.

SQLite looks at STRICT and NOT NULL when it writes, and not when it reads. What type a column has is
said by a byte of its row, and a page in another's place has other columns.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from tests.fakes import (
    PROTOTYPE,
    STRESS,
    buffer,
    close_everything,
    open_file,
    read,
    restart,
    tell_versions,
)
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core import checksum
from zarr_cache.file import connection
from zarr_cache.index import lookup, values

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store

pytestmark = [
    pytest.mark.leaves_damage,
    pytest.mark.filterwarnings("ignore::zarr_cache.CacheWarning"),
]

# Each is read in another way.
VALUES = {
    "empty": b"",
    "inline": b"1" * 300,
    "one part": b"2" * 800,
    "parts": bytes(range(256)) * 10,
}
ABSENT = "absent"
RANGES: list[ByteRequest | None] = [RangeByteRequest(3, 1000), SuffixByteRequest(5)]

COLUMNS = {
    "namespace": ["name", "fence", "removals", "removals_since"],
    "counter": ["revision", "fence"],
    "entry": [
        "namespace",
        "key",
        "kind",
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
    "usage": ["entries", "bytes"],
    "total": ["entries", "bytes"],
    "statistics": ["hits"],
}

CONTENTS = [
    "NULL",
    "'what'",
    "CAST(x'ff' AS TEXT)",
    "x'ff00'",
    "0.5",
    "9e999",
    "-5",
    "0x7fffffffffffffff",
]
TRIED = CONTENTS if STRESS > 1 else [*CONTENTS[:3], *CONTENTS[4::2]]

LOOSE = """
UPDATE sqlite_schema
SET sql = replace(
    replace(replace(sql, ') STRICT, WITHOUT', ') WITHOUT'), ') STRICT', ')'), 'NOT NULL', ''
)
WHERE type = 'table'
"""

STRICT = """
UPDATE sqlite_schema
SET sql = :sql
WHERE name = :name
"""


@pytest.fixture(scope="module", params=[False, True], ids=["without versions", "with versions"])
def whole(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Path]:
    """A file with all the values, an absence and a tombstone; the tests use copies of it.

    With versions, the source has told them, and has confirmed the values.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "PAGE_SIZE", 1024)
        patch.setattr(checksum, "BLOCK", 256)
        patch.setattr(values, "PART", 1024)
        patch.setattr(lookup, "MAX_INLINE_BYTES", 512)
        if request.param:
            tell_versions(patch)
        path = tmp_path_factory.mktemp("made") / "whole.sqlite"
        fill(path, has_versions=request.param)
        yield path


def fill(path: Path, *, has_versions: bool) -> None:
    store = new_cache(path)
    for key in [*VALUES, ABSENT]:
        store.get_sync(key)
    store.flush()
    later = new_cache(path, max_age_seconds=1e-9)
    for key in VALUES if has_versions else []:
        later.get_sync(key)
    store.set_sync("written", buffer(b"soon gone"))
    store.delete_sync("written")
    restart(store)
    with open_file(path) as db:
        versions = db.execute("SELECT count(validator), count(confirmed_at) FROM entry").fetchone()
    assert versions == ((len(VALUES), len(VALUES)) if has_versions else (0, 0))


def new_cache(path: Path, **settings: Any) -> CacheStore:
    return CacheStore(
        MemoryStore({key: buffer(value) for key, value in VALUES.items()}),
        cache_store=SqliteStore(path),
        namespace="source",
        max_size=100_000,
        max_age_absent_seconds=1000,
        **settings,
    )


def forge(path: Path, table: str, column: str, content: str) -> None:
    """Let all rows that can have it there, past the schema, which is what it was in the end."""
    with open_file(path) as db:
        tables = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall()
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'")
        dropped = triggers.fetchall()
        for name, _ in dropped:
            db.execute(f"DROP TRIGGER {name}")
        db.execute("PRAGMA writable_schema = ON")
        db.execute(LOOSE)
        db.commit()
    with open_file(path) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute(f"UPDATE OR IGNORE {table} SET {column} = {content}")  # noqa: S608 - from above
        db.execute("PRAGMA writable_schema = ON")
        db.executemany(STRICT, [{"name": name, "sql": sql} for name, sql in tables])
        db.commit()
    with open_file(path) as db:
        for _, sql in dropped:
            db.execute(sql)
        db.commit()


async def responses(store: Store, key: str) -> dict[str, Any]:
    """All that can be asked of a key on the async surface."""
    try:
        size = await store.getsize(key)
    except FileNotFoundError:
        size = None
    found = {"exists": await store.exists(key), "size": size, "whole": await read(store, key)}
    if size is not None:
        async for batch in store.get_ranges(key, RANGES, prototype=PROTOTYPE):
            found |= {f"range {n}": None if each is None else each.to_bytes() for n, each in batch}
    return found


def right(value: bytes | None) -> dict[str, Any]:
    """What they are."""
    if value is None:
        return {"exists": False, "size": None, "whole": None}
    return {
        "exists": True,
        "size": len(value),
        "whole": value,
        "range 0": value[3:1000],
        "range 1": value[-5:],
    }


def read_all(store: CacheStore, expected: dict[str, bytes | None]) -> None:
    """Ask for each key through the store and through its view, which believes absences."""
    view = store.with_read_only(read_only=True)
    for asked in (view, store):
        for key, value in expected.items():
            found = asked.get_sync(key)
            assert (None if found is None else found.to_bytes()) == value, key
            assert sync(responses(asked, key)) == right(value), key


def use(path: Path) -> None:
    """Read everything, write, read again, and once more in another process."""
    expected: dict[str, bytes | None] = {**VALUES, ABSENT: None, "written": None}
    store = new_cache(path)
    read_all(store, expected)
    for key in expected:
        store.set_sync(key, buffer(b"new"))
    read_all(store, dict.fromkeys(expected, b"new"))
    for key in expected:
        store.delete_sync(key)
    read_all(store, dict.fromkeys(expected))
    restart(store)
    beside = CacheStore(MemoryStore(), cache_store=SqliteStore(path), namespace="source")
    read_all(beside, dict.fromkeys(expected))
    restart(beside)


def verify(path: Path) -> None:
    """Look for problems, and repair them."""
    store = SqliteStore(path)
    list(store.verify())
    list(store.verify(repair=True))
    restart(store)


@pytest.mark.pairs
@pytest.mark.parametrize("do", [use, verify])
@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table in COLUMNS for column in COLUMNS[table]]
)
def test_a_column_of_another_type_makes_no_read_wrong_and_nothing_fail(
    whole: Path, tmp_path: Path, table: str, column: str, do: Callable[[Path], None]
) -> None:
    wrong = {}
    for number, content in enumerate(TRIED):
        path = tmp_path / f"{number}.sqlite"
        shutil.copy(whole, path)
        forge(path, table, column, content)
        try:
            do(path)
        except Exception as error:  # noqa: BLE001 - all are told at the end
            wrong[content] = repr(error)
            close_everything()

    assert wrong == {}
