"""Dependencies point one way."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

import zarr_cache

PACKAGE = Path(zarr_cache.__file__).parent
DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
# The modules in each line of the picture.
LAYOUT = [
    re.findall(r"(\w+)\.py", line)
    for line in DESIGN.read_text(encoding="utf-8").partition("## Layout")[2].splitlines()
]

# Each from what is built on others to what they are built from. Those in one set do not know each
# other.
CHAINS = [
    [{"cli.__init__"}, {"cache_store"}, {"store_cache"}, {"value_cache"}, {"admission", "fence"}],
    [{"cli.__init__"}, {"removal"}, {"budget"}, {"extents"}],
    [{"cli.__init__"}, {"value_cache"}, {"space"}],
    [{"removal", "report"}, {"selection"}, {"budget"}, {"index"}],
    [
        {"admission", "fence"},
        {"large_values"},
        {"budget"},
        {"index", "range_cache"},
        {"byte_range"},
    ],
    [{"admission", "fence"}, {"answer"}, {"index"}, {"byte_range"}],
    [{"value_cache"}, {"disk_threads"}, {"data_read"}, {"data_file", "memory"}, {"checksum"}],
    [{"large_values"}, {"extents"}, {"data_file", "values"}, {"checksum"}],
    [{"connection"}, {"data_file"}, {"aside"}],
    [{"sqlite_store"}, {"stored"}, {"index"}, {"values"}, {"checksum"}],
    [{"cache_store"}, {"sqlite_store"}, {"file_database"}, {"connection"}, {"migrate"}, {"errors"}],
    [{"value_cache"}, {"database", "flight", "range_cache"}, {"clock", "flow"}],
]
PAIRS = [pair for chain in CHAINS for pair in pairwise(chain)]
LEVELS = [level for chain in CHAINS for level in chain]


def id_of(level: set[str]) -> str:
    return "+".join(sorted(level))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py")}


def imported(path: Path) -> set[str]:
    """Modules of this package that the file names in an import, for the type checker or not."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {own_module(alias.name, "") for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            found |= {own_module(node.module or "", alias.name) for alias in node.names}
    return found - {""}


def own_module(module: str, name: str) -> str:
    """The module that ``from module import name`` loads, within this package; "" for another's."""
    first, _, rest = module.partition(".")
    candidates = [f"{rest}.{name}".strip("."), f"{rest}.__init__".strip("."), rest]
    return next((each for each in candidates if first == "zarr_cache" and each in MODULES), "")


IMPORTS = {name: imported(path) for name, path in MODULES.items()}


def reached(name: str) -> set[str]:
    """Every module that `name` is built from, however far down."""
    found: set[str] = set()
    ahead = [name]
    while ahead:
        new = IMPORTS[ahead.pop()] - found
        found |= new
        ahead += new
    return found


def test_there_is_no_cycle() -> None:
    order = list(TopologicalSorter(IMPORTS).static_order())

    assert len(order) == len(MODULES)


@pytest.mark.parametrize(("upper", "lower"), PAIRS, ids=id_of)
def test_a_level_is_built_from_the_one_below_and_not_the_other_way(
    upper: set[str], lower: set[str]
) -> None:
    built_from = set().union(*map(reached, upper))

    assert lower <= built_from
    assert not upper & set().union(*map(reached, lower))


@pytest.mark.parametrize("level", LEVELS, ids=id_of)
def test_modules_of_one_level_do_not_know_each_other(level: set[str]) -> None:
    assert not level & set().union(*map(reached, level))


def test_the_design_lists_every_module_once() -> None:
    ours = {name for name in MODULES if "." not in name and not name.startswith("__")}

    assert sorted(ours) == sorted(name for line in LAYOUT for name in line)


def test_a_module_imports_only_what_the_design_lists_below_it() -> None:
    line_of = {name: number for number, line in enumerate(LAYOUT) for name in line}
    upwards = {
        f"{name} imports {other}"
        for name, own_line in line_of.items()
        for other in IMPORTS[name]
        if line_of.get(other, len(LAYOUT)) < own_line
    }

    assert upwards == set()


def test_nothing_below_the_command_knows_it() -> None:
    knowing = {name for name in MODULES if "cli.__init__" in reached(name)}

    assert knowing == {"__main__"}


def test_the_package_does_not_import_the_demo() -> None:
    assert not {name for name in reached("__init__") if name.startswith("demo")}


def test_two_modules_call_connect() -> None:
    calling = {
        name for name, path in MODULES.items() if "sqlite3.connect(" in path.read_text("utf-8")
    }

    # The one before it is known whether the file is ours, the other for all that comes after.
    assert calling == {"connection", "owner"}
