"""A bar shows the progress of warming in a terminal or a notebook, and nowhere else."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import numpy as np
import pytest
from rich.console import Console

from tests.fakes import FailingStore
from tests.warming.arrays import CHUNK, cached, persisting, rows, sharded
from zarr_cache import warm
from zarr_cache.warming.run import Progress, WarmRun

if TYPE_CHECKING:
    from pathlib import Path


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)


def shown(console: Console) -> str:
    """What stands on the screen at the end."""
    assert isinstance(console.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    return [line for line in text.replace("\r", "\n").splitlines() if line.strip()][-1]


def test_a_terminal_shows_chunks_bytes_rate_and_time(path: Path) -> None:
    _, _, array = cached(rows(8), path)
    console = terminal()

    warm(array, np.s_[:5], progress=console)

    line = shown(console)
    assert line.startswith("a/b ")
    assert re.search(r" 5/5 chunks \d\.\d KiB, \d+\.\d \w+/s 0:00:\d\d left 0:00:00$", line)


def test_a_dumb_terminal_shows_the_bar_once_and_without_control_characters(path: Path) -> None:
    _, _, array = cached(rows(8), path)
    console = Console(file=io.StringIO(), force_terminal=True, width=120, _environ={"TERM": "dumb"})

    warm(array, progress=console)

    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert text.count(" 8/8 chunks ") == 1
    assert "\x1b" not in text
    assert "\r" not in text


def test_what_was_cached_counts_as_done(path: Path) -> None:
    _, _, array = cached(rows(8), path)
    warm(array, np.s_[:5])
    console = terminal()

    warm(array, progress=console)

    assert " 8/8 chunks 2.9 KiB" in shown(console)


def test_inner_chunks_are_counted_where_they_are_fetched(path: Path) -> None:
    _, _, array = persisting(sharded(), path)
    warm(array, np.s_[:5, :30])
    console = terminal()

    warm(array, np.s_[:21, :30], progress=console)

    assert " 25/25 chunks " in shown(console)


def test_a_run_that_stops_leaves_the_bar_where_it_was(path: Path) -> None:
    _, _, array = cached(rows(8), path, max_size=4 * CHUNK)
    console = terminal()

    report = warm(array, progress=console)

    assert f" {report.fetched}/8 chunks " in shown(console)


def test_the_bar_is_taken_down_when_the_source_fails(path: Path) -> None:
    source, _, array = cached(rows(30), path, FailingStore)
    assert isinstance(source, FailingStore)
    source.fail("get", at=3, times=40)
    console = terminal()

    with pytest.raises(OSError, match="as the test asked"):
        warm(array, progress=console, max_concurrency=1)

    assert isinstance(console.file, io.StringIO)
    # The cursor is shown again.
    assert console.file.getvalue().rfind("\x1b[?25h") > console.file.getvalue().rfind("\x1b[?25l")


@pytest.mark.parametrize("progress", [None, False])
def test_it_is_quiet_without_a_terminal(
    path: Path, capfd: pytest.CaptureFixture[str], progress: bool | None
) -> None:
    _, _, array = cached(rows(3), path)

    warm(array, progress=progress)

    assert capfd.readouterr() == ("", "")


def test_it_is_shown_on_stderr_on_request(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, _, array = cached(rows(3), path)

    warm(array, progress=True)

    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3 chunks" in err


async def test_progress_is_reported_at_the_beginning_and_after_each_value(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Progress] = []
    original = WarmRun._progress

    def note(run: WarmRun) -> Progress:
        reported.append(original(run))
        return reported[-1]

    monkeypatch.setattr(WarmRun, "_progress", note)
    _, _, array = cached(rows(4), path)

    warm(array, np.s_[:3], max_concurrency=1)

    assert [(each.done, each.chunks) for each in reported] == [
        (0, 3),
        # The metadata of two groups.
        (0, 3),
        (0, 3),
        (1, 3),
        (2, 3),
        (3, 3),
    ]
    assert [each.nbytes for each in reported] == sorted(each.nbytes for each in reported)
    assert reported[-1].nbytes - reported[2].nbytes == 3 * CHUNK
