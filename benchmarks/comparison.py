"""Write the table of docs/comparison.md from benchmarks/alternatives.json.

python benchmarks/run.py --only alternatives --results benchmarks/alternatives.json
python benchmarks/comparison.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "alternatives.json"
PAGE = HERE.parent / "docs" / "comparison.md"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
BASE = "no cache"


def table(results: dict[str, Any]) -> str:
    """The lines between the markers, in Markdown."""
    rows = results["groups"]["alternatives"]
    times = [row for row in rows if row["unit"] == "ms"]
    requests = [row for row in rows if row["unit"] == "requests"]
    (disk,) = [row for row in rows if row["unit"] == "MB"]
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    least, most = min(results["load"]), max(results["load"])
    lines = [
        (
            f"`{results['command']}` on {machine['cores']} cores, Python {machine['python']}, "
            f"SQLite {machine['sqlite']}, {versions}. Times are over those without a cache "
            f"({_count(min(times[0]['systems'][BASE]))} ms for the {times[0]['what']}), of each "
            f"one's best round: the machine did other work too (a load of {least:.1f} "
            f"to {most:.1f}). In brackets are requests.\n"
        ),
        f"| | {' | '.join(row['what'] for row in times)} | on the disk then |",
        f"|---|{'---|' * (len(times) + 1)}",
    ]
    for system in times[0]["medians"]:
        cells = [
            f"{_ratio(row, system):.2f} ({_count(of['medians'][system])})"
            for row, of in zip(times, requests, strict=True)
        ]
        megabytes = disk["medians"][system]
        kept = f"{megabytes:.0f} MB" if megabytes >= 1 else "none"
        lines.append(f"| {system} | {' | '.join([*cells, kept])} |")
    return "\n".join([*lines, ""])


def _ratio(row: dict[str, Any], system: str) -> float:
    """Of each one's best round, which other work on the machine disturbed least."""
    best: float = min(row["systems"][system]) / min(row["systems"][BASE])
    return best


def _count(figure: float) -> str:
    return f"{figure:,.0f}"


def page(text: str, results: dict[str, Any]) -> str:
    """The page with the table between its markers."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{after}"


def main() -> None:
    """Write the page."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
