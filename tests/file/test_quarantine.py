"""Which file is ours, and the name of one after it was quarantined."""

from __future__ import annotations

import shutil
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import HeldTime, buffer, open_file, restart
from zarr_cache import SqliteStore
from zarr_cache.core.errors import ForeignFileError
from zarr_cache.disk.paths import FileId, file_id_of, wal_of
from zarr_cache.file import identity
from zarr_cache.file.identity import is_ours
from zarr_cache.file.quarantine import drop_wal, quarantine

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_ours_by_its_mark_or_by_its_tables(path: Path) -> None:
    SqliteStore(path).get_sync("k")
    SqliteStore(path).close()
    whole = path.read_bytes()
    without_mark = path.with_name("a.sqlite")
    without_mark.write_bytes(whole[:68] + b"\0\0\0\0" + whole[72:])
    without_tables = path.with_name("b.sqlite")
    without_tables.write_bytes(whole[:100])
    neither = path.with_name("c.sqlite")
    neither.write_bytes(whole[:68] + b"\0\0\0\0" + whole[72:100])

    assert [is_ours(file) for file in (path, without_mark, without_tables, neither)] == [
        True,
        True,
        True,
        False,
    ]
    for file in (without_mark, without_tables, neither):
        file.unlink()


def test_a_quarantined_file_keeps_its_wal_and_has_the_time_in_its_name(
    path: Path, held_time: HeldTime
) -> None:
    held_time.wall_ns = 1_700_000_000_123_456_789
    SqliteStore(path).get_sync("k")
    SqliteStore(path).close()
    wal_of(path).write_bytes(b"log")

    aside = quarantine(path, file_id_of(path))

    assert aside is not None
    assert aside.name == "cache.sqlite.damaged-20231114T221320.123457Z"
    assert wal_of(aside).read_bytes() == b"log"
    assert not path.exists()
    assert not wal_of(path).exists()


def test_only_the_file_in_which_the_damage_was_found_is_quarantined(path: Path) -> None:
    SqliteStore(path).get_sync("k")
    SqliteStore(path).close()
    now = file_id_of(path)
    assert now is not None

    assert quarantine(path, FileId(now.device, now.inode + 1)) is None
    assert quarantine(path, None) is None
    assert path.exists()


def test_a_foreign_file_copied_over_the_cache_file_is_not_quarantined(path: Path) -> None:
    path.write_bytes(b"a picture " * 20)

    with pytest.raises(ForeignFileError, match="no cache file any more"):
        quarantine(path, file_id_of(path))

    assert path.read_bytes() == b"a picture " * 20


def test_only_the_known_wal_is_dropped(path: Path) -> None:
    wal_of(path).write_bytes(b"log")
    known = file_id_of(wal_of(path))
    assert known is not None

    drop_wal(path, FileId(known.device, known.inode + 1))
    drop_wal(path, None)
    is_there = wal_of(path).exists()
    drop_wal(path, known)

    assert is_there
    assert not wal_of(path).exists()


def test_a_new_file_begins_after_every_revision_of_the_one_before(path: Path) -> None:
    revisions = []
    for _ in range(2):
        SqliteStore(path).get_sync("k")
        SqliteStore(path).close()
        with open_file(path) as db:
            revisions += db.execute("SELECT revision + 1000 FROM counter").fetchone()
        path.rename(path.with_name(f"{len(revisions)}.sqlite"))

    assert revisions[1] - 1000 > revisions[0]


def test_a_file_that_was_zeros_when_it_was_looked_at_may_be_one_by_now(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tmp_path / "made.sqlite"
    SqliteStore(made).set_sync("k", buffer(b"value"))
    restart(SqliteStore(made))
    # As SQLite leaves a mapped file for a moment when it makes it longer.
    path.write_bytes(bytes(made.stat().st_size))
    look = identity._identity

    def look_too_early(path: Path, how: str) -> Any:
        try:
            return look(path, how)
        except sqlite3.DatabaseError:
            shutil.copyfile(made, path)
            raise

    monkeypatch.setattr(identity, "_identity", look_too_early)

    assert SqliteStore(path).get_sync("k") == buffer(b"value")
