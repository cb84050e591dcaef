"""Uses are gathered, and written when there are many or when the first is old."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import buffer, file_cache, open_file
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.backend.counters import MAX_PENDING, MAX_PENDING_NS, Pending

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

    from tests.fakes import HeldTime

LONGEST_SECONDS = MAX_PENDING_NS // 10**9


def test_they_are_due_when_there_are_many() -> None:
    pending = Pending()
    are_due = [pending.touch(entry, 1) for entry in range(MAX_PENDING)]

    assert are_due.index(True) == MAX_PENDING - 1


def test_they_are_due_when_the_first_is_old() -> None:
    pending = Pending()
    first = [pending.touch(1, 5), pending.touch(2, 4 + MAX_PENDING_NS)]
    last = pending.touch(1, 5 + MAX_PENDING_NS)

    assert (first, last) == ([False, False], True)


def test_none_that_has_been_taken_is_due() -> None:
    pending = Pending()
    pending.touch(1, 5)
    pending.touch(1, 5 + MAX_PENDING_NS)
    taken = pending.take_touches()

    assert taken == {1: 5 + MAX_PENDING_NS}
    assert not pending.are_due
    assert not pending.touch(2, 10 + 2 * MAX_PENDING_NS)


def used_at(shell: sqlite3.Connection) -> dict[str, int]:
    return dict(shell.execute("SELECT key, used_at FROM entry WHERE kind = 'value'"))


@pytest.mark.parametrize("seconds", [LONGEST_SECONDS - 1, LONGEST_SECONDS + 1])
def test_other_processes_see_in_the_file_what_was_used_ten_seconds_ago(
    path: Path, held_time: HeldTime, seconds: int
) -> None:
    source = MemoryStore({key: buffer(key.encode()) for key in "ab"})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    for key in "ab":
        store.get_sync(key)
    with open_file(path) as shell:
        before = used_at(shell)
        store.get_sync("a")
        held_time.step(seconds)
        store.get_sync("b")
        # The thread that writes ends when it has.
        file_cache(store)._writer.stop()
        after = used_at(shell)

    assert [after[key] > before[key] for key in "ab"] == [seconds > LONGEST_SECONDS] * 2
