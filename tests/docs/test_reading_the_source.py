"""The walk through the source names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import zarr_cache

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reading-the-source.md").read_text(encoding="utf-8")
PACKAGE = Path(zarr_cache.__file__).parent
STOPS = re.split(r"^## \d\. ", PAGE, flags=re.MULTILINE)[1:]


def test_each_of_six_stops_is_a_file_and_one_truth() -> None:
    files = [re.findall(r"`(\w+/\w+\.py)`", stop.partition("\n")[0]) for stop in STOPS]

    assert [len(each) for each in files] == [1] * 6
    assert [stop.count("**Must stay true:**") for stop in STOPS] == [1] * 6


def test_every_module_it_names_is_there() -> None:
    named = set(re.findall(r"`(\w+/\w+\.py)`", PAGE))

    assert sorted(name for name in named if not (PACKAGE / name).is_file()) == []


def test_every_function_it_names_is_there() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    named = {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", PAGE)} - {"py"}

    assert sorted(name for name in named if not re.search(rf"\b{name}\b", source)) == []
