"""What runs operations on the tables: a cache file, or a database in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Concatenate, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from zarr_cache.clock import PersistentClock
    from zarr_cache.connection import Connection
    from zarr_cache.errors import FileDamagedError


class Database(Protocol):
    """Runs operations: functions whose first parameter is a connection.

    Attributes
    ----------
    before_close
        Called by `close` while operations still run, to write what waits.
    before_end
        Called at the end of the interpreter instead.
    before_pause
        Called before a fork, while operations still run, to write what can be written at once.
    after_fork
        Called in the child of a fork, after the database has forgotten its connections.
    after_loss
        Called when another file, or none, is found in the place of the one that was open: nothing
        that is known of the old one holds for the new one.
    is_open
        Whether operations can begin at once.
    """

    before_close: list[Callable[[], None]]
    before_end: list[Callable[[], None]]
    before_pause: list[Callable[[], None]]
    after_fork: list[Callable[[], None]]
    after_loss: list[Callable[[], None]]
    is_open: bool

    def run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run the operation in this thread."""

    async def run_async[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run the operation without holding up the event loop."""

    def clock(self) -> PersistentClock:
        """The clock that stamps what is kept in this database."""

    def is_gone(self) -> bool:
        """Whether there is no file any more: nobody wants one for what waits to be written."""

    def is_marked(self, namespace: str) -> bool:
        """Whether some process could not record a write to this source, here or before."""

    def mark(self, namespace: str) -> bool:
        """Tell every process that what is kept of the namespace is not to be believed.

        Returns
        -------
        bool
            Whether they are told.
        """

    def marked_ns(self, namespace: str) -> int | None:
        """Which mark it is; None if there is none."""

    def unmark(self, namespace: str, since_ns: int) -> None:
        """Remove this mark: what is kept of the namespace has been removed since."""

    def heal(self, error: FileDamagedError) -> Path | None:
        """Set the damaged file aside, so that the next operation begins another."""
