"""A stale response is for those whose settings accept it, also if several ask at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from zarr.storage import LocalStore, WrapperStore

from tests.fakes import buffer, read
from zarr_cache import CacheStore, CacheWarning, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from tests.fakes import HeldTime


class FailingStore(WrapperStore["Store"]):
    """A source that waits, and then fails, once it is told to."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.is_failing = False
        self.asked, self.may_fail = asyncio.Event(), asyncio.Event()

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if self.is_failing:
            self.asked.set()
            await self.may_fail.wait()
            raise ConnectionError("down")
        return await super().get(key, prototype, byte_range)


async def test_who_waits_for_a_fetch_that_fails_gets_no_stale_value_of_the_one_that_leads(
    path: Path, tmp_path: Path, held_time: HeldTime
) -> None:
    local = LocalStore(tmp_path / "source")
    await local.set("c/0", buffer(b"value"))
    source = FailingStore(local)
    settings = {"namespace": "source", "max_age_seconds": 10}
    content = SqliteStore(path)
    lenient = CacheStore(source, cache_store=content, stale_if_error_seconds=100, **settings)  # type: ignore[arg-type] # of two types
    strict = CacheStore(source, cache_store=content, **settings)  # type: ignore[arg-type] # the same
    await read(lenient, "c/0")
    held_time.step(11)
    source.is_failing = True

    leader = asyncio.create_task(read(lenient, "c/0"))
    await source.asked.wait()
    follower = asyncio.create_task(read(strict, "c/0"))
    await asyncio.sleep(0)
    source.may_fail.set()
    with pytest.warns(CacheWarning, match="the source fails"):
        assert await leader == b"value"
    with pytest.raises(ConnectionError):
        await follower
