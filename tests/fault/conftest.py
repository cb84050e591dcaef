"""What tests of faults share: short waits, held time, and all that is asked of SQLite."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest

from tests.fakes import Statements
from zarr_cache.disk import paths
from zarr_cache.file import connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fakes import HeldTime


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Statements:
    """What is asked of SQLite in this test."""
    statements = Statements()
    statements.install(monkeypatch)
    return statements


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch, held_time: HeldTime) -> HeldTime:
    """Locks are given up soon, and what is left alone is so until the test lets time pass."""
    for module in (paths, connection):
        monkeypatch.setattr(module, "BUSY_TIMEOUT_SECONDS", 0.05)
    return held_time


@pytest.fixture
def warned() -> Iterator[list[warnings.WarningMessage]]:
    """Every warning of this test, also one that was told before."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield warned
