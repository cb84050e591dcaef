"""A value that is replaced between two reads of parts of it: no reader gets parts of both."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.core.sync import sync
from zarr.storage import LocalStore

from tests.fakes import (
    PROTOTYPE,
    buffer,
    cached_ranges,
    file_cache,
    leave_process,
    read,
    read_ranges,
    restart,
)
from tests.freshness.origins import caching, settle, version
from tests.freshness.tasks import Task
from zarr_cache import CacheStore, SourceChangedError, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import Store

    from tests.fakes import HeldTime
    from tests.freshness.origins import Origin

KEY = "array/c/0/0"
FIRST, SECOND, THIRD = (RangeByteRequest(start, start + 100) for start in (0, 1000, 2000))
ONE, TWO = version(1)[:100], version(2)[:100]

METADATA_AGE = 10
"""Sources that are not asked for one version are asked again after so many seconds."""


def get(store: Store, request: RangeByteRequest) -> bytes | None:
    return sync(read(store, KEY, request))


def get_ranges(store: Store, request: RangeByteRequest) -> bytes | None:
    return sync(read_ranges(store, KEY, [request]))[0]


def get_sync(store: Any, request: RangeByteRequest) -> bytes | None:
    found = store.get_sync(KEY, byte_range=request)
    return None if found is None else found.to_bytes()


def get_ranges_sync(store: Store, request: RangeByteRequest) -> bytes | None:
    ((_, found),) = store.get_ranges_sync(KEY, [request], prototype=PROTOTYPE)
    return None if found is None else found.to_bytes()


type Get = Callable[[Store, RangeByteRequest], bytes | None]


@pytest.fixture(params=[get, get_ranges, get_sync, get_ranges_sync], ids=lambda get: get.__name__)
def part(request: pytest.FixtureRequest) -> Any:
    """Each way to read a part of a value."""
    return request.param


@pytest.fixture(params=[False, True], ids=["in memory", "persisted"])
def persist(request: pytest.FixtureRequest) -> bool:
    """Whether ranges are kept in the file."""
    return bool(request.param)


@pytest.fixture
def cache(origin: Origin, path: Path, persist: bool, held_time: HeldTime) -> Any:  # noqa: ARG001 - held before
    origin.put(KEY, version(1))
    return caching(origin, path, persist_ranges=persist, max_age_metadata_seconds=METADATA_AGE)


def error_of(part: Get, store: Store, request: RangeByteRequest) -> SourceChangedError:
    """The error of a read of a value that was changed: from `get_ranges` in a group, as zarr's."""
    with pytest.raises((SourceChangedError, ExceptionGroup)) as raised:
        part(store, request)
    error = raised.value
    is_group = part in {get_ranges, get_ranges_sync}
    assert isinstance(error, ExceptionGroup) == is_group
    if isinstance(error, ExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, SourceChangedError)
    return error


@pytest.mark.pairs
def test_a_part_of_another_version_than_the_one_before_is_refused_once(
    origin: Origin, cache: Store, part: Get, held_time: HeldTime
) -> None:
    assert part(cache, FIRST) == ONE
    origin.put(KEY, version(2))
    held_time.step(METADATA_AGE + 1)

    error = error_of(part, cache, SECOND)
    assert error.key == KEY
    assert repr(KEY) in str(error)
    assert [part(cache, each) for each in (FIRST, SECOND, THIRD)] == [TWO] * 3


def test_cached_and_missing_parts_of_one_read_are_of_one_version(
    origin: Origin, cache: Store, held_time: HeldTime
) -> None:
    assert get(cache, FIRST) == ONE
    origin.put(KEY, version(2))
    held_time.step(METADATA_AGE + 1)

    try:
        # A source that cannot be asked for one version is asked before anything is served.
        found = sync(read_ranges(cache, KEY, [FIRST, SECOND]))
    except ExceptionGroup as group:
        kinds = [type(each) for each in group.exceptions]
        assert (str(group), kinds) == ("chunk read failed (1 sub-exception)", [SourceChangedError])  # noqa: PT017 - or none
        found = sync(read_ranges(cache, KEY, [FIRST, SECOND]))

    assert found == [TWO, TWO]


