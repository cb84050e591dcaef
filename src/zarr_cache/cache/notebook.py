"""What a notebook shows of a CacheStore and of a SqliteStore, as HTML."""

from __future__ import annotations

from typing import TYPE_CHECKING, Concatenate

from zarr_cache.cache import other_sizes
from zarr_cache.core.errors import CacheError
from zarr_cache.core.sizes import format_size
from zarr_cache.inspect import html

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zarr_cache.file.connection import Connection
    from zarr_cache.file.file_database import FileDatabase
    from zarr_cache.flows.view import SourceView
    from zarr_cache.index.listing import Usage
    from zarr_cache.inspect.report import NamespaceReport
    from zarr_cache.sampling.curve import Curve


POINTS = 60
"""So many points of a curve are drawn."""


def read_or_reason[**P, T](
    database: FileDatabase,
    operation: Callable[Concatenate[Connection, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T | str:
    """The result of an operation that reads, or a sentence why there is none.

    Creates no file, and replaces none.
    """
    try:
        database.path.stat()
        return database.run(operation, *args, **kwargs)
    except FileNotFoundError:
        return "There is no file yet: the first read or write creates it."
    except (CacheError, OSError) as error:
        return f"The file cannot be read. {error}"


def of_cache_store(title: str, view: SourceView, location: str, usage: Usage | str) -> str:
    """How full the budget is, how many reads were hits, and what another size would bring.

    Parameters
    ----------
    location
        Where values are cached, without secrets.
    usage
        What is cached, or a sentence why it cannot be read.
    """
    facts: list[tuple[str, str]] = []
    below: list[str] = []
    if isinstance(usage, str):
        parts = [html.notice(usage)]
    else:
        parts, facts = _usage_of(view, usage)
        below = _other_sizes(usage.curve, view)
    counts = view.statistics
    reads = counts["hits"] + counts["misses"]
    rate = html.hits(counts["hits"] / reads if reads else None)
    facts += [
        ("namespace", view.namespace),
        ("cached in", location),
        ("this process", f"{rate} ({html.count(reads, 'read')})" if reads else rate),
    ]
    if faults := counts["faults"]:
        facts.append(("faults", f"the source was read instead {html.count(faults, 'time')}"))
    return html.card(title, [*parts, html.facts(facts), *below])


def _other_sizes(curve: Curve | None, view: SourceView) -> list[str]:
    """The curve of hit rate over size, if it is known, and a sentence."""
    max_size = view.settings.max_size
    sentence = other_sizes.sentence(curve, max_size, evicts=view.may_evict())
    if curve is None or not curve.sizes:
        return [html.paragraph(sentence)]
    axis = other_sizes.axis_of(curve, max_size)
    points = [(step / (POINTS - 1), curve.at(each)) for step, each in enumerate(axis.sizes(POINTS))]
    mark = None
    if max_size is not None:
        name = f"{other_sizes.text_of(max_size)} now"
        mark = html.Mark(axis.place(max_size), curve.at(max_size), name)
    ends = other_sizes.text_of(axis.least), other_sizes.text_of(axis.most)
    drawing = html.curve(points, ends, mark, title="Hit rate over size", description=sentence)
    return [drawing, html.paragraph(sentence)]


def _usage_of(view: SourceView, usage: Usage) -> tuple[list[str], list[tuple[str, str]]]:
    """A bar, if there is a limit, and facts by name."""
    ranges, max_size = view.values.ranges, view.settings.max_size
    own = html.amount(usage.entries.get("value", 0), 0, usage.bytes.get("value", 0))
    used = usage.total_bytes["value"] + usage.total_bytes["range"] + ranges.nbytes
    limit = ", no limit" if max_size is None else f" of {format_size(max_size)}"
    own_ranges = {
        "the file": (usage.entries.get("range", 0), usage.bytes.get("range", 0)),
        "memory": (ranges.count(view.namespace), ranges.nbytes_of(view.namespace)),
    }
    facts = [
        ("of this source", own),
        *(
            (f"its ranges in {where}", f"{html.count(number, 'range')}, {format_size(nbytes)}")
            for where, (number, nbytes) in own_ranges.items()
            if number
        ),
        ("in all", f"{format_size(used)}{limit}"),
    ]
    return ([] if max_size is None else [html.bar(used, max_size)]), facts


def of_sqlite_store(title: str, namespaces: Sequence[NamespaceReport] | str) -> str:
    """What is in the file, by namespace.

    Parameters
    ----------
    namespaces
        The namespaces of the file, or a sentence why they cannot be read.
    """
    if isinstance(namespaces, str):
        return html.card(title, [html.notice(namespaces)])
    facts = [
        ("stored here", html.amount(each.entries["stored"], 0, each.bytes["stored"]))
        for each in namespaces
        if each.entries.get("stored")
    ]
    cached = [
        html.Share(
            each.namespace,
            each.entries.get("value", 0),
            each.ranges.entries,
            each.cached.bytes,
            each.hit_rate,
        )
        for each in namespaces
        if each.cached.entries or each.hit_rate is not None
    ]
    total = html.amount(
        sum(each.values for each in cached),
        sum(each.ranges for each in cached),
        sum(each.nbytes for each in cached),
    )
    return html.card(title, [html.facts([*facts, ("cached", total)]), html.shares(cached)])
