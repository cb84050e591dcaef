"""Offline the source is never used: what is cached is served, and what is not is named."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
import zarr
from typer.testing import CliRunner
from zarr.abc.store import RangeByteRequest, Store
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from tests.fakes import PROTOTYPE, buffer, end_everything, read, read_ranges, restart, values
from tests.freshness.origins import SIZE, HttpOrigin, caching, document, over_local_store, version
from zarr_cache import CacheStore, OfflineError, SqliteStore, warm
from zarr_cache.cli import app

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import HeldTime
    from tests.freshness.origins import Origin

CHUNK, METADATA, ABSENT, UNKNOWN = "array/c/0", "array/zarr.json", "array/c/1", "array/c/2"
RANGES = "array/c/3"
FIRST, SECOND = RangeByteRequest(0, 100), RangeByteRequest(1000, 1100)

LONG = 10 * 365 * 86400


class Untouchable(Store):
    """A source of which nothing may be used but its name."""

    def __init__(self, *, read_only: bool = True) -> None:
        super().__init__(read_only=read_only)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("the source was used")

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = object.__hash__

    supports_writes = supports_deletes = supports_listing = True
    get = get_partial_values = exists = set = delete = _refuse
    list = list_prefix = list_dir = is_empty = clear = getsize = getsize_prefix = _refuse
    get_sync = get_ranges = get_ranges_sync = set_sync = delete_sync = delete_dir = _refuse
    _open = _ensure_open = _refuse


async def collect(names: Any) -> list[str]:
    return [name async for name in names]


@pytest.fixture
def offline(origin: Origin, path: Path, held_time: HeldTime) -> Any:
    """A store that is offline; its cache was filled long ago, and its source has changed."""
    origin.copy({CHUNK: version(1), METADATA: document(1), RANGES: version(1)})
    settings: Any = {"persist_ranges": True, "max_age_seconds": 10}
    cache = caching(origin, path, **settings)
    for key in (CHUNK, METADATA, ABSENT):
        sync(read(cache, key))
    sync(read(cache, RANGES, FIRST))
    restart(cache)
    origin.copy({CHUNK: version(2), METADATA: document(2), RANGES: version(2), ABSENT: version(2)})
    held_time.step(LONG)
    origin.reset()
    store = caching(origin, path, offline=True, **settings)
    yield store
    assert origin.asked() == ([], 0)
    restart(store)


def test_what_is_cached_is_served_at_any_age(offline: CacheStore) -> None:
    assert [sync(read(offline, key)) for key in (CHUNK, METADATA)] == [version(1), document(1)]
    assert sync(read(offline, RANGES, FIRST)) == version(1)[:100]
    assert sync(read_ranges(offline, RANGES, [FIRST, FIRST])) == [version(1)[:100]] * 2


def test_what_is_known_to_be_absent_is_absent_at_any_age(offline: CacheStore) -> None:
    assert sync(read(offline, ABSENT)) is None
    assert sync(offline.exists(ABSENT)) is False
    with pytest.raises(FileNotFoundError):
        sync(offline.getsize(ABSENT))


READS: dict[str, Any] = {
    "get": lambda store: sync(read(store, UNKNOWN)),
    "get of a range": lambda store: sync(read(store, RANGES, SECOND)),
    "get_sync": lambda store: store.get_sync(UNKNOWN),
    "get_ranges": lambda store: sync(read_ranges(store, RANGES, [FIRST, SECOND])),
    "get_ranges_sync": lambda store: store.get_ranges_sync(
        RANGES, [FIRST, SECOND], prototype=PROTOTYPE
    ),
    "exists": lambda store: sync(store.exists(UNKNOWN)),
    "getsize": lambda store: sync(store.getsize(UNKNOWN)),
    "getsize of which a range is cached": lambda store: sync(store.getsize(RANGES)),
    "get of a key that cannot be cached": lambda store: sync(read(store, "array/\udc80")),
}


@pytest.mark.parametrize("ask", READS.values(), ids=READS)
def test_what_is_not_cached_is_named_and_is_not_taken_for_absent(
    offline: CacheStore, ask: Any
) -> None:
    with pytest.raises(OfflineError) as raised:
        ask(offline)

    assert not isinstance(raised.value, (OSError, KeyError))
    assert repr(raised.value.key) in str(raised.value)
    assert "zarr-cache warm" in str(raised.value)


def test_what_is_cached_is_listed(offline: CacheStore) -> None:
    assert sync(collect(offline.list())) == [CHUNK, RANGES, METADATA]
    assert sync(collect(offline.list_prefix("array/c/"))) == [CHUNK, RANGES]
    assert sync(collect(offline.list_dir("array"))) == ["c", "zarr.json"]
    assert sync(collect(offline.list_dir(""))) == ["array"]
    assert [sync(offline.is_empty(each)) for each in ("", "array", "other")] == [False, False, True]
    assert offline.supports_listing


def test_sizes_are_those_of_cached_values(offline: CacheStore) -> None:
    assert sync(offline.getsize(CHUNK)) == SIZE
    assert sync(offline.getsize_prefix("array")) == 2 * SIZE
    assert sync(offline.exists(CHUNK))


WRITES: dict[str, Any] = {
    "set": lambda store: sync(store.set(CHUNK, buffer(b"new"))),
    "set_sync": lambda store: store.set_sync(CHUNK, buffer(b"new")),
    "set_if_not_exists": lambda store: sync(store.set_if_not_exists(UNKNOWN, buffer(b"new"))),
    "delete": lambda store: sync(store.delete(CHUNK)),
    "delete_sync": lambda store: store.delete_sync(CHUNK),
    "delete_dir": lambda store: sync(store.delete_dir("array")),
    "clear": lambda store: sync(store.clear()),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writes_are_refused_as_by_a_read_only_store(tmp_path: Path, path: Path, write: Any) -> None:
    source = LocalStore(tmp_path / "source")
    store = CacheStore(source, cache_store=SqliteStore(path), offline=True)
    assert store.read_only
    writable = store.with_read_only(read_only=False)

    for each in (store, writable):
        with pytest.raises(ValueError, match="read-only"):
            write(each)
    assert not (tmp_path / "source").exists()


def test_a_source_that_cannot_be_used_at_all_is_not(path: Path) -> None:
    filled = CacheStore(
        MemoryStore({CHUNK: buffer(version(1))}),
        cache_store=SqliteStore(path),
        namespace="changing",
    )
    sync(read(filled, CHUNK))
    restart(filled)
    store = CacheStore(
        Untouchable(), cache_store=SqliteStore(path), namespace="changing", offline=True
    )

    assert sync(read(store, CHUNK)) == version(1)
    assert store.get_sync(CHUNK) is not None
    for ask in (READS["get"], READS["exists"], READS["getsize"]):
        with pytest.raises(OfflineError):
            ask(store)
    assert sync(collect(store.list())) == [CHUNK]
    assert sync(store.getsize_prefix("")) == SIZE
    assert not sync(store.is_empty(""))


def test_a_pickle_stays_offline(offline: CacheStore) -> None:
    again = pickle.loads(pickle.dumps(offline))  # noqa: S301 - our own

    assert again.read_only
    with pytest.raises(OfflineError):
        sync(read(again, UNKNOWN))
    assert sync(read(again, CHUNK)) == version(1)


def test_a_view_stays_offline(offline: CacheStore) -> None:
    view = offline.with_read_only(read_only=False)

    assert view.read_only
    with pytest.raises(OfflineError):
        sync(read(view, UNKNOWN))


def test_a_folder_that_is_gone_is_read_from_the_cache(tmp_path: Path, path: Path) -> None:
    root = tmp_path / "source"
    zarr.create_array(LocalStore(root), data=np.arange(20), chunks=(5,))
    cache = CacheStore(LocalStore(root, read_only=True), cache_store=SqliteStore(path))
    warm(zarr.open_array(cache, mode="r"))
    restart(cache)
    with over_local_store(root) as origin:
        origin.remove()
    store = CacheStore(
        LocalStore(root, read_only=True), cache_store=SqliteStore(path), offline=True
    )

    assert zarr.open_array(store, mode="r")[:].tolist() == list(range(20))  # type: ignore[union-attr] # an array
    assert not root.exists()


@pytest.mark.filterwarnings("ignore:Consolidated metadata:zarr.errors.ZarrUserWarning")
@pytest.mark.parametrize("is_consolidated", [False, True], ids=["plain", "consolidated"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_dataset_that_was_warmed_is_opened_and_read(
    origin: Origin, path: Path, zarr_format: Any, is_consolidated: bool
) -> None:
    if isinstance(origin, HttpOrigin) and not is_consolidated:
        pytest.skip("a plain group is listed, which this server cannot")
    dataset = xr.Dataset(
        {"t": (("x", "y"), np.arange(48.0).reshape(6, 8))}, coords={"x": np.arange(6)}
    )
    memory = MemoryStore()
    dataset.to_zarr(memory, zarr_format=zarr_format, consolidated=is_consolidated)
    origin.copy({key: value.to_bytes() for key, value in memory._store_dict.items()})
    cache = caching(origin, path)
    warm(zarr.open_group(cache, mode="r"))
    restart(cache)
    origin.reset()
    store = caching(origin, path, offline=True)

    assert np.array_equal(zarr.open_group(store, mode="r")["t"][:], dataset["t"])  # type: ignore[index, arg-type] # an array
    with xr.open_zarr(store, consolidated=is_consolidated, chunks=None) as opened:
        assert opened.load().equals(dataset)
    assert origin.asked() == ([], 0)


@pytest.mark.usefixtures("pipeline")
def test_a_window_that_was_read_is_read_again_when_the_network_is_gone(
    http: HttpOrigin, path: Path
) -> None:
    memory = MemoryStore()
    data = np.arange(4096).reshape(64, 64)
    zarr.create_array(memory, data=data, chunks=(8, 8), shards=(32, 32))
    http.copy({key: value.to_bytes() for key, value in memory._store_dict.items()})
    cache = caching(http, path, persist_ranges=True)
    zarr.open_array(cache, mode="r", zarr_format=3)[4:12, 4:12]
    restart(cache)
    http.server.fault = "down"
    array = zarr.open_array(
        caching(http, path, persist_ranges=True, offline=True), mode="r", zarr_format=3
    )

    assert np.array_equal(array[4:12, 4:12], data[4:12, 4:12])
    with pytest.raises((OfflineError, ExceptionGroup)):
        array[20:24, 20:24]


@pytest.mark.parametrize("path_in_store", ["", "t"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_the_command_has_warmed_is_opened_without_its_format(
    tmp_path: Path, path: Path, zarr_format: Any, path_in_store: str
) -> None:
    root = tmp_path / "source"
    group = zarr.create_group(LocalStore(root), zarr_format=zarr_format)
    group.create_array("t", data=np.arange(20), chunks=(5,))
    command = ["warm", str(root), "--cache-file", str(path), "--array", path_in_store]
    warmed = CliRunner().invoke(app, command)
    assert warmed.exit_code == 0, warmed.output
    end_everything()
    root.rename(tmp_path / "elsewhere")
    store = CacheStore(
        LocalStore(root, read_only=True), cache_store=SqliteStore(path), offline=True
    )

    assert values(zarr.open(store, mode="r", path="t")) == list(range(20))
    assert isinstance(zarr.open(store, mode="r"), zarr.Group)
