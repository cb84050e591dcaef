"""The guide to the shell: every query runs, in each shell, and says what the page promises."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import _utc, filled
from tests.fakes import assert_accounts, close_everything, open_file
from tests.shell.test_shell import COLUMNS

__all__ = ["_utc", "filled"]

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "shell.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([A-Z].*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
QUERY = re.compile(r"^(.*?)\n\n```sql\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ASKED: list[tuple[str, str]] = [
    (text.strip().splitlines()[-1], query) for text, query in QUERY.findall(SECTIONS["Questions"])
]
DELETIONS = [query for _, query in QUERY.findall(SECTIONS["Removing"])]

SHELL = shutil.which("sqlite3")


def rows(path: Path, query: str) -> list[tuple[Any, ...]]:
    with open_file(path) as db:
        return db.execute(query).fetchall()


def first(question: str) -> str:
    """The query below the question that begins so."""
    (query,) = [query for text, query in ASKED if text.startswith(question)]
    return query


@pytest.mark.parametrize("query", [query for _, query in ASKED], ids=[text for text, _ in ASKED])
def test_each_question_is_answered_by_each_shell(filled: Path, query: str) -> None:
    shells = [[sys.executable, "-m", "sqlite3"], *([[SHELL, "-box"]] if SHELL else [])]
    for shell in shells:
        result = subprocess.run([*shell, filled, query], capture_output=True, text=True, check=True)

        assert result.stderr == ""
    assert len(rows(filled, query)) >= ("hour" not in query)


def test_the_answers_are_those_of_the_questions(filled: Path) -> None:
    assert rows(filled, first("How much is cached")) == [(4, 0.0)]
    assert rows(filled, first("Which values are the largest"))[0] == ("4.0 KiB", "sst", "t/c/0")
    assert [key for *_, key in rows(filled, first("Who is evicted next"))] == [
        "t/c/1",
        "zarr.json",
        "t/c/0",
        "t/c/0",
    ]
    assert {(name, folder) for name, folder, *_ in rows(filled, first("Which arrays take"))} == {
        ("era5", "t/c/"),
        ("era5", ""),
        ("sst", "t/c/"),
    }
    assert rows(filled, first("How was it filled")) == [("2023-11-14", 4, 0.0)]
    assert ("era5", 1, 4, 20.0) in rows(filled, first("How many of the reads"))


@pytest.mark.parametrize("query", DELETIONS)
def test_a_deletion_leaves_the_accounts_right_and_stored_values_untouched(
    filled: Path, query: str
) -> None:
    close_everything()
    with open_file(filled) as db, db:
        db.execute(query.replace("temperature", "t").replace("s3://bucket/era5.zarr", "era5"))

    assert_accounts(filled)
    assert rows(filled, "SELECT count(*) FROM cache_entries WHERE kind = 'stored'") == [(1,)]
    assert rows(filled, "SELECT count(*) FROM cache_entries WHERE kind = 'value'") < [(4,)]


@pytest.mark.parametrize("view", COLUMNS)
def test_the_page_names_the_columns_of_each_view(view: str) -> None:
    table = re.search(rf"^`{view}`:.*?\n\n(\|.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    assert table is not None
    cells = re.findall(r"^\| (`.*?) \|", table[1], re.MULTILINE)

    assert re.findall(r"`([a-z]+)`", " ".join(cells)) == COLUMNS[view]


@pytest.mark.parametrize("view", COLUMNS)
def test_the_columns_are_plain_text_and_numbers(filled: Path, view: str) -> None:
    with open_file(filled) as db:
        db.execute("PRAGMA query_only = ON")
        db.execute("PRAGMA trusted_schema = OFF")
        found = db.execute(f"SELECT * FROM {view}").fetchall()  # noqa: S608 - our own

    assert found
    assert {type(cell) for row in found for cell in row} == {str, int}
    assert all(name.isidentifier() for name in COLUMNS[view])
