"""A bar that shows how far warming is, where somebody can see it."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import TYPE_CHECKING

from zarr_cache.sizes import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console
    from rich.progress import Task

    from zarr_cache.warm_run import Progress as Reached

type Where = Console | bool | None


@contextlib.contextmanager
def shown(where: Where, title: str) -> Iterator[Callable[[Reached], None]]:
    """Show a bar during the block; yield what it is to be told.

    Parameters
    ----------
    where
        The console for the bar. True: stderr. None: stderr if it is a terminal, or the notebook.
        False: nowhere.
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
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None, nbytes=0)

        def tell(reached: Reached) -> None:
            bar.update(task, completed=reached.done, total=reached.chunks, nbytes=reached.nbytes)

        yield tell


def _console(where: Where) -> Console | None:
    """The console for the bar, or None where nobody would see it."""
    from rich.console import Console  # noqa: PLC0415 - as above

    if isinstance(where, Console):
        return where
    console = Console(stderr=True)
    if where is None and not console.is_terminal:
        # Without ipywidgets, rich warns in a notebook instead of drawing.
        has_widgets = importlib.util.find_spec("ipywidgets") is not None
        return console if console.is_jupyter and has_widgets else None
    return console
