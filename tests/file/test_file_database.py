"""Which file a path means, and which files are left as they are."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from zarr.storage import MemoryStore

from tests.fakes import buffer, is_cache_file, open_file, read, restart
from zarr_cache import CacheStore, CacheWarning, ForeignFileError, NewerSchemaError, SqliteStore
from zarr_cache.file import identity, migrate
from zarr_cache.file.identity import APPLICATION_ID, MAX_SCHEMA_ROW_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable


class Named:
    """Neither a str nor a Path."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


@pytest.mark.parametrize("of", [str, Path, Named], ids=["str", "Path", "PathLike"])
def test_a_path_is_what_names_a_file(path: Path, of: Callable[[Path], str]) -> None:
    store = SqliteStore(of(path))
    store.set_sync("k", buffer(b"value"))

    assert store.path == path
    assert is_cache_file(path)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))

    assert SqliteStore("~/cache.sqlite").path == tmp_path / "cache.sqlite"


def test_a_relative_path_stays_the_same_file_when_the_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteStore("cache.sqlite")
    monkeypatch.chdir("/")
    store.set_sync("k", buffer(b"value"))

    assert is_cache_file(tmp_path / "cache.sqlite")


def test_missing_parent_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "cache.sqlite"
    SqliteStore(path).set_sync("k", buffer(b"value"))

    assert is_cache_file(path)


def test_naming_a_file_does_not_make_it(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "a" / "cache.sqlite")

    assert list(tmp_path.iterdir()) == []


ON_POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows allows no such name")


