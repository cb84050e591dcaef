"""The walk through the source names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import zarr_cache

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reading-the-source.md").read_text(encoding="utf-8")
PACKAGE = Path(zarr_cache.__file__).parent


def test_there_are_six_stops_with_one_truth_each() -> None:
    stops = re.split(r"^## \d\. ", PAGE, flags=re.MULTILINE)[1:]

    assert [stop.count("**Must stay true:**") for stop in stops] == [1] * 6


def test_every_module_it_names_is_there() -> None:
    named = set(re.findall(r"`(\w+\.py)`", PAGE))

    assert sorted(name for name in named if not (PACKAGE / name).is_file()) == []


def test_every_function_it_names_is_there() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    named = {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", PAGE)} - {"py"}

    assert sorted(name for name in named if not re.search(rf"\b{name}\b", source)) == []
