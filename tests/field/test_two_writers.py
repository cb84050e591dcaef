"""A chunk that is written in part through a cache, after another program has changed it.

Appends are in tests/freshness/test_append.py (https://github.com/pydata/xarray/issues/5878). What
remains is said in README, "What it does not do", and in docs/options.md, with the way out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import zarr
from zarr.storage import LocalStore

from tests.fakes import values
from zarr_cache import CacheStore, SqliteStore

PAGES = [Path(__file__).parents[2] / "README.md", Path(__file__).parents[2] / "docs/options.md"]


def write_in_turn(tmp_path: Path, *, at: int, **settings: Any) -> list[int]:
    """What the source has after the other program wrote 2 into the first half, and the cache 3."""
    plain = LocalStore(tmp_path / "source")
    zarr.create_array(plain, shape=(10,), chunks=(10,), dtype="i4")[:] = 9
    cache = CacheStore(plain, cache_store=SqliteStore(tmp_path / "cache.sqlite"), **settings)
    values(zarr.open_array(cache, mode="r"))
    zarr.open_array(plain, mode="r+")[:5] = 2
    zarr.open_array(cache, mode="r+")[at:] = 3
    found: list[int] = values(zarr.open_array(plain, mode="r"))
    return found


def test_with_an_age_of_0_both_writes_are_there(tmp_path: Path) -> None:
    assert write_in_turn(tmp_path, at=5, max_age_seconds=0) == [2] * 5 + [3] * 5


def test_a_whole_chunk_is_written_as_it_is(tmp_path: Path) -> None:
    assert write_in_turn(tmp_path, at=0) == [3] * 10


def test_otherwise_the_earlier_write_is_undone(tmp_path: Path) -> None:
    assert write_in_turn(tmp_path, at=5) == [9] * 5 + [3] * 5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_say_so_with_the_way_out(page: Path) -> None:
    text = " ".join(page.read_text("utf-8").split())
    _, _, said = text.partition("written in part is first read, from the cache if it is cached")

    assert "another program has changed that chunk since, the write undoes the change" in said[:100]
    assert "max_age_seconds=0" in said[:260]