def test_parts_that_only_the_file_has_are_not_mixed_with_another_version(
    origin: Origin, path: Path, part: Get
) -> None:
    origin.put(KEY, version(1))
    before = caching(origin, path, persist_ranges=True)
    assert part(before, FIRST) == ONE
    restart(before)
    origin.put(KEY, version(2))
    after = caching(origin, path, persist_ranges=True)

    error_of(part, after, SECOND)
    assert [part(after, each) for each in (FIRST, SECOND)] == [TWO] * 2


@pytest.mark.pairs
@pytest.mark.parametrize("missing", [SECOND, THIRD], ids=["cached since", "cached nowhere"])
def test_a_part_that_another_process_has_replaced_is_refused_once(
    origin: Origin, path: Path, part: Get, held_time: HeldTime, missing: RangeByteRequest
) -> None:
    origin.put(KEY, version(1))
    settings = {"persist_ranges": True, "max_age_metadata_seconds": METADATA_AGE}
    one = caching(origin, path, **settings)
    assert part(one, FIRST) == ONE
    one.flush()
    leave_process(one)
    other = caching(origin, path, **settings)
    origin.put(KEY, version(2))
    held_time.step(METADATA_AGE + 1)

    error_of(part, other, SECOND)
    assert [part(other, each) for each in (FIRST, SECOND)] == [TWO] * 2
    other.flush()
    error_of(part, one, missing)
    assert [part(one, each) for each in (FIRST, SECOND, THIRD)] == [TWO] * 3
    restart(other)


def test_stale_parts_of_which_none_was_served_here_are_replaced_without_an_error(
    origin: Origin, path: Path, part: Get, held_time: HeldTime
) -> None:
    origin.put(KEY, version(1))
    before = caching(origin, path, persist_ranges=True, max_age_seconds=100)
    assert part(before, FIRST) == ONE
    restart(before)
    origin.put(KEY, version(2))
    held_time.step(101)
    after = caching(origin, path, persist_ranges=True, max_age_seconds=100)

    assert [part(after, each) for each in (SECOND, FIRST)] == [TWO] * 2


@pytest.mark.pairs
def test_nothing_is_raised_if_no_part_was_kept(
    origin: Origin, cache: Store, part: Get, held_time: HeldTime
) -> None:
    assert part(cache, FIRST) == ONE
    sync(cache.clear_cache())  # type: ignore[attr-defined] # a CacheStore
    origin.put(KEY, version(2))
    held_time.step(METADATA_AGE + 1)

    assert [part(cache, each) for each in (SECOND, FIRST)] == [TWO] * 2


@pytest.mark.pairs
def test_a_value_that_was_removed_is_absent_and_no_part_of_it_is_left(
    origin: Origin, cache: Store, part: Get, held_time: HeldTime
) -> None:
    assert part(cache, FIRST) == ONE
    origin.delete(KEY)
    held_time.step(METADATA_AGE + 1)

    error_of(part, cache, SECOND)
    assert [get(cache, each) for each in (FIRST, SECOND)] == [None, None]


def test_parts_of_the_earlier_version_leave_the_file_the_queue_and_the_memory(
    origin: Origin, path: Path, persist: bool, held_time: HeldTime
) -> None:
    origin.put(KEY, version(1))
    settings = {"persist_ranges": persist, "max_age_metadata_seconds": METADATA_AGE}
    cache = caching(origin, path, **settings)
    assert get(cache, FIRST) == ONE
    cache.flush()
    assert get(cache, THIRD) == ONE
    origin.put(KEY, version(2))
    held_time.step(METADATA_AGE + 1)
    error_of(get, cache, SECOND)
    cache.flush()

    assert len(file_cache(cache).ranges) == 0
    assert cached_ranges(path) == []