@pytest.mark.parametrize(
    "name",
    [
        *("with space.sqlite", "with%20percent and#hash.sqlite", "é😀.sqlite"),
        *(pytest.param(name, marks=ON_POSIX) for name in ("a?b.sqlite", "file:x.sqlite")),
    ],
)
def test_a_file_may_have_an_odd_name(tmp_path: Path, name: str) -> None:
    store = SqliteStore(tmp_path / name)
    store.set_sync("k", buffer(b"value"))
    restart(store)

    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert SqliteStore(tmp_path / name).get_sync("k") is not None


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/", ValueError, "folder /; name a file in it"),
        ("", ValueError, "the cache file is empty; name one"),
        (":memory:", ValueError, "':memory:'.*MemoryStore"),
        ("s3://bucket/x", ValueError, "'s3://bucket/x', a URL; name a file on a local disk"),
        ("file:///tmp/x", ValueError, "a URL; name a file on a local disk"),
        (7, TypeError, "the cache file must be named by a string or a path, got 7"),
        (b"x", TypeError, "the cache file must be named by a string or a path, got b'x'"),
    ],
)
def test_what_is_no_path_of_a_file_is_refused(
    path: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        SqliteStore(path)


def test_a_folder_that_was_made_since_is_refused(path: Path) -> None:
    store = SqliteStore(path)
    path.mkdir()

    with pytest.raises(ForeignFileError, match="a folder"):
        store.get_sync("k")


def test_a_link_and_what_it_points_to_are_one_file(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path)
    SqliteStore(link).set_sync("k", buffer(b"value"))

    assert SqliteStore(link) == SqliteStore(path)
    assert SqliteStore(path).get_sync("k") is not None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_new_file_and_its_wal_are_readable_by_their_owner_alone(
    path: Path, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        SqliteStore(path).set_sync("k", buffer(b"value"))
    finally:
        os.umask(before)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}

    assert modes == dict.fromkeys(["cache.sqlite", "cache.sqlite-wal", "cache.sqlite-shm"], 0o600)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_file_that_is_there_keeps_its_mode(path: Path) -> None:
    path.touch()
    path.chmod(0o640)
    SqliteStore(path).set_sync("k", buffer(b"value"))

    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the folder, byte for byte. No connection of this process may be open."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def write_database(path: Path, *statements: str) -> None:
    with open_file(path) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


TABLE = "CREATE TABLE theirs (a)"
ROW = "INSERT INTO theirs VALUES (1)"

ABANDON = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = WAL")
connection.execute("PRAGMA wal_autocheckpoint = 0")
for statement in sys.argv[2:]:
    connection.execute(statement)
os._exit(0)
"""


def write_log(path: Path, *statements: str) -> None:
    """Leave the statements in the write-ahead log, as a process that was killed does."""
    subprocess.run([sys.executable, "-c", ABANDON, str(path), *statements], check=True)


def text(path: Path) -> None:
    path.write_text("a,b\n1,2\n" * 1000)


def five_bytes(path: Path) -> None:
    path.write_bytes(b"hello")


def a_header_cut_short(path: Path) -> None:
    path.write_bytes(b"SQLite format 3\0" + bytes(20))


def zeros(path: Path) -> None:
    path.write_bytes(bytes(32768))


def plain_database(path: Path) -> None:
    write_database(path, TABLE, ROW)


def database_of_another_application(path: Path) -> None:
    write_database(path, "PRAGMA application_id = 0x47504B47", TABLE, ROW)


def database_with_a_version_and_no_table(path: Path) -> None:
    write_database(path, "PRAGMA user_version = 7")


def database_in_wal_mode(path: Path) -> None:
    write_database(path, "PRAGMA journal_mode = WAL", TABLE, ROW)


def database_in_its_log(path: Path) -> None:
    write_log(path, TABLE, ROW)


def database_in_its_log_alone(path: Path) -> None:
    database_in_its_log(path)
    path.with_name(f"{path.name}-shm").unlink()


FOREIGN = {
    text: "not an SQLite database",
    five_bytes: "not an SQLite database",
    a_header_cut_short: "not an SQLite database",
    zeros: "not an SQLite database",
    plain_database: "an SQLite database with application_id 0x0",
    database_of_another_application: "an SQLite database with application_id 0x47504b47",
    database_with_a_version_and_no_table: "an SQLite database with application_id 0x0",
    database_in_wal_mode: "an SQLite database with application_id 0x0",
    database_in_its_log: "an SQLite database with application_id 0x0",
    database_in_its_log_alone: "an SQLite database with application_id 0x0",
}


def id_of(value: object) -> str | None:
    return getattr(value, "__name__", None)


@pytest.mark.parametrize(("make", "found"), FOREIGN.items(), ids=id_of)
async def test_a_foreign_file_is_refused_by_what_it_is_and_left_as_it_was(
    tmp_path: Path, make: Callable[[Path], None], found: str
) -> None:
    path = tmp_path / "theirs.db"
    make(path)
    before = contents(tmp_path)
    store = SqliteStore(path)

    with pytest.raises(ForeignFileError, match=f"^{path}: {found}, .*name another file"):
        store.set_sync("k", buffer(b"value"))
    with pytest.raises(ForeignFileError):
        store.get_sync("k")
    with pytest.raises(ForeignFileError):
        await SqliteStore.open(path)
    with pytest.raises(ForeignFileError):
        await store.set("k", buffer(b"value"))
    store.close()
    assert contents(tmp_path) == before


NEWER = f"PRAGMA user_version = {migrate.newest() + 1}"


def test_a_foreign_database_with_a_long_text_in_its_schema_is_foreign(path: Path) -> None:
    write_database(path, f"CREATE VIEW theirs AS SELECT '{'x' * MAX_SCHEMA_ROW_BYTES}'")
    before = path.read_bytes()

    with pytest.raises(ForeignFileError, match="an SQLite database with application_id 0x0"):
        SqliteStore(path).get_sync("k")
    assert path.read_bytes() == before


def newer_schema(path: Path) -> None:
    write_database(path, f"PRAGMA application_id = {APPLICATION_ID}", TABLE, NEWER)


def newer_schema_in_the_log(path: Path) -> None:
    write_log(path, f"PRAGMA application_id = {APPLICATION_ID}", TABLE, NEWER)


@pytest.mark.parametrize("make", [newer_schema, newer_schema_in_the_log], ids=id_of)
def test_a_newer_schema_is_refused_and_left_as_it_was(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "theirs.db"
    make(path)
    before = contents(tmp_path)
    known = migrate.newest()

    message = f"^{path}: schema {known + 1} is newer than {known}, .*upgrade zarr-cache"
    with pytest.raises(NewerSchemaError, match=message) as raised:
        SqliteStore(path).set_sync("k", buffer(b"value"))
    assert (raised.value.found, raised.value.known) == (known + 1, known)
    # A reader notes in the shared memory how far it reads the WAL.
    assert contents(tmp_path).items() >= {
        (name, data) for name, data in before.items() if not name.endswith("-shm")
    }


def empty(path: Path) -> None:
    path.touch()


def empty_database(path: Path) -> None:
    write_database(path, TABLE, "DROP TABLE theirs", "VACUUM")


@pytest.mark.parametrize("make", [empty, empty_database], ids=id_of)
def test_a_file_in_which_nothing_is_becomes_a_cache_file(
    path: Path, make: Callable[[Path], None]
) -> None:
    make(path)
    SqliteStore(path).set_sync("k", buffer(b"value"))

    assert is_cache_file(path)


def test_a_wal_that_disappears_while_it_is_read_is_no_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of several processes that made the file at once, the last to close had removed the WAL.
    database_in_its_log_alone(path)
    look = identity._identity_in_wal

    def look_too_late(wal: Path) -> Any:
        wal.unlink()
        return look(wal)

    monkeypatch.setattr(identity, "_identity_in_wal", look_too_late)
    SqliteStore(path).set_sync("k", buffer(b"value"))

    assert is_cache_file(path)


@pytest.mark.parametrize("nbytes", [32, 100])
def test_an_empty_database_whose_wal_has_no_page_yet_becomes_a_cache_file(
    path: Path, nbytes: int
) -> None:
    database_in_its_log_alone(path)
    os.truncate(path.with_name(f"{path.name}-wal"), nbytes)
    SqliteStore(path).set_sync("k", buffer(b"value"))

    assert is_cache_file(path)


def test_our_own_file_is_ours_while_the_mark_is_in_its_wal(path: Path) -> None:
    script = (
        "import os, sys; from zarr_cache import SqliteStore; from zarr.core.buffer import cpu; "
    )
    script += "SqliteStore(sys.argv[1]).set_sync('k', cpu.Buffer.from_bytes(b'value')); os._exit(0)"
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)

    found = SqliteStore(path).get_sync("k")

    assert found is not None
    assert found.to_bytes() == b"value"


def test_an_empty_database_is_ours_when_its_first_process_died_with_all_of_it_in_the_wal(
    path: Path,
) -> None:
    empty_database(path)
    script = """
import os, sys
from zarr_cache import SqliteStore
from zarr_cache.file import migrate
made = migrate.migrate
migrate.migrate = lambda *args, **settings: (made(*args, **settings), os._exit(0))
SqliteStore(sys.argv[1]).get_sync("k")
"""
    subprocess.run([sys.executable, "-c", script, str(path)], check=True)
    with_log = contents(path.parent)
    SqliteStore(path).set_sync("k", buffer(b"value"))

    assert with_log[path.name][68:72] == bytes(4)
    assert is_cache_file(path)
    assert [each.name for each in path.parent.glob("*damaged*")] == []


def no_folder(path: Path) -> None:
    path.touch()


async def test_a_file_below_what_is_no_folder_costs_a_warning_and_not_the_read(
    tmp_path: Path,
) -> None:
    no_folder(tmp_path / "file")
    source = MemoryStore({"k": buffer(b"value")})
    store = CacheStore(source, cache_store=SqliteStore(tmp_path / "file" / "cache.sqlite"))

    with pytest.warns(CacheWarning, match="cache has failed"):
        found = await read(store, "k")

    assert found == b"value"


def test_a_file_has_small_pages_incremental_vacuum_and_a_wal(path: Path) -> None:
    SqliteStore(path).set_sync("k", buffer(b"value"))
    with open_file(path) as db:
        pragmas = {
            name: db.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_size", "auto_vacuum", "journal_mode")
        }

    assert pragmas == {"page_size": 4096, "auto_vacuum": 2, "journal_mode": "wal"}
