"""What is kept of each schema: a file that holds something, and the schema as text.

``python -m tests.upgrade.kept`` writes both for the newest schema, as the code of today makes it.
Run it when there is a new script; what is kept of a released schema is never written again.
"""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, buffer, open_file, versioned
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.disk.paths import data_file_of
from zarr_cache.file import migrate

if TYPE_CHECKING:
    import sqlite3

    from zarr.abc.store import ByteRequest

FOLDER = Path(__file__).parent

RELEASES = {"0.1.0": 3}
"""The schema of each release; what is kept of it is what that release makes."""

SUMS = FOLDER / "released.sha256"
"""What never changes, in the form of sha256sum, with paths from the root of the project."""

VALUES = {
    "zarr.json": b'{"zarr_format": 3, "node_type": "group"}',
    "empty": b"",
    "c/0/0": b"less than a block",
    "c/0/1": bytes(range(256)) * 300,  # more than a block of 64 KiB
    "c/1/0": bytes(range(256)) * 2**14 + b"more than a part of 4 MiB",
    "with 'quotes', é and 😀": b"a key is any text",
}
RANGES: list[tuple[str, ByteRequest]] = [
    ("shard", RangeByteRequest(100, 300)),
    ("shard", RangeByteRequest(1000, 90_000)),  # more than a block
    ("shard", OffsetByteRequest(99_000)),
    ("other shard", SuffixByteRequest(16)),
]
SHARDS = {"shard": bytes(range(250)) * 400, "other shard": b"shard" * 1000}
VALIDATORS = {"c/0/0": "e of c/0/0", "c/1/0": "e of c/1/0", "shard": "e of shard"}
"""Versions of values at the source; those of the others are not known. Since schema 2."""

CONFIRMED: list[tuple[str, ByteRequest | None]] = [("c/1/0", None), ("shard", RANGES[1][1])]
"""Of these, the source has said later that it still has the version."""

STORED = {"mine/zarr.json": b"stored by hand", "mine/c/0": b"\0" * 70_000}


SCHEMA = """
SELECT type, name, tbl_name, sql
FROM sqlite_schema
ORDER BY type, name
"""

# What scripts put into the tables, and what a file says of itself.
ROWS = {
    "namespace": "SELECT * FROM namespace",
    # Both are the time at which the file was made.
    "counter": "SELECT id, revision > 1.7e18, fence = revision FROM counter",
    "entry": "SELECT * FROM entry",
    "value": "SELECT * FROM value",
    "usage": "SELECT * FROM usage",
    "total": "SELECT * FROM total",
    "statistics": "SELECT * FROM statistics",
    # The identity is random.
    "data_file": "SELECT id, length(identity), length FROM data_file",
    "extent": "SELECT * FROM extent",
    "free_extent": "SELECT * FROM free_extent",
    "reservation": "SELECT * FROM reservation",
    "sampling": "SELECT * FROM sampling",
    "reuse": "SELECT * FROM reuse",
}
PRAGMAS = ["application_id", "user_version", "page_size", "auto_vacuum", "encoding"]


def printed(db: sqlite3.Connection) -> str:
    """The schema as text: of each object a line of its type, name and table, and then its SQL."""
    lines = []
    for kind, name, table, sql in db.execute(SCHEMA):
        lines.append(f"-- {kind} {name} of {table}\n{sql or '-- made by SQLite itself'}\n")
    for table, rows in ROWS.items():
        lines += [f"-- row of {table}: {row}" for row in db.execute(rows)]
    for pragma in PRAGMAS:
        (value,) = db.execute(f"PRAGMA {pragma}").fetchone()
        lines.append(f"-- {pragma}: {value}")
    return "\n".join([*lines, ""])


def source() -> CountingStore:
    """What the file is a cache of."""
    held = {**VALUES, **SHARDS}
    return CountingStore(MemoryStore({key: buffer(value) for key, value in held.items()}))


def cache(path: Path, of: CountingStore, **settings: Any) -> CacheStore:
    """A cache of it in the file."""
    return CacheStore(
        of,
        cache_store=SqliteStore(path),
        namespace="s3://bucket/hierarchy.zarr",
        max_age_absent_seconds="infinity",
        max_age_metadata_seconds="infinity",
        persist_ranges=True,
        **settings,
    )


def kept_file(version: int) -> Path:
    """Where the file of that schema is: packed, since most of it is zeros."""
    return FOLDER / f"file-{version:04d}.sqlite.gz"


def kept_schema(version: int) -> Path:
    """Where the text of that schema is."""
    return FOLDER / f"schema-{version:04d}.sql"


def kept_data_file(version: int) -> Path:
    """Where its data file is."""
    return FOLDER / f"file-{version:04d}.sqlite-data.gz"


def unpack(version: int, path: Path) -> None:
    """Put a copy of the file of that schema there, with its data file."""
    for packed, each in (
        (kept_file(version), path),
        (kept_data_file(version), data_file_of(path)),
    ):
        each.write_bytes(gzip.decompress(packed.read_bytes()))


def make() -> None:
    """Write what is to be kept of the newest schema."""
    with tempfile.TemporaryDirectory() as folder:
        new = SqliteStore(Path(folder, "new.sqlite"))
        new.get_sync("opened")
        new.close()
        with open_file(new.path) as db:
            kept_schema(migrate.newest()).write_text(printed(db), encoding="utf-8")
        path = Path(folder, "cache.sqlite")
        store = versioned(cache(path, source()), VALIDATORS)
        for key in VALUES:
            store.get_sync(key)
        for key, span in RANGES:
            store.get_sync(key, byte_range=span)
        store.get_sync("absent")
        store.delete_sync("deleted")
        store.flush()
        # Everything is stale to this one.
        later = versioned(cache(path, source(), max_age_seconds=1e-9), VALIDATORS)
        for confirmed, request in CONFIRMED:
            later.get_sync(confirmed, byte_range=request)
        stored = SqliteStore(path)
        for key, value in STORED.items():
            stored.set_sync(key, buffer(value))
        store.close()
        # Without the time, the same file packs to the same bytes.
        for packed, each in (
            (kept_file(migrate.newest()), path),
            (kept_data_file(migrate.newest()), data_file_of(path)),
        ):
            packed.write_bytes(gzip.compress(each.read_bytes(), mtime=0))


if __name__ == "__main__":
    make()
