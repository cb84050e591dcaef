"""``zarr-cache warm`` and ``zarr-cache map``."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import typer
import zarr
from fsspec.implementations.http import HTTPFileSystem
from PIL import Image
from typer.testing import CliRunner
from zarr.storage import LocalStore

from tests.fakes import IS_WINDOWS, cached_keys
from zarr_cache import CacheStore, SqliteStore, coverage
from zarr_cache.cli import app, source
from zarr_cache.cli.demo.server import DemoServer
from zarr_cache.warming import coverage_map

if TYPE_CHECKING:
    from typer.testing import Result

    from tests.fakes import HeldTime


class Command:
    """``zarr-cache`` on the Zarr in the folder, with a cache file of its own."""

    def __init__(self, folder: Path, path: Path) -> None:
        self.folder = folder
        self.path = path

    def __call__(self, name: str, *arguments: str, url: str | None = None) -> Result:
        every = [name, url or str(self.folder), "--cache-file", str(self.path), *arguments]
        return CliRunner().invoke(app, every, env={"COLUMNS": "80"})

    def lines(self, name: str, *arguments: str) -> list[str]:
        """Lines that it prints; it must have ended well and quietly."""
        result = self(name, *arguments)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return result.stdout.splitlines()

    def failure(self, name: str, *arguments: str, url: str | None = None) -> str:
        """The one line that it prints as it fails."""
        result = self(name, *arguments, url=url)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert result.stderr.count("\n") == 1
        return result.stderr.removeprefix("zarr-cache: ").strip()


@pytest.fixture
def command(tmp_path: Path, path: Path) -> Command:
    """Over a group with an array of 4 by 6 by 8 chunks of 100 bytes, and another array."""
    folder = tmp_path / "era5.zarr"
    root = zarr.create_group(folder)
    names = ("time", "lat", "lon")
    settings: dict[str, Any] = {"chunks": (1, 10, 10), "dtype": "u1", "compressors": None}
    array = root.create_array("deep/t", shape=(4, 60, 80), dimension_names=names, **settings)
    array[...] = 7
    root.create_array("s", shape=9, chunks=2, dtype="u1")[...] = 7
    return Command(folder, path)


@pytest.fixture
def sharded(command: Command) -> Command:
    """With another array, of 2 by 3 shards of 4 by 4 inner chunks of 100 bytes."""
    root = zarr.open_group(command.folder)
    settings: dict[str, Any] = {"chunks": (10, 10), "shards": (40, 40), "compressors": None}
    root.create_array("sharded", shape=(80, 120), dtype="u1", **settings)[...] = 7
    for file in command.folder.rglob("c/*/*"):
        # It was not written just now: then its version would not be known yet.
        written_at = file.stat().st_mtime - 60
        os.utime(file, (written_at, written_at))
    return command


def test_what_is_selected_is_fetched(command: Command) -> None:
    lines = command.lines("warm", "--array", "deep/t", "--select", "0:2, 5:25, 79")

    assert lines[0].startswith("6 chunks: 0 were cached, 6 fetched (")
    assert {key for key in cached_keys(command.path) if "/c/" in key} == {
        f"deep/t/c/{time}/{lat}/7" for time in (0, 1) for lat in (0, 1, 2)
    }


def test_a_store_on_the_folder_reads_what_was_warmed(command: Command) -> None:
    command.lines("warm", "--array", "deep/t", "--select", "3")
    store = CacheStore(
        LocalStore(command.folder, read_only=True), cache_store=SqliteStore(command.path)
    )

    found = coverage(zarr.open_array(store, path="deep/t", mode="r"))

    assert np.argwhere(found.all(axis=(1, 2))).tolist() == [[3]]


def test_chunks_are_cached_under_the_namespace_that_is_given(command: Command) -> None:
    command.lines("warm", "--array", "s", "--namespace", "mirrors of s")
    store = CacheStore(
        LocalStore(command.folder, read_only=True),
        cache_store=SqliteStore(command.path),
        namespace="mirrors of s",
    )

    assert coverage(zarr.open_array(store, path="s", mode="r")).all()


def test_a_map_shows_what_is_cached_under_the_namespace_that_is_given(command: Command) -> None:
    command.lines("warm", "--array", "s", "--namespace", "mirrors of s")

    assert command.lines("map", "--array", "s")[1] == "·····"
    assert command.lines("map", "--array", "s", "--namespace", "mirrors of s")[1] == "█████"


@pytest.mark.parametrize(
    ("namespace", "line"),
    [
        ("", "namespace must not be empty: "),
        ("private:mine", "namespace must not begin with 'private:', "),
    ],
)
@pytest.mark.parametrize("name", ["warm", "map"])
def test_a_namespace_that_no_user_may_choose_is_refused_on_one_line(
    command: Command, name: str, namespace: str, line: str
) -> None:
    command.lines("warm", "--array", "s")
    failure = command.failure(name, "--array", "s", "--namespace", namespace)

    assert failure.startswith(f"{command.folder}: {line}")


def test_without_an_array_everything_is_fetched(command: Command) -> None:
    (line,) = command.lines("warm")
    (again,) = command.lines("warm")

    assert line.startswith("197 chunks: 0 were cached, 197 fetched (")
    assert again == (
        "197 chunks: 197 were cached, 0 fetched (0 B), 0 absent; in 2 arrays: 'deep/t', 's'"
    )


def test_a_dry_run_fetches_nothing(command: Command) -> None:
    (line,) = command.lines("warm", "--array", "deep/t", "--select", "0,0", "--dry-run")

    assert line == "8 chunks: 0 cached, 0 known to be absent; 9 requests for 800 B"
    assert not {key for key in cached_keys(command.path) if "/c/" in key}


def test_an_absence_is_fresh_for_the_given_age(command: Command, held_time: HeldTime) -> None:
    zarr.create_array(command.folder / "sparse", shape=4, chunks=2, dtype="u1")
    warm = ["warm", "--array", "sparse", "--max-age-absent", "7 d"]
    command.lines(*warm)
    held_time.step(6 * 86_400)
    command.folder.rename(command.folder.with_name("away"))
    command.folder.mkdir()

    assert command.lines(*warm) == ["2 chunks: 0 were cached, 0 fetched (0 B), 2 absent"]


def test_it_ends_with_1_when_the_budget_is_full(command: Command) -> None:
    result = command("warm", "--array", "deep/t", "--max-size", "4 KiB", "--concurrency", "3")

    assert result.exit_code == 1
    assert "left: max_size has no room for more of them" in result.stdout


@pytest.mark.parametrize(("arguments", "key"), [((), "fetched"), (("--dry-run",), "requests")])
def test_json_has_the_same_numbers(command: Command, arguments: tuple[str, ...], key: str) -> None:
    (reported,) = [json.loads("".join(command.lines("warm", "--array", "s", "--json", *arguments)))]

    assert reported["chunks"] == 5
    assert reported[key] >= 5


def test_a_map_is_drawn_in_the_terminal(command: Command) -> None:
    command.lines("warm", "--array", "deep/t", "--select", "0,:30,20:50")

    assert command.lines("map", "--array", "deep/t") == [
        "deep/t",
        *["··░░░···"] * 3,
        *["········"] * 3,
        "█ cached   ▒ in part   · not cached",
        "9 of 192 chunks cached (4 %)",
        "down: dimension 1 (lat), 6 chunks",
        "across: dimension 2 (lon), 8 chunks",
        "mean over dimension 0 (time)",
    ]
    assert (
        command.lines("map", "--array", "deep/t", "--slice", "...,0:2,:")[1:3] == ["··░░░···"] * 2
    )
    assert command.lines("map", "--array", "deep/t", "--slice", "0,:,2:6")[1:4] == ["███·"] * 3


def test_inner_chunks_are_fetched_where_ranges_are_persisted(sharded: Command) -> None:
    arguments = ["warm", "--array", "sharded", "--select", "5:25, 35:50"]
    (plan,) = sharded.lines(*arguments, "--persist-ranges", "--dry-run")
    (report,) = sharded.lines(*arguments, "--persist-ranges")
    (whole,) = sharded.lines(*arguments, "--no-persist-ranges", "--dry-run")

    assert plan == "6 inner chunks: 0 cached, 0 known to be absent; 2 requests for 600 B"
    assert report.startswith("6 inner chunks: 0 were cached, 6 fetched (")
    assert whole.startswith("2 whole shards: 0 cached, 0 known to be absent; 2 requests for ")


def test_json_of_warming_says_which_chunks_are_counted(sharded: Command) -> None:
    arguments = ["warm", "--array", "sharded", "--select", "5, 5", "--json"]
    found = [
        json.loads("".join(sharded.lines(*arguments, *more)))
        for more in (["--dry-run"], ["--persist-ranges", "--dry-run"], ["--persist-ranges"])
    ]

    assert [(each["whole_shards"], each["inner_chunks"]) for each in found] == [
        (1, 0),
        (0, 1),
        (0, 1),
    ]


def test_a_map_of_shards_counts_the_ranges_that_it_does_not_show(sharded: Command) -> None:
    sharded.lines("warm", "--array", "sharded", "--select", ":40,:40")
    before = sharded.lines("map", "--array", "sharded")
    sharded.lines("warm", "--array", "sharded", "--select", "5:25,45:95", "--persist-ranges")

    assert before == [
        "sharded",
        "█··",
        "···",
        "█ cached   ▒ in part   · not cached",
        "1 of 6 shards cached (16 %)",
        "down: dimension 0, 2 shards",
        "across: dimension 1, 3 shards",
    ]
    assert sharded.lines("map", "--array", "sharded") == [
        *before[:5],
        "18 ranges (1.8 KiB) of 2 shards are cached as well; --inner draws them",
        *before[5:],
    ]


def test_one_range_is_counted_as_one(sharded: Command) -> None:
    sharded.lines("warm", "--array", "sharded", "--select", "5,45", "--persist-ranges")

    assert "1 range (100 B) of 1 shard is cached as well; --inner draws them" in sharded.lines(
        "map", "--array", "sharded"
    )


def test_a_map_of_inner_chunks_draws_ranges(sharded: Command, tmp_path: Path) -> None:
    sharded.lines("warm", "--array", "sharded", "--select", ":40,:40")
    sharded.lines("warm", "--array", "sharded", "--select", "5:25,45:95", "--persist-ranges")
    arguments = ["map", "--array", "sharded", "--inner"]

    assert sharded.lines(*arguments) == [
        "sharded",
        *["██████████··"] * 3,
        "████········",
        *["············"] * 4,
        "█ cached   ▒ in part   · not cached",
        "34 of 96 inner chunks cached (35 %)",
        "down: dimension 0, 8 inner chunks",
        "across: dimension 1, 12 inner chunks",
    ]
    file = tmp_path / "map.svg"
    assert sharded.lines(*arguments, "--slice", "0:4,4:", "--output", str(file)) == [
        f"{file}: 18 of 32 inner chunks cached (56 %)"
    ]
    assert "across: dimension 1, 8 inner chunks" in file.read_text(encoding="utf-8")


def test_a_map_makes_no_request_when_the_metadata_is_cached(command: Command) -> None:
    command.lines("warm", "--array", "s")
    moved = command.folder.rename(command.folder.with_name("away"))
    command.folder.mkdir()

    lines = command.lines("map", "--array", "s")

    assert lines[1] == "█████"
    assert moved.exists()


@pytest.mark.parametrize("ending", ["png", "svg", "SVG"])
def test_a_map_is_drawn_as_a_picture(command: Command, tmp_path: Path, ending: str) -> None:
    command.lines("warm", "--array", "s")
    file = tmp_path / f"map.{ending}"

    assert command.lines("map", "--array", "s", "--output", str(file)) == [
        f"{file}: 5 of 5 chunks cached (100 %)"
    ]
    if ending == "png":
        with Image.open(file) as image:
            image.verify()
    else:
        assert file.read_text(encoding="utf-8").startswith("<svg ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ("warm", "--array", "deep/t", "--select", "9"),
            "--select '9': index 9 is out of bounds for dimension 0 of length 4",
        ),
        (
            ("warm", "--array", "deep/t", "--select", "0,0,0,0"),
            "--select '0,0,0,0': 4 indices are too many for an array of 3 dimensions",
        ),
        (
            ("warm", "--array", "deep/t", "--select", "10:20"),
            "--select '10:20' selects nothing of an array of shape (4, 60, 80)",
        ),
        (
            ("warm", "--select", "0"),
            "--select '0': a selection needs one array: warm the arrays of the group one by one",
        ),
        (("warm", "--array", "no"), "{url}: no array or group at 'no'; name one with --array"),
        (("map",), "{url}: '' is a group; name an array of it with --array"),
        (
            ("map", "--array", "s", "--slice", "5"),
            "--slice '5': index 5 is out of bounds for axis 0 with size 5; {grid}",
        ),
        (
            ("map", "--array", "s", "--slice", "0,0"),
            "--slice '0,0': 2 indices are too many for an array of 1 dimensions; {grid}",
        ),
        (
            ("map", "--array", "s", "--output", "map.gif"),
            "map.gif: a map can be drawn as .png or .svg",
        ),
        (
            ("map", "--array", "s", "--output", "/nowhere/map.svg"),
            f"{Path('/nowhere/map.svg')}: No such file or directory",
        ),
    ],
)
def test_what_cannot_be_done_is_reported_on_one_line(
    command: Command, arguments: tuple[str, ...], line: str
) -> None:
    command.lines("warm", "--array", "s")

    assert command.failure(*arguments) == line.format(
        url=command.folder, grid="the grid has the shape (5,)"
    )


@pytest.mark.parametrize("select", ["x", "1.5", "0:1:2:3", "0::0", "0::-1", "0,,1", "[0,1]"])
def test_a_selection_that_is_none_is_a_wrong_use(command: Command, select: str) -> None:
    result = command("warm", "--array", "s", "--select", select)

    assert result.exit_code == 2
    assert "selects nothing" in result.stderr


@pytest.mark.parametrize(
    ("url", "reported"),
    [
        ("/nowhere/x.zarr", f"{Path('/nowhere/x.zarr')} does not exist"),
        ("http://127.0.0.1:9/x.zarr", "Error performing GET http://127.0.0.1:9/x.zarr/"),
        ("nonsense://x", "the scheme 'nonsense' is not known"),
    ],
)
@pytest.mark.parametrize("name", ["warm", "map"])
def test_a_source_that_cannot_be_opened_is_reported_on_one_line(
    command: Command, name: str, url: str, reported: str
) -> None:
    command.lines("warm", "--array", "s")
    line = command.failure(name, url=url)

    assert line.startswith(f"{url}: ")
    assert reported in line


@pytest.mark.filterwarnings("error")
def test_through_fsspec_each_command_has_an_http_session_of_its_own(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)  # not installed
    monkeypatch.setattr(HTTPFileSystem, "_cache", {})  # no file system of another test
    with DemoServer(command.folder) as server:
        for _ in range(2):
            result = command("warm", "--array", "s", "--namespace", "served", url=server.url)
            gc.collect()

            assert (result.exit_code, result.stderr) == (0, "")
        (file_system,) = HTTPFileSystem._cache.values()

    assert file_system._session is None
    assert result.stdout.startswith("5 chunks: 5 were cached")


def test_a_source_that_fails_is_reported_without_the_secrets_of_its_url(command: Command) -> None:
    line = command.failure("warm", url="http://user:secret@127.0.0.1:9/x.zarr?sig=secret")

    assert line.startswith("http://127.0.0.1:9/x.zarr: ")
    assert "secret" not in line


@pytest.mark.parametrize(
    "url",
    [
        "https://user:se@cret@example.org/x/zarr.json",
        "https://example.org/x/?sig=cret",
        "https://example.org/?sig=cret",
    ],
)
def test_secrets_are_left_out_of_an_error_wherever_they_are_in_a_url(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail() -> None:
        raise ConnectionError(f"cannot read {url}: refused")

    with pytest.raises(typer.Exit):
        source.run("https://example.org/x", "", fail())
    line = capsys.readouterr().err

    assert "cret" not in line
    assert line.endswith(" refused\n")


def test_a_file_that_is_none_of_ours_is_reported_on_one_line(command: Command) -> None:
    command.path.write_text("not a cache file, and long enough to be one" * 100)
    line = command.failure("warm")
    command.path.unlink()

    assert line.startswith(f"{command.path}: ")


def test_a_map_of_a_file_that_is_not_there_makes_none(command: Command) -> None:
    assert command.failure("map", "--array", "s") == f"{command.path}: no such file"
    assert not command.path.exists()


def test_without_pillow_a_png_is_refused_with_what_to_install(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command.lines("warm", "--array", "s")
    monkeypatch.setattr(coverage_map, "has_pillow", lambda: False)

    line = command.failure("map", "--array", "s", "--output", "map.png")

    assert line == "Pillow not installed: pip install 'zarr-cache[map]', or draw an .svg"


SLOW = """
import asyncio, signal, sys
from zarr_cache.sources.local_reads import LocalStoreReader

# Which is ignored where a shell runs the tests in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

original = LocalStoreReader.fetch

async def fetch(self, key, *arguments, **settings):
    if key.endswith("c/2/0/0"):
        print("reached", flush=True)
        await asyncio.Event().wait()
    return await original(self, key, *arguments, **settings)

LocalStoreReader.fetch = fetch
from zarr_cache.cli import app
app(sys.argv[1:])
"""


@pytest.mark.skipif(IS_WINDOWS, reason="no process is sent Ctrl-C there")
def test_ctrl_c_keeps_what_was_fetched(command: Command) -> None:
    arguments = ["warm", str(command.folder), "--array", "deep/t", "--concurrency", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments, "--cache-file", str(command.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "reached\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()

    (line,) = command.lines("warm", "--array", "deep/t")
    assert process.returncode == 130
    assert (
        stderr == "stopped: what was fetched stays cached; the same command continues from there\n"
    )
    assert line.startswith("192 chunks: 96 were cached, 96 fetched (")
