"""The same reads of a remote array through ours and through other caches, each in new processes.

The source is a server on loopback that responds after 20 ms. A system that is not installed is left
out. Times are of opening the array and reading it, without imports and without closing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import warnings
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import diskcache  # type: ignore[import-untyped] # it ships no types
import fsspec
import numpy as np
import zarr
from alternatives_source import Source
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from measuring import MIB, Row, expect
from processes import fresh_process
from systems import DISKCACHE, OURS, ZARR
from zarr.abc.store import Store
from zarr.core.buffer import cpu
from zarr.experimental.cache_store import CacheStore as ZarrCacheStore
from zarr.storage import FsspecStore, LocalStore, WrapperStore

from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from multiprocessing.connection import Connection
    from pathlib import Path

    from measuring import Bench
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

LATENCY = 0.02
ROUNDS = 2
CHUNK = (512, 1024)
"""Half a MiB of bytes."""
ROOM = 0.6
"""What is kept of the data after a restart, where there is a limit."""
SLACK = 1.07
"""By how much the data file may be larger than the limit, beside 16 MiB."""

NONE = "no cache"
SIMPLECACHE = "fsspec simplecache"
FILECACHE = "fsspec filecache, one request at a time"
BLOCKCACHE = "fsspec blockcache, one request at a time"
MSC = "multi-storage-client"
TENSORSTORE = "TensorStore"
BY_HAND = f"{DISKCACHE} by hand"

ALL, FIRST, SECOND = "all", "first half", "second half"
BUCKET, ARRAY = "bucket", "a.zarr"


class Place(NamedTuple):
    """What a system is opened with: the address of the server, a folder, and bytes, or no limit."""

    url: str
    folder: Path
    limit: int | None

    @property
    def source(self) -> FsspecStore:
        """The array over HTTP, without a cache."""
        return FsspecStore.from_url(f"{self.url}/{BUCKET}/{ARRAY}", read_only=True)


class Opened(Protocol):
    """An array that is opened anew at each call, over what the system keeps in the process."""

    def __call__(self) -> Any:
        """The array."""


class CachedByHand(WrapperStore[Store]):
    """What one writes by hand: whole values in a diskcache."""

    def __init__(self, store: Store, cache: diskcache.Cache) -> None:
        super().__init__(store)
        self.cache = cache

    def _with_store(self, store: Store) -> CachedByHand:
        return CachedByHand(store, self.cache)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The cached value, or the source's, which is then cached."""
        if byte_range is not None:
            return await self._store.get(key, prototype, byte_range)
        data = self.cache.get(key)
        if data is not None:
            return cpu.Buffer.from_bytes(data)
        value = await self._store.get(key, prototype)
        if value is not None:
            self.cache[key] = value.to_bytes()
        return value


def _over(store: Store) -> Opened:
    def opened() -> Any:
        return zarr.open_array(store, mode="r")

    return opened


def _ours(place: Place) -> Opened:
    cached = SqliteStore(place.folder / "cache.sqlite")
    # A server of this machine has no name that lasts.
    store = CacheStore(
        place.source, cache_store=cached, namespace="alternatives", max_size=place.limit
    )
    return _over(store)


def _zarr(place: Place) -> Opened:
    kept = LocalStore(place.folder / "kept")
    return _over(ZarrCacheStore(place.source, cache_store=kept, max_size=place.limit))


def _fsspec(protocol: str) -> Callable[[Place], Opened]:
    """Wrapped by hand: a chained URL raises (zarr-developers/zarr-python#2988)."""

    def opened(place: Place) -> Opened:
        # More at a time raise: their record of files is not made for threads.
        if protocol != "simplecache":
            zarr.config.set({"async.concurrency": 1})
        kept = str(place.folder / "kept")
        cached = fsspec.filesystem(protocol, target_protocol="http", cache_storage=kept)
        wrapped = AsyncFileSystemWrapper(cached, asynchronous=True)
        return _over(FsspecStore(wrapped, path=f"{place.url}/{BUCKET}/{ARRAY}", read_only=True))

    return opened


