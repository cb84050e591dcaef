"""Whether a path still names the file that was opened."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from zarr_cache.core.errors import StorageError
from zarr_cache.disk.paths import file_id_of, state_of, wal_of
from zarr_cache.disk.presence import Change, Presence

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"12345678")
    return path


@pytest.fixture
def presence(path: Path) -> Presence:
    presence = Presence(path)
    presence.remember(file_id_of(path))
    assert presence.change() is None
    return presence


def test_a_file_that_grows_has_not_changed(path: Path, presence: Presence) -> None:
    path.write_bytes(b"1234567890")

    assert presence.change() is None


def test_a_deleted_file_is_gone(path: Path, presence: Presence) -> None:
    path.unlink()

    assert presence.change() is Change.DELETED
    assert presence.is_gone()


def test_another_file_of_the_same_name_replaces_it(path: Path, presence: Presence) -> None:
    other = path.with_name("other")
    other.write_bytes(b"12345678")
    other.replace(path)

    assert presence.change() is Change.REPLACED
    assert not presence.is_gone()


@pytest.mark.parametrize(("length", "change"), [(0, Change.EMPTIED), (4, Change.SHRUNK)])
def test_a_file_that_was_cut_is_reported_until_it_is_opened_again(
    path: Path, presence: Presence, length: int, change: Change
) -> None:
    os.truncate(path, length)

    assert [presence.change(), presence.change()] == [change] * 2
    presence.remember(file_id_of(path))
    assert presence.change() is None


def test_a_wal_beside_a_file_that_was_opened_as_immutable_is_a_write(
    path: Path, presence: Presence
) -> None:
    presence.expect(state_of(path, path.stat()))
    before = presence.change()
    wal_of(path).touch()
    presence.expect(state_of(path, path.stat()))

    assert before is None
    assert presence.change() is Change.WRITTEN


def test_a_path_through_a_file_is_an_error_and_names_no_file(path: Path) -> None:
    beneath = path / "beneath"

    with pytest.raises(StorageError, match=str(beneath)):
        Presence(beneath).change()
    assert Presence(beneath).is_gone()
