"""Invalidation markers: one process makes a namespace of a cache file invalid for all."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import buffer
from zarr_cache import CacheStore, CacheWarning, SqliteStore
from zarr_cache.file.invalidation import Markers

if TYPE_CHECKING:
    from pathlib import Path


def test_a_mark_is_of_one_namespace(path: Path) -> None:
    Markers(path).mark("one")
    ours = Markers(path).marked_ns("one")
    theirs = Markers(path).marked_ns("other")

    assert ours is not None
    assert theirs is None


def test_a_mark_is_removed_if_it_is_the_one_that_was_read(path: Path) -> None:
    Markers(path).mark("one")
    seen = Markers(path).marked_ns("one")
    assert seen is not None
    Markers(path).unmark("one", seen)

    assert list(path.parent.iterdir()) == []


def test_a_mark_that_was_made_again_stays(path: Path) -> None:
    Markers(path).mark("one")
    seen = Markers(path).marked_ns("one")
    assert seen is not None
    # Another write cannot be recorded while the process that found the marker removes entries.
    Markers(path).mark("one")
    Markers(path).unmark("one", seen)

    assert Markers(path).marked_ns("one") not in (None, seen)


def test_a_mark_that_was_made_again_while_the_clock_stood_still_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = time.time_ns()
    monkeypatch.setattr("time.time_ns", lambda: now_ns)
    Markers(path).mark("one")
    seen = Markers(path).marked_ns("one")
    assert seen is not None
    Markers(path).mark("one")
    Markers(path).unmark("one", seen)

    assert Markers(path).marked_ns("one") not in (None, seen)


def test_a_mark_that_another_process_has_removed_is_no_fault(path: Path) -> None:
    Markers(path).unmark("one", 1)

    assert Markers(path).marked_ns("one") is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_mark_is_for_its_owner_alone(path: Path) -> None:
    Markers(path).mark("one")
    (name,) = path.parent.iterdir()

    assert name.stat().st_mode & 0o777 == 0o600
    assert name.stat().st_size == 0


def test_nothing_is_put_beside_a_file_that_is_not_ours(path: Path) -> None:
    path.write_text("a,b\n1,2\n")
    store = CacheStore(MemoryStore(), cache_store=SqliteStore(path), namespace="source")
    with pytest.warns(CacheWarning, match="not an SQLite database"):
        store.set_sync("key", buffer(b"written"))
    store.delete_sync("key")

    assert list(path.parent.iterdir()) == [path]
