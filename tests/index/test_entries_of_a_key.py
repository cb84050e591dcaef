"""The entries of a key are found by the key, however many there are of others."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.fakes import buffer, open_file
from zarr_cache import SqliteStore
from zarr_cache.index import listing, ranges, removals

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param(getattr(ranges, name), id=name)
        for name in (
            "HAS_MORE_THAN",
            "LAST_PLACE",
            "REMOVE_INSIDE",
            "REMOVE_OF_KEY",
            "REMOVE_SOME",
            "REMOVE_TAIL",
        )
    ]
    + [
        pytest.param(listing.SIZE_INSIDE, id="SIZE_INSIDE"),
        pytest.param(listing.SIZE_OF_KEY, id="SIZE_OF_KEY"),
        pytest.param(listing.HAS_VALUE, id="HAS_VALUE"),
        pytest.param(listing.HAS_ANY, id="HAS_ANY"),
        pytest.param(listing.LIST, id="LIST"),
        pytest.param(ranges.FIRST, id="FIRST"),
        pytest.param(removals.FORGET_RANGES, id="FORGET_RANGES"),
        pytest.param(removals.REMOVE_FROM_OTHER_NAMESPACES, id="REMOVE_FROM_OTHER_NAMESPACES"),
        pytest.param(removals.FORGET, id="FORGET"),
    ],
)
def test_they_are_found_in_the_index_of_keys(path: Path, statement: str) -> None:
    SqliteStore(path).set_sync("k", buffer(b"value"))
    parameters = dict.fromkeys(re.findall(r":(\w+)", statement))
    with open_file(path) as db:
        plan = db.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
    walks = [step for *_, step in plan if " entry " in step and "rowid=?" not in step]

    assert len(walks) == 1
    assert "(namespace=? AND key" in walks[0]


@pytest.mark.parametrize("statement", [listing.STALE, listing.STALE_BYTES])
def test_stale_entries_are_found_by_their_age_the_oldest_first(path: Path, statement: str) -> None:
    SqliteStore(path).set_sync("k", buffer(b"value"))
    parameters = dict.fromkeys(re.findall(r":(\w+)", statement))
    with open_file(path) as db:
        plan = db.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
    steps = " ".join(step for *_, step in plan)

    assert "entry USING INDEX entry_by_age (namespace=? AND kind=? AND <expr>=?" in steps
    assert "TEMP B-TREE" not in steps
