"""The parameters of CacheStore: what is accepted, and what is refused with which message."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from zarr.abc.store import RangeByteRequest
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore, WrapperStore

from tests.fakes import CountingStore, buffer, cached_keys, read, restart
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.file.file_database import FileDatabase

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr.abc.store import Store

    from tests.fakes import HeldTime

AGES = ["max_age_seconds", "max_age_metadata_seconds", "max_age_absent_seconds"]


def caching(path: Path, **options: Any) -> CacheStore:
    return CacheStore(MemoryStore(), cache_store=SqliteStore(path), **options)


@pytest.mark.parametrize("name", AGES)
@pytest.mark.parametrize("age", [0, 1, 0.5, 10**12, math.inf, "infinity", None, np.float64(2)])
def test_an_age_is_a_number_infinity_or_none(path: Path, name: str, age: Any) -> None:
    store = caching(path, **{name: age})

    assert getattr(store, name) == age
    assert store.cache_info()[name] == age


NO_AGES = [
    (10**400, ValueError, "is longer than can be counted"),
    *(
        (age, ValueError, f"must not be negative or NaN, got {age!r}$")
        for age in (-1, -0.5, -math.inf, math.nan)
    ),
    *(
        (age, ValueError, f"string value must be 'infinity': .* or None, got {age!r}$")
        for age in ("forever", "", "10", "Infinity")
    ),
    *((age, TypeError, "must be .*, got ") for age in (b"1", [1], 1j)),
]


@pytest.mark.parametrize("name", AGES)
@pytest.mark.parametrize(("age", "error", "message"), NO_AGES, ids=lambda each: str(each)[:20])
def test_what_is_no_age_is_refused_by_name_and_value(
    path: Path, name: str, age: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{name} {message}"):
        caching(path, **{name: age})


@pytest.mark.parametrize("max_size", [0, 1, 2**40, None])
def test_a_budget_is_bytes_or_none(path: Path, max_size: int | None) -> None:
    store = caching(path, max_size=max_size)

    assert store.max_size == store.cache_info()["max_size"] == max_size


@pytest.mark.parametrize("max_size", ["1 XB", math.nan, 1.5, -1, -(2**40)])
def test_what_is_no_number_of_bytes_is_refused(path: Path, max_size: Any) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=r"^max_size must (be|not be negative).*, got "
    ):
        caching(path, max_size=max_size)


@pytest.mark.parametrize(
    ("namespace", "error", "message"),
    [("", ValueError, "must not be empty"), (3, TypeError, r"must be .*, got 3$")],
)
def test_what_is_no_namespace_is_refused(
    path: Path, namespace: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^namespace {message}"):
        caching(path, namespace=namespace)


def test_a_namespace_that_is_given_is_taken(path: Path) -> None:
    store = caching(path, namespace="era5")

    assert store.namespace == store.cache_info()["namespace"] == "era5"


def test_sources_that_do_not_outlive_the_process_have_namespaces_of_their_own(path: Path) -> None:
    assert caching(path).namespace != caching(path).namespace


class Appending(WrapperStore[MemoryStore]):
    """A store that gives nothing away."""

    @property
    def supports_deletes(self) -> bool:
        return False


def test_a_cache_store_must_support_deletes() -> None:
    with pytest.raises(ValueError, match="does not support deletes"):
        CacheStore(MemoryStore(), cache_store=Appending(MemoryStore()))


@pytest.mark.parametrize("cache_store", [SqliteStore, LocalStore])
def test_a_cache_store_must_be_writable(
    path: Path, cache_store: type[SqliteStore | LocalStore]
) -> None:
    with pytest.raises(ValueError, match="is read-only"):
        CacheStore(MemoryStore(), cache_store=cache_store(path, read_only=True))

    assert not path.exists()


def test_options_other_than_the_source_are_given_by_name(path: Path) -> None:
    with pytest.raises(TypeError, match="positional"):
        CacheStore(MemoryStore(), SqliteStore(path))  # type: ignore[call-arg]


@pytest.mark.parametrize("cache_set_data", [True, False])
async def test_what_is_written_is_cached_unless_cache_set_data_is_off(
    path: Path, cache_set_data: bool
) -> None:
    source = CountingStore(MemoryStore({"k": buffer(b"before")}))
    store = CacheStore(source, cache_store=SqliteStore(path), cache_set_data=cache_set_data)
    await read(store, "k")
    await store.set("k", buffer(b"after"))
    source.reset()

    assert await read(store, "k") == b"after"
    assert source.requests.total() == (0 if cache_set_data else 1)


async def test_an_age_of_zero_caches_nothing(path: Path) -> None:
    source = CountingStore(MemoryStore({"k": buffer(b"value")}))
    store = CacheStore(source, cache_store=SqliteStore(path), max_age_seconds=0)
    await read(store, "k")
    await read(store, "k")

    assert source.requests.total() == 2
    assert store.cache_info()["cached_keys"] == 0


async def test_a_budget_of_zero_caches_nothing_and_still_reads(path: Path) -> None:
    source = CountingStore(MemoryStore({"k": buffer(b"value")}))
    store = CacheStore(source, cache_store=SqliteStore(path), max_size=0)

    assert [await read(store, "k"), await read(store, "k")] == [b"value", b"value"]
    assert store.cache_info()["current_size"] == 0


@pytest.mark.parametrize("age", [None, "infinity", math.inf])
async def test_a_value_without_a_maximum_age_is_fresh_for_ever(
    path: Path, held_time: HeldTime, age: Any
) -> None:
    source = CountingStore(MemoryStore({"k": buffer(b"value")}))
    store = CacheStore(source, cache_store=SqliteStore(path), max_age_seconds=age)
    await read(store, "k")
    held_time.step(90 * 365 * 86_400)
    await read(store, "k")

    assert source.requests.total() == 1


async def test_a_cached_absence_is_fresh_for_its_own_age(path: Path, held_time: HeldTime) -> None:
    source = CountingStore(MemoryStore())
    store = CacheStore(source, cache_store=SqliteStore(path), max_age_absent_seconds=10)
    await read(store, "k")
    held_time.step(9)
    await read(store, "k")
    requests_before = source.requests.total()
    held_time.step(2)
    await read(store, "k")

    assert (requests_before, source.requests.total()) == (1, 2)


@pytest.mark.parametrize("read_only", [True, False])
async def test_a_cached_absence_is_served_by_a_read_only_view_alone(
    path: Path, read_only: bool
) -> None:
    source = CountingStore(MemoryStore())
    store = CacheStore(source, cache_store=SqliteStore(path), read_only=read_only)
    await read(store, "k")
    await read(store, "k")

    assert source.requests.total() == (1 if read_only else 2)


async def test_a_cached_absence_is_not_fresh_for_longer_than_a_value(
    path: Path, held_time: HeldTime
) -> None:
    source = CountingStore(MemoryStore())
    store = CacheStore(
        source, cache_store=SqliteStore(path), max_age_seconds=5, max_age_absent_seconds=10
    )
    await read(store, "k")
    held_time.step(6)
    await read(store, "k")

    assert source.requests.total() == 2


def test_the_options_are_in_the_repr(path: Path) -> None:
    store = caching(path, max_age_seconds=5.5, max_size=7)

    assert repr(store).startswith("CacheStore(store=<MemoryStore>, namespace=")
    assert repr(store).endswith(
        f"cache_store=SqliteStore({str(path)!r}), max_age_seconds=5.5, max_size=7, "
        "current_size=0, cached_keys=0)"
    )


def test_infinity_is_offered_only_where_it_is_allowed(path: Path) -> None:
    age: Any = "for ever"

    with pytest.raises(ValueError, match="stale_if_error_seconds must be a finite number"):
        caching(path, stale_if_error_seconds=age)


def usage_in(shown: str) -> str:
    return shown[shown.index("current_size=") :].removesuffix(")")


def of_info(store: CacheStore) -> str:
    info = store.cache_info()
    return f"current_size={info['current_size']}, cached_keys={info['cached_keys']}"


@pytest.mark.parametrize("cache_store", [SqliteStore, lambda _: MemoryStore()])
async def test_the_repr_has_what_is_cached_as_last_read(
    path: Path, cache_store: Callable[[Path], Store]
) -> None:
    source = MemoryStore({"k": buffer(b"value"), "l": buffer(b"0123456789")})
    store = CacheStore(source, cache_store=cache_store(path), namespace="source")
    assert usage_in(repr(store)) == "current_size=0, cached_keys=0"
    await read(store, "k")
    await read(store, "l", RangeByteRequest(2, 5))
    assert usage_in(repr(store)) == "current_size=None, cached_keys=None"
    store.flush()

    read_from_file = of_info(store)
    assert read_from_file == "current_size=8, cached_keys=2"
    assert usage_in(repr(store)) == read_from_file
    assert usage_in(repr(store.with_read_only(read_only=True))) == read_from_file
    await read(store, "l")
    assert usage_in(repr(store)) == read_from_file
    await store.clear_cache()
    assert usage_in(repr(store)) == "current_size=0, cached_keys=0" == of_info(store)
    restart(store)


def test_the_repr_makes_no_file_and_opens_none(path: Path) -> None:
    store = caching(path)
    repr(store)
    assert not path.exists()
    sync(read(store, "k"))
    restart(store)

    assert usage_in(repr(caching(path))) == "current_size=None, cached_keys=None"
    assert not FileDatabase.of(path).is_open


async def test_without_a_cache_store_values_are_cached_in_the_users_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZARR_CACHE_PATH", str(path))
    source = CountingStore(MemoryStore({"k": buffer(b"value")}))
    store = CacheStore(source, namespace="source")

    found = [await read(store, "k"), await read(CacheStore(source, namespace="source"), "k")]

    assert found == [b"value"] * 2
    assert source.requests.total() == 1
    assert store.cache_info()["cache_store_type"] == "SqliteStore"
    assert cached_keys(path) == {"k"}
