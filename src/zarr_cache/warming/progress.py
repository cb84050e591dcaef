"""A progress bar for warming, in a terminal or a notebook."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from zarr_cache.core.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import Progress, Task

    from zarr_cache.warming.run import Progress as Reached


type Where = Console | bool | None

REFRESH_SECONDS = 0.1
"""The bar in a notebook is updated no more often."""


@contextlib.contextmanager
def shown(where: Where, title: str) -> Iterator[Callable[[Reached], None]]:
    """Show a bar during the block; yield a function that reports progress to it.

    Parameters
    ----------
    where
        The console for the bar. True: stderr, or the notebook. None: the same, if stderr is a
        terminal or this is a notebook. False: nowhere.
    title
        Text before the bar.
    """
    console = None if where is False else _console(where)
    if console is None:
        yield lambda _: None
        return
    # Importing it takes a while, and reading arrays does not need it.
    from rich.progress import (  # noqa: PLC0415 - see above
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    class BytesColumn(TextColumn):
        """Bytes fetched, and bytes per second."""

        def render(self, task: Task) -> Text:
            nbytes = task.fields["nbytes"]
            rate = nbytes / task.elapsed if task.elapsed else 0
            return Text(f"{format_size(nbytes)}, {format_size(round(rate))}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("chunks"),
        BytesColumn(""),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console)
    task = bar.add_task(title, total=None, nbytes=0)
    with _in_notebook(bar) if console.is_jupyter else _in_terminal(bar) as refresh:

        def report(reached: Reached) -> None:
            bar.update(task, completed=reached.done, total=reached.chunks, nbytes=reached.nbytes)
            refresh()

        yield report


@contextlib.contextmanager
def _in_terminal(bar: Progress) -> Iterator[Callable[[], None]]:
    with bar:
        yield lambda: None  # rich refreshes it from a thread


@contextlib.contextmanager
def _in_notebook(bar: Progress) -> Iterator[Callable[[], None]]:
    """Show the bar as an output of the cell, which stays in the notebook in its final state.

    rich itself would need ipywidgets, and its widget may not show the final state.
    """
    from IPython.display import display  # noqa: PLC0415 - only in a notebook

    handle = display(bar, display_id=True)  # type: ignore[no-untyped-call]
    shown_at = bar.get_time()

    def refresh() -> None:
        nonlocal shown_at
        if bar.get_time() >= shown_at + REFRESH_SECONDS:
            shown_at = bar.get_time()
            handle.update(bar)

    try:
        yield refresh
    finally:
        handle.update(bar)


def _console(where: Where) -> Console | None:
    """The console for the bar, or None where it would not be visible."""
    if isinstance(where, Console):
        return where
    console = Console(stderr=True)
    is_visible = console.is_terminal or console.is_jupyter
    return console if where or is_visible else None
