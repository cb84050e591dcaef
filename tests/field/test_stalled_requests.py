"""A request that is never answered holds up no other read of the same value.

aiohttp gives a request five minutes by default. Seen in
https://github.com/dandi/dandi-cli/issues/1795: a read hung, and after Ctrl-C only a new kernel
helped.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import zarr
from zarr.abc.store import RangeByteRequest
from zarr.storage import MemoryStore

from tests.fakes import PROTOTYPE, FailingStore, HeldStore, buffer, read
from tests.sources.http_server import serving
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core import single_flight
from zarr_cache.core.single_flight import Flight

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store

KEY, OTHER = "array/c/0", "array/c/1"
VALUE = b"value"
FOR_EVER = 3600.0


def memory() -> MemoryStore:
    return MemoryStore({KEY: buffer(VALUE), OTHER: buffer(VALUE)})


def caching(source: Store, path: Path) -> CacheStore:
    return CacheStore(source, cache_store=SqliteStore(path), namespace="stalled")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers wait for an instant."""
    monkeypatch.setattr(single_flight, "LEADER_SECONDS", 0.05)


@pytest.fixture
def never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Followers wait for ever, unless the leader is known to lead no more."""
    monkeypatch.setattr(single_flight, "LEADER_SECONDS", FOR_EVER)


async def turns() -> None:
    """Let every task go on until it waits for something else than a turn."""
    for _ in range(30):
        await asyncio.sleep(0)


async def followers(
    store: CacheStore, number: int, request: ByteRequest | None = None
) -> list[bytes | None]:
    return list(await asyncio.gather(*(read(store, KEY, request) for _ in range(number))))


REQUESTS = pytest.mark.parametrize(
    "request_", [None, RangeByteRequest(0, len(VALUE))], ids=["value", "range"]
)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    "request_", [None, RangeByteRequest(0, len(VALUE))], ids=["value", "range"]
)
async def test_one_of_those_who_follow_it_leads_another_request(
    path: Path, request_: ByteRequest | None
) -> None:
    source = HeldStore(memory())
    store = caching(source, path)
    gate = source.hold_before("get")
    stalled = asyncio.ensure_future(read(store, KEY, request_))
    await gate.reached()

    found = await asyncio.gather(*(read(store, KEY, request_) for _ in range(8)))

    assert found == [VALUE] * 8
    assert source.requests == {"get": 2}
    gate.open()
    assert await stalled == VALUE


@pytest.mark.usefixtures("soon")
async def test_a_later_reader_follows_the_new_leader(path: Path) -> None:
    source = HeldStore(memory())
    store = caching(source, path)
    stalled, second = source.hold_before("get"), source.hold_before("get")
    first = asyncio.ensure_future(read(store, KEY))
    await stalled.reached()
    leader = asyncio.ensure_future(read(store, KEY))
    await second.reached()

    later = asyncio.ensure_future(read(store, KEY))
    await turns()
    second.open()

    assert [await leader, await later] == [VALUE] * 2
    assert source.requests == {"get": 2}
    stalled.open()
    assert await first == VALUE


@pytest.mark.usefixtures("soon")
async def test_if_every_request_stalls_a_reader_follows_two_and_asks_for_itself(path: Path) -> None:
    source = HeldStore(memory())
    store = caching(source, path)
    gates = [source.hold_before("get") for _ in range(2)]
    stalled = []
    for gate in gates:
        stalled.append(asyncio.ensure_future(read(store, KEY)))
        await gate.reached()

    assert await read(store, KEY) == VALUE
    assert source.requests == {"get": 3}
    for gate in gates:
        gate.open()
    assert await asyncio.gather(*stalled) == [VALUE] * 2


@pytest.mark.usefixtures("soon")
def test_a_thread_does_not_wait_for_another_thread_that_stalls(path: Path) -> None:
    source = HeldStore(memory())
    store = caching(source, path)
    gate = source.hold_before("get_sync")
    with ThreadPoolExecutor(1) as threads:
        stalled = threads.submit(store.get_sync, KEY)
        gate.wait_until_reached()
        try:
            assert store.get_sync(KEY) == buffer(VALUE)
        finally:
            gate.open()
        assert stalled.result() == buffer(VALUE)
    assert source.requests == {"get_sync": 2}


@pytest.mark.usefixtures("soon")
async def test_several_values_that_stall_are_waited_for_together(path: Path) -> None:
    source = HeldStore(memory())
    store = caching(source, path)
    gates = [source.hold_before("get") for _ in range(2)]
    stalled = [asyncio.ensure_future(read(store, key)) for key in (KEY, OTHER)]
    for gate in gates:
        await gate.reached()

    found = await store.get_partial_values(PROTOTYPE, [(KEY, None), (OTHER, None)])

    assert found == [buffer(VALUE)] * 2
    assert source.requests == {"get": 4}
    for gate in gates:
        gate.open()
    await asyncio.gather(*stalled)


@pytest.mark.usefixtures("soon")
async def test_get_ranges_waits_for_no_other_reader(path: Path) -> None:
    source = HeldStore(memory())
    store = caching(source, path)
    part = RangeByteRequest(0, 2)
    gate = source.hold_before("get")
    stalled = asyncio.ensure_future(read(store, KEY, part))
    await gate.reached()

    found = [
        each async for batch in store.get_ranges(KEY, [part], prototype=PROTOTYPE) for each in batch
    ]

    assert found == [(0, buffer(VALUE[:2]))]
    gate.open()
    assert await stalled == VALUE[:2]


@pytest.mark.usefixtures("never")
@REQUESTS
async def test_a_cancelled_leader_leads_no_more(path: Path, request_: ByteRequest | None) -> None:
    source = HeldStore(memory())
    store = caching(source, path)
    gate, next_gate = source.hold_before("get"), source.hold_before("get")
    leader = asyncio.ensure_future(read(store, KEY, request_))
    await gate.reached()
    following = asyncio.ensure_future(followers(store, 8, request_))
    await turns()
    leader.cancel()
    await next_gate.reached()
    await turns()
    assert source.requests == {"get": 2}
    next_gate.open()

    assert await following == [VALUE] * 8
    assert source.requests == {"get": 2}
    with pytest.raises(asyncio.CancelledError):
        await leader


@pytest.mark.usefixtures("never")
@REQUESTS
async def test_of_those_who_follow_a_failed_leader_one_asks(
    path: Path, request_: ByteRequest | None
) -> None:
    failing = FailingStore(memory())
    source = HeldStore(failing)
    store = caching(source, path)
    failing.fail("get")
    gate, next_gate = source.hold_before("get"), source.hold_before("get")
    leader = asyncio.ensure_future(read(store, KEY, request_))
    await gate.reached()
    following = asyncio.ensure_future(followers(store, 8, request_))
    await turns()
    gate.open()
    await next_gate.reached()
    await turns()
    assert source.requests == {"get": 2}
    next_gate.open()

    assert await following == [VALUE] * 8
    assert source.requests == {"get": 2}
    with pytest.raises(OSError, match="failed, as the test asked"):
        await leader


@pytest.mark.usefixtures("never")
@REQUESTS
def test_of_the_threads_that_follow_a_failed_one_one_asks(
    path: Path, request_: ByteRequest | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = FailingStore(memory())
    source = HeldStore(failing)
    store = caching(source, path)
    failing.fail("get_sync")
    gate, next_gate = source.hold_before("get_sync"), source.hold_before("get_sync")
    follow, following = Flight._block, threading.Semaphore(0)

    def noted(self: Flight[Any], seconds: float | None) -> tuple[bool, Any]:
        following.release()
        return follow(self, seconds)

    monkeypatch.setattr(Flight, "_block", noted)
    with ThreadPoolExecutor(9) as threads:
        leader = threads.submit(store.get_sync, KEY, byte_range=request_)
        gate.wait_until_reached()
        readers = [threads.submit(store.get_sync, KEY, byte_range=request_) for _ in range(8)]
        for _ in range(8):
            following.acquire()
        gate.open()
        next_gate.wait_until_reached()
        for _ in range(7):
            following.acquire()
        next_gate.open()

        assert isinstance(leader.exception(), OSError)
        assert [each.result() for each in readers] == [buffer(VALUE)] * 8
    assert source.requests == {"get_sync": 2}


@pytest.mark.usefixtures("never")
async def test_of_a_source_that_is_down_two_followers_ask_in_turn_and_then_all_at_once(
    path: Path,
) -> None:
    failing = FailingStore(memory())
    source = HeldStore(failing)
    store = caching(source, path)
    failing.fail("get", times=100)
    gates = [source.hold_before("get") for _ in range(9)]
    readers = [asyncio.ensure_future(read(store, KEY))]
    await gates[0].reached()
    readers += [asyncio.ensure_future(read(store, KEY)) for _ in range(8)]
    await turns()
    for requests, gate in ((1, gates[0]), (2, gates[1])):
        await gate.reached()
        await turns()
        assert source.requests == {"get": requests}
        gate.open()

    for gate in gates[2:]:
        await gate.reached()
    for gate in gates[2:]:
        gate.open()
    errors = await asyncio.gather(*readers, return_exceptions=True)
    assert {type(error) for error in errors} == {OSError}


@pytest.fixture
def closed_loop(path: Path) -> Iterator[tuple[CacheStore, HeldStore, asyncio.AbstractEventLoop]]:
    """A store of which a request is led by a task of an event loop that can be closed."""
    source = HeldStore(memory())
    store = caching(source, path)
    gate = source.hold_before("get")
    loop = asyncio.new_event_loop()
    leader = loop.create_task(read(store, KEY))
    loop.run_until_complete(gate.reached())
    yield store, source, loop
    loop.close()
    # Nothing cancels it, and asyncio logs that it never ended.
    leader._log_destroy_pending = False  # type: ignore[attr-defined] # asyncio has no other way


type Led = tuple[CacheStore, HeldStore, asyncio.AbstractEventLoop]


@pytest.mark.usefixtures("never")
def test_a_task_of_a_closed_event_loop_leads_no_later_reader(closed_loop: Led) -> None:
    store, source, loop = closed_loop
    loop.close()

    assert asyncio.run(followers(store, 8)) == [VALUE] * 8
    assert source.requests == {"get": 2}


@pytest.mark.usefixtures("never")
def test_those_who_follow_a_task_go_on_when_its_event_loop_is_closed(closed_loop: Led) -> None:
    store, source, loop = closed_loop

    async def close_meanwhile() -> list[bytes | None]:
        following = asyncio.ensure_future(followers(store, 8))
        await turns()
        loop.close()
        return await following

    assert asyncio.run(close_meanwhile()) == [VALUE] * 8
    assert source.requests == {"get": 2}


READ_INTERRUPTED = """
import signal, sys, threading
import zarr
from zarr.storage import FsspecStore
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core import single_flight

