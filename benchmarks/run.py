"""Measure every row of the pages on performance, print a table and write the figures as JSON.

python benchmarks/run.py --quick --only hits arrays
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from measuring import SCALES, Bench, Row, print_rows

GROUPS = (
    "hits",
    "arrays",
    "ranges",
    "hit_ratio",
    "cold_read",
    "fast_sources",
    "disk",
    "scale",
    "transactions",
    "processes",
    "huge_values",
    "layers",
)
APART = ("alternatives",)
"""Measured only where it is named: its figures are on docs/comparison.md."""
RESULTS = Path(__file__).with_name("results.json")
PACKAGES = ("zarr", "numpy", "aiosqlite", "diskcache", "lmdb")
MORE_PACKAGES = ("fsspec", "aiohttp", "multi-storage-client", "tensorstore")
"""Of alternatives, where they are installed."""


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: version(name) for name in PACKAGES},
    }


def _more_packages() -> dict[str, str]:
    found = {}
    for name in MORE_PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _chosen(arguments: argparse.Namespace) -> list[str]:
    """The options that change what is measured."""
    chosen = [f"--{name}" for name in ("quick", "smallest") if getattr(arguments, name)]
    return chosen if arguments.only == list(GROUPS) else [*chosen, "--only", *arguments.only]


def main() -> None:
    """Measure the groups one after the other, each in a folder of its own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true", help="fewer rounds, 10^5 entries")
    how.add_argument("--smallest", action="store_true", help="only to see that it works")
    parser.add_argument("--only", choices=[*GROUPS, *APART], nargs="+", default=list(GROUPS))
    parser.add_argument("--folder", type=Path, help="where to put the files, which are removed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write the figures")
    arguments = parser.parse_args()
    scale = "smallest" if arguments.smallest else "quick" if arguments.quick else "full"
    results: dict[str, Any] = {
        "machine": machine(),
        "command": " ".join(["python benchmarks/run.py", *_chosen(arguments)]),
        "scale": scale,
        "load": [os.getloadavg()[0]],
        "nice": os.nice(0),
        "groups": {},
    }
    if set(arguments.only) & set(APART):
        results["machine"]["packages"] |= _more_packages()
    for group in arguments.only:
        with Bench(SCALES[scale], arguments.folder) as bench:
            rows: list[Row] = import_module(group).rows(bench)
        print_rows(group, rows)
        results["groups"][group] = [row.as_json() for row in rows]
        results["load"].append(os.getloadavg()[0])
        # After each group: a later one that fails does not lose what was measured.
        arguments.results.write_text(f"{json.dumps(results, indent=1)}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
