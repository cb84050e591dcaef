"""Write the pages on performance and their plots from benchmarks/results.json and notes.md.

python benchmarks/report.py
"""

from __future__ import annotations

import json
import statistics
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

HEADLINES = {
    "Hits": {
        "one hit, sync, 2 kB": "LocalStore",
        "one hit, sync, 1 MiB": "LocalStore",
        "one hit, async, 100 kB": "zarr CacheStore + LocalStore",
        "one hit, async, 2 MB": "zarr CacheStore + LocalStore",
        "a hit of 1 MiB from the disk, one at a time": "LocalStore",
        "a hit of 1 MiB from the disk, ten at a time": "LocalStore",
    },
    "Warm arrays": {
        "warm read of 2048² float32, chunks 256², default pipeline": "zarr CacheStore + LocalStore",
        "warm read of 2048² float32, chunks 256², fused pipeline": "zarr CacheStore + LocalStore",
        "41 windows in a sharded array, warm, source of 5 ms": "zarr CacheStore + LocalStore",
    },
    "Misses, over the source alone": {
        "cold read of 256 chunks, all of it cold, default pipeline": "the source alone",
        "cold read of 256 chunks, all of it cold, fused pipeline": "the source alone",
        "cold read of 256 chunks of 4 MiB, a source of 1 GB/s": "the source alone",
        "processor time of a miss, source without latency": "the source alone",
    },
    "Writing to the cache": {
        "keeping a value of 200 kB, to the disk": "LocalStore",
        "keeping a value of 4,000 kB, to the disk": "LocalStore",
        "cold read of 512 values of 4 MB, a source that answers at once": (
            "zarr CacheStore + LocalStore"
        ),
    },
    "A large file, several processes": {
        "opening with a hit, 1,000,000 entries": "1,000 entries",
        "a hit, 1,000,000 entries": "1,000 entries",
        "two processes, hits of 100 kB": "zarr_cache, one process",
    },
}
"""The rows of the first page, by what they are about, and what each is compared with there."""

INTRODUCTION = """\
# Performance

What reads and writes through the cache cost, beside the file system, zarr's own CacheStore, and the
source without a cache. Figures are medians; all systems were measured in one run, in turns.
[All measurements](performance-details.md) has the rest, with plots.

"""

SLOWER = """\
## Where it is slower than it should be

Each row has a target, which [all measurements](performance-details.md) name too. These miss theirs.
"Unsettled" is a row of which either only the median or only the best rounds reach it.

"""

DETAILS_INTRODUCTION = """\
# All measurements

[Performance](performance.md) has the rows that matter most. Here are all, with their targets.
In each round every system takes its turn, in another order each time. A ratio is the median of the
ratios within the rounds. "Best rounds" is the ratio of each system's best round, which other work
on the machine disturbed least. A row is unsettled if only one of the two reaches the target.

"""
MEASURED = """\
## How it was measured

In each round every system takes its turn, and a ratio is the median of the ratios within the
rounds. Other work on the machine thus delays all alike.
[All measurements](performance-details.md#how-it-is-measured) says what each row includes.

"""

HOW = "## How it is measured"
"""The heading of the notes at which those of the second page begin."""


def page(results: dict[str, Any], notes: str) -> str:
    """The first page, in Markdown: what costs what, where it is slower, how it was measured."""
    groups = results["groups"]
    why = notes.partition(HOW)[0]
    parts = [INTRODUCTION, _headlines(groups), SLOWER, _missed(groups), why, MEASURED]
    return "".join([*parts, _machine(results)])


def details(results: dict[str, Any], notes: str) -> str:
    """The second page, in Markdown: every row of every group, and how each group is measured."""
    parts = [DETAILS_INTRODUCTION, _machine(results)]
    parts.append("![Measured over targets](images/performance-reach.svg)\n\n")
    for group, rows in results["groups"].items():
        of = "hit ratios" if group == HIT_RATIO else "medians"
        image = f"![{TITLES[group]}: {of} by system](images/performance-{group}.svg)\n\n"
        is_plotted = group in PLOTTED or group == HIT_RATIO
        parts.append(f"## {TITLES[group]}\n\n{image if is_plotted else ''}{_tables(rows)}")
    return "".join([*parts, HOW, notes.partition(HOW)[2]])


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


