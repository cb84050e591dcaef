"""The entry points of a checkout, for a process that imports it by its path.

An installation has them in its metadata. Python looks for metadata in every folder of the path.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def xarray_engines() -> dict[str, str]:
    """The engines that pyproject.toml names, and where they are."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    engines: dict[str, str] = project["entry-points"]["xarray.backends"]
    return engines


def write_entry_points(folder: Path) -> None:
    """Have a script in the folder find the engines by their names, as if they were installed."""
    metadata = folder / "checkout-0.dist-info"
    metadata.mkdir()
    lines = [f"{name} = {place}" for name, place in xarray_engines().items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[xarray.backends]", *lines]))
