"""``zarr-cache ls``: the entries of the file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import caching
from tests.fakes import buffer, restart
from zarr_cache import SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command

HOSTILE = "[red]t[/red]/\x1b[31m\n\u202e\x00/é"


def keys(command: Command, *arguments: str) -> list[tuple[str, str]]:
    return [(each["namespace"], each["key"]) for each in command.json("ls", *arguments)]


def test_each_entry_has_a_line_in_the_order_of_namespace_and_key(
    command: Command, filled: Path
) -> None:
    lines = command.lines("ls", "-f", str(filled))

    assert [" ".join(line.split()) for line in lines] == [
        "size stored used kind namespace key",
        "10 B 2023-11-14 22:20:20 2023-11-14 22:20:20 stored - mine",
        "1000 B 2023-11-14 22:13:20 2023-11-14 22:18:20 value era5 t/c/0",
        "2.0 KiB 2023-11-14 22:14:20 2023-11-14 22:14:20 value era5 t/c/1",
        "0 B 2023-11-14 22:16:20 2023-11-14 22:16:20 absent era5 t/c/9",
        "100 B 2023-11-14 22:15:20 2023-11-14 22:15:20 value era5 zarr.json",
        "4.0 KiB 2023-11-14 22:17:20 2023-11-14 22:17:20 value sst t/c/0",
    ]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("options", "listed"),
    [
        (["--namespace", "sst"], [("sst", "t/c/0")]),
        (["--namespace", "nobody"], []),
        (["--prefix", "t/c/1"], [("era5", "t/c/1")]),
        (["--prefix", "t_c"], []),
        (["--kind", "absent"], [("era5", "t/c/9")]),
        (["--kind", "tombstone"], [("sst", "written")]),
        (["--kind", "absent", "--kind", "stored"], [("", "mine"), ("era5", "t/c/9")]),
        (["--sort", "size", "--limit", "2"], [("sst", "t/c/0"), ("era5", "t/c/1")]),
        (["--sort", "used", "--kind", "value", "--limit", "1"], [("era5", "t/c/0")]),
        (["--sort", "used", "--kind", "value", "-r", "--limit", "1"], [("era5", "t/c/1")]),
        (["--sort", "stored", "--kind", "value", "-r", "--limit", "1"], [("era5", "t/c/0")]),
        (["--sort", "key", "--reverse", "--limit", "1"], [("sst", "t/c/0")]),
    ],
)
def test_entries_are_filtered_and_sorted(
    command: Command, options: list[str], listed: list[tuple[str, str]]
) -> None:
    assert keys(command, *options) == listed


@pytest.mark.usefixtures("ranged")
def test_ranges_are_listed_with_their_spans_in_the_order_of_their_bytes(command: Command) -> None:
    lines = command.lines("ls", "--prefix", "s", "--namespace", "mur")
    beside_values = command.lines("ls", "--namespace", "sst")

    assert [" ".join(line.split()) for line in lines] == [
        "size stored used kind start stop namespace key",
        "16 B 2023-11-14 22:23:20 2023-11-14 22:23:20 range -16 - mur s/c/0",
        "200 B 2023-11-14 22:21:20 2023-11-14 22:21:20 range 100 300 mur s/c/0",
        "68.4 KiB 2023-11-14 22:22:20 2023-11-14 22:22:20 range 4096 74096 mur s/c/0",
    ]
    assert "start" not in beside_values[0]


@pytest.mark.usefixtures("ranged")
@pytest.mark.parametrize(
    ("options", "starts"),
    [
        (["--kind", "range"], [-16, 100, 4096]),
        (["--kind", "range", "--reverse"], [4096, 100, -16]),
        (["--kind", "range", "--sort", "size"], [4096, 100, -16]),
        (["--kind", "range", "--sort", "used", "--reverse"], [100, 4096, -16]),
        (["--kind", "range", "--prefix", "t"], []),
        (["--kind", "value", "--namespace", "mur"], []),
        (["--kind", "range", "--kind", "value", "--sort", "size", "--limit", "2"], [4096, None]),
        # A range beside values.
        (["--sort", "size", "--limit", "2"], [4096, None]),
    ],
)
def test_ranges_are_filtered_and_sorted(
    command: Command, options: list[str], starts: list[int | None]
) -> None:
    assert [each["start"] for each in command.json("ls", *options)] == starts


@pytest.mark.usefixtures("ranged")
def test_json_of_a_range_has_its_span(command: Command) -> None:
    tail, _, large = command.json("ls", "--kind", "range")

    assert (tail["start"], tail["stop"], tail["bytes"]) == (-16, None, 16)
    assert (large["kind"], large["start"], large["stop"]) == ("range", 4096, 74_096)


@pytest.mark.usefixtures("filled")
def test_json_has_the_keys_that_scripts_rely_on(command: Command) -> None:
    assert command.json("ls", "--namespace", "sst") == [
        {
            "namespace": "sst",
            "key": "t/c/0",
            "kind": "value",
            "start": None,
            "stop": None,
            "bytes": 4096,
            "stored_at": "2023-11-14T22:17:20.000000Z",
            "used_at": "2023-11-14T22:17:20.000000Z",
        }
    ]


@pytest.mark.usefixtures("filled")
def test_what_a_limit_leaves_out_is_on_stderr(command: Command) -> None:
    result = command("ls", "--limit", "2")

    assert len(result.stdout.splitlines()) == 3
    assert result.stderr == "2 entries of 6; --limit 0 lists all\n"


def test_a_terminal_gets_the_first_hundred_and_a_pipe_gets_all(
    command: Command, path: Path
) -> None:
    store = SqliteStore(path)
    for number in range(103):
        store.set_sync(f"k{number:03}", buffer(b"x"))
    restart(store)
    in_terminal = command("ls", FORCE_COLOR="1", COLUMNS="120")
    in_pipe = command("ls")

    assert in_terminal.stderr == "100 entries of 103; --limit 0 lists all\n"
    assert "k099" in in_terminal.stdout
    assert "k100" not in in_terminal.stdout
    assert "k102" in in_pipe.stdout
    assert in_pipe.stderr == ""


@pytest.mark.parametrize("terminal", [{}, {"FORCE_COLOR": "1", "COLUMNS": "200"}])
def test_a_key_or_a_name_moves_no_cursor_and_styles_nothing(
    command: Command, path: Path, terminal: dict[str, str]
) -> None:
    store = caching(path, f"source {HOSTILE}", read_only=True, max_age_absent_seconds=9)
    store.get_sync(HOSTILE)
    restart(store)
    result = command("ls", **terminal)

    assert result.stdout.count(r"[red]t[/red]/\x1b[31m\n\u202e\x00/é") == 2
    assert "\x1b[31m" not in result.stdout
    assert "\u202e" not in result.stdout


def test_a_dumb_terminal_is_sent_no_control_character(command: Command, path: Path) -> None:
    store = caching(path, f"source {HOSTILE}")
    store.set_sync(HOSTILE, buffer(b"x"))
    restart(store)
    result = command("ls", "--kind", "tombstone", "--kind", "value", FORCE_COLOR="1", TERM="dumb")

    # Folded to the width of such a terminal.
    assert r"[red]t" in result.stdout
    assert [each for each in result.stdout if not each.isprintable() and each != "\n"] == []


def test_json_has_such_keys_as_they_are_in_ascii(command: Command, path: Path) -> None:
    SqliteStore(path).set_sync(HOSTILE, buffer(b"x"))
    result = command("ls", "--json")

    assert json.loads(result.stdout)[0]["key"] == HOSTILE
    assert result.stdout.isascii()
