"""``zarr-cache explain``: what is known of a key."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import LocalStore, MemoryStore

from tests.fakes import buffer, open_file, restart
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.file.invalidation import Markers

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command

pytestmark = pytest.mark.usefixtures("filled")

DAMAGE = """
UPDATE value
SET data = CAST('x' || substr(data, 2) AS BLOB)
WHERE entry IN (SELECT id FROM entry WHERE kind = 'value')
"""

ERA5 = ["--namespace", "era5"]


def test_a_value_is_shown_with_its_times_and_what_is_evicted_before_it(command: Command) -> None:
    lines = command.lines("explain", "t/c/0", *ERA5, "--max-age", "1h", "--max-size", "10 kB")

    assert lines == [
        "t/c/0",
        "  in era5",
        "    cached, 1000 B",
        "    since 2023-11-14 22:13:20, 7.0 min ago",
        "    last used 2023-11-14 22:18:20, 2.0 min ago",
        "    fresh until 2023-11-14 23:13:20, for 53.0 min",
        "    the next read makes no request",
        "    evicted after 3 other values and ranges, 6.1 KiB",
        "    evicted when 8.8 KiB more are cached",
    ]


def test_a_key_of_several_sources_is_shown_for_each(command: Command) -> None:
    reported = command.json("explain", "t/c/0")

    assert [each["namespace"] for each in reported["entries"]] == ["era5", "sst"]


def test_an_absent_key_is_shown_as_such(command: Command) -> None:
    lines = command.lines("explain", "t/c/9")

    assert lines[2] == "    cached as absent: the source had no such key"


def test_a_stored_value_is_shown_as_such(command: Command) -> None:
    lines = command.lines("explain", "mine", "--max-age", "1s")

    assert lines[1:3] == [
        "  in the values stored with SqliteStore",
        "    stored, 10 B: never evicted",
    ]


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["nothing"], "is not cached: the next read goes to the source"),
        (["written"], "written to at 2023-11-14 22:19:20, 1.0 min ago: the next read goes"),
        (
            ["t/c/1", "--max-age", "5 min"],
            "the next read fetches it: it is stale, and its version is not known",
        ),
        (["t/c/1", "--namespace", "sst"], "is not cached"),
    ],
)
def test_a_key_that_no_read_is_served_from_ends_with_1(
    command: Command, arguments: list[str], reported: str
) -> None:
    result = command("explain", *arguments)

    assert result.exit_code == 1
    assert reported in result.stdout
    assert result.stderr == ""


def test_a_damaged_value_is_reported_and_not_changed(command: Command, filled: Path) -> None:
    with open_file(filled) as db, db:
        db.execute(DAMAGE)
    result = command("explain", "t/c/1")
    again = command("explain", "t/c/1")

    assert result.exit_code == 1
    assert "the next read fetches it: it is damaged" in result.stdout
    assert again.stdout == result.stdout
    assert command("verify", "--repair").exit_code == 0


def test_an_invalidated_value_is_reported(command: Command, filled: Path) -> None:
    Markers(filled).mark("era5")
    result = command("explain", "t/c/0", *ERA5)
    others = command.json("explain", "t/c/0", "--namespace", "sst")

    assert result.exit_code == 1
    assert "fetches it: a write to the source could not be recorded" in result.stdout
    assert [each["is_answer"] for each in others["entries"]] == [True]


def test_the_next_read_of_a_stale_value_with_a_version_asks_whether_it_has_changed(
    command: Command, filled: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for key in ("zarr.json", "c0"):
        (folder / key).write_bytes(b"{}")
        os.utime(folder / key, ns=(0, 10**9 + 1))
    source = LocalStore(folder, read_only=True)
    local = CacheStore(source, cache_store=SqliteStore(filled), namespace="local")
    for key in ("zarr.json", "c0"):
        local.get_sync(key)
    restart(local)
    ages = ("--max-age", "1 d", "--max-age-metadata", "0", "--namespace", "local")
    metadata, chunk = command("explain", "zarr.json", *ages), command("explain", "c0", *ages)

    asks = "the next read asks the source whether it has changed, and fetches it if so: it is stale"
    assert (metadata.exit_code, chunk.exit_code) == (1, 0)
    assert asks in metadata.stdout
    assert "    version f" in metadata.stdout
    assert "the next read makes no request" in chunk.stdout


def test_a_folder_is_shown_with_the_number_of_its_keys(command: Command) -> None:
    result = command("explain", "t/c")

    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "  4 keys below it: zarr-cache ls --prefix t/c/"


def test_what_is_shown_before_a_value_is_evicted_before_it(command: Command) -> None:
    reported = command.json("explain", "zarr.json")["entries"][0]
    before = reported["bytes_before"]
    in_all = command.json("info")["cached_bytes"]
    command("evict", "--to-size", str(in_all - before))
    left = command.json("explain", "zarr.json")["entries"][0]
    command("evict", "--to-size", str(in_all - before - 1))
    result = command("explain", "zarr.json")

    assert (reported["entries_before"], before) == (1, 2000)
    assert (left["entries_before"], left["bytes_before"]) == (0, 0)
    assert result.exit_code == 1


def test_json_has_the_keys_that_scripts_rely_on(command: Command) -> None:
    reported = command.json("explain", "t/c/1", "--max-age", "1h", "--max-size", "10 kB")

    assert reported == {
        "key": "t/c/1",
        "path": str(command.path),
        "entries": [
            {
                "namespace": "era5",
                "kind": "value",
                "bytes": 2000,
                "stored_at": "2023-11-14T22:14:20.000000Z",
                "used_at": "2023-11-14T22:14:20.000000Z",
                "fresh_until": "2023-11-14T23:14:20.000000Z",
                "validator": None,
                "confirmed_at": None,
                "next_read": "makes no request",
                "is_damaged": False,
                "is_invalidated": False,
                "is_answer": True,
                "entries_before": 0,
                "bytes_before": 0,
                "evicted_after_bytes": 2804,
            }
        ],
        "ranges": [],
    }


def test_json_of_a_key_that_is_not_cached_has_no_entries(command: Command) -> None:
    result = command("explain", "nothing", "--json")

    assert result.exit_code == 1
    assert json.loads(result.stdout)["entries"] == []
    assert json.loads(result.stdout)["ranges"] == []


@pytest.mark.usefixtures("ranged")
def test_ranges_of_a_key_are_counted_and_the_first_are_named(command: Command) -> None:
    result = command("explain", "s/c/0", "--max-age", "3 min", "--max-size", "100 kB")

    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "s/c/0",
        "  in mur",
        "    the whole value is not cached: a read of it goes to the source",
        "    3 ranges of it, 68.6 KiB",
        "      the last 16 bytes",
        "      bytes [100, 300)",
        "      bytes [4096, 74096)",
        "    the oldest since 2023-11-14 22:21:20, 3.0 min ago",
        "    the newest since 2023-11-14 22:23:20, 1.0 min ago",
        "    last used 2023-11-14 22:23:20, 1.0 min ago",
        "    1 of them is stale",
        "    the least recently used is evicted after 4 other values and ranges, 7.0 KiB",
        "    the least recently used is evicted when 29.1 KiB more are cached",
    ]


def test_of_many_ranges_of_a_key_three_are_named(command: Command, filled: Path) -> None:
    source = MemoryStore({"s/c/0": buffer(bytes(1000))})
    mur = CacheStore(source, cache_store=SqliteStore(filled), namespace="mur", persist_ranges=True)
    for start in range(0, 1000, 2):
        mur.get_sync("s/c/0", byte_range=RangeByteRequest(start, start + 1))
    restart(mur)
    result = command("explain", "s/c/0")

    assert result.stdout.splitlines()[3:8] == [
        "    500 ranges of it, 500 B",
        "      bytes [0, 1)",
        "      bytes [2, 3)",
        "      bytes [4, 5)",
        "      and 497 more: zarr-cache ls --kind range --prefix s/c/0",
    ]


@pytest.mark.usefixtures("ranged")
def test_ranges_beside_a_tombstone_are_shown_with_it(command: Command, path: Path) -> None:
    source = MemoryStore({"written": buffer(bytes(9000))})
    sst = CacheStore(source, cache_store=SqliteStore(path), namespace="sst", persist_ranges=True)
    sst.get_sync("written", byte_range=RangeByteRequest(0, 8))
    restart(sst)
    result = command("explain", "written")

    assert result.exit_code == 1
    assert result.stdout.splitlines()[1:5] == [
        "  in sst",
        "    written to at 2023-11-14 22:19:20, 5.0 min ago: the next read goes to the source",
        "    1 range of it, 8 B",
        "      bytes [0, 8)",
    ]


def test_what_is_evicted_before_a_value_or_a_range_are_values_and_ranges(
    command: Command, ranged: Path
) -> None:
    source = MemoryStore({"u": buffer(bytes(9000))})
    other = CacheStore(source, cache_store=SqliteStore(ranged), namespace="u", persist_ranges=True)
    other.get_sync("u", byte_range=RangeByteRequest(0, 8))
    restart(other)
    with open_file(ranged) as db, db:
        db.execute("UPDATE entry SET used_at = 1 WHERE key = 'u'")
    value = command.json("explain", "t/c/0", *ERA5)["entries"][0]
    (ranges,) = json.loads(command("explain", "s/c/0", "--json").stdout)["ranges"]
    command("evict", "--to-size", str(70_216))
    (left,) = json.loads(command("explain", "s/c/0", "--json").stdout)["ranges"]

    assert (value["entries_before"], value["bytes_before"]) == (4, 8 + 2000 + 100 + 4096)
    assert (ranges["entries_before"], ranges["bytes_before"]) == (5, 8 + 7196)
    assert (left["ranges"], left["entries_before"], left["bytes_before"]) == (3, 0, 0)


@pytest.mark.usefixtures("ranged")
def test_json_of_ranges_has_the_keys_that_scripts_rely_on(command: Command) -> None:
    result = command("explain", "s/c/0", "--json", "--max-age", "1h", "--max-size", "100 kB")

    assert json.loads(result.stdout)["ranges"] == [
        {
            "namespace": "mur",
            "ranges": 3,
            "bytes": 70_216,
            "oldest": "2023-11-14T22:21:20.000000Z",
            "newest": "2023-11-14T22:23:20.000000Z",
            "stale_entries": 0,
            "used_at": "2023-11-14T22:23:20.000000Z",
            "validator": None,
            "confirmed_at": None,
            "is_invalidated": False,
            "entries_before": 4,
            "bytes_before": 7196,
            "evicted_after_bytes": 100_000 - 70_216,
        }
    ]


def test_invalidated_ranges_are_reported(command: Command, ranged: Path) -> None:
    Markers(ranged).mark("mur")
    result = command("explain", "s/c/0")

    assert "a write could not be recorded: the next read goes to the source" in result.stdout


@pytest.mark.usefixtures("ranged")
def test_ranges_of_a_key_below_a_folder_are_one_key(command: Command) -> None:
    result = command("explain", "s")

    assert result.stdout.splitlines()[-1] == "  1 key below it: zarr-cache ls --prefix s/"