single_flight.LEADER_SECONDS = 0.05
url, path = sys.argv[1:]
source = FsspecStore.from_url(url, read_only=True)
store = CacheStore(source, cache_store=SqliteStore(path), namespace="stalled")
array = zarr.open_array(store, mode="r")


def interrupt() -> None:
    sys.stdin.readline()
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


threading.Thread(target=interrupt, daemon=True).start()
try:
    array[:]
except KeyboardInterrupt:
    print("interrupted")
print(array[:].tolist())
"""


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no thread is sent a signal there")
def test_after_ctrl_c_the_array_is_read(path: Path) -> None:
    source = MemoryStore()
    zarr.create_array(source, shape=(4,), chunks=(4,), dtype="u1", compressors=None)[:] = 7
    has_arrived, may_end = threading.Event(), threading.Event()

    def stall_first(method: str, key: str) -> None:
        if method == "GET" and key == "c/0" and not has_arrived.is_set():
            has_arrived.set()
            may_end.wait()

    with serving() as server:
        for key, value in source._store_dict.items():
            server.put(key, value.to_bytes())
        server.before_send = stall_first
        process = subprocess.Popen(
            [sys.executable, "-c", READ_INTERRUPTED, server.url, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        has_arrived.wait()
        said, _ = process.communicate("\n")
        may_end.set()

    assert said.splitlines() == ["interrupted", "[7, 7, 7, 7]"]
    assert process.returncode == 0
