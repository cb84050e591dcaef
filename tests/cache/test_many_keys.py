"""Many requests at once: in order, and in the buffers requested."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import BufferPrototype, default_buffer_prototype
from zarr.storage import MemoryStore
from zarr.testing.buffer import NDBufferUsingTestNDArrayLike
from zarr.testing.buffer import TestBuffer as OtherBuffer

from tests.fakes import CountingStore, buffer
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import ByteRequest

P = default_buffer_prototype()
OTHER = BufferPrototype(buffer=OtherBuffer, nd_buffer=NDBufferUsingTestNDArrayLike)
REQUESTS: list[tuple[str, ByteRequest | None]] = [
    ("b", RangeByteRequest(2, 4)),
    ("a", None),
    ("none", RangeByteRequest(0, 1)),
    ("b", RangeByteRequest(5, 7)),
    ("none", RangeByteRequest(1, 2)),
]


def cached(path: Path) -> tuple[CountingStore, CacheStore]:
    memory = MemoryStore({"a": buffer(b"aaaa"), "b": buffer(b"0123456789")})
    source = CountingStore(memory)
    return source, CacheStore(source, cache_store=SqliteStore(path), namespace="source")


async def test_get_many_has_the_responses_in_the_order_of_the_requests(path: Path) -> None:
    _, store = cached(path)
    requests = [(key, P, request) for key, request in REQUESTS]

    responses = [(key, each and each.to_bytes()) async for key, each in store._get_many(requests)]

    assert responses == [("b", b"23"), ("a", b"aaaa"), ("none", None), ("b", b"56"), ("none", None)]


async def test_get_many_a_second_time_requests_only_absent_keys(path: Path) -> None:
    source, store = cached(path)
    requests = [(key, P, request) for key, request in REQUESTS]
    first = [key async for key, _ in store._get_many(requests)]
    source.reset()

    second = [key async for key, _ in store._get_many(requests)]

    assert second == first
    assert set(source.keys) == {"none"}


async def test_each_request_of_get_many_gets_its_own_type_of_buffer(path: Path) -> None:
    _, store = cached(path)
    requests = [("b", OTHER, RangeByteRequest(0, 2)), ("b", P, RangeByteRequest(4, 6))]

    for _ in ("missed", "hit"):
        types = [type(each) async for _, each in store._get_many(requests)]

        assert types == [OtherBuffer, P.buffer]


async def test_another_prototype_gets_its_own_type_out_of_the_same_bytes(path: Path) -> None:
    source, store = cached(path)
    await store.get("b", P)
    source.reset()

    whole = await store.get("b", OTHER)
    part = store.get_sync("b", prototype=OTHER, byte_range=SuffixByteRequest(3))
    batch = store.get_ranges_sync("b", [OffsetByteRequest(8)], prototype=OTHER)

    assert [type(each) for each in (whole, part, batch[0][1])] == [OtherBuffer] * 3
    assert source.requests.total() == 0
