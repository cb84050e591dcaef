"""Which bytes a request means, once the size of the value is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import MemoryStore, WrapperStore

from tests.fakes import PROTOTYPE, CountingStore, buffer, read
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.byte_range import check, may_be_cached, span

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

POSITIONS = st.integers(0, 30)
REQUESTS = st.one_of(
    st.none(),
    st.builds(lambda start, length: RangeByteRequest(start, start + length), POSITIONS, POSITIONS),
    st.builds(OffsetByteRequest, POSITIONS),
    st.builds(SuffixByteRequest, st.integers(1, 30)),
)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (None, (0, 10)),
        (RangeByteRequest(0, 10), (0, 10)),
        (RangeByteRequest(2, 5), (2, 5)),
        (RangeByteRequest(2, 2), (2, 2)),
        (RangeByteRequest(8, 12), (8, 10)),
        (RangeByteRequest(10, 12), (10, 10)),
        (RangeByteRequest(20, 30), (10, 10)),
        (RangeByteRequest(5, 2), (5, 5)),
        (OffsetByteRequest(0), (0, 10)),
        (OffsetByteRequest(7), (7, 10)),
        (OffsetByteRequest(10), (10, 10)),
        (OffsetByteRequest(11), (10, 10)),
        (SuffixByteRequest(3), (7, 10)),
        (SuffixByteRequest(10), (0, 10)),
        (SuffixByteRequest(11), (0, 10)),
        (SuffixByteRequest(0), (10, 10)),
    ],
)
def test_a_span_in_a_value_of_ten_bytes(request_: Any, expected: tuple[int, int]) -> None:
    assert span(request_, 10) == expected


@given(value=st.binary(max_size=20), request_=REQUESTS)
def test_a_span_holds_the_bytes_that_zarrs_own_store_returns(value: bytes, request_: Any) -> None:
    start, stop = span(request_, len(value))

    assert value[start:stop] == sync(read(MemoryStore({"k": buffer(value)}), "k", request_))
    assert 0 <= start <= stop <= len(value)


@given(value=st.binary(max_size=20), request_=REQUESTS.filter(bool))
def test_a_span_is_kept_unless_the_value_ends_before_it(value: bytes, request_: Any) -> None:
    start, stop = span(request_, len(value))
    in_a_longer_one = span(request_, 100)

    assert may_be_cached(request_, stop - start) == (
        isinstance(request_, OffsetByteRequest)
        or stop - start == in_a_longer_one[1] - in_a_longer_one[0]
    )


class WholeStore(MemoryStore):
    """Returns the whole value whatever part is requested, as some HTTP servers do."""

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        _ = byte_range
        return await super().get(key, prototype)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        _ = byte_range
        return super().get_sync(key, prototype=prototype)


@pytest.mark.parametrize("request_", [RangeByteRequest(2, 5), SuffixByteRequest(3)])
async def test_a_response_longer_than_its_request_is_not_cached(path: Path, request_: Any) -> None:
    source = CountingStore(WholeStore({"k": buffer(b"0123456789")}))
    store = CacheStore(source, cache_store=SqliteStore(path))
    found = [await read(store, "k", request_) for _ in range(2)]

    # What the source answers is what is read.
    assert found == [b"0123456789"] * 2
    assert source.requests.total() == 2
    assert store.cache_info()["ranges"] == 0


async def in_one(store: CacheStore, asked: list[ByteRequest | None]) -> list[bytes | None]:
    """The parts by ``get_ranges``, in the order asked for."""
    found: dict[int, Any] = {}
    async for batch in store.get_ranges("k", asked, prototype=PROTOTYPE):
        found.update(batch)
    return [found[place].to_bytes() for place in range(len(asked))]


async def in_one_sync(store: CacheStore, asked: list[ByteRequest | None]) -> list[bytes | None]:
    """As `in_one`, through the sync surface."""
    found: dict[int, Any] = dict(store.get_ranges_sync("k", asked, prototype=PROTOTYPE))
    return [found[place].to_bytes() for place in range(len(asked))]


@pytest.mark.parametrize("ask", [in_one, in_one_sync])
@pytest.mark.parametrize("wrapped", [lambda source: source, WrapperStore[Any]])
@pytest.mark.parametrize("further", [[], [RangeByteRequest(9, 30)]])
async def test_what_was_cut_out_of_a_longer_or_shorter_response_is_not_cached(
    path: Path, further: list[ByteRequest | None], wrapped: Any, ask: Any
) -> None:
    source = wrapped(WholeStore({"k": buffer(b"0123456789")}))
    store = CacheStore(source, cache_store=SqliteStore(path))
    found = await ask(store, [RangeByteRequest(3, 5), RangeByteRequest(6, 8), *further])

    # As if the answer had begun at 3: of the right lengths.
    assert found[:2] == [b"01", b"34"]
    assert store.cache_info()["ranges"] == 0


@pytest.mark.parametrize("request_", [RangeByteRequest(2, 12), SuffixByteRequest(11)])
async def test_the_size_of_a_value_is_not_concluded_from_a_short_response(
    path: Path, request_: Any
) -> None:
    source = MemoryStore({"k": buffer(b"01234")})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    await read(store, "k", request_)
    # The server had more, and sent a part of what it was asked for.
    await source.set("k", buffer(b"0123456789"))

    assert await store.getsize("k") == 10
    assert await read(store, "k", request_) == await read(source, "k", request_)


@given(request_=REQUESTS)
def test_every_request_of_zarr_is_one(request_: Any) -> None:
    check(request_)


@pytest.mark.parametrize("request_", ["0-4", (0, 4), slice(0, 4), 4])
def test_what_is_not_a_request_of_zarr_is_refused(request_: Any) -> None:
    with pytest.raises(TypeError, match="Unexpected byte_range"):
        check(request_)


@pytest.mark.parametrize(
    "request_",
    [
        RangeByteRequest(-1, 4),
        RangeByteRequest(0, -4),
        OffsetByteRequest(-1),
        SuffixByteRequest(-1),
    ],
)
def test_a_negative_position_is_refused_by_name(request_: Any) -> None:
    with pytest.raises(ValueError, match=r"byte_range must not be negative, got .*-"):
        check(request_)
