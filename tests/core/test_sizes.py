"""Numbers of bytes as people write and read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.sizes import UNITS, format_size, parse_size

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("7 B", 7),
        ("500 MB", 500 * 10**6),
        ("20 GiB", 20 * 2**30),
        (" 20gib ", 20 * 2**30),
        ("1.5 GiB", 3 * 2**29),
        (".5KiB", 512),
        ("2.KB", 2000),
        ("3 TiB", 3 * 2**40),
        ("1PiB", 2**50),
        ("0.3 KiB", 307),
        ("9007199254740993 kB", 9007199254740993000),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text",
    ["", " ", "GiB", "20G", "-1 GiB", "1 2", "1,5 GiB", "1 XB", "1 GiB!", "١ GiB", "0x10", "nan"],  # noqa: RUF001
)
def test_what_is_no_size_is_refused_with_what_was_found_and_expected(text: str) -> None:
    with pytest.raises(ValueError, match="is no size; expected such as '20 GiB'") as refusal:
        parse_size(text)

    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize("text", ["1 kB", "2.5 MB", "3 gib", "4 KiB", "5", "6 B", "7 TB", "8 PiB"])
def test_dask_reads_a_size_alike(text: str) -> None:
    utils = pytest.importorskip("dask.utils", reason="dask comes with the extra test alone")

    assert parse_size(text) == utils.parse_bytes(text)


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**20, "1.0 MiB"),
        (20 * 2**30, "20.0 GiB"),
        (3 * 2**40, "3.0 TiB"),
        (2**62, "4096.0 PiB"),
        (-2048, "-2.0 KiB"),
    ],
)
def test_a_size_is_shown_in_the_largest_unit_of_which_there_is_one(nbytes: int, shown: str) -> None:
    assert format_size(nbytes) == shown


@given(st.integers(0, 2**63 - 1))
def test_a_size_that_is_shown_is_read_back_to_a_twentieth_of_its_unit(nbytes: int) -> None:
    shown = format_size(nbytes)
    factor = 1024 ** UNITS.index(shown.split()[1])

    # And to the whole byte below: what was shown as 1.2 KiB is read as 1228 B.
    assert abs(parse_size(shown) - nbytes) <= factor / 20 + 1 + nbytes / 2**50


@pytest.mark.parametrize("max_size", ["20 GiB", "500 MB", "4096"])
def test_a_budget_may_be_a_size_in_words(path: Path, max_size: str) -> None:
    store = CacheStore(MemoryStore(), cache_store=SqliteStore(path), max_size=max_size)

    assert store.max_size == parse_size(max_size)


@pytest.mark.parametrize("max_size", ["20 GX", "-1 GiB", ""])
def test_a_budget_in_other_words_is_refused_by_name_and_value(path: Path, max_size: str) -> None:
    with pytest.raises(ValueError, match=f"^max_size must be .* got {max_size!r}$"):
        CacheStore(MemoryStore(), cache_store=SqliteStore(path), max_size=max_size)


@pytest.mark.parametrize(
    ("max_size", "error", "words"),
    [
        (True, TypeError, "must be a whole number of bytes, .* got True"),
        (2**63, ValueError, "must be at most 9223372036854775807, got .*: pass None for no limit"),
        ("8192 PiB", ValueError, "must be at most .* got '8192 PiB': pass None for no limit"),
    ],
)
def test_a_budget_that_is_no_size_of_a_file_is_refused(
    path: Path, max_size: int | str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=f"^max_size {words}"):
        CacheStore(MemoryStore(), cache_store=SqliteStore(path), max_size=max_size)
