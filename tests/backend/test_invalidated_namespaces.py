"""No entry of an invalidated namespace is served until it is revalidated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_cache import SqliteStore
from zarr_cache.backend.failures import InvalidatedNamespaces
from zarr_cache.core.errors import StorageError
from zarr_cache.core.flow import run
from zarr_cache.file.database import MemoryDatabase

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_marker_invalidates_for_all_processes(path: Path) -> None:
    database = SqliteStore(path).database
    run(InvalidatedNamespaces(database).invalidate("source"))

    other = InvalidatedNamespaces(database)

    assert other.is_invalidated("source")
    assert not other.is_invalidated("another")


def test_revalidation_removes_the_marker(path: Path) -> None:
    database = SqliteStore(path).database
    invalidated = InvalidatedNamespaces(database)
    run(invalidated.invalidate("source"))
    run(invalidated.release("source", database.marked_ns("source")))

    assert not invalidated.is_invalidated("source")


def test_a_marker_of_a_later_write_stays(path: Path) -> None:
    invalidated = InvalidatedNamespaces(SqliteStore(path).database)
    run(invalidated.invalidate("source"))
    run(invalidated.release("source", 1))

    assert invalidated.is_invalidated("source")


def test_without_a_marker_this_process_remembers_and_warns_once(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mark(_: str) -> bool:
        raise StorageError("no room even for a name")

    database = SqliteStore(path).database
    monkeypatch.setattr(database, "mark", mark)
    invalidated = InvalidatedNamespaces(database)
    for _ in range(2):
        run(invalidated.invalidate("source"))

    assert invalidated.is_invalidated("source")
    assert caplog.messages == [
        "no room even for a name; other processes may serve values from before a write"
    ]
    run(invalidated.release("source", None))
    assert not invalidated.is_invalidated("source")


def test_it_is_remembered_where_there_is_no_file() -> None:
    invalidated = InvalidatedNamespaces(MemoryDatabase())
    run(invalidated.invalidate("source"))

    assert invalidated.is_invalidated("source")
    run(invalidated.release("source", None))
    assert not invalidated.is_invalidated("source")
