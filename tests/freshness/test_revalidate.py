"""`revalidate`: what has changed is removed, and the age of the rest begins anew."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import zarr
from typer.testing import CliRunner
from zarr.abc.store import RangeByteRequest
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from tests.fakes import cached_keys, cached_ranges, end_everything, file_cache, read, restart
from tests.freshness.origins import (
    NAMESPACE,
    HttpOrigin,
    S3Origin,
    caching,
    over_local_store,
    version,
)
from zarr_cache import CacheStore, SqliteStore, revalidate
from zarr_cache.cli import app
from zarr_cache.core.flow import run_async
from zarr_cache.warming.revalidate import check

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import HeldTime
    from tests.freshness.origins import Origin

AGE = 10
SAME, CHANGED, DELETED, ABSENT = (f"array/c/{number}" for number in range(4))
METADATA = "array/zarr.json"
FIRST = RangeByteRequest(0, 100)
SHARD = "array/c/9"


@pytest.fixture
def document() -> bytes:
    """Metadata of an array, so that it can be opened."""
    store = MemoryStore()
    zarr.create_array(store, name="array", shape=(40960,), chunks=(4096,), dtype="u1", filters=[])
    return store._store_dict[METADATA].to_bytes()


@pytest.fixture(params=[False, True], ids=["in memory", "persisted"])
def persist(request: pytest.FixtureRequest) -> bool:
    """Whether ranges are kept in the file."""
    return bool(request.param)


@pytest.fixture
def cache(
    origin: Origin, path: Path, held_time: HeldTime, persist: bool, document: bytes
) -> CacheStore:
    """A cache of which all is stale, of a source that has changed."""
    keys = (SAME, CHANGED, DELETED, SHARD)
    origin.copy({METADATA: document, **{key: version(1) for key in keys}})
    cache = caching(origin, path, max_age_seconds=AGE, persist_ranges=persist)
    for key in (METADATA, SAME, CHANGED, DELETED, ABSENT):
        sync(read(cache, key))
    sync(read(cache, SHARD, FIRST))
    cache.flush()
    held_time.step(AGE + 1)
    for key in (CHANGED, SHARD):
        origin.put(key, version(2))
    origin.delete(DELETED)
    origin.reset()
    return cache


def validators(cache: CacheStore) -> set[str]:
    """The keys of the whole values that have a validator: through fsspec only metadata has one."""
    cache.flush()
    rows = sync(listed(cache))
    return {row.key for row in rows if row.kind == "value" and row.validator}


async def listed(cache: CacheStore) -> list[Any]:
    view = cache._view
    rows: list[Any] = await run_async(view.values.list_versions(view.namespace, ""))
    return rows


def test_what_has_changed_is_removed_and_the_rest_is_fresh(
    origin: Origin, path: Path, cache: CacheStore
) -> None:
    known = validators(cache)
    array = zarr.open_array(cache, path="array", mode="r", zarr_format=3)
    origin.reset()
    report = revalidate(array)
    cache.flush()
    asked = origin.asked()

    assert asked.nbytes in {0, 1}
    assert report.checked == 5
    assert report.absences == 1
    # A server's clock is later than the one that stands still: what has a date only, has changed.
    is_dated = isinstance(origin, S3Origin) and origin.asks_first
    unknown = without_validator(origin)
    assert not {CHANGED, DELETED, SHARD} & cached_keys(path) - unknown
    assert cached_ranges(path) == []
    assert len(file_cache(cache).ranges) == 0
    assert report.changed == len({CHANGED, DELETED, SHARD} - unknown) + is_dated
    assert report.unchanged == len({METADATA, SAME} & known)
    assert report.without_validator == 5 - report.changed - report.unchanged
    origin.reset()
    for key in {METADATA, SAME} & known:
        assert sync(read(cache, key)) is not None
    assert origin.asked() == ([], 0)


def without_validator(origin: Origin) -> set[str]:
    """Keys of which it is not known whether they have changed: plain HTTP through fsspec."""
    is_blind = origin.asks_first and isinstance(origin, HttpOrigin)
    return {CHANGED, DELETED, SAME} if is_blind else set()


def test_a_source_that_lists_versions_is_asked_for_a_page_and_another_for_each_key(
    origin: Origin, cache: CacheStore
) -> None:
    sync(check(cache._view, "array/", dry_run=False))
    asked = origin.asked()

    if isinstance(origin, S3Origin):
        assert asked == (["LIST"], 0)
    elif isinstance(origin, HttpOrigin):
        assert {*asked.requests} <= {"GET", "HEAD"}
        assert len(asked.requests) <= 6
    else:
        assert asked == ([], 0)


def test_a_dry_run_tells_the_same_and_changes_nothing(
    origin: Origin, path: Path, cache: CacheStore
) -> None:
    before = cached_keys(path)
    told = sync(check(cache._view, "", dry_run=True))
    cache.flush()

    assert cached_keys(path) == before
    assert told.is_dry_run
    origin.reset()
    sync(read(cache, METADATA))
    assert len(origin.asked().requests) == (1 if hasattr(origin, "server") else 0)
    done = sync(check(cache._view, "", dry_run=False))
    assert (done.checked, done.changed, done.absences) == (
        told.checked,
        told.changed,
        told.absences,
    )
    assert not done.is_dry_run


def test_an_absence_is_asked_for_again(origin: Origin, cache: CacheStore) -> None:
    origin.put(ABSENT, version(3))
    held = sync(check(cache._view, "", dry_run=False))

    assert held.absences == 1
    assert sync(read(cache, ABSENT)) == version(3)


def test_only_what_is_below_the_prefix_is_checked(origin: Origin, cache: CacheStore) -> None:
    origin.put("other/c/0", version(1))
    sync(read(cache, "other/c/0"))
    cache.flush()

    assert sync(check(cache._view, "other/", dry_run=True)).checked == 1
    below = sync(check(cache._view, "array/", dry_run=True)).checked
    assert sync(check(cache._view, "", dry_run=True)).checked == below + 1


def test_a_failure_of_the_source_is_raised_and_nothing_is_removed(
    http: HttpOrigin,
    path: Path,
    held_time: HeldTime,  # noqa: ARG001 - held before
    document: bytes,
) -> None:
    http.put(METADATA, document)
    cache = caching(http, path)
    sync(read(cache, METADATA))
    cache.flush()
    http.server.fault = "down"

    with pytest.raises(Exception):  # noqa: B017, PT011 - each client has errors of its own
        sync(check(cache._view, "", dry_run=False))
    assert cached_keys(path) == {METADATA}


def test_an_offline_store_is_refused(tmp_path: Path, path: Path, document: bytes) -> None:
    with over_local_store(tmp_path) as origin:
        origin.put(METADATA, document)
        cache = caching(origin, path)
        zarr.open_array(cache, path="array", mode="r", zarr_format=3)
        restart(cache)
        offline = caching(origin, path, offline=True)
        array = zarr.open_array(offline, path="array", mode="r", zarr_format=3)

        with pytest.raises(ValueError, match="offline"):
            revalidate(array)


@pytest.mark.parametrize("namespace", [None, NAMESPACE])
def test_the_command_reports_and_removes(tmp_path: Path, path: Path, namespace: str | None) -> None:
    (tmp_path / "source").mkdir()
    chosen = [] if namespace is None else ["--namespace", namespace]
    with over_local_store(tmp_path / "source") as origin:
        origin.copy({SAME: version(1), CHANGED: version(1)})
        source = LocalStore(tmp_path / "source", read_only=True)
        cache = CacheStore(source, cache_store=SqliteStore(path), namespace=namespace)
        for key in (SAME, CHANGED):
            sync(read(cache, key))
        end_everything()
        origin.put(CHANGED, version(2))
    command = ["revalidate", str(tmp_path / "source"), "--cache-file", str(path), *chosen]
    dry = CliRunner().invoke(app, [*command, "--dry-run"])
    after_dry = cached_keys(path)
    done = CliRunner().invoke(app, [*command, "--json"])
    end_everything()

    assert dry.output == (
        "2 checked: 1 unchanged, 1 changed (would be removed), 0 without a validator (left as "
        "they are); 0 absences would be forgotten\n"
    )
    assert after_dry == {SAME, CHANGED}
    assert json.loads(done.output)["changed"] == 1
    assert cached_keys(path) == {SAME}