def _headlines(groups: dict[str, Any]) -> str:
    """For each row of `HEADLINES` what the cache takes, and what it is compared with.

    Raises
    ------
    SystemExit
        The results lack a row or a system. The message says which, and what to do.
    """
    measured = {row["what"]: row for rows in groups.values() for row in rows}
    lines = ["| | zarr_cache | compared with | ratio |", "|---|---|---|---|"]
    for title, rows in HEADLINES.items():
        lines.append(f"| **{title}** | | | |")
        for what, other in rows.items():
            row = measured.get(what)
            if row is None or other not in row["systems"]:
                raise SystemExit(
                    f"no row {what!r} with {other!r} in the results: run all groups at full scale, "
                    "or change HEADLINES"
                )
            ours, unit = row["ours"], row["unit"]
            pairs = zip(row["systems"][ours], row["systems"][other], strict=True)
            ratio = statistics.median(one / two for one, two in pairs)
            figures = f"{text(row['medians'][ours])} {unit} | {text(row['medians'][other])} {unit}"
            lines.append(f"| {what} | {figures}, {other} | {text(ratio)} |")
    return "## What costs what\n\n" + "\n".join(lines) + "\n\n"


def _missed(groups: dict[str, Any]) -> str:
    lines = ["| what | measured | target | |", "|---|---|---|---|"]
    for row in _to_be_reached(groups):
        if (mark := _mark(row)) != "yes":
            figure = text(row["value"]) + _unit(row)
            lines.append(f"| {row['what']} | {figure} | {row['reach']} | {mark} |")
    return "\n".join(lines) + "\n\n"


def _unit(row: dict[str, Any]) -> str:
    """The unit of what was measured, which is a ratio if there is a peer."""
    return f" {row['unit']}" if row["peer"] is None else ""


def _mark(row: dict[str, Any]) -> str:
    """Whether the target is reached."""
    reached = {row["is_reached"], row["is_reached_in_best_rounds"]}
    return "unsettled" if len(reached) > 1 else "yes" if reached == {True} else "**no**"


def _to_be_reached(groups: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows but for those that only tell what there is."""
    return [row for rows in groups.values() for row in rows if row["reach"]]


def _tables(rows: list[dict[str, Any]]) -> str:
    """What each system took, and the targets: a table for each set of systems."""
    parts = []
    alike: dict[tuple[tuple[str, ...], bool], list[dict[str, Any]]] = {}
    for row in rows:
        alike.setdefault((tuple(row["medians"]), bool(row["reach"])), []).append(row)
    for (systems, has_target), of_systems in alike.items():
        columns = [*systems, *(("ratio", "best rounds", "target", "") if has_target else ())]
        lines = [f"| median | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
        for row in of_systems:
            cells = [text(figure) for figure in row["medians"].values()]
            if has_target:
                ratios = [text(row["value"]), text(row["quietest"])] if row["peer"] else ["", ""]
                cells += [*ratios, row["reach"], _mark(row)]
            lines.append(f"| {row['what']}, {row['unit']} | {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n\n")
    return "".join(parts)


GREY, OURS, OTHER, MISSED = "#8a8a8a", "#2a9d8f", "#7d8fa9", "#e07a3f"
"""Colours that are read on white and on black; the background is that of the page."""


def plot(groups: dict[str, Any]) -> None:
    """Draw the plots of the second page."""
    import matplotlib as mpl  # noqa: PLC0415 - the pages themselves are written without it

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
    """Write the pages and their plots."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    notes = NOTES.read_text(encoding="utf-8")
    (DOCS / "performance.md").write_text(page(results, notes), encoding="utf-8")
    (DOCS / "performance-details.md").write_text(details(results, notes), encoding="utf-8")
    plot(results["groups"])


if __name__ == "__main__":
    main()