@pytest.mark.pairs
@pytest.mark.parametrize("part", [get_sync, get_ranges_sync], ids=lambda get: get.__name__)
def test_every_thread_that_has_a_part_of_the_earlier_version_is_told(
    origin: Origin, cache: Store, part: Get, held_time: HeldTime
) -> None:
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        assert one.submit(part, cache, FIRST).result() == ONE
        assert other.submit(part, cache, FIRST).result() == ONE
        origin.put(KEY, version(2))
        held_time.step(METADATA_AGE + 1)

        one.submit(error_of, part, cache, SECOND).result()
        other.submit(error_of, part, cache, SECOND).result()
        assert one.submit(part, cache, SECOND).result() == TWO
        assert other.submit(part, cache, SECOND).result() == TWO


@pytest.mark.parametrize("write", ["set", "set_sync"])
def test_a_caller_who_replaces_a_value_reads_parts_of_it_without_an_error(
    path: Path, tmp_path: Path, persist: bool, write: str
) -> None:
    source = LocalStore(tmp_path / "source")
    settings: Any = {"persist_ranges": persist, "cache_set_data": False}
    cache = CacheStore(source, cache_store=SqliteStore(path), **settings)
    source.set_sync(KEY, buffer(version(1)))
    settle(tmp_path / "source" / KEY, 1)
    assert get(cache, FIRST) == ONE
    if write == "set":
        sync(cache.set(KEY, buffer(version(2))))
    else:
        cache.set_sync(KEY, buffer(version(2)))

    assert [get(cache, each) for each in (SECOND, FIRST)] == [TWO] * 2


@pytest.mark.pairs
@pytest.mark.parametrize("missing", [SECOND, THIRD], ids=["the same part", "another part"])
def test_every_task_that_has_a_part_of_the_earlier_version_is_told(
    origin: Origin, cache: Store, held_time: HeldTime, missing: RangeByteRequest
) -> None:
    one, other = Task(), Task()
    assert one(read(cache, KEY, FIRST)) == ONE
    assert other(read_ranges(cache, KEY, [FIRST])) == [ONE]
    origin.put(KEY, version(2))
    held_time.step(METADATA_AGE + 1)
    with pytest.raises(SourceChangedError):
        one(read(cache, KEY, SECOND))
    assert [one(read(cache, KEY, each)) for each in (FIRST, SECOND)] == [TWO, TWO]

    with pytest.raises(ExceptionGroup) as told:
        other(read_ranges(cache, KEY, [missing]))
    assert [type(each) for each in told.value.exceptions] == [SourceChangedError]
    assert other(read_ranges(cache, KEY, [FIRST, missing])) == [TWO, TWO]
    one.end()
    other.end()


def test_a_thread_that_begins_anew_may_have_the_later_version(
    origin: Origin, cache: Store, held_time: HeldTime
) -> None:
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for thread in (one, other):
            assert [thread.submit(get_sync, cache, each).result() for each in (FIRST, SECOND)]
        origin.put(KEY, version(2))
        held_time.step(METADATA_AGE + 1)
        one.submit(error_of, get_sync, cache, THIRD).result()

        # As for the index of a shard, which is read before its parts.
        assert [other.submit(get_sync, cache, each).result() for each in (FIRST, SECOND)] == [
            TWO,
            TWO,
        ]


def test_a_reader_that_was_told_begins_anew_and_is_told_of_the_next_change(
    origin: Origin, path: Path, held_time: HeldTime
) -> None:
    settings = {"persist_ranges": True, "max_age_metadata_seconds": METADATA_AGE}
    one = caching(origin, path, **settings)
    leave_process(one)
    other = caching(origin, path, **settings)

    def replace(number: int) -> None:
        origin.put(KEY, version(number))
        held_time.step(METADATA_AGE + 1)
        for request in (RangeByteRequest(3000, 3000 + number), FIRST, SECOND):
            with suppress(SourceChangedError):
                get(other, request)
        other.flush()

    replace(1)
    assert get_sync(one, FIRST) == ONE
    replace(2)
    error_of(get_sync, one, SECOND)
    assert get_sync(one, FIRST) == TWO
    replace(3)

    error_of(get_sync, one, SECOND)
    restart(other)
