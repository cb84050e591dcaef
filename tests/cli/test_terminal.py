"""What the commands draw, in a pipe and in a terminal."""

from __future__ import annotations

import pytest

from zarr_cache.cli.info import print_other_sizes
from zarr_cache.cli.terminal import curve_lines, curve_width
from zarr_cache.sampling.curve import Curve

ENDS = ("1 GiB", "64 GiB")
SHARES = [0.0, 0.1, 0.25, 0.5, 0.5, 0.75, 0.75, 0.99, 1.0, 1.0, *[1.0] * 10]


@pytest.fixture
def in_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")


def test_in_a_pipe_a_curve_is_drawn_with_plain_characters() -> None:
    assert curve_lines(SHARES, ENDS, (4, "8 GiB now"), 4) == [
        "100 % |       #############",
        "      |     ###############",
        " 50 % |   #################",
        "      |  ##################",
        "  0 % +--------------------",
        "           ^ 8 GiB now",
        "       1 GiB         64 GiB",
    ]


def test_the_name_of_a_mark_at_the_right_is_left_of_it() -> None:
    assert curve_lines(SHARES, ENDS, (18, "8 GiB now"), 4)[-2] == "               8 GiB now ^"


def test_without_a_mark_there_is_no_line_for_it() -> None:
    assert curve_lines(SHARES, ENDS, None, 4)[-2:] == [
        "  0 % +--------------------",
        "       1 GiB         64 GiB",
    ]


@pytest.mark.usefixtures("in_terminal")
def test_in_a_terminal_a_curve_is_drawn_with_blocks() -> None:
    lines = curve_lines(SHARES, ENDS, (4, "8 GiB now"), 4)

    assert lines[0] == "100 % |       █████████████"
    assert lines[-2] == "           ▲ 8 GiB now"


@pytest.mark.usefixtures("in_terminal")
def test_a_curve_fits_in_a_narrow_terminal() -> None:
    assert curve_width() == 40 - len("100 % |")


def test_in_a_pipe_a_curve_is_sixty_columns_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")

    assert curve_width() == 60


def test_an_empty_curve_is_not_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    print_other_sizes(Curve((), (), 1000.0), 4096)

    assert capsys.readouterr().out == (
        "\nNo size would have served 1 % of the bytes: hardly any were read again.\n"
    )
