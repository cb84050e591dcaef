"""What tests of readers share: reading through one, and what the plain store does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync

from tests.fakes import read
from zarr_cache.sources.readers import reader_of

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest, Store

    from zarr_cache.sources.source_reader import Fetched, Listed, SourceReader

KEY = "group/chunk"
DATA = bytes(range(256)) * 40

REQUESTS: list[ByteRequest | None] = [
    None,
    RangeByteRequest(0, 1),
    RangeByteRequest(10, 300),
    RangeByteRequest(300, len(DATA) + 9),
    RangeByteRequest(5, 5),
    RangeByteRequest(len(DATA), len(DATA) + 2),
    OffsetByteRequest(9000),
    OffsetByteRequest(len(DATA)),
    SuffixByteRequest(16),
    SuffixByteRequest(len(DATA) + 1),
]

PARTS: dict[str, tuple[ByteRequest | None, bytes]] = {
    "range": (RangeByteRequest(10, 20), DATA[10:20]),
    "offset": (OffsetByteRequest(10_000), DATA[10_000:]),
    "suffix": (SuffixByteRequest(9), DATA[-9:]),
    "whole": (None, DATA),
}
each_part = pytest.mark.parametrize(("request_", "part"), PARTS.values(), ids=PARTS)


def reader_for(source: Store) -> SourceReader:
    """The reader of a source that has one."""
    reader = reader_of(source)
    assert reader is not None
    return reader


def fetch(source: Store, request: ByteRequest | None = None, **settings: Any) -> Fetched:
    """`KEY` through the reader of the source."""
    return sync(reader_for(source).fetch(KEY, request, **settings))


def version(source: Store, key: str = KEY) -> str | None:
    """The validator of a key, without its bytes."""
    return sync(reader_for(source).version(key))


def known_version(source: Store) -> str:
    """The validator of a key that has one."""
    found = fetch(source).validator
    assert found is not None
    return found


def data_of(fetched: Fetched) -> bytes | None:
    """The bytes."""
    return None if fetched.buffer is None else fetched.buffer.to_bytes()


def listed(source: Store, prefix: str = "") -> dict[str, Listed]:
    """What the listing of the source tells, by key."""
    listing = reader_for(source).list_versions(prefix)
    assert listing is not None

    async def collect() -> list[Listed]:
        return [each async for each in listing]

    found = sync(collect())
    assert len({each.key for each in found}) == len(found)
    return {each.key: each for each in found}


def outcome_of_plain(source: Store, request: ByteRequest | None) -> object:
    """The bytes that the store itself returns for `KEY`, or the class of its error."""
    try:
        return sync(read(source, KEY, request))
    except Exception as error:  # noqa: BLE001 - each client has errors of its own
        return type(error)


def outcome(source: Store, request: ByteRequest | None, **settings: Any) -> object:
    """As `outcome_of_plain`, through the reader."""
    try:
        return data_of(fetch(source, request, **settings))
    except Exception as error:  # noqa: BLE001 - the same
        return type(error)
