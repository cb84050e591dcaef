"""How connections to a file are opened."""

from __future__ import annotations

import pytest

from zarr_cache.connection import mmap_bytes


@pytest.mark.parametrize(
    ("value", "expected"), [(None, 2**33), ("", 2**33), ("0", 0), ("1 GiB", 2**30)]
)
def test_the_environment_says_how_much_is_mapped(
    value: str | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ZARR_CACHE_MMAP_BYTES", raising=False)
    if value is not None:
        monkeypatch.setenv("ZARR_CACHE_MMAP_BYTES", value)

    assert mmap_bytes() == expected


def test_what_is_no_size_is_refused_by_name_and_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZARR_CACHE_MMAP_BYTES", "off")

    with pytest.raises(ValueError, match=r"^ZARR_CACHE_MMAP_BYTES: 'off' is no size"):
        mmap_bytes()
