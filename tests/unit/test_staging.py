"""A large value is written part by part, and nobody sees less than all of it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.storage import MemoryStore

from tests.fakes import (
    BetweenParts,
    CountingStore,
    HeldTime,
    assert_accounts,
    buffer,
    cached_bytes,
    cached_keys,
    close_everything,
    leave_process,
    open_file,
    read,
)
from zarr_cache import (
    CacheStore,
    CacheWarning,
    SqliteStore,
    checksum,
    fence,
    private,
    staging,
    values,
    writer,
)
from zarr_cache.answer import Answer
from zarr_cache.flow import run, run_async

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PART = checksum.BLOCK
SIZE = 3 * PART + 1000
MAX_SIZE = SIZE + PART
LARGE = b"0123456789" * (SIZE // 10)
SMALL = b"small" * 2000


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[None]:
    """Let a value of some hundred kB be a large one, also while the file is verified in the end."""
    monkeypatch.setattr(values, "PART", PART)
    monkeypatch.setattr(staging, "MOST_AT_ONCE", PART)
    yield
    close_everything()
    if path.exists():
        assert_accounts(path)
        close_everything()
        path.unlink()


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> BetweenParts:
    statements = BetweenParts()
    statements.install(monkeypatch)
    return statements


def new_source() -> CountingStore:
    kept = {"large": LARGE, "a": SMALL, "b": SMALL}
    return CountingStore(MemoryStore({key: buffer(data) for key, data in kept.items()}))


def new_cache(source: CountingStore, path: Path, max_size: int | None = MAX_SIZE) -> CacheStore:
    return CacheStore(source, cache_store=SqliteStore(path), namespace="source", max_size=max_size)


def other_cache(store: CacheStore, path: Path, max_size: int | None = MAX_SIZE) -> CacheStore:
    """Another one on the same file, as if it were in another process."""
    leave_process(store)
    return new_cache(store._store, path, max_size)  # type: ignore[arg-type] # it is a CountingStore


async def read_and_keep(store: CacheStore, key: str = "large") -> bytes | None:
    found = await read(store, key)
    store._cached.values.flush()
    return found


def read_sync(store: CacheStore, key: str) -> None:
    store.get_sync(key)
    store.flush()


def cached_keys_now(path: Path) -> set[str]:
    """As `cached_keys`, without waiting for what is being written."""
    with closing(sqlite3.connect(path)) as db:  # noqa: TID251 - as another process has it
        return {key for (key,) in db.execute("SELECT key FROM entry WHERE kind = 'value'")}


def staged(path: Path) -> int:
    """Entries of values that are being written, or were given up."""
    with open_file(path) as db:
        rows = db.execute("SELECT name FROM entry JOIN namespace ON namespace = namespace.id")
        return sum(staging.is_staged(name) for (name,) in rows)


async def test_it_is_kept_whole_and_each_part_in_a_transaction_of_its_own(
    path: Path, between: BetweenParts
) -> None:
    source = new_source()
    store = new_cache(source, path)
    await read_and_keep(store, "a")
    between.texts.clear()

    await read_and_keep(store)

    inserted = [text for text in between.texts if text.startswith(("INSERT INTO value", "COMMIT"))]
    part = values.INSERT_PART.strip()
    assert inserted == ["COMMIT", *[part, "COMMIT"] * 4, "COMMIT"]
    assert cached_bytes(path) == len(LARGE) + len(SMALL)
    assert staged(path) == 0


async def test_who_waits_for_it_goes_on_when_the_thread_that_writes_it_is_interrupted(
    path: Path, between: BetweenParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This thread comes before the one that writes.
    monkeypatch.setattr(writer, "QUIET_SECONDS", 3600)
    monkeypatch.setattr(writer, "LONGEST_SECONDS", 3600)
    store = new_cache(new_source(), path)
    await read(store, "large")
    waiting = store._cached.values._admissions._waiting[0]

    def interrupt() -> None:
        raise KeyboardInterrupt

    between.happens = interrupt
    with pytest.raises(KeyboardInterrupt):
        store.flush()

    await run_async(waiting.wait())
    assert staged(path) == 0
    assert await read(store, "large") == LARGE


async def test_it_is_read_whole_and_in_ranges_as_any_other(path: Path) -> None:
    source = new_source()
    store = new_cache(source, path)
    await read_and_keep(store)
    source.reset()

    requests = [None, RangeByteRequest(PART - 5, 2 * PART + 5), SuffixByteRequest(7)]
    found = [await read(store, "large", request) for request in requests]

    assert found == [LARGE, LARGE[PART - 5 : 2 * PART + 5], LARGE[-7:]]
    assert source.requests.total() == 0


async def test_what_is_written_through_the_cache_is_kept_in_the_same_way(
    path: Path, between: BetweenParts
) -> None:
    source = new_source()
    store = new_cache(source, path, max_size=4 * SIZE)
    await store._set_many([(key, buffer(LARGE)) for key in ["x", "y"]] + [("z", buffer(SMALL))])
    source.reset()
    found = [await read(store, key) for key in "xyz"]

    assert found == [LARGE, LARGE, SMALL]
    assert source.requests.total() == 0
    assert between.number("INSERT INTO value") == 9
    assert staged(path) == 0


async def test_another_process_reads_the_source_while_it_is_being_written(
    path: Path, between: BetweenParts
) -> None:
    store = new_cache(new_source(), path)
    other = other_cache(store, path)
    seen = []

    def look() -> None:
        part = other.get_sync("large", byte_range=RangeByteRequest(0, 10))
        seen.append(part and part.to_bytes())
        with sqlite3.connect(path) as db:  # noqa: TID251 - the file as another process has it
            seen.append(db.execute("SELECT bytes FROM total WHERE kind = 'value'").fetchone())
        db.close()

    between.happens = look
    found = await read_and_keep(store)

    part, total = seen
    assert found == LARGE
    assert part == LARGE[:10]
    assert total == (PART,)
    assert cached_keys(path) == {"large"}


@pytest.mark.parametrize("size", [len(LARGE), 5], ids=["large", "small"])
async def test_a_write_in_between_refuses_it(path: Path, between: BetweenParts, size: int) -> None:
    store = new_cache(new_source(), path)
    other = other_cache(store, path)
    between.happens = lambda: other.set_sync("large", buffer(bytes(size)))

    found = await read_and_keep(store)

    assert found == LARGE
    assert await read(store, "large") == await read(other, "large") == bytes(size)
    assert cached_bytes(path) == size
    assert staged(path) == 0


async def test_to_clear_the_cache_in_between_refuses_it(path: Path, between: BetweenParts) -> None:
    store = new_cache(new_source(), path)
    other = other_cache(store, path)
    await read_and_keep(store, "a")
    between.texts.clear()
    database = other._cached.values._database
    between.happens = lambda: database.run(fence.fence_prefix, "source", "")

    await read_and_keep(store)

    assert cached_keys(path) == set()


async def test_what_is_forgotten_in_between_is_not_kept(path: Path, between: BetweenParts) -> None:
    store = new_cache(new_source(), path)
    await read_and_keep(store, "a")
    between.texts.clear()
    admissions = store._cached.values._admissions
    between.happens = lambda: admissions.forget("source", "large")

    await read_and_keep(store)

    assert cached_keys(path) == {"a"}


async def test_what_makes_room_in_between_may_take_it_away(
    path: Path, between: BetweenParts
) -> None:
    store = new_cache(new_source(), path)
    other = other_cache(store, path, max_size=len(SMALL))
    between.happens = lambda: read_sync(other, "a")

    found = await read_and_keep(store)

    assert found == LARGE
    assert cached_keys(path) == {"a"}
    assert cached_bytes(path) == len(SMALL)


@pytest.mark.parametrize("max_size", [None, SIZE + PART], ids=["room for both", "for one"])
async def test_of_two_processes_that_write_the_same_one_keeps_it(
    path: Path, between: BetweenParts, max_size: int | None
) -> None:
    source = new_source()
    store = new_cache(source, path, max_size)
    other = other_cache(store, path, max_size)
    await read_and_keep(store, "a")
    between.texts.clear()
    between.happens = lambda: read_sync(other, "large")

    await read_and_keep(store)
    source.reset()

    assert await read(store, "large") == await read(other, "large") == LARGE
    assert source.requests.total() == 0
    assert "large" in cached_keys(path)
    assert staged(path) == 0


async def test_what_it_takes_the_place_of_goes_before_anything_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = BetweenParts(0)
    between.install(monkeypatch)
    store = new_cache(new_source(), path)
    other = other_cache(store, path)
    await read_and_keep(store, "a")
    cache = other._cached.values
    earlier = cache.clock().stamp_ns()

    def keep_what_was_asked_earlier() -> None:
        data = np.frombuffer(LARGE, np.uint8)
        answer = Answer(data, earlier, cache.clock().stamp_ns(), 2**61)
        run(cache.admit("source", "large", answer, other._cached.limits(), lambda _: None))
        other.flush()

    between.texts.clear()
    between.happens = keep_what_was_asked_earlier
    await read_and_keep(store)

    assert between.number("INSERT INTO value") == 8
    assert cached_keys(path) == {"a", "large"}
    assert cached_bytes(path) == len(LARGE) + len(SMALL)


async def test_room_is_made_for_each_part_and_not_more_of_it(
    path: Path, between: BetweenParts
) -> None:
    store = new_cache(new_source(), path, max_size=SIZE + 1)
    for key in "ab":
        await read_and_keep(store, key)
    between.texts.clear()
    kept: list[set[str]] = []
    between.happens = lambda: kept.append(cached_keys_now(path))
    await read_and_keep(store)

    assert {"a", "b"} < kept[0]
    assert cached_keys(path) == {"large"}


async def test_the_budget_holds_while_the_last_part_is_there_already(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = BetweenParts(4)
    between.install(monkeypatch)
    store = new_cache(new_source(), path, max_size=SIZE + 1)
    await read_and_keep(store, "a")
    between.texts.clear()
    kept: list[set[str]] = []
    between.happens = lambda: kept.append(cached_keys_now(path))
    await read_and_keep(store)

    assert len(kept[0]) == 1
    assert "a" not in kept[0]


async def test_what_is_used_while_it_is_written_stays_when_others_go(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    between = BetweenParts(4)
    between.install(monkeypatch)
    source = new_source()
    store = new_cache(source, path, max_size=SIZE + 1)
    other = other_cache(store, path, max_size=2 * SIZE)

    def keep_another_and_use_this() -> None:
        read_sync(other, "a")
        cache = store._cached.values
        cache._admissions.touch("source", "large", cache.clock().stamp_ns())

    between.happens = keep_another_and_use_this
    await read_and_keep(store)
    source.reset()
    found = await read(store, "large")

    assert found == LARGE
    assert source.requests.total() == 0
    assert cached_keys(path) == {"large"}


async def test_when_a_write_comes_in_between_the_rest_is_not_written(
    path: Path, between: BetweenParts
) -> None:
    store = new_cache(new_source(), path)
    other = other_cache(store, path)
    between.happens = lambda: other.delete_sync("large")

    await store.set("large", buffer(LARGE))

    assert between.number("INSERT INTO value") == 1
    assert cached_keys(path) == set()


async def test_what_is_tried_once_more_is_counted_once(path: Path, between: BetweenParts) -> None:
    store = new_cache(new_source(), path)
    await read_and_keep(store, "a")
    between.texts.clear()
    between.happens = lambda: between.fail(sqlite3.SQLITE_READONLY, at=1)

    await read_and_keep(store)

    admissions = store._cached.values._admissions
    assert (admissions.nbytes, admissions.being_kept) == (0, 0)
    assert cached_keys(path) == {"a", "large"}


async def test_one_larger_than_the_budget_evicts_nothing(path: Path, between: BetweenParts) -> None:
    store = new_cache(new_source(), path, max_size=2 * PART)
    await read_and_keep(store, "a")
    await read_and_keep(store, "b")

    await read_and_keep(store)

    assert cached_keys(path) == {"a", "b"}
    assert between.number("INSERT INTO value") == 2


async def test_when_the_disk_is_full_in_between_what_is_written_of_it_goes(
    path: Path, between: BetweenParts
) -> None:
    store = new_cache(new_source(), path)
    await read_and_keep(store, "a")
    between.texts.clear()
    between.happens = lambda: between.fail(sqlite3.SQLITE_FULL, at=1)

    found = await read_and_keep(store)

    with pytest.warns(CacheWarning, match="as the test asked"):
        again = await read(store, "a")
    assert found == LARGE
    assert again == SMALL
    assert cached_keys(path) == {"a"}
    assert store.cache_stats()["evictions"] == 0


async def test_what_could_not_be_removed_then_is_with_the_next_one(
    path: Path, between: BetweenParts, held_time: HeldTime
) -> None:
    store = new_cache(new_source(), path, max_size=None)
    await read_and_keep(store, "a")
    between.texts.clear()
    between.happens = lambda: between.fail(sqlite3.SQLITE_FULL, at=1, times=1000)
    await read_and_keep(store)
    between.fail(sqlite3.SQLITE_FULL, at=1, times=0)
    left = staged(path)
    held_time.step(61)
    with pytest.warns(CacheWarning, match="as the test asked"):
        await read_and_keep(store)

    assert left == 1
    assert cached_keys(path) == {"a", "large"}
    assert staged(path) == 0


async def test_verify_reads_what_is_written_so_far(path: Path, between: BetweenParts) -> None:
    store = new_cache(new_source(), path)
    other = other_cache(store, path)
    problems = []

    def damage_and_verify() -> None:
        problems.append(list(other._cache.verify()))  # type: ignore[attr-defined]
        with sqlite3.connect(path) as db:  # noqa: TID251 - a page that has changed
            db.execute("UPDATE value SET data = zeroblob(length(data))")
        db.close()
        problems.append(list(other._cache.verify()))  # type: ignore[attr-defined]

    between.happens = damage_and_verify
    await read_and_keep(store)
    clean, damaged = problems
    again = await read(store, "large")

    assert clean == []
    assert [problem.what for problem in damaged] == ["bytes"]
    assert again == LARGE
    assert store.cache_stats()["damaged"] == 1


def test_a_name_tells_whether_it_is_one_of_values_that_are_being_written() -> None:
    own = private.own_prefix()

    assert staging.is_staged(f"{own}{staging.NAME}")
    assert not staging.is_staged(f"{own}1")
    assert not staging.is_staged("source:staged")
