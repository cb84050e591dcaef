"""Operations on a database, each through a breaker: what has failed is left alone for a while."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Concatenate

from zarr_cache.breaker import Breaker
from zarr_cache.errors import (
    CacheError,
    DataFileError,
    FileDamagedError,
    LeftAloneError,
    OutOfMemoryError,
)
from zarr_cache.flow import step

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr_cache.connection import Connection
    from zarr_cache.database import Database
    from zarr_cache.flow import Flow


class Guarded:
    """Runs operations on a database through a breaker of its own.

    Attributes
    ----------
    breaker
        What lets operations through, or keeps them from the database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.breaker = Breaker()

    def flow[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Flow[T]:
        """Run the operation, off the event loop on the async surface."""
        self.breaker.check()
        try:
            result = yield from step(
                partial(self._database.run, operation, *args, **kwargs),
                partial(self._database.run_async, operation, *args, **kwargs),
            )
        except CacheError as error:
            raise self.failed(error) from error
        self.breaker.succeeded()
        return result

    def run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run the operation in this thread."""
        breaker = self.breaker
        if not breaker.is_closed:
            breaker.check()
        try:
            result = self._database.run(operation, *args, **kwargs)
        except CacheError as error:
            raise self.failed(error) from error
        if not breaker.is_closed:
            breaker.succeeded()
        return result

    def failed(self, error: CacheError) -> CacheError:
        """See to it that the fault costs the next reads no time; return what there is to tell."""
        if isinstance(error, (OutOfMemoryError, DataFileError)):
            # The fault of one value, or of large ones: the database has not failed.
            return error
        if isinstance(error, FileDamagedError):
            try:
                aside = self._database.heal(error)
            except CacheError as failure:
                error = failure
            else:
                begun = "another is begun in its place"
                where = f"it is now {aside}, and {begun}" if aside else begun
                return FileDamagedError(f"{error}; {where}")
        is_known = not self.breaker.is_closed
        self.breaker.failed(error)
        # A trial that fails, maybe in another way, is no news.
        return LeftAloneError(str(error)) if is_known else error
