"""What was read before is remembered, but not for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import MemoryStore

from tests.fakes import buffer
from zarr_cache import CacheStore, SqliteStore, batch, reading
from zarr_cache.batch import Chunk, ReadsBefore, chunks_to_read

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import ByteRequest

SELECTIONS = [
    (),
    (slice(0, 4), slice(0, 4)),
    (slice(0, 4), slice(0, 5)),
    (slice(0, 4), 2),
    (np.array([[0], [2]]), np.array([[1, 3]])),
    (np.array([[0], [2]]), np.array([[1, 4]])),
    slice(0, 4),
    np.array([0, 3]),
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=repr)
def test_a_chunk_is_known_when_the_same_part_of_it_was_noted(selection: Any) -> None:
    others = [other for other in SELECTIONS if other is not selection]
    before = ReadsBefore()
    for other in others:
        before.note(Chunk("c/0", other))
    before.note(Chunk("c/1", selection))

    assert not before.note(Chunk("c/0", selection))
    assert before.note(Chunk("c/0", selection))


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MOST_REMEMBERED", 3)
    before = ReadsBefore()
    for key in "abcd":
        before.note(Chunk(key, ()))

    assert [before.note(Chunk(key, ())) for key in "da"] == [True, False]


@pytest.mark.parametrize(
    ("request_", "expected"), [(RangeByteRequest(0, 3), [False, True]), (None, [True, True])]
)
def test_a_shard_is_taken_to_be_kept_if_it_is_or_if_some_of_it_is_and_it_was_read_before(
    request_: ByteRequest | None, expected: list[bool], path: Path
) -> None:
    source = MemoryStore({"c/0": buffer(b"a shard")})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    store.get_sync("c/0", byte_range=request_)
    chunk = Chunk("c/0", ())

    assert [reading.expects_hits(store._cached, [chunk]) for _ in "ab"] == expected


def test_who_is_not_the_pipeline_reads_no_chunks() -> None:
    assert chunks_to_read() is None
