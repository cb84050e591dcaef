"""The benchmarks run, compare bytes, and tell each row; how long anything takes is not a test."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import STRESS

if TYPE_CHECKING:
    from collections.abc import Callable

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PAGE = BENCHMARKS.parent / "docs" / "performance.md"

ROWS = {
    "hits": [
        ("one hit, sync, 2 kB", "≤ 3 times bare SELECT"),
        ("one hit, sync, 1 MiB", "≤ 1.7 times open().read()"),
        ("one hit, sync, 1 kB, against diskcache's LRU", "≤ 0.3 times diskcache"),
        ("one hit, async, 2 kB", "≤ 0.6 times zarr CacheStore + LocalStore"),
        ("one hit, async, 100 kB", "≤ 0.4 times zarr CacheStore + LocalStore"),
        ("one hit, async, 2 MB", "≤ 0.8 times zarr CacheStore + LocalStore"),
    ],
    "arrays": [
        (
            "warm read of 512² float32, chunks 256², default pipeline",
            "≤ 0.6 times zarr CacheStore + LocalStore",
        ),
        (
            "warm read of 512² float32, chunks 256², fused pipeline",
            "≤ 0.6 times zarr CacheStore + LocalStore",
        ),
        *(
            row
            for source, factor in {"in memory": 1, "on the disk": 1, "of 5 ms": 0.35}.items()
            for row in [
                (
                    f"requests of 41 windows in a sharded array, warm, source {source}",
                    "≤ 0 requests",
                ),
                (
                    f"41 windows in a sharded array, warm, source {source}",
                    f"≤ {factor} times zarr CacheStore + LocalStore",
                ),
            ]
        ),
    ],
    "cold_read": [
        (f"cold read of 16 chunks, {what}, {pipeline} pipeline", "≤ 1.15 times the source alone")
        for what in (
            "all of it cold",
            "metadata warm",
            "metadata and half the chunks warm",
            "the cold half of them, after hits of the others",
        )
        for pipeline in ("default", "fused")
    ],
    "fast_sources": [
        (
            "cold read of 4 chunks of 4 MiB, a source of 1 GB/s",
            "≤ 1.25 times the source alone",
        ),
        (
            "cold read of 8 values of 4 MB, a source that answers at once",
            "≤ 1.3 times zarr CacheStore + LocalStore",
        ),
        (
            "processor time of keeping a value of 1 MiB, with eviction",
            "≤ 2 times open().write()",
        ),
    ],
    "disk": [
        row
        for size, warm in {"200 kB": 0.6, "1 MiB": 0.8, "4,000 kB": 1.1}.items()
        for row in [
            (f"keeping a value of {size}, to the disk", "≤ 1 times LocalStore"),
            (f"bytes written for each byte kept, values of {size}", "≤ 1.1 bytes"),
            *(
                each
                for how in ("one at a time", "ten at a time")
                for each in [
                    (f"a hit of {size} from the disk, {how}", "≤ 1.2 times LocalStore"),
                    (f"a hit of {size} out of memory, {how}", f"≤ {warm} times LocalStore"),
                ]
            ),
            (f"bytes read for each byte asked for, values of {size}", "≤ 1.25 bytes"),
            (
                f"the longest time the event loop stood still meanwhile, values of {size}",
                "≤ 20 ms",
            ),
        ]
    ],
    "scale": [
        ("opening with a hit, 3,000 entries", "≤ 1.5 times 1,000 entries, or within 1 ms"),
        ("opening with a hit, 3,000 entries, in all", "≤ 20 ms"),
        ("a hit, 3,000 entries", "≤ 1.5 times 1,000 entries"),
        ("an admission with an eviction, 3,000 entries", "≤ 1.5 times 1,000 entries"),
        ("memory of the process at 3,000 entries over 1,000", "≤ 20 MB"),
    ],
    "transactions": [
        (f"write transactions of 2,000 hits of different keys, {surface}", "≤ 20 transactions")
        for surface in ("sync", "async")
    ],
    "processes": [
        (f"two processes, hits of {size}{how}", "≥ 1.7 times zarr_cache, one process")
        for size in ("2 kB", "100 kB")
        for how in ("", ", by processor time")
    ],
    "huge_values": [
        ("64 KiB out of a value of 16 MiB, anywhere", "≤ 2 times in values of 1 MiB"),
        ("64 KiB out of a value of 16 MiB, at its end", "≤ 2 times in values of 1 MiB"),
        ("peak of private memory over N, a hit of N = 4 MiB, sync", "≤ 1.25 N"),
        ("peak of private memory over N, a hit of N = 4 MiB, async", "≤ 1.25 N"),
    ],
    "layers": [
        ("one hit, sync, 2 kB, layer upon layer", ""),
        ("one hit, sync, 1 MiB, layer upon layer", ""),
        ("the least of a hit of 1 kB", ""),
        ("processor time of a miss, source without latency", ""),
        ("processor time of a miss, source of 5 ms", ""),
    ],
}
KNOWN_ON_LINUX_ONLY = (
    "memory of the process",
    "peak of private memory",
    *("keeping a value of", "bytes written", "bytes read", "a hit of", "the longest time"),
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the whole suite writes when it is run as small as it can be."""
    if STRESS == 1:
        pytest.skip("the benchmarks take a while: set ZARR_CACHE_STRESS")
    folder = tmp_path_factory.mktemp("benchmarks")
    path = folder / "results.json"
    run = subprocess.run(
        [
            *(sys.executable, "-W", "error", str(BENCHMARKS / "run.py"), "--smallest"),
            *("--folder", str(folder), "--results", str(path)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    # Nothing is left behind but the figures.
    assert list(folder.iterdir()) == [path]
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def is_known_here(what: str) -> bool:
    """Whether this system tells what the row is about."""
    return sys.platform == "linux" or not what.startswith(KNOWN_ON_LINUX_ONLY)


@pytest.mark.parametrize("group", ROWS)
def test_each_row_is_told_with_what_it_is_to_reach(results: dict[str, Any], group: str) -> None:
    expected = [(what, reach) for what, reach in ROWS[group] if is_known_here(what)]

    assert [(row["what"], row["reach"]) for row in results["groups"][group]] == expected


@pytest.mark.parametrize("group", ROWS)
def test_each_system_has_a_figure_of_each_round(results: dict[str, Any], group: str) -> None:
    for row in results["groups"][group]:
        assert {row["ours"], row["peer"]} - {None} <= set(row["systems"])
        assert all(len(figures) == 1 for figures in row["systems"].values())


def test_hits_of_a_sharded_array_make_no_request(results: dict[str, Any]) -> None:
    requests = [row["value"] for row in results["groups"]["arrays"] if row["unit"] == "requests"]

    assert requests == [0, 0, 0]


def test_thousands_of_hits_are_written_in_a_handful_of_transactions(
    results: dict[str, Any],
) -> None:
    for row in results["groups"]["transactions"]:
        assert 1 <= row["value"] <= 20


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


def test_more_than_is_asked_for_is_reached_too(row: Callable[..., Any]) -> None:
    figures = {"two": [19.0], "one": [10.0]}

    assert row("processes", "hits/ms", figures, "two", "one", at_least=1.7).is_reached
    assert not row("processes", "hits/ms", figures, "two", "one", at_least=2).is_reached


def test_a_system_that_gives_other_bytes_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    measuring = runpy.run_path(str(BENCHMARKS / "measuring.py"))

    with pytest.raises(measuring["WrongAnswerError"], match="diskcache: one hit"):
        measuring["expect"]("diskcache: one hit", b"other", b"value")


def test_the_page_is_what_the_results_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    report = runpy.run_path(str(BENCHMARKS / "report.py"))
    results = json.loads(report["RESULTS"].read_text(encoding="utf-8"))
    notes = report["NOTES"].read_text(encoding="utf-8")

    assert PAGE.read_text(encoding="utf-8") == report["page"](results, notes)


def test_the_plots_of_the_page_are_there() -> None:
    images = [line.partition("](")[2].rstrip(")") for line in PAGE.read_text().splitlines()]

    assert all((PAGE.parent / image).exists() for image in images if image.endswith(".svg"))
