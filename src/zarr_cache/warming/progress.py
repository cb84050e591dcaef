"""A bar that shows how far warming is, where somebody can see it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from rich.console import Console

from zarr_cache.core.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import (
        Progress,
        Task,
    )
    from rich.text import Text

    from zarr_cache.warming.run import Progress as Reached


type Where = Console | bool | None


REFRESH_SECONDS = 0.1


"""A notebook is shown no more often how far it is."""


@contextlib.contextmanager
def shown(where: Where, title: str) -> Iterator[Callable[[Reached], None]]:
    """Show a bar during the block; yield what it is to be told.

    Parameters
    ----------
    where
        The console for the bar. True: stderr, or the notebook. None: the same, if stderr is a
        terminal or this is a notebook. False: nowhere.
    title
        What stands before the bar.
    """
    console = None if where is False else _console(where)
    if console is None:
        yield lambda _: None
        return
    # rich takes a while to import, and who reads arrays has no need of it.
    from rich.progress import (  # noqa: PLC0415 - see above
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text  # noqa: PLC0415 - see above

    class BytesColumn(TextColumn):
        """Bytes fetched, and how many a second."""

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

        def tell(reached: Reached) -> None:
            bar.update(task, completed=reached.done, total=reached.chunks, nbytes=reached.nbytes)
            refresh()

        yield tell


@contextlib.contextmanager
def _in_terminal(bar: Progress) -> Iterator[Callable[[], None]]:
    with bar:
        yield lambda: None  # rich has a thread for that


@contextlib.contextmanager
def _in_notebook(bar: Progress) -> Iterator[Callable[[], None]]:
    """Show the bar as an output of the cell, which stays in the notebook as it was in the end.

    rich's own way takes ipywidgets, and leaves a widget whose last state may not be the last one.
    """
    from IPython.display import display  # noqa: PLC0415 - there is one where there is a notebook

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
    """The console for the bar, or None where nobody would see it."""
    from rich.console import Console  # noqa: PLC0415 - as above

    if isinstance(where, Console):
        return where
    console = Console(stderr=True)
    is_seen = console.is_terminal or console.is_jupyter
    return console if where or is_seen else None
