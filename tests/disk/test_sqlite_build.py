"""Which versions of SQLite have the WAL-reset fault (https://sqlite.org/wal.html#walresetbug)."""

from __future__ import annotations

import pytest

from zarr_cache.disk import sqlite_build
from zarr_cache.disk.sqlite_build import has_wal_reset_fault


@pytest.mark.parametrize("version", [(3, 40, 1), (3, 44, 5), (3, 45, 1), (3, 50, 6), (3, 51, 2)])
def test_a_version_before_the_correction_has_the_fault(version: tuple[int, ...]) -> None:
    assert has_wal_reset_fault(version)


@pytest.mark.parametrize("version", [(3, 44, 6), (3, 50, 7), (3, 51, 3), (3, 52, 0), (4, 0, 0)])
def test_a_corrected_version_has_not(version: tuple[int, ...]) -> None:
    assert not has_wal_reset_fault(version)


def test_the_description_of_a_faulty_version_says_which_has_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sqlite_build, "has_wal_reset_fault", lambda: True)

    assert sqlite_build.description().endswith("3.51.3 and later versions do not have it")
