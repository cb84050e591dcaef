"""The guide to the shell: every query runs, in each shell, and says what the page promises."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import _utc, filled, ranged, sampled
from tests.fakes import assert_accounts, close_everything, open_file
from tests.shell.test_shell import COLUMNS
from zarr_cache.disk.data_file_opening import IS_SUPPORTED

__all__ = ["_utc", "filled", "ranged", "sampled"]

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "shell.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([A-Z].*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
QUERY = re.compile(r"^(.*?)\n\n```sql\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ASKED: list[tuple[str, str]] = [
    (text.strip().splitlines()[-1], query) for text, query in QUERY.findall(SECTIONS["Questions"])
]
DELETIONS = [query for _, query in QUERY.findall(SECTIONS["Removing"])]

SHELL = shutil.which("sqlite3")


def of_file(query: str) -> str:
    """The query, of a source and keys that the file has."""
    query = query.replace(
        "s3://bucket/era5.zarr' AND key = 'temperature/c/0/0", "mur' AND key = 's/c/0"
    )
    return query.replace("temperature", "t").replace("s3://bucket/era5.zarr", "era5")


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with open_file(path) as db:
        return db.execute(query).fetchall()


def first(question: str) -> str:
    """The query below the question that begins so."""
    (query,) = [query for text, query in ASKED if text.startswith(question)]
    return query


@pytest.mark.parametrize("query", [query for _, query in ASKED], ids=[text for text, _ in ASKED])
def test_each_question_is_answered_by_each_shell(ranged: Path, query: str) -> None:
    query = of_file(query)
    shells = [[sys.executable, "-m", "sqlite3"], *([[SHELL, "-box"]] if SHELL else [])]
    for shell in shells:
        result = subprocess.run([*shell, ranged, query], capture_output=True, text=True, check=True)

        assert result.stderr == ""
    assert len(rows(ranged, query)) >= ("hour" not in query)


def test_the_answers_are_those_of_the_questions(ranged: Path) -> None:
    def found(question: str) -> list[tuple[Any, ...]]:
        return rows(ranged, of_file(first(question)))

    assert found("Of which keys are ranges") == [("mur", "s/c/0", 3, 0.1)]
    assert [each[:3] for each in found("Which bytes of a key")] == [
        (-16, None, "16 B"),
        (100, 300, "200 B"),
        (4096, 74_096, "68.4 KiB"),
    ]
    assert {each[:2] for each in found("Which arrays take")} == {
        ("era5", "t/c/"),
        ("era5", ""),
        ("sst", "t/c/"),
        ("mur", "s/c/"),
    }
    assert found("How was it filled") == [("2023-11-14", 7, 0.1)]
    assert found("How large are") == [("below 64 KiB", 6), ("below 1 MiB", 1)]
    assert ("era5", 1, 4, 20.0) in found("How many of the reads")
    first_byte = 0 if IS_SUPPORTED else None
    assert found("Where are the largest values")[0][:3] == ("mur", "s/c/0", first_byte)


@pytest.mark.usefixtures("filled")
def test_the_sizes_are_those_of_the_question(sampled: Path) -> None:
    found = rows(sampled, first("What would a larger or a smaller"))
    # A cache of 30 KiB has the 30 values of 1 KiB, of which each is read in 20 rounds.
    assert [each[0] for each in found][-1] == "30.0 KiB"
    assert found[0][1] < 5
    assert 90 < found[-1][1] < 95


# What is deleted where the page says it: values of era5, or ranges of mur.
PLACES = [("t", "era5", "value"), ("s", "mur", "range")]


@pytest.mark.parametrize("query", DELETIONS)
@pytest.mark.parametrize(("folder", "namespace", "kind"), PLACES)
def test_a_deletion_leaves_the_accounts_right_and_stored_values_untouched(
    ranged: Path, query: str, folder: str, namespace: str, kind: str
) -> None:
    close_everything()
    of_kind = f"SELECT count(*) FROM cache_entries WHERE kind = '{kind}'"  # noqa: S608 - our own
    before = rows(ranged, of_kind)
    with open_file(ranged) as db, db:
        db.execute(query.replace("temperature", folder).replace("s3://bucket/era5.zarr", namespace))

    assert_accounts(ranged)
    assert rows(ranged, "SELECT count(*) FROM cache_entries WHERE kind = 'stored'") == [(1,)]
    assert rows(ranged, of_kind) < before


@pytest.mark.parametrize("view", COLUMNS)
def test_the_page_names_the_columns_of_each_view(view: str) -> None:
    table = re.search(rf"^`{view}`:.*?\n\n(\|.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    assert table is not None
    cells = re.findall(r"^\| (`.*?) \|", table[1], re.MULTILINE)

    assert re.findall(r"`([a-z_]+)`", " ".join(cells)) == COLUMNS[view]


TYPES = {"bytes": int, "entries": int, "hit_rate": float}


@pytest.mark.parametrize("view", COLUMNS)
def test_the_columns_are_plain_text_and_numbers(ranged: Path, view: str) -> None:
    with open_file(ranged) as db:
        db.execute("PRAGMA query_only = ON")
        db.execute("PRAGMA trusted_schema = OFF")
        found = db.execute(f"SELECT * FROM {view}").fetchall()  # noqa: S608 - our own
    types = {
        name: {type(cell) for cell in cells}
        for name, cells in zip(COLUMNS[view], zip(*found, strict=True), strict=True)
    }

    assert types == {
        name: {int, type(None)} if name in {"start", "stop"} else {TYPES.get(name, str)}
        for name in COLUMNS[view]
    }
    assert all(name.isidentifier() for name in COLUMNS[view])
