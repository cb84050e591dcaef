"""``zarr-cache info``: what the file holds of each source."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest
from zarr.abc.store import RangeByteRequest
from zarr.storage import MemoryStore

from tests.fakes import buffer, restart
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Command

pytestmark = pytest.mark.usefixtures("filled")


def table(lines: list[str]) -> list[str]:
    """The lines of the namespaces: they end with an empty line, which the other sizes follow."""
    below = lines[6:]
    return below[: below.index("")]


def test_each_namespace_has_a_line_with_its_values_bytes_share_and_times(command: Command) -> None:
    lines = command.lines("info")

    assert lines[0] == str(command.path)
    assert lines[2] == "cached:  7.0 KiB"
    assert [" ".join(line.split()) for line in table(lines)] == [
        "1 10 B - - - - - (stored with SqliteStore)",
        "3 3.0 KiB ####...... 43.1 % 1 20.0 % 2023-11-14 22:13:20 2023-11-14 22:15:20 era5",
        "1 4.0 KiB ######.... 56.9 % 0 0.0 % 2023-11-14 22:17:20 2023-11-14 22:17:20 sst",
    ]


def test_the_version_of_sqlite_is_named(command: Command) -> None:
    lines = command.lines("info")

    assert lines[3].startswith(f"SQLite:  {sqlite3.sqlite_version}")
    assert command.json("info")["sqlite_version"] == sqlite3.sqlite_version


def test_with_a_budget_shares_are_of_the_budget(command: Command) -> None:
    lines = command.lines("info", "--max-size", "28 KiB")

    assert lines[2] == "cached:  7.0 KiB of 28.0 KiB #####............... 25.1 %"
    assert "14.3 %" in table(lines)[-1]


def test_what_is_older_than_the_age_is_counted_as_stale(command: Command) -> None:
    lines = command.lines("info", "--max-age", "6min")

    assert "2 (2.9 KiB)" in table(lines)[-2]
    assert "0 (0 B)" in table(lines)[-1]


def test_json_has_the_keys_that_scripts_rely_on(command: Command) -> None:
    reported = command.json("info", "--max-size", "1 MiB", "--max-age", "1 h")

    assert set(reported) == {
        "path",
        "sqlite_version",
        "sqlite_has_wal_reset_fault",
        "file_bytes",
        "wal_bytes",
        "data_bytes",
        "free_bytes",
        "cached_bytes",
        "file_ranges",
        "file_range_size",
        "max_size",
        "max_age_seconds",
        "hit_rate_by_size",
        "namespaces",
    }
    assert reported["path"] == str(command.path)
    assert (reported["cached_bytes"], reported["max_size"], reported["max_age_seconds"]) == (
        7196,
        2**20,
        3600,
    )
    assert reported["file_bytes"] == command.path.stat().st_size
    assert reported["namespaces"][1] == {
        "namespace": "era5",
        "entries": {"absent": 1, "range": 0, "tombstone": 0, "stored": 0, "value": 3},
        "bytes": {"absent": 0, "range": 0, "tombstone": 0, "stored": 0, "value": 3100},
        "oldest": "2023-11-14T22:13:20.000000Z",
        "newest": "2023-11-14T22:15:20.000000Z",
        "stale_entries": 0,
        "stale_bytes": 0,
        "hits": 1,
        "misses": 4,
        "hit_rate": 0.2,
        "bytes_served": 1000,
        "bytes_fetched": 3100,
        "evictions": 0,
        "expirations": 0,
    }


@pytest.mark.usefixtures("ranged")
def test_ranges_have_columns_and_count_for_the_share_and_the_times(command: Command) -> None:
    lines = command.lines("info")

    assert lines[2] == "cached:  75.6 KiB; 68.6 KiB of them are in 3 ranges"
    assert " ".join(lines[5].split()).startswith("values bytes ranges range bytes share absent")
    assert [" ".join(line.split()) for line in table(lines)] == [
        "1 10 B - - - - - - - (stored with SqliteStore)",
        "3 3.0 KiB 0 0 B .......... 4.0 % 1 20.0 % 2023-11-14 22:13:20 2023-11-14 22:15:20 era5",
        "0 0 B 3 68.6 KiB #########. 90.7 % 0 0.0 % 2023-11-14 22:21:20 2023-11-14 22:23:20 mur",
        "1 4.0 KiB 0 0 B #......... 5.3 % 0 0.0 % 2023-11-14 22:17:20 2023-11-14 22:17:20 sst",
    ]


def test_the_times_of_a_namespace_are_those_of_its_values_and_its_ranges(
    command: Command, filled: Path
) -> None:
    source = MemoryStore({"s": buffer(bytes(9000))})
    sst = CacheStore(source, cache_store=SqliteStore(filled), namespace="sst", persist_ranges=True)
    sst.get_sync("s", byte_range=RangeByteRequest(0, 8))
    restart(sst)
    reported = command.json("info")["namespaces"][2]

    assert (reported["oldest"], reported["newest"]) == (
        "2023-11-14T22:17:20.000000Z",
        "2023-11-14T22:20:20.000000Z",
    )


@pytest.mark.usefixtures("ranged")
def test_a_range_is_stale_as_a_value_is(command: Command) -> None:
    lines = command.lines("info", "--max-age", "2 min", "--max-size", "151.2 KiB")

    assert lines[2].endswith(" 50.0 %; 68.6 KiB of them are in 3 ranges")
    assert "2 (68.6 KiB)  mur" in table(lines)[-2]


@pytest.mark.usefixtures("ranged")
def test_json_has_the_ranges_of_the_file_and_of_each_namespace(command: Command) -> None:
    reported = command.json("info", "--max-age", "2 min")
    mur = reported["namespaces"][2]

    assert (reported["file_ranges"], reported["file_range_size"]) == (3, 70_216)
    assert reported["cached_bytes"] == 7196 + 70_216
    assert (mur["entries"]["range"], mur["bytes"]["range"]) == (3, 70_216)
    assert (mur["entries"]["value"], mur["bytes"]["value"]) == (0, 0)
    assert (mur["stale_entries"], mur["stale_bytes"]) == (2, 70_200)


def test_in_a_terminal_the_bar_is_drawn_and_wide_columns_are_folded(command: Command) -> None:
    result = command("info", FORCE_COLOR="1", COLUMNS="100", PYTHONIOENCODING="utf-8")

    assert result.exit_code == 0
    assert "####" not in result.stdout
    assert "██████░░░░" in result.stdout


def test_a_file_in_which_nothing_is_cached_takes_three_lines(
    command: Command, filled: Path
) -> None:
    command("clear", "--yes")
    lines = command.lines("info")

    assert lines[0] == str(filled)
    assert lines[2] == "cached:  0 B"


def test_with_too_few_reads_nothing_is_said_of_other_sizes(command: Command) -> None:
    lines = command.lines("info", "--max-size", "1 MiB")

    assert lines[-2:] == ["", "Too few reads are recorded to say what another size would bring."]
    assert command.json("info")["hit_rate_by_size"] is None


@pytest.mark.usefixtures("sampled")
def test_the_size_that_a_store_had_is_compared_with_others(command: Command) -> None:
    lines = command.lines("info")
    end = lines[lines.index("", 5) + 1 :]

    assert end[0] == (
        "32 KiB would have served 94 % of the bytes; now 0 % with 16 KiB; "
        "more would bring nothing, up to 128 KiB."
    )
    assert end[1] == ""
    assert end[2].startswith("100 % |")
    assert end[-2].endswith(" 16 KiB now")


@pytest.mark.usefixtures("sampled")
def test_the_size_that_is_given_is_compared_with_others(command: Command) -> None:
    lines = command.lines("info", "--max-size", "100 KiB")

    assert (
        "100 KiB would have served 94 % of the bytes, and so would 32 KiB; "
        "more would bring nothing, up to 128 KiB."
    ) in lines


@pytest.mark.usefixtures("sampled")
def test_json_has_the_hit_rates_by_size(command: Command) -> None:
    rates = command.json("info")["hit_rate_by_size"]
    sizes = [each["bytes"] for each in rates]

    assert sizes == sorted(sizes)
    assert rates[-1]["bytes"] == pytest.approx(30 * 1024, rel=0.1)
    assert rates[-1]["hit_rate"] == pytest.approx(0.94, abs=0.02)
    assert all(each["hit_rate"] < 0.01 for each in rates if each["bytes"] < 30 * 1024)


@pytest.mark.usefixtures("sampled")
def test_in_a_terminal_the_curve_is_drawn_with_blocks(command: Command) -> None:
    result = command("info", FORCE_COLOR="1", COLUMNS="100", PYTHONIOENCODING="utf-8")

    assert result.exit_code == 0
    assert "100 % |" in result.stdout
    assert "▲" in result.stdout
