"""Which bytes a request means, once the size of the value is known."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from tests.fakes import CountingStore, buffer, read
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.byte_range import check, may_have, span

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
def test_a_span_is_never_longer_than_its_request_may_have(value: bytes, request_: Any) -> None:
    start, stop = span(request_, len(value))

    assert may_have(request_, stop - start)


class IgnoresRanges(CountingStore):
    """As an HTTP server that sends the whole value whatever part it is asked for."""

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        _ = byte_range
        return await super().get(key, prototype)


@pytest.mark.parametrize("request_", [RangeByteRequest(2, 5), SuffixByteRequest(3)])
async def test_an_answer_that_is_longer_than_its_request_is_not_kept(
    path: Path, request_: Any
) -> None:
    source = IgnoresRanges(MemoryStore({"k": buffer(b"0123456789")}))
    store = CacheStore(source, cache_store=SqliteStore(path))
    found = [await read(store, "k", request_) for _ in range(2)]

    # What the source answers is what is read.
    assert found == [b"0123456789"] * 2
    assert source.requests.total() == 2
    assert store.cache_info()["ranges"] == 0


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
