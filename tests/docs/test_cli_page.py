"""The page of the command line: every command and option of the app, and nothing else."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
import zarr

from tests.cli.conftest import Command, _utc, command, filled, ranged
from zarr_cache.cli import app
from zarr_cache.cli.info import print_other_sizes
from zarr_cache.sampling.curve import Curve

if TYPE_CHECKING:
    import click

__all__ = ["_utc", "command", "filled", "ranged"]

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([a-z]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
EXAMPLES = [
    line
    for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines()
]


def commands() -> dict[str, click.Command]:
    """The commands of the app."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def options(of: click.Command) -> set[str]:
    """What may be written after the command, but for its arguments and ``--help``."""
    return {
        name
        for parameter in of.params
        if parameter.param_type_name == "option"
        for name in parameter.opts
    } - {"--help"}


def keys(value: Any) -> set[str]:
    """The keys of a JSON document, of whatever is in it too."""
    if isinstance(value, list):
        return set().union(*map(keys, value))
    if isinstance(value, dict):
        return set(value).union(*map(keys, value.values()))
    return set()


def test_every_command_has_a_section_and_a_line_of_the_table() -> None:
    assert list(SECTIONS) == re.findall(r"^\| \[`([a-z]+)`\]\(#\1\)", PAGE, re.MULTILINE)
    assert SECTIONS.keys() == commands().keys()


@pytest.mark.parametrize("name", SECTIONS)
def test_every_option_is_in_the_table_of_its_command_and_no_other(name: str) -> None:
    rows = re.findall(r"^\| (`-.*?) \|", SECTIONS[name], re.MULTILINE)
    named = {option for row in rows for option in re.findall(r"`(-[^`]*)`", row)}

    # "Which file" says it once for all commands. That of the demo is another option.
    assert named | ({"--cache-file", "-f"} - {"-f" if name == "demo" else ""}) == options(
        commands()[name]
    )


@pytest.mark.usefixtures("ranged")
@pytest.mark.parametrize(
    "arguments",
    [
        ["info"],
        ["ls"],
        ["explain", "t/c/0"],
        ["evict", "--to-size", "0"],
        ["clear", "--yes"],
        ["export", "new.sqlite", "--namespace", "era5"],
        ["compact"],
        ["verify"],
        ["warm", "a.zarr", "--dry-run"],
        ["warm", "a.zarr"],
    ],
    ids=" ".join,
)
def test_every_key_of_json_is_named(
    command: Command, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    zarr.create_array("a.zarr", shape=(2,), chunks=(1,), dtype="i1")
    kinds = {"value", "range", "absent", "stored", "tombstone"}
    told = keys(command.json(*arguments)) - kinds

    assert told <= set(re.findall(r"`([a-z_]+)`", SECTIONS[arguments[0]]))


@pytest.mark.usefixtures("ranged")
def test_every_key_of_json_of_the_ranges_of_a_key_is_named(command: Command) -> None:
    (ranges,) = json.loads(command("explain", "s/c/0", "--json").stdout)["ranges"]

    assert ranges.keys() <= set(re.findall(r"`([a-z_]+)`", SECTIONS["explain"]))


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_is_understood(
    command: Command, example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(example.replace("s3://bucket/era5.zarr", "era5"))
    result = command(*arguments)

    assert program == "zarr-cache"
    assert result.exit_code in {0, 1}, result.output
    assert result.stderr == ""


def test_the_curve_of_the_page_is_drawn_as_it_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rates = {0.25: 0.02, 1: 0.1, 2: 0.22, 4: 0.4, 8: 0.61, 12: 0.68, 20: 0.83, 24: 0.85, 64: 0.85}
    sizes = tuple(int(size * 2**30) for size in rates)
    curve = Curve(sizes, tuple(rates.values()), 1000.0, reach=64 * 2**30)
    print_other_sizes(curve, 8 * 2**30)
    drawn = re.search(r"^```text\n(.*?)^```$", SECTIONS["info"], re.MULTILINE | re.DOTALL)

    assert drawn is not None
    assert capsys.readouterr().out.strip("\n") == drawn[1].rstrip()
