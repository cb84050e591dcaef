"""Imports go the way that docs/design.md shows: down the wings, and down the list within one."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

import zarr_cache

PACKAGE = Path(zarr_cache.__file__).parent
DESIGN = Path(__file__).parents[2] / "docs" / "design.md"
MAX_MODULES = 12
MAX_LINES = 400


class Wing(NamedTuple):
    """What the design says of a wing."""

    sentence: str
    imports: set[str]


LAYOUT = DESIGN.read_text(encoding="utf-8").partition("## Layout")[2]
# A row of the table: | `index` | SQL on entries. | `file`, `disk`, `core` |
WINGS = {
    name: Wing(sentence, set(re.findall(r"`(\w+)`", imports)))
    for name, sentence, imports in re.findall(
        r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", LAYOUT, re.MULTILINE
    )
}
# A line of the list of modules: "    lookup.py    What is cached of a key."
LISTED = {
    wing: re.findall(r"^    (\w+)\.py ", lines, re.MULTILINE)
    for wing, lines in re.findall(r"^  (\w+)/\n((?:    .*\n)+)", LAYOUT, re.MULTILINE)
}


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


def modules_of(wing: str) -> dict[str, set[str]]:
    """What each module of the wing imports, by the module's name within it."""
    return {
        name.removeprefix(f"{wing}."): imports
        for name, imports in IMPORTS.items()
        if name.startswith(f"{wing}.")
    }


def reached(name: str) -> set[str]:
    """Every module that `name` is built from, however far down."""
    found: set[str] = set()
    ahead = [name]
    while ahead:
        new = IMPORTS[ahead.pop()] - found
        found |= new
        ahead += new
    return found


def test_every_folder_is_a_wing_of_the_design() -> None:
    assert set(WINGS) == set(LISTED) == {path.parent.name for path in PACKAGE.glob("*/*.py")}


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_says_what_the_design_says_of_it(wing: str) -> None:
    docstring = ast.get_docstring(ast.parse((PACKAGE / wing / "__init__.py").read_text("utf-8")))

    assert (docstring or "").partition("\n")[0] == WINGS[wing].sentence


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_the_wings_that_the_design_names(wing: str) -> None:
    imports = set().union(*modules_of(wing).values())

    assert {name.partition(".")[0] for name in imports} - {wing, "__init__"} <= WINGS[wing].imports


@pytest.mark.parametrize("wing", WINGS)
def test_the_design_lists_every_module_of_a_wing_once(wing: str) -> None:
    modules = [name for name in modules_of(wing) if name != "__init__" and "." not in name]

    assert sorted(LISTED[wing]) == sorted(modules)
    assert len(modules) <= MAX_MODULES


@pytest.mark.parametrize("wing", WINGS)
def test_a_module_imports_only_what_the_design_lists_below_it(wing: str) -> None:
    line_of = {f"{wing}.{name}": number for number, name in enumerate(LISTED[wing])}
    upwards = {
        f"{name} imports {other}"
        for name, own_line in line_of.items()
        for other in IMPORTS[name]
        if line_of.get(other, own_line) < own_line
    }

    assert upwards == set()


def test_there_is_no_cycle() -> None:
    order = list(TopologicalSorter(IMPORTS).static_order())

    assert len(order) == len(MODULES)


def test_no_module_is_long() -> None:
    lines = {name: len(path.read_text("utf-8").splitlines()) for name, path in MODULES.items()}

    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


def test_nothing_below_the_command_knows_it() -> None:
    knowing = {name for name in MODULES if "cli.__init__" in reached(name)}

    assert knowing == {"__main__"}


def test_the_package_does_not_import_the_demo() -> None:
    assert not {name for name in reached("__init__") if name.startswith("cli.demo")}


def test_two_modules_call_connect() -> None:
    calling = {
        name for name, path in MODULES.items() if "sqlite3.connect(" in path.read_text("utf-8")
    }

    # The one before it is known whether the file is ours, the other for all that comes after.
    assert calling == {"file.connection", "file.identity"}
