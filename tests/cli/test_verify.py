"""``zarr-cache verify``: each problem on a line, and how it ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.fakes import open_file

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command


@pytest.fixture
def damaged(filled: Path) -> Path:
    """A value of era5 is not what was kept."""
    with open_file(filled) as db, db:
        db.execute("UPDATE entry SET stored_at = stored_at + 1 WHERE key = 't/c/1'")
    return filled


def test_a_file_that_is_right_ends_with_0(command: Command, filled: Path) -> None:
    assert command.lines("verify") == [f"{filled}: no problem found"]
    assert command.json("verify") == {"path": str(filled), "problems": []}


@pytest.mark.leaves_damage
def test_each_problem_is_reported_and_it_ends_with_1(command: Command, damaged: Path) -> None:
    before = damaged.read_bytes()
    result = command("verify")

    assert result.exit_code == 1
    assert "'t/c/1'" in result.stdout
    assert result.stdout.splitlines()[-1].endswith("not repaired")
    assert damaged.read_bytes() == before


def test_what_is_repaired_is_reported_and_it_ends_with_0(command: Command, damaged: Path) -> None:
    result = command("verify", "--repair")

    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].endswith(" 0 not repaired")
    assert command.lines("verify") == [f"{damaged}: no problem found"]


@pytest.mark.usefixtures("damaged")
def test_json_has_the_keys_that_scripts_rely_on(command: Command) -> None:
    result = command("verify", "--json")
    problem = json.loads(result.stdout)["problems"][0]
    command("verify", "--repair")

    assert result.exit_code == 1
    assert set(problem) == {"what", "namespace", "key", "found", "expected", "is_repaired"}
    assert (problem["namespace"], problem["key"]) == ("era5", "t/c/1")


def test_a_new_file_gets_the_stored_values_and_it_ends_with_0(
    command: Command, filled: Path
) -> None:
    with open_file(filled) as db, db:
        db.execute("DROP VIEW cache_usage")
    refused = command("verify")
    result = command("verify", "--repair")
    (moved,) = filled.parent.glob("*.damaged-*Z")

    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "cache_usage" in refused.stderr
    assert result.exit_code == 0
    assert str(moved) in result.stdout.splitlines()[-2]
    assert command.lines("verify") == [f"{filled}: no problem found"]
    assert [each["key"] for each in command.json("ls")] == ["mine"]


def test_what_cannot_be_copied_is_reported_and_it_ends_with_1(
    command: Command, filled: Path
) -> None:
    with open_file(filled) as db, db:
        db.execute("DROP VIEW cache_usage")
        db.execute("UPDATE entry SET stored_at = stored_at + 1 WHERE key = 'mine'")
    result = command("verify", "--repair")

    assert result.exit_code == 1
    assert result.stdout.splitlines()[-2].startswith("checksum of 'mine'")
    assert result.stdout.splitlines()[-1].endswith("3 problems, 1 not repaired")
