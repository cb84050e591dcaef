"""A file of every schema there has been is opened by the code of today, and nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import RangeByteRequest

from tests.fakes import CachedRange, cached_ranges, open_file, restart, versioned
from tests.systems import needs_data_file
from tests.upgrade.kept import (
    CONFIRMED,
    FOLDER,
    RANGES,
    SHARDS,
    STORED,
    VALIDATORS,
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

    from zarr.abc.store import ByteRequest

    from tests.fakes import HeldTime

VERSIONS = [version for version, _ in migrate.scripts()]

EVERYTHING: list[tuple[str, ByteRequest | None]] = [*((key, None) for key in VALUES), *RANGES]
VERSIONED = [(key, request) for key, request in EVERYTHING if key in VALIDATORS]


def test_a_file_of_every_schema_is_kept() -> None:
    kept = [kept(version) for version in VERSIONS for kept in (kept_data_file, kept_file)]

    assert sorted(FOLDER.glob("file-*")) == sorted(kept)


@needs_data_file
@pytest.mark.parametrize("version", VERSIONS)
def test_a_kept_file_has_the_schema_that_it_is_kept_for(path: Path, version: int) -> None:
    unpack(version, path)
    with open_file(path) as db:
        found = db.execute("PRAGMA user_version").fetchone()

    assert found == (version,)


@needs_data_file
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


@needs_data_file
@pytest.mark.parametrize("version", VERSIONS)
def test_a_kept_file_becomes_one_of_today(path: Path, version: int) -> None:
    unpack(version, path)
    problems = list(SqliteStore(path).verify())
    with open_file(path) as db:
        found = db.execute("PRAGMA user_version").fetchone()

    assert problems == []
    assert found == (migrate.newest(),)


@needs_data_file
def test_what_a_file_of_schema_1_holds_is_served_to_a_source_that_tells_versions(
    path: Path,
) -> None:
    unpack(1, path)
    behind = source()
    store = versioned(cache(path, behind), VALIDATORS)
    found = {key: store.get_sync(key) for key in VALUES}
    ranges = [store.get_sync(key, byte_range=span) for key, span in RANGES]
    restart(store)

    assert {key: value.to_bytes() for key, value in found.items() if value is not None} == VALUES
    assert None not in ranges
    assert behind.requests.total() == 0


@needs_data_file
def test_a_range_of_a_known_version_replaces_those_of_schema_1(path: Path) -> None:
    unpack(1, path)
    store = versioned(cache(path, source()), VALIDATORS)
    more = store.get_sync("shard", byte_range=RangeByteRequest(500, 600))
    store.flush()
    left = [(key, start, stop) for key, start, stop in cached_ranges(path)]
    again = [store.get_sync("shard", byte_range=span) for key, span in RANGES if key == "shard"]

    assert more is not None
    assert more.to_bytes() == SHARDS["shard"][500:600]
    assert left == [("other shard", -16, None), CachedRange("shard", 500, 600)]
    assert [value.to_bytes() for value in again if value is not None] == [
        SHARDS["shard"][100:300],
        SHARDS["shard"][1000:90_000],
        SHARDS["shard"][99_000:],
    ]


@needs_data_file
def test_a_source_that_has_the_versions_of_a_kept_file_sends_none_of_them_again(path: Path) -> None:
    unpack(2, path)
    behind = source()
    # Everything is stale.
    store = versioned(cache(path, behind, max_age_seconds=1e-9), VALIDATORS)
    for key, request in VERSIONED:
        assert store.get_sync(key, byte_range=request) is not None

    assert behind.requests.total() == 0
    assert store.cache_stats()["revalidated"] == len(VERSIONED)


@needs_data_file
def test_an_entry_of_a_kept_file_is_as_old_as_its_last_confirmation(
    path: Path, held_time: HeldTime
) -> None:
    unpack(2, path)
    with open_file(path) as db:
        (first,) = db.execute("SELECT min(confirmed_at) FROM entry").fetchone()
    held_time.wall_ns = first + 10**9
    behind = source()
    store = cache(path, behind, max_age_seconds=(held_time.wall_ns - first + 10**6) / 10**9)
    fresh = []
    for key, request in VERSIONED:
        behind.reset()
        assert store.get_sync(key, byte_range=request) is not None
        if not behind.keys:
            fresh.append((key, request))

    assert fresh == CONFIRMED