def _msc(place: Place) -> Opened:
    size = 1024 if place.limit is None else place.limit // MIB
    config = {
        "profiles": {
            "bench": {
                "storage_provider": {
                    "type": "s3",
                    "options": {
                        "base_path": BUCKET,
                        "endpoint_url": place.url,
                        "region_name": "us-east-1",
                    },
                },
                "caching_enabled": True,
                "credentials_provider": {
                    "type": "S3Credentials",
                    "options": {"access_key": "none", "secret_key": "none"},
                },
            }
        },
        "cache": {
            "size": f"{size}M",
            "location": str(place.folder / "kept"),
            "cache_line_size": "1M",
            "eviction_policy": {"policy": "lru"},
        },
    }
    path = place.folder / "msc.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    os.environ["MSC_CONFIG"] = str(path)
    from multistorageclient.shortcuts import resolve_storage_client  # noqa: PLC0415 - as below

    # It imports what it reads with at the first request otherwise, which takes a second.
    resolve_storage_client(f"msc://bench/{ARRAY}")
    return _over(FsspecStore.from_url(f"msc://bench/{ARRAY}", read_only=True))


def _tensorstore(place: Place) -> Opened:
    import tensorstore  # noqa: PLC0415 - where it is installed

    pool = {"total_bytes_limit": 2**30 if place.limit is None else place.limit}
    context = tensorstore.Context({"cache_pool": pool})
    spec = {
        "driver": "zarr3",
        "kvstore": f"{place.url}/{BUCKET}/{ARRAY}",
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
    }

    class Array:
        def __getitem__(self, rows: slice) -> Any:
            array = tensorstore.open(spec, read=True, context=context).result()
            return array[rows.start : rows.stop].read().result()

    return Array


def _by_hand(place: Place) -> Opened:
    limit = 2**40 if place.limit is None else place.limit
    cache = diskcache.Cache(
        str(place.folder / "kept"), size_limit=limit, eviction_policy="least-recently-used"
    )
    return _over(CachedByHand(place.source, cache))


SYSTEMS: dict[str, Callable[[Place], Opened]] = {
    NONE: lambda place: _over(place.source),
    OURS: _ours,
    ZARR: _zarr,
    SIMPLECACHE: _fsspec("simplecache"),
    FILECACHE: _fsspec("filecache"),
    BLOCKCACHE: _fsspec("blockcache"),
    MSC: _msc,
    TENSORSTORE: _tensorstore,
    BY_HAND: _by_hand,
}
NEEDED = {MSC: "multistorageclient", TENSORSTORE: "tensorstore"}
"""Modules of those that the extras of the project do not install."""


class Reading(NamedTuple):
    """What a part of the array took."""

    milliseconds: float
    requests: int


