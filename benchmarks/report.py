"""Write docs/performance.md and its plots from benchmarks/results.json and benchmarks/notes.md.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from measuring import text

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
NOTES = HERE / "notes.md"
DOCS = HERE.parent / "docs"
IMAGES = DOCS / "images"

TITLES = {
    "hits": "Hits",
    "arrays": "Warm arrays",
    "ranges": "Byte ranges",
    "hit_ratio": "What is kept when the cache is full",
    "cold_read": "Cold reads",
    "fast_sources": "Fast sources",
    "disk": "Larger than memory",
    "scale": "A million entries",
    "transactions": "Write transactions",
    "processes": "Two processes",
    "huge_values": "Huge values",
    "layers": "Where the time goes",
}
PLOTTED = {"hits", "arrays", "cold_read", "scale"}
HIT_RATIO = "hit_ratio"
"""The group with a plot of its own: its figures are parts of a whole."""

INTRODUCTION = """\
# Performance

The cost of the cache compared with the file system, with zarr's own CacheStore and with no cache,
and the targets of this project. Each comparison is made in one run: in each round every system
takes its turn, in another order each time, and a ratio is the median of the ratios within the
rounds. "Best rounds" is the ratio of each system's best round, which other work on the machine
disturbed least. A row is unsettled if only one of the two reaches the target: other work delays
most what waits for threads, in any system. All bytes are compared with the expected ones.

"""


def page(results: dict[str, Any], notes: str) -> str:
    """The page, in Markdown."""
    groups = results["groups"]
    parts = [INTRODUCTION, _machine(results), _summary(groups)]
    for group, rows in groups.items():
        of = "hit ratios" if group == HIT_RATIO else "medians"
        image = f"![{TITLES[group]}: {of} by system](images/performance-{group}.svg)\n\n"
        is_plotted = group in PLOTTED or group == HIT_RATIO
        details = _details(rows, each=group == HIT_RATIO)
        parts.append(f"## {TITLES[group]}\n\n{image if is_plotted else ''}{details}")
    return "".join([*parts, notes])


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"`{results['command']}` on {machine['cores']} cores ({machine['cpu']}), "
        f"Python {machine['python']}, SQLite {machine['sqlite']}, {packages}; "
        f"{machine['system']}. The machine did other work too: {_load(results)}.\n\n"
    )


def _load(results: dict[str, Any]) -> str:
    """How much of it, and what was done about it."""
    least, most = text(min(results["load"])), text(max(results["load"]))
    return f"a load of {least} to {most} while this ran, with a niceness of {results['nice']}"


def _summary(groups: dict[str, Any]) -> str:
    lines = [
        "![What was measured, over what is to be reached](images/performance-reach.svg)\n",
        "| what | measured | best rounds | to be reached | reached |",
        "|---|---|---|---|---|",
    ]
    for row in _to_be_reached(groups):
        unit = f" {row['unit']}" if row["peer"] is None else ""
        told = {row["is_reached"], row["is_reached_in_best_rounds"]}
        mark = "unsettled" if len(told) > 1 else "yes" if told == {True} else "**no**"
        figures = f"{text(row['value'])}{unit} | {text(row['quietest'])}{unit}"
        lines.append(f"| {row['what']} | {figures} | {row['reach']} | {mark} |")
    return "\n".join(lines) + "\n\n"


def _to_be_reached(groups: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows but for those that only tell what there is."""
    return [row for rows in groups.values() for row in rows if row["reach"]]


def _details(rows: list[dict[str, Any]], *, each: bool) -> str:
    """What each system took: a table for each set of systems, one row of it a fact.

    Rows with the same figures are of one measurement, except if `each` is one of its own.
    """
    parts = []
    by_systems: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        by_systems.setdefault(tuple(row["medians"]), []).append(row)
    for systems, alike in by_systems.items():
        lines = [f"| median | {' | '.join(systems)} |", f"|---|{'---|' * len(systems)}"]
        seen = set()
        for row in alike:
            figures = " | ".join(text(figure) for figure in row["medians"].values())
            if each or figures not in seen:
                seen.add(figures)
                lines.append(f"| {row['what']}, {row['unit']} | {figures} |")
        parts.append("\n".join(lines) + "\n\n")
    return "".join(parts)


GREY, OURS, OTHER, MISSED = "#8a8a8a", "#2a9d8f", "#7d8fa9", "#e07a3f"
"""Colours that are read on white and on black; the background is that of the page."""


