"""What values take of the pages of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import buffer, open_file
from zarr_cache import CacheStore, SqliteStore, space

if TYPE_CHECKING:
    from pathlib import Path

IN_USE = """
SELECT (page_count - freelist_count) * page_size
FROM pragma_page_count, pragma_freelist_count, pragma_page_size
"""


@pytest.mark.parametrize(
    ("nbytes", "number"),
    [
        (20, 4000),
        (300, 4000),
        (1000, 3000),
        (5000, 600),
        (10_000, 300),
        (64_000, 200),
        (65_536, 200),
        (300_000, 40),
        (5_000_000, 3),
    ],
)
def test_what_a_value_takes_of_the_disk_is_told_about_and_not_too_low(
    path: Path, nbytes: int, number: int
) -> None:
    source = MemoryStore({f"array/c/{n}": buffer(bytes(nbytes)) for n in range(number + 1)})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    store.get_sync("array/c/0")
    store.flush()
    with open_file(path) as shell:
        (before,) = shell.execute(IN_USE).fetchone()
        for key in list(source._store_dict):
            store.get_sync(key)
        store.flush()
        (after,) = shell.execute(IN_USE).fetchone()
    told = number * space.bytes_on_disk(nbytes)

    assert told * 0.6 < after - before < told * 1.02
