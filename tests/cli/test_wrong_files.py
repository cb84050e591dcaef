"""A file that a command cannot work on: one line on stderr, and the file as it was."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.fakes import buffer, open_file, restart
from tests.fault.real import mode
from zarr_cache import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Command

READING = [["info"], ["ls"], ["explain", "k"], ["verify"]]
WRITING = [["evict", "--to-size", "0"], ["clear", "--yes"], ["compact"], ["verify", "--repair"]]
DRY = [["evict", "--to-size", "0", "--dry-run"], ["clear", "--dry-run"]]
COPYING = [["export", "/nowhere/new.sqlite"]]
EVERY = READING + WRITING + DRY + COPYING

NO_UTF_8 = "caf\udce9"
"""What Python makes of an argument that is not in the encoding of the system."""


def name_of(arguments: list[str]) -> str:
    return " ".join(arguments)


every_command = pytest.mark.parametrize("arguments", EVERY, ids=name_of)
reading_command = pytest.mark.parametrize("arguments", READING + DRY, ids=name_of)
# `verify --repair` writes only where there is something wrong.
writing_command = pytest.mark.parametrize("arguments", WRITING[:-1], ids=name_of)


def assert_refused(command: Command, arguments: list[str], *reported: str) -> None:
    result = command(*arguments)

    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.startswith("zarr-cache: ")
    assert result.stderr.count("\n") == 1
    for words in (str(command.path), *reported):
        assert words in result.stderr


def contents(folder: Path) -> dict[str, str]:
    """What every file of the folder holds."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@every_command
def test_no_command_makes_a_file(command: Command, tmp_path: Path, arguments: list[str]) -> None:
    assert_refused(command, arguments, "no such file")

    assert list(tmp_path.iterdir()) == []


@every_command
def test_a_folder_is_no_cache_file(command: Command, path: Path, arguments: list[str]) -> None:
    path.mkdir()

    assert_refused(command, arguments, "not a file")


@every_command
def test_a_folder_that_may_not_be_entered_is_reported(
    command: Command, filled: Path, tmp_path: Path, arguments: list[str]
) -> None:
    assert filled.exists()

    with mode(tmp_path, 0o000):
        assert_refused(command, arguments, "Permission denied")


def test_the_home_folder_of_an_unknown_user_is_reported(command: Command) -> None:
    result = command("info", "--cache-file", "~nobody-of-this-name/cache.sqlite")

    assert result.exit_code == 1
    assert result.stderr.startswith("zarr-cache: ~nobody-of-this-name/cache.sqlite: ")
    assert result.stderr.count("\n") == 1


def text(path: Path) -> None:
    path.write_text("no database, and as long as the header of one would be\n" * 10)


def other_database(path: Path) -> None:
    with open_file(path) as db, db:
        db.execute("CREATE TABLE entry (key)")


@every_command
@pytest.mark.parametrize("make", [text, other_database])
def test_a_foreign_file_is_refused_and_left_as_it_is(
    command: Command,
    path: Path,
    tmp_path: Path,
    make: Callable[[Path], None],
    arguments: list[str],
) -> None:
    make(path)
    before = contents(tmp_path)

    assert_refused(command, arguments, "not a file of zarr-cache")
    assert contents(tmp_path) == before


@pytest.mark.leaves_damage
@every_command
def test_a_newer_schema_is_refused_and_left_as_it_is(
    command: Command, path: Path, tmp_path: Path, arguments: list[str]
) -> None:
    store = SqliteStore(path)
    store.set_sync("k", buffer(b"value"))
    restart(store)
    with open_file(path) as db:
        db.execute("PRAGMA user_version = 4321")
    before = contents(tmp_path)

    assert_refused(command, arguments, "schema 4321 is newer than", "upgrade")
    assert contents(tmp_path) == before


@every_command
def test_an_empty_file_is_reported_and_stays_empty(
    command: Command, path: Path, arguments: list[str]
) -> None:
    path.touch()

    assert_refused(command, arguments, "nothing was ever cached")
    assert path.stat().st_size == 0


