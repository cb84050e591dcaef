"""What stays cached of which version: beside later responses, and when it is stale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from zarr.abc.store import RangeByteRequest
from zarr.core.sync import sync

from tests.fakes import file_cache, read, restart
from tests.freshness.origins import NAMESPACE, caching, over_http, over_local_store, version
from tests.sources.http_server import through_obstore
from zarr_cache.backend.ranges import RangeCache, RangeEntry
from zarr_cache.core.ages import EVER
from zarr_cache.core.flow import run
from zarr_cache.index.admit import Admission, Response
from zarr_cache.warming.revalidate import check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fakes import HeldTime

KEY = "c/0"
FIRST, SECOND = RangeByteRequest(0, 100), RangeByteRequest(1000, 1100)


def test_a_stale_value_with_a_validator_does_not_expire(
    tmp_path: Path, path: Path, held_time: HeldTime
) -> None:
    (tmp_path / "source").mkdir()
    with over_local_store(tmp_path / "source") as origin:
        origin.copy({KEY: version(1), "c/1": version(1)})
        cache = caching(origin, path, max_age_seconds=10)
        sync(read(cache, KEY))
        held_time.step(11)
        sync(read(cache, "c/1"))
        cache.flush()
        origin.reset()

        assert sync(read(cache, KEY)) == version(1)
        assert origin.asked() == ([], 0)
        stats = cache.cache_stats()
        assert (stats["expirations"], stats["revalidated"]) == (0, 1)
        restart(cache)


def test_what_was_cached_as_absent_is_asked_for_after_a_revalidation(path: Path) -> None:
    with over_http(through_obstore, asks_first=False) as origin:
        origin.copy({KEY: version(1)})
        cache = caching(origin, path)
        assert sync(read(cache, "c/1")) is None
        origin.reset()
        assert sync(read(cache, "c/1")) is None
        assert origin.asked().requests == []

        assert sync(check(cache._view, "", dry_run=False)).absences == 1
        origin.reset()
        assert sync(read(cache, "c/1")) is None
        assert origin.asked().requests == ["GET"]
        restart(cache)


def test_after_a_revalidation_other_parts_of_a_changed_value_are_read(path: Path) -> None:
    with over_http(through_obstore, asks_first=False) as origin:
        origin.copy({KEY: version(1)})
        cache = caching(origin, path, persist_ranges=True)
        assert sync(read(cache, KEY, FIRST)) == version(1)[:100]
        origin.put(KEY, version(2))
        assert sync(check(cache._view, "", dry_run=False)).changed == 1

        assert sync(read(cache, KEY, SECOND)) == version(2)[:100]
        restart(cache)


type Admit = Callable[[RangeByteRequest, int, str], None]
"""Admits a range: which bytes, when they were requested, and of which version they are."""

type Cached = Callable[[], dict[int | None, str | None]]
"""Where the cached ranges begin, and the version of all."""


@pytest.fixture(params=["memory", "file"])
def ranges(request: pytest.FixtureRequest, path: Path, tmp_path: Path) -> tuple[Admit, Cached]:
    """Ranges of a key, as they come from the source in whatever order."""
    return in_memory() if request.param == "memory" else in_file(path, tmp_path)


def in_memory() -> tuple[Admit, Cached]:
    cache = RangeCache()

    def admit(request: RangeByteRequest, stored_at: int, validator: str) -> None:
        entry = RangeEntry(NAMESPACE, KEY, request, bytes(100), stored_at, 0, stored_at, validator)
        cache.add(entry, fence=0)

    def cached() -> dict[int | None, str | None]:
        kept = cache.kept_version(NAMESPACE, KEY, fence=0)
        spans = cache.list_spans(NAMESPACE, "", EVER)[KEY]
        return {span.start: kept and kept.validator for span in spans}

    return admit, cached


def in_file(path: Path, folder: Path) -> tuple[Admit, Cached]:
    (folder / "source").mkdir()
    with over_local_store(folder / "source") as origin:
        store = caching(origin, path, persist_ranges=True)
    sync(read(store, "absent"))
    values = file_cache(store)

    def admit(request: RangeByteRequest, stored_at: int, validator: str) -> None:
        state = values.lookup_metadata_nowait(NAMESPACE, KEY)
        data = np.zeros(100, np.uint8)
        response = Response(data, stored_at, stored_at, state.revision, request, validator)
        limits = store._view.limits()
        values.admit_now(Admission(NAMESPACE, KEY, response, limits, lambda _: None))

    def cached() -> dict[int | None, str | None]:
        kept = values.kept_version(NAMESPACE, KEY, values.lookup_metadata_nowait(NAMESPACE, KEY))
        listed = run(values.list_ranges(NAMESPACE, "", EVER))[KEY]
        return {each.span.start: kept and kept.validator for each in listed}

    return admit, cached


def test_a_range_of_a_later_version_replaces_those_of_an_earlier_one(
    ranges: tuple[Admit, Cached],
) -> None:
    admit, cached = ranges
    admit(FIRST, 5, "one")
    admit(SECOND, 10, "two")

    assert cached() == {1000: "two"}


def test_a_range_of_an_earlier_version_that_comes_late_is_refused(
    ranges: tuple[Admit, Cached],
) -> None:
    admit, cached = ranges
    admit(SECOND, 10, "two")
    admit(FIRST, 5, "one")

    assert cached() == {1000: "two"}