def plot(groups: dict[str, Any]) -> None:
    """Draw the plots of the page."""
    import matplotlib as mpl  # noqa: PLC0415 - the page itself is written without it

    mpl.use("svg")
    mpl.rcParams.update(
        {
            "svg.hashsalt": "zarr-cache",  # the same figures give the same file
            "svg.fonttype": "none",
            "savefig.transparent": True,
            "text.color": GREY,
            "axes.labelcolor": GREY,
            "axes.edgecolor": GREY,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "font.size": 9,
        }
    )
    IMAGES.mkdir(exist_ok=True)
    _plot_reach(_to_be_reached(groups))
    for group in PLOTTED & set(groups):
        _plot_group(group, groups[group])
    if HIT_RATIO in groups:
        _plot_hit_ratios(groups[HIT_RATIO])


def _plot_reach(rows: list[dict[str, Any]]) -> None:
    """For each row a bar from what is to be reached, at 1, to what was measured."""
    names, factors = [], []
    for row in rows:
        if row["value"] <= 0 or row["at_most"] == 0:
            continue  # counts of nothing have no place on a logarithmic scale
        names.append(row["what"])
        best = row["at_most"]
        factors.append(row["value"] / best if best is not None else row["at_least"] / row["value"])
    figure, axes = _figure(len(names))
    colours = [OURS if factor <= 1 else MISSED for factor in factors]
    axes.barh(names, [factor - 1 for factor in factors], left=1, color=colours, height=0.6)
    axes.axvline(1, color=GREY)
    axes.margins(y=0.01)
    axes.set_xscale("log")
    axes.set_xlabel("measured over what is to be reached; left of 1 it is reached")
    _save(figure, axes, "reach")


def _plot_group(group: str, rows: list[dict[str, Any]]) -> None:
    """For each row the medians of its systems."""
    names, figures, colours = [], [], []
    seen = set()
    for row in rows:
        told = str(row["medians"])
        if told in seen or min(row["medians"].values()) <= 0:
            continue
        seen.add(told)
        for system, figure in row["medians"].items():
            names.append(f"{row['what']}, {row['unit']}: {system}")
            figures.append(figure)
            colours.append(OURS if system == row["ours"] else OTHER)
    figure, axes = _figure(len(names))
    bars = axes.barh(range(len(names)), figures, color=colours, height=0.75)
    axes.set_yticks(range(len(names)), names)
    axes.bar_label(bars, [text(each) for each in figures], padding=3, color=GREY)
    axes.set_xscale("log")
    axes.margins(x=0.1, y=0.01)
    _save(figure, axes, group)


MARKS = {
    "auto": ("o", OURS),
    "evict": ("<", OURS),
    "keep": (">", OURS),
    "SIEVE": ("x", OTHER),
    "S3-FIFO": ("+", OTHER),
}
"""Not LRU, which `evict` is."""


def _plot_hit_ratios(rows: list[dict[str, Any]]) -> None:
    """For each row a bar to the best that is possible, and in it a mark for each system."""
    rows = [row for row in rows if "best" in row["medians"]]
    names = [row["what"] for row in rows]
    figure, axes = _figure(2 * len(names))
    best = [row["medians"]["best"] for row in rows]
    axes.barh(names, best, color=GREY, alpha=0.25, height=0.6, label="the best possible")
    for system, (mark, colour) in MARKS.items():
        ratios = [row["medians"][system] for row in rows]
        axes.plot(
            *(ratios, names, mark),
            color=colour,
            fillstyle="full" if system == "auto" else "none",
            label=system,
        )
    axes.set_xlim(-0.01, 1)
    axes.set_xlabel("hit ratio")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=6, frameon=False)
    _save(figure, axes, HIT_RATIO)


def _figure(bars: int) -> Any:
    import matplotlib.pyplot as plt  # noqa: PLC0415 - as in `plot`

    return plt.subplots(figsize=(10, 0.6 + 0.24 * bars), layout="constrained")


def _save(figure: Any, axes: Any, name: str) -> None:
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(IMAGES / f"performance-{name}.svg", metadata={"Date": None})


def main() -> None:
    """Write the page and its plots."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    notes = NOTES.read_text(encoding="utf-8")
    (DOCS / "performance.md").write_text(page(results, notes), encoding="utf-8")
    plot(results["groups"])


if __name__ == "__main__":
    main()
