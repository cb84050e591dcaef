"""A map shows which chunks are cached, as text, as SVG and as an image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import zarr
from PIL import Image
from rich.console import Console
from zarr.storage import MemoryStore

from tests.warming.arrays import cached
from zarr_cache import warm
from zarr_cache.warming.coverage import CachedPlaces, cached_places
from zarr_cache.warming.coverage_map import (
    COLOURS,
    NOTHING,
    ON_WHITE,
    CoverageMap,
    as_svg,
    as_text,
    map_of,
    save_png,
)

if TYPE_CHECKING:
    import numpy.typing as npt

EXPECTED = Path(__file__).parent / "partly_warm.svg"


def places(covered: npt.NDArray[np.bool_]) -> CachedPlaces:
    """The places of a result of `coverage`."""
    return CachedPlaces(covered.shape, [np.argwhere(covered)])


def partly_warm(path: Path) -> CoverageMap:
    """A map of 6 by 8 chunks, 12 of which are cached."""
    memory = MemoryStore()
    zarr.create_array(memory, name="a/b", shape=(30, 40), chunks=(5, 5), dtype="u1")[:] = 1
    array = cached(memory, path).array
    warm(array, np.s_[7:22, 12:23])
    return map_of(cached_places(array), "a/b", ["time", None], most=(20, 20))


def test_a_partly_warm_array_looks_like_this_without_colours(path: Path) -> None:
    assert as_text(partly_warm(path), is_coloured=False).plain.splitlines() == [
        "a/b",
        "········",
        "··███···",
        "··███···",
        "··███···",
        "··███···",
        "········",
        "█ cached   ▒ in part   · not cached",
        "12 of 48 chunks cached (25 %)",
        "down: dimension 0 (time), 6 chunks",
        "across: dimension 1, 8 chunks",
    ]


def test_a_partly_warm_array_looks_like_this_as_svg(path: Path) -> None:
    assert as_svg(partly_warm(path)) == EXPECTED.read_text(encoding="utf-8")


def test_two_rows_share_a_line_of_half_blocks(path: Path) -> None:
    text = as_text(partly_warm(path), is_coloured=True)
    _, first, second, third, legend, *_ = text.split("\n")
    styles = [str(span.style) for span in second.spans]

    none, every = COLOURS[0], COLOURS[-1]
    assert [first.plain, second.plain, third.plain] == ["▀" * 8] * 3
    assert {str(span.style) for span in first.spans} == {f"{none} on {none}", f"{none} on {every}"}
    assert (
        styles
        == [f"{none} on {none}"] * 2 + [f"{every} on {every}"] * 3 + [f"{none} on {none}"] * 3
    )
    assert legend.plain == "■ cached   ■ in part   ■ not cached"


def test_an_odd_row_has_a_line_of_its_own() -> None:
    text = as_text(map_of(places(np.ones((3, 2), bool)), "x", most=(9, 9)), is_coloured=True)

    assert text.plain.splitlines()[1:3] == ["▀▀", "▀▀"]
    assert [str(span.style) for span in text.split("\n")[2].spans] == [COLOURS[-1]] * 2


def test_an_image_has_the_colours_of_the_cells(path: Path, tmp_path: Path) -> None:
    drawn = partly_warm(path)
    file = tmp_path / "map.png"
    save_png(drawn, file)
    with Image.open(file) as image:
        pixels = image.convert("RGB")

    found = {
        f"#{colour[0]:02x}{colour[1]:02x}{colour[2]:02x}": count
        for count, colour in colours(pixels)
    }

    # 24 pixels a cell, of which one is the line between two; the legend has a hundred of each.
    assert found[COLOURS[-1]] == 12 * 23 * 23 + 100
    assert found[ON_WHITE[0]] == 36 * 23 * 23 + 100


def colours(image: Image.Image) -> list[tuple[int, Any]]:
    return image.getcolors(2**24) or []


def test_more_dimensions_than_two_are_averaged() -> None:
    covered = np.zeros((4, 2, 3), bool)
    covered[:, 0, 0] = True
    covered[0, 1, 2] = True

    drawn = map_of(places(covered), "x", most=(9, 9))

    assert drawn.shares.tolist() == [[1, 0, 0], [0, 0, 0.25]]
    assert drawn.shades().tolist() == [[4, 0, 0], [0, 0, 1]]
    assert drawn.caption[-1] == "mean over dimension 0"


def test_a_slice_chooses_what_is_drawn() -> None:
    covered = np.zeros((4, 2, 3), bool)
    covered[2] = True

    drawn = map_of(places(covered), "x", ["t", "y", "x"], slice_of=(2,), most=(9, 9))
    of_rows = map_of(places(covered), "x", ["t", "y", "x"], slice_of=(slice(1, 3), 0), most=(9, 9))

    assert drawn.caption == (
        "6 of 6 chunks cached (100 %)",
        "down: dimension 1 (y), 2 chunks",
        "across: dimension 2 (x), 3 chunks",
    )
    assert of_rows.shares.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert of_rows.caption[1] == "down: dimension 0 (t), 2 chunks"


def test_a_large_grid_has_several_chunks_in_a_cell() -> None:
    covered = np.zeros((5, 7), bool)
    covered[:2, :3] = True
    covered[4, 6] = True

    drawn = map_of(places(covered), "x", most=(3, 3))

    assert drawn.shares.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert drawn.caption[1:] == (
        "down: dimension 0, 5 chunks, 2 to a cell",
        "across: dimension 1, 7 chunks, 3 to a cell",
    )


def test_only_a_cell_with_all_of_its_chunks_is_shown_as_cached() -> None:
    covered = np.ones((1000, 1000), bool)
    covered[0, 0] = False
    covered[900:, 900:] = False
    covered[999, 999] = True

    shades = map_of(places(covered), "x", most=(10, 10)).shades()

    assert (shades[0, 0], shades[0, 1], shades[9, 9]) == (3, 4, 1)


def test_one_dimension_continues_in_the_next_line() -> None:
    covered = np.arange(8) < 4
    short = map_of(places(covered), "x", most=(9, 3))
    long = map_of(places(covered), "x", most=(2, 2))

    assert short.shades().tolist() == [[4, 4, 4], [4, 0, 0], [0, 0, NOTHING]]
    assert long.shades().tolist() == [[4, 4], [0, 0]]
    assert long.caption[-1] == "line by line: dimension 0, 8 chunks, 2 to a cell"


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (3, 0), (2, 0, 3), (0, 2, 3)])
def test_a_grid_with_no_or_one_chunk_is_drawn(shape: tuple[int, ...], tmp_path: Path) -> None:
    drawn = map_of(places(np.ones(shape, bool)), "x", most=(9, 9))
    save_png(drawn, tmp_path / "map.png")

    assert as_text(drawn, is_coloured=True).plain.startswith("x\n")
    assert ET.fromstring(as_svg(drawn)).tag.endswith("svg")  # noqa: S314 - our own


def test_names_are_shown_harmlessly() -> None:
    drawn = map_of(places(np.ones((1, 1), bool)), "[red]<&\x1b[2J", ["a\nb", None], most=(9, 9))
    shown = io.StringIO()
    Console(file=shown).print(as_text(drawn, is_coloured=False))

    assert "[red]<&\N{REPLACEMENT CHARACTER}[2J" in shown.getvalue()
    assert "\x1b" not in shown.getvalue()
    assert "a\N{REPLACEMENT CHARACTER}b" in drawn.caption[1]
    assert ET.fromstring(as_svg(drawn)) is not None  # noqa: S314 - our own


def test_neighbours_that_are_alike_are_one_box_where_cells_are_small() -> None:
    covered = np.zeros((200, 200), bool)
    covered[:, 100:] = True

    assert as_svg(map_of(places(covered), "x", most=(200, 200))).count("<rect") == 200 * 2 + 3
