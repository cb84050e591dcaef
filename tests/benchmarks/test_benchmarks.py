"""The benchmarks run, compare bytes, and tell each row; how long anything takes is not a test."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import STRESS

if TYPE_CHECKING:
    from collections.abc import Callable

    type RowsOf = Callable[[str], list[dict[str, Any]]]

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DOCS = BENCHMARKS.parent / "docs"
COMPARISON = DOCS / "comparison.md"

GROUPS = (
    *("hits", "arrays", "ranges", "hit_ratio", "cold_read", "fast_sources", "disk", "scale"),
    *("transactions", "processes", "huge_values", "layers", "alternatives"),
)


@pytest.fixture(scope="module")
def rows_of(tmp_path_factory: pytest.TempPathFactory) -> RowsOf:
    """What a group writes when it is run as small as it can be, once.

    Each by itself: together they take longer than a test may on a machine that is busy.
    """
    if STRESS == 1:
        pytest.skip("the benchmarks take a while: set ZARR_CACHE_STRESS")

    @cache
    def run_group(group: str) -> list[dict[str, Any]]:
        folder = tmp_path_factory.mktemp("benchmarks")
        path = folder / "results.json"
        run = subprocess.run(
            [
                *(sys.executable, "-W", "error", str(BENCHMARKS / "run.py"), "--smallest"),
                *("--only", group, "--folder", str(folder), "--results", str(path)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (run.returncode, run.stderr) == (0, ""), run.stdout
        # Nothing is left behind but the figures.
        assert list(folder.iterdir()) == [path]
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["groups"][group]
        return found

    return run_group


@pytest.mark.parametrize("group", GROUPS)
def test_each_row_is_reported_with_its_bound(rows_of: RowsOf, group: str) -> None:
    rows = rows_of(group)
    if group == "hit_ratio":
        # Hits of a whole trace are what there is.
        rows = [row for row in rows if row["what"].endswith("after the first quarter")]

    assert rows
    # Layers say where the time is spent.
    assert [row["what"] for row in rows if bool(row["reach"]) == (group == "layers")] == []


@pytest.mark.parametrize("group", GROUPS)
def test_each_system_has_a_figure_of_each_round(rows_of: RowsOf, group: str) -> None:
    for row in rows_of(group):
        assert {row["ours"], row["peer"]} - {None} <= set(row["systems"])
        assert all(len(figures) == 1 for figures in row["systems"].values())


def test_hits_of_a_sharded_array_make_no_request(rows_of: RowsOf) -> None:
    requests = [row["value"] for row in rows_of("arrays") if row["unit"] == "requests"]

    assert requests == [0, 0, 0]


def test_thousands_of_hits_are_written_in_a_handful_of_transactions(rows_of: RowsOf) -> None:
    for row in rows_of("transactions"):
        assert 1 <= row["value"] <= 20


def test_the_real_cache_hits_what_simulations_do(rows_of: RowsOf) -> None:
    ratios = {
        row["what"]: row["medians"] for row in rows_of("hit_ratio") if "best" in row["medians"]
    }

    assert len(ratios) == 10
    for what, each in ratios.items():
        # What waits to be written is a hit too, beyond the budget: of so small a cache it is much.
        assert each["LRU"] - 0.01 <= each["evict"] <= each["best"] + 0.1, what
        assert each["keep"] <= each["best"] + 0.01, what
        assert min(each["evict"], each["keep"]) <= each["auto"] + 0.05, what
    epochs = [each for what, each in ratios.items() if what.startswith("epochs")]
    assert [each["keep"] for each in epochs] == pytest.approx(
        [each["best"] for each in epochs], abs=0.01
    )


@pytest.fixture
def row(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The class of a row."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found: Callable[..., Any] = runpy.run_path(str(BENCHMARKS / "measuring.py"))["Row"]
    return found


def test_a_ratio_is_of_figures_of_the_same_round(row: Callable[..., Any]) -> None:
    # In the second round the machine was ten times as slow, for both.
    figures = {"ours": [2.0, 20.0, 3.0], "theirs": [4.0, 40.0, 4.0]}

    told = row("a read", "µs", figures, "ours", "theirs", at_most=0.6)

    assert (told.value, told.is_reached) == (0.5, True)


def test_the_best_rounds_of_each_system_are_what_others_disturbed_least(
    row: Callable[..., Any],
) -> None:
    times = {"ours": [2.0, 90.0, 3.0], "theirs": [40.0, 4.0, 5.0]}
    rates = {"two": [19.0, 1.0], "one": [5.0, 10.0]}

    assert row("a read", "µs", times, "ours", "theirs", at_most=0.6).quietest == 0.5
    assert row("processes", "hits/ms", rates, "two", "one", at_least=1.7).quietest == 1.9


def test_a_ratio_is_not_reached_above_its_bound(row: Callable[..., Any]) -> None:
    told = row("a read", "µs", {"ours": [3.0], "theirs": [4.0]}, "ours", "theirs", at_most=0.6)

    assert not told.is_reached


def test_a_small_difference_is_as_good_as_a_small_ratio(row: Callable[..., Any]) -> None:
    figures = {"large": [2.5], "small": [1.0]}

    assert row("opening", "ms", figures, "large", "small", 1.5, or_within=2.0).is_reached
    assert not row("opening", "ms", figures, "large", "small", 1.5, or_within=1.0).is_reached


def test_more_than_the_bound_is_reached_too(row: Callable[..., Any]) -> None:
    figures = {"two": [19.0], "one": [10.0]}

    assert row("processes", "hits/ms", figures, "two", "one", at_least=1.7).is_reached
    assert not row("processes", "hits/ms", figures, "two", "one", at_least=2).is_reached


def test_a_system_that_gives_other_bytes_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measuring = runpy.run_path(str(BENCHMARKS / "measuring.py"))

    with pytest.raises(measuring["WrongAnswerError"], match="diskcache: one hit"):
        measuring["expect"]("diskcache: one hit", b"other", b"value")


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names in the script that writes the pages."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "report.py"))


@pytest.fixture
def results(report: dict[str, Any]) -> dict[str, Any]:
    """What the pages were written from."""
    found: dict[str, Any] = json.loads(report["RESULTS"].read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    ("name", "written_by"), [("performance.md", "page"), ("performance-details.md", "details")]
)
def test_the_pages_are_what_the_results_say(
    report: dict[str, Any], results: dict[str, Any], name: str, written_by: str
) -> None:
    notes = report["NOTES"].read_text(encoding="utf-8")

    assert (DOCS / name).read_text(encoding="utf-8") == report[written_by](results, notes)


@pytest.mark.parametrize(
    ("is_reached", "in_best_rounds", "mark"),
    [(False, False, "**no**"), (True, False, "unsettled"), (False, True, "unsettled")],
)
def test_the_first_page_lists_the_rows_that_miss_their_targets(
    report: dict[str, Any],
    results: dict[str, Any],
    is_reached: bool,
    in_best_rounds: bool,
    mark: str,
) -> None:
    row = next(row for rows in results["groups"].values() for row in rows if row["reach"])
    for each in (row for rows in results["groups"].values() for row in rows):
        each |= {"is_reached": True, "is_reached_in_best_rounds": True}
    before = report["page"](results, "").splitlines()

    row |= {"is_reached": is_reached, "is_reached_in_best_rounds": in_best_rounds}

    (line,) = set(report["page"](results, "").splitlines()) - set(before)
    assert line.startswith(f"| {row['what']} |")
    assert line.endswith(f"| {row['reach']} | {mark} |")


def test_a_row_of_the_first_page_that_was_not_measured_is_named(
    report: dict[str, Any], results: dict[str, Any]
) -> None:
    del results["groups"]["processes"]

    with pytest.raises(SystemExit, match="no row 'two processes, hits of 100 kB'"):
        report["page"](results, "")


def test_the_figures_of_the_comparison_are_what_its_results_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    comparison = runpy.run_path(str(BENCHMARKS / "comparison.py"))
    results = json.loads(comparison["RESULTS"].read_text(encoding="utf-8"))
    text = COMPARISON.read_text(encoding="utf-8")

    assert comparison["table"](results) in text
    assert text == comparison["page"](text, results)


def test_the_plots_of_the_page_are_there() -> None:
    lines = (DOCS / "performance-details.md").read_text(encoding="utf-8").splitlines()
    images = [line.partition("](")[2].rstrip(")") for line in lines if line.startswith("![")]

    assert images
    assert [image for image in images if not (DOCS / image).exists()] == []