@writing_command
def test_a_file_that_another_process_has_locked_is_reported(
    command: Command, filled: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.setattr("zarr_cache.file.connection.BUSY_TIMEOUT_SECONDS", 0.05)
    with open_file(filled) as other:
        other.execute("BEGIN IMMEDIATE")

        assert_refused(command, arguments, "locked")
        other.rollback()


@reading_command
def test_a_command_that_reads_needs_no_lock_and_writes_nothing(
    command: Command, filled: Path, tmp_path: Path, arguments: list[str]
) -> None:
    quiet = contents(tmp_path)
    alone = command(*arguments)
    left_quiet = contents(tmp_path)
    with open_file(filled) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM entry")
        in_use = contents(tmp_path)
        beside_a_writer = command(*arguments)
        left_in_use = contents(tmp_path)
        other.rollback()

    assert left_quiet == quiet
    assert beside_a_writer.stdout.split("\n")[2:] == alone.stdout.split("\n")[2:]
    assert left_in_use.keys() == in_use.keys()
    assert left_in_use[str(filled)] == in_use[str(filled)]


def test_what_a_killed_process_has_left_in_its_wal_is_read_and_stays_there(
    command: Command, path: Path, tmp_path: Path
) -> None:
    script = (
        "import os, sys; from tests.fakes import buffer; from zarr_cache import SqliteStore\n"
        "SqliteStore(sys.argv[1]).set_sync('k', buffer(b'value')); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", script, path], check=True)
    before = {name: each for name, each in contents(tmp_path).items() if "-shm" not in name}
    codes = {command(*arguments).exit_code for arguments in READING + DRY}
    listed = command.json("ls")
    after = {name: each for name, each in contents(tmp_path).items() if "-shm" not in name}

    assert codes == {0}
    assert [each["key"] for each in listed] == ["k"]
    assert after == before
    assert f"{path}-wal" in before


@pytest.mark.leaves_damage
@pytest.mark.parametrize("arguments", READING + DRY + COPYING + WRITING[:-1], ids=name_of)
def test_a_damaged_file_is_reported_on_one_line(
    command: Command, path: Path, arguments: list[str]
) -> None:
    store = SqliteStore(path)
    store.set_sync("k", buffer(b"value"))
    restart(store)
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 4000)

    assert_refused(command, arguments)


@reading_command
def test_a_file_and_folder_that_cannot_be_written_are_read(
    command: Command, filled: Path, tmp_path: Path, arguments: list[str]
) -> None:
    before = command(*arguments)
    with mode(filled, 0o400), mode(tmp_path, 0o500):
        result = command(*arguments)

    assert (result.exit_code, result.output) == (before.exit_code, before.output)


@writing_command
def test_what_cannot_be_written_is_reported(
    command: Command, filled: Path, tmp_path: Path, arguments: list[str]
) -> None:
    with mode(filled, 0o400), mode(tmp_path, 0o500):
        assert_refused(command, arguments, "writ")


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["info", "--max-size", "20 GX"], "'20 GX' is no size; expected such as '20 GiB'"),
        (["info", "--max-age", "soon"], "'soon' is not an age; expected seconds"),
        (["ls", "--kind", "folder"], "'folder'"),
        (["ls", "--limit", "-1"], "--limit"),
        (["explain"], "KEY"),
        (["nonsense"], "nonsense"),
    ],
)
def test_what_cannot_be_understood_ends_with_2(
    command: Command, arguments: list[str], reported: str
) -> None:
    result = command(*arguments, COLUMNS="200")

    assert result.exit_code == 2
    assert reported in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", NO_UTF_8],
        ["ls", "--prefix", NO_UTF_8],
        ["ls", "--namespace", NO_UTF_8],
        ["evict", "--prefix", NO_UTF_8],
        ["clear", "--yes", "--namespace", NO_UTF_8],
    ],
    ids=" ".join,
)
def test_an_argument_that_is_no_text_is_reported(
    command: Command, filled: Path, tmp_path: Path, arguments: list[str]
) -> None:
    assert filled.exists()
    before = contents(tmp_path)

    assert_refused(command, arguments, "not UTF-8")
    assert contents(tmp_path) == before
