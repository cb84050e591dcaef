"""A file of every schema there has been is opened by the code of today, and nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fakes import open_file, restart
from tests.upgrade.kept import (
    FOLDER,
    RANGES,
    SHARDS,
    STORED,
    VALUES,
    cache,
    kept_data_file,
    kept_file,
    source,
    unpack,
)
from zarr_cache import SqliteStore
from zarr_cache.file import migrate

if TYPE_CHECKING:
    from pathlib import Path

VERSIONS = [version for version, _ in migrate.scripts()]


def test_a_file_of_every_schema_is_kept() -> None:
    kept = [kept(version) for version in VERSIONS for kept in (kept_data_file, kept_file)]

    assert sorted(FOLDER.glob("file-*")) == sorted(kept)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_kept_file_has_the_schema_that_it_is_kept_for(path: Path, version: int) -> None:
    unpack(version, path)
    with open_file(path) as db:
        found = db.execute("PRAGMA user_version").fetchone()

    assert found == (version,)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_a_kept_file_holds_is_read(path: Path, version: int) -> None:
    unpack(version, path)
    behind = source()
    store = cache(path, behind)
    found = {key: store.get_sync(key) for key in VALUES}
    ranges = [store.get_sync(key, byte_range=span) for key, span in RANGES]
    absent = store.get_sync("absent")
    stored = {key: SqliteStore(path).get_sync(key) for key in STORED}
    restart(store)

    assert {key: value.to_bytes() for key, value in found.items() if value is not None} == VALUES
    assert {key: value.to_bytes() for key, value in stored.items() if value is not None} == STORED
    assert [value.to_bytes() for value in ranges if value is not None] == [
        SHARDS["shard"][100:300],
        SHARDS["shard"][1000:90_000],
        SHARDS["shard"][99_000:],
        SHARDS["other shard"][-16:],
    ]
    assert absent is None
    assert behind.requests.total() == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_a_kept_file_becomes_one_of_today(path: Path, version: int) -> None:
    unpack(version, path)
    problems = list(SqliteStore(path).verify())
    with open_file(path) as db:
        found = db.execute("PRAGMA user_version").fetchone()

    assert problems == []
    assert found == (migrate.newest(),)
