"""What is stale is asked for conditionally, and metadata has an age of its own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from zarr.core.sync import sync
from zarr.storage import LocalStore

from tests.fakes import buffer, open_file, read, restart
from tests.freshness.origins import (
    NAMESPACE,
    SIZE,
    Asked,
    caching,
    document,
    settle,
    version,
    version_of,
)
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core import checksum

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import Store

    from tests.fakes import HeldTime
    from tests.freshness.origins import HttpOrigin, Origin

CHUNK, METADATA = "array/c/0", "array/zarr.json"
AGE = 10


def get(store: Store, key: str) -> bytes | None:
    return sync(read(store, key))


def get_stale(origin: Origin, cache: CacheStore, key: str, held: HeldTime) -> bytes | None:
    """The value once it is stale; `origin.asked()` tells what that took."""
    held.step(AGE + 1)
    cache.flush()
    origin.reset()
    return get(cache, key)


def revalidated(cache: CacheStore) -> object:
    return cache.cache_stats()["revalidated"]


@pytest.fixture
def cache(origin: Origin, path: Path, held_time: HeldTime) -> CacheStore:  # noqa: ARG001 - held before
    """A cache that has the first versions, which are stale after `AGE`."""
    origin.copy({CHUNK: version(1), METADATA: document(1)})
    cache = caching(origin, path, max_age_seconds=AGE)
    assert [get(cache, key) for key in (CHUNK, METADATA)] == [version(1), document(1)]
    return cache


def condition_of(origin: Origin) -> list[str]:
    """The request that asks whether a value is unchanged. A status of a file is none."""
    if not hasattr(origin, "server"):
        return []
    return ["HEAD"] if origin.asks_first else ["GET"]


def plain(origin: Origin, key: str) -> Asked:
    """What a read without a cache takes: s3fs asks for the size first."""
    origin.reset()
    get(origin.source, key)
    return origin.asked()


def test_unchanged_metadata_is_served_for_one_request_without_a_body(
    origin: Origin, cache: CacheStore, held_time: HeldTime
) -> None:
    assert get_stale(origin, cache, METADATA, held_time) == document(1)
    assert origin.asked() == (condition_of(origin), 0)
    assert revalidated(cache) == 1


def test_an_unchanged_chunk_is_served_for_one_request(
    origin: Origin, cache: CacheStore, held_time: HeldTime
) -> None:
    assert get_stale(origin, cache, CHUNK, held_time) == version(1)
    asked = origin.asked()
    # Whole chunks cost no request for a validator alone: so fsspec has none.
    requests = plain(origin, CHUNK) if origin.asks_first else (condition_of(origin), 0)
    assert asked == requests
    assert revalidated(cache) == (0 if origin.asks_first else 1)


@pytest.mark.parametrize("key", [CHUNK, METADATA])
def test_a_changed_value_is_fetched_once_it_is_stale(
    origin: Origin, cache: CacheStore, held_time: HeldTime, key: str
) -> None:
    origin.put(key, version_of(key, 2))
    before = get(cache, key)

    assert before == version_of(key, 1)
    assert get_stale(origin, cache, key, held_time) == version_of(key, 2)
    asked = origin.asked()
    more = ["HEAD"] if origin.asks_first and key == METADATA else []
    requests, nbytes = plain(origin, key)
    assert asked == (sorted(requests + more), nbytes)
    assert revalidated(cache) == 0


@pytest.mark.parametrize("key", [CHUNK, METADATA])
def test_a_stale_value_that_was_removed_is_absent(
    origin: Origin, cache: CacheStore, held_time: HeldTime, key: str
) -> None:
    origin.delete(key)

    assert get_stale(origin, cache, key, held_time) is None


def test_a_confirmed_value_is_fresh_for_another_age_also_after_a_restart(
    origin: Origin, path: Path, cache: CacheStore, held_time: HeldTime
) -> None:
    get_stale(origin, cache, METADATA, held_time)
    cache.flush()
    restart(cache)
    again = caching(origin, path, max_age_seconds=AGE)
    origin.reset()
    held_time.step(AGE - 1)

    assert get(again, METADATA) == document(1)
    assert origin.asked() == ([], 0)
    held_time.step(2)
    get(again, METADATA)
    assert origin.asked() == (condition_of(origin), 0)


def test_without_an_age_of_its_own_metadata_of_a_read_only_view_has_that_of_chunks(
    origin: Origin, path: Path, held_time: HeldTime
) -> None:
    origin.put(METADATA, document(1))
    cache = caching(origin, path)
    get(cache, METADATA)

    for _ in range(3):
        assert get_stale(origin, cache, METADATA, held_time) == document(1)
        assert origin.asked() == ([], 0)


def test_metadata_is_asked_for_once_each_time_its_age_has_passed_and_chunks_are_not(
    origin: Origin, path: Path, held_time: HeldTime
) -> None:
    origin.copy({CHUNK: version(1), METADATA: document(1)})
    cache = caching(origin, path, max_age_metadata_seconds=2)
    get(cache, CHUNK)
    get(cache, METADATA)
    origin.reset()
    asked = []
    for seconds in (1, 1.5, 1, 0.5, 1):
        held_time.step(seconds)
        get(cache, CHUNK)
        get(cache, METADATA)
        asked.append(origin.asked())
        origin.reset()

    nothing, once = Asked([], 0), Asked(condition_of(origin), 0)
    assert asked == [nothing, once, nothing, nothing, once]


def test_metadata_of_age_0_is_kept_and_revalidated(origin: Origin, path: Path) -> None:
    origin.put(METADATA, document(1))
    cache = caching(origin, path, max_age_metadata_seconds=0)
    get(cache, METADATA)
    cache.flush()
    origin.reset()

    assert [get(cache, METADATA) for _ in range(3)] == [document(1)] * 3
    assert origin.asked() == (condition_of(origin) * 3, 0)
    assert revalidated(cache) == 3
    origin.put(METADATA, document(2))
    assert get(cache, METADATA) == document(2)


def test_a_writable_view_goes_by_no_earlier_metadata(
    tmp_path: Path,
    path: Path,
    held_time: HeldTime,  # noqa: ARG001 - held before
) -> None:
    root = tmp_path / "source"
    source = LocalStore(root)
    cache = CacheStore(source, cache_store=SqliteStore(path))
    for number, key in enumerate((CHUNK, METADATA)):
        source.set_sync(key, buffer(version_of(key, 1)))
        settle(root / key, number)
        assert get(cache, key) == version_of(key, 1)
        source.set_sync(key, buffer(version_of(key, 2)))
        settle(root / key, number + 9)

    assert get(cache, METADATA) == document(2)
    assert get(cache, CHUNK) == version(1)
    assert get(cache.with_read_only(read_only=True), METADATA) == document(2)


def test_absent_metadata_is_asked_for_when_the_age_of_metadata_has_passed(
    origin: Origin, path: Path, held_time: HeldTime
) -> None:
    cache = caching(origin, path, max_age_metadata_seconds=AGE, max_age_absent_seconds="infinity")
    assert [get(cache, key) for key in (CHUNK, METADATA)] == [None, None]
    origin.copy({CHUNK: version(1), METADATA: document(1)})
    held_time.step(AGE - 1)

    assert [get(cache, key) for key in (CHUNK, METADATA)] == [None, None]
    held_time.step(2)
    assert [get(cache, key) for key in (CHUNK, METADATA)] == [None, document(1)]


@pytest.mark.parametrize("key", [CHUNK, METADATA])
def test_a_server_that_ignores_conditions_confirms_by_the_same_version(
    http: HttpOrigin, path: Path, held_time: HeldTime, key: str
) -> None:
    http.server.ignores_conditions = True
    http.put(key, version_of(key, 1))
    cache = caching(http, path, max_age_seconds=AGE)
    get(cache, key)

    assert get_stale(http, cache, key, held_time) == version_of(key, 1)
    http.put(key, version_of(key, 2))
    assert get_stale(http, cache, key, held_time) == version_of(key, 2)


@pytest.mark.parametrize("etags", ["weak", "odd", None])
@pytest.mark.parametrize("key", [CHUNK, METADATA])
def test_a_value_without_a_validator_is_fetched_whole(
    http: HttpOrigin, path: Path, held_time: HeldTime, etags: str | None, key: str
) -> None:
    http.server.etags = etags  # type: ignore[assignment] # one of its kinds
    http.server.tells_modified = etags is not None
    http.put(key, version_of(key, 1))
    cache = caching(http, path, max_age_seconds=AGE)
    get(cache, key)

    assert get_stale(http, cache, key, held_time) == version_of(key, 1)
    assert http.asked().nbytes == SIZE
    assert revalidated(cache) == 0


@pytest.mark.parametrize(("seconds", "is_validator"), [(61, True), (59, False)])
def test_last_modified_is_a_validator_if_it_was_a_minute_ago(
    http: HttpOrigin, path: Path, held_time: HeldTime, seconds: int, is_validator: bool
) -> None:
    http.server.etags = None
    now = datetime.fromtimestamp(held_time.wall_ns // 10**9, UTC)
    http.server.put(METADATA, document(1), modified=now - timedelta(seconds=seconds))
    cache = caching(http, path, max_age_seconds=AGE)
    get(cache, METADATA)

    assert get_stale(http, cache, METADATA, held_time) == document(1)
    assert http.asked().nbytes == (0 if is_validator else SIZE)


def test_values_of_a_file_without_validators_are_fetched_whole_once_and_then_have_one(
    origin: Origin, path: Path, cache: CacheStore, held_time: HeldTime
) -> None:
    forget_validators(path, cache)
    again = caching(origin, path, max_age_seconds=AGE)
    origin.reset()

    assert get(again, METADATA) == document(1)
    assert origin.asked() == ([], 0)
    assert get_stale(origin, again, METADATA, held_time) == document(1)
    assert origin.asked().nbytes == SIZE
    assert get_stale(origin, again, METADATA, held_time) == document(1)
    assert origin.asked().nbytes == 0


def forget_validators(path: Path, cache: CacheStore) -> None:
    """Let the file be as an earlier release has left it."""
    restart(cache)
    facts = "SELECT entry.id, entry.key, entry.kind, size, stored_at FROM entry"
    with open_file(path) as db:
        for entry, key, kind, size, stored_at in db.execute(facts).fetchall():
            own = checksum.of_facts(NAMESPACE, key, kind, size, stored_at)
            db.execute("UPDATE entry SET validator = NULL, checksum = ? WHERE id = ?", (own, entry))
        db.commit()
