"""Problems of a file, and the steps in which they are found and repaired.

A check finds problems in one transaction over a part of the file. So concurrent writers cause no
false report, the WAL can be checkpointed during a long verification, and a large file takes little
memory. A repair repeats the check under the write lock, removes what is wrong, and checks again.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Concatenate, Protocol

from zarr_cache.core.clock import TIMESTAMPS_END
from zarr_cache.core.errors import is_code, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zarr_cache.file.connection import Connection


type Find = Callable[[Connection], list[Problem]]

type Fix = Callable[[Connection, list[Problem]], None]

END = TIMESTAMPS_END
"""Timestamps and counts are below it."""

REVISIONS_END = END - 2**32
"""Revisions are below it, so that writes can increment each of them."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a file that is not what it should be.

    Attributes
    ----------
    what
        Which fact is wrong. Of the file: ``"file"``, ``"schema"``, ``"page"`` (a page, an index, or
        anything else that SQLite's ``integrity_check`` finds), ``"counter"``, ``"total"``. Of a
        namespace: ``"namespace"``, ``"usage"``. Of an entry: ``"entry"`` (its namespace is
        missing), ``"size"``, ``"stored_at"``, ``"used_at"``, ``"revision"``,
        ``"writes_in_flight"``, ``"checksum"`` (of the facts), ``"bytes"``. ``"orphan"``: bytes
        without an entry. Of the data file: ``"data_file"`` (its row), ``"extent"`` (space that
        overlaps, is lost, belongs to no entry, or is outside the file).
    found, expected
        The value in the file, and what it should be.
    namespace, key
        The namespace and the key of the fact; None if it has none.
    row
        Number of the row in its table; None if there is no one row.
    is_repaired
        Whether the problem has been repaired.
    """

    what: str
    found: object
    expected: object
    namespace: str | None = None
    key: str | None = None
    row: int | None = None
    is_repaired: bool = False

    def __str__(self) -> str:
        of_key = "" if self.key is None else f" of {self.key!r}"
        where = "" if self.namespace is None else f" in namespace {self.namespace!r}"
        repaired = "; repaired" if self.is_repaired else ""
        return f"{self.what}{of_key}{where}: found {self.found}, expected {self.expected}{repaired}"


class Run(Protocol):
    """As `Database.run`."""

    def __call__[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """The result of ``operation(connection, *args, **kwargs)``."""


def run_on(connection: Connection, path: Path) -> Run:
    """A `Run` on this connection, which does not reopen or quarantine the file."""

    def run[**P, T](
        operation: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        try:
            return operation(connection, *args, **kwargs)
        except sqlite3.Error as error:
            raise translated(error, path) from error

    return run


def checked(connection: Connection, find: Find, fix: Fix | None = None) -> list[Problem]:
    """What `find` finds and, with a `fix`, whether that has repaired it."""
    problems = _found(connection, find)
    if fix is None or not problems:
        return problems
    with connection.writing(), any_text(connection):
        # Another process may have written since.
        problems = find(connection)
        fix(connection, problems)
        left = find(connection)
    return [replace(problem, is_repaired=problem not in left) for problem in problems]


def _found(connection: Connection, find: Find) -> list[Problem]:
    """What `find` finds in one transaction; a page that cannot be read is a problem, too."""
    try:
        with connection.reading(), any_text(connection):
            return find(connection)
    except sqlite3.DatabaseError as error:
        if not is_code(error, sqlite3.SQLITE_CORRUPT):
            raise
        return [Problem("page", str(error), "a page that SQLite can read")]


@contextlib.contextmanager
def any_text(connection: Connection) -> Iterator[None]:
    """Read text that is not UTF-8 with escapes, instead of raising."""
    connection.text_factory = partial(str, encoding="utf-8", errors="backslashreplace")
    try:
        yield
    finally:
        connection.text_factory = str