def rows_of(part: str, length: int) -> slice:
    """The rows of a part."""
    return {
        ALL: slice(0, length),
        FIRST: slice(0, length // 2),
        SECOND: slice(length // 2, length),
    }[part]


def read_on(pipe: Connection, system: str, place: Place, length: int) -> None:
    """Open and read each part that is asked for; send the milliseconds and a digest of it."""
    # Others leave files open.
    warnings.simplefilter("ignore", ResourceWarning)
    opened = SYSTEMS[system](place)
    pipe.send("ready")
    while (part := pipe.recv()) is not None:
        rows = rows_of(part, length)
        began = time.perf_counter()
        found = opened()[rows]
        taken = (time.perf_counter() - began) * 1000
        pipe.send((taken, hashlib.sha256(found).hexdigest()))
    closed = getattr(opened, "__closure__", None) or ()
    for cell in closed:
        # What waits to be written is written; zarr's own refuses to be closed.
        with suppress(AttributeError, NotImplementedError):
            cell.cell_contents.close()
    pipe.send("closed")


def read_in_new_process(
    system: str, place: Place, server: Source, data: Any, parts: list[str]
) -> list[Reading]:
    """What each part takes, one after the other in one new process."""
    readings = []
    with fresh_process(read_on, system, place, len(data)) as (_, pipe):
        pipe.recv()
        for part in parts:
            before = server.requests
            pipe.send(part)
            milliseconds, digest = pipe.recv()
            expected = hashlib.sha256(data[rows_of(part, len(data))]).hexdigest()
            expect(f"{system}: {part}", digest, expected)
            readings.append(Reading(milliseconds, server.requests - before))
        pipe.send(None)
        pipe.recv()
    return readings


def bytes_on_disk(folder: Path) -> int:
    """What the disk has of the files there, holes left out."""
    return sum(each.stat().st_blocks * 512 for each in folder.rglob("*") if each.is_file())


class Figures:
    """Of each fact the figures of each system, one a round."""

    def __init__(self) -> None:
        self.readings: dict[str, dict[str, list[Reading]]] = {}
        self.megabytes: dict[str, list[float]] = {}

    def add(self, what: str, system: str, *readings: Reading) -> None:
        """Several readings are one."""
        whole = Reading(*(sum(each) for each in zip(*readings, strict=True)))
        self.readings.setdefault(what, {}).setdefault(system, []).append(whole)

    def times(self, what: str) -> Mapping[str, list[float]]:
        """Milliseconds by system."""
        return {
            name: [each.milliseconds for each in all_of]
            for name, all_of in self.readings[what].items()
        }

    def requests(self, what: str) -> Mapping[str, list[float]]:
        """Requests by system."""
        return {
            name: [each.requests for each in all_of] for name, all_of in self.readings[what].items()
        }


COLD, AGAIN, ANEW = "first reading", "second reading", "in a new process"
RESTART = f"after a restart with room for {ROOM:.0%}".replace("%", " %")


def rows(bench: Bench) -> list[Row]:
    """All of them."""
    count = max(16, bench.scale.chunks * 3 // 8)
    shape = (CHUNK[0] * count, CHUNK[1])
    data = np.random.default_rng(1).integers(0, 256, shape, dtype="u1")
    root = bench.folder / "served"
    zarr.create_array(root / BUCKET / ARRAY, data=data, chunks=CHUNK, compressors=None)
    limit = int(ROOM * data.nbytes) // MIB * MIB
    systems = [name for name in SYSTEMS if name not in NEEDED or find_spec(NEEDED[name])]
    figures = Figures()
    with Source(root, LATENCY) as server:

        def place(system: str, limit: int | None) -> Place:
            folder = bench.folder / f"{system} {limit}"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            return Place(server.url, folder, limit)

        for _ in range(min(ROUNDS, bench.scale.rounds)):
            for system in systems:
                here = place(system, None)
                cold, again = read_in_new_process(system, here, server, data, [ALL, ALL])
                (anew,) = read_in_new_process(system, here, server, data, [ALL])
                for what, reading in ((COLD, cold), (AGAIN, again), (ANEW, anew)):
                    figures.add(what, system, reading)
        for system in systems:
            here = place(system, limit)
            read_in_new_process(system, here, server, data, [FIRST, SECOND])
            # What was read last is cached, the rest is not.
            readings = read_in_new_process(system, here, server, data, [SECOND, FIRST])
            figures.add(RESTART, system, *readings)
            figures.megabytes[system] = [bytes_on_disk(here.folder) / 10**6]
    # The data file, the WAL, and the small pages of the database.
    most = (SLACK * limit + 16 * MIB + 13 * MIB) / 10**6
    return [
        Row(f"{COLD} of {count} chunks", "ms", figures.times(COLD), OURS, NONE, 1.15),
        Row(
            *(f"{COLD}, requests", "requests", figures.requests(COLD), OURS, NONE, 1),
            # For fsspec does not tell versions with a response: three documents are asked for.
            or_within=3,
        ),
        Row(AGAIN, "ms", figures.times(AGAIN), OURS, NONE, 0.5),
        Row(f"{AGAIN}, requests", "requests", figures.requests(AGAIN), OURS, at_most=0),
        Row(ANEW, "ms", figures.times(ANEW), OURS, NONE, 0.5),
        Row(f"{ANEW}, requests", "requests", figures.requests(ANEW), OURS, at_most=0),
        Row(RESTART, "ms", figures.times(RESTART), OURS, NONE, 0.8),
        Row(f"{RESTART}, requests", "requests", figures.requests(RESTART), OURS, NONE, 0.55),
        Row(
            f"{RESTART} ({limit / 10**6:.1f} MB), on the disk",
            "MB",
            figures.megabytes,
            OURS,
            at_most=most,
        ),
    ]
