"""What is wrong, found and removed: the same way for all facts.

A check finds problems in one transaction over a piece of the file, so that a writer beside it
causes no false report, the log can be written back under a long verification, and a large file
takes no memory. To repair is to look again under the write lock, to remove what is wrong, and to
look once more.
"""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Concatenate, Protocol

from zarr_cache.core.clock import STAMPS_END
from zarr_cache.core.errors import is_code, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zarr_cache.file.connection import Connection


if TYPE_CHECKING:
    type Find = Callable[[Connection], list[Problem]]


if TYPE_CHECKING:
    type Fix = Callable[[Connection, list[Problem]], None]


END = STAMPS_END


"""Stamps and numbers of statistics are below it."""


REVISIONS_END = END - 2**32


"""Revisions are below it, so that writes can count on from each of them."""


FIRST_ROW, LAST_ROW = -(2**63), 2**63 - 1


READABLE = "a page that SQLite can read"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a file that is not what it should be.

    Attributes
    ----------
    what
        Which fact is wrong. Of the file: ``"file"``, ``"schema"``, ``"page"`` (a page, an index or
        what else SQLite's ``integrity_check`` tells), ``"counter"``, ``"total"``. Of a namespace:
        ``"namespace"``, ``"usage"``, ``"statistics"``. Of an entry: ``"entry"`` (the row itself),
        ``"size"``, ``"stored_at"``, ``"used_at"``, ``"revision"``, ``"writers"``, ``"checksum"``
        (of the facts), ``"bytes"``. And ``"orphan"``: bytes of no entry. Of the data file:
        ``"data_file"`` (its row), ``"extent"`` (space that overlaps, is lost, of nothing, or
        outside), ``"reservation"``.
    found, expected
        What it is, and what it should be.
    namespace, key
        Whose fact it is; None where there is none.
    row
        Number of the row in its table, where that helps.
    is_repaired
        Whether it is not so any more.
    """

    what: str
    found: object
    expected: object
    namespace: str | None = None
    key: str | None = None
    row: int | None = None
    is_repaired: bool = False

    def __str__(self) -> str:
        of = "" if self.key is None else f" of {self.key!r}"
        where = "" if self.namespace is None else f" in namespace {self.namespace!r}"
        repaired = "; repaired" if self.is_repaired else ""
        return f"{self.what}{of}{where}: found {self.found}, expected {self.expected}{repaired}"


class Run(Protocol):
    """`Database.run`, or what opens a file first."""

    def __call__[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """The result of ``operation(connection, *args, **kwargs)``."""


def run_on(connection: Connection, path: Path) -> Run:
    """Runs operations on this connection to the file, without what `Database.run` does besides."""

    def run[**P, T](
        operation: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        try:
            return operation(connection, *args, **kwargs)
        except sqlite3.Error as error:
            raise translated(error, path) from error

    return run


def checked(connection: Connection, find: Find, fix: Fix | None = None) -> list[Problem]:
    """What `find` finds and, with a `fix`, whether it is there no more after that."""
    problems = _found(connection, find)
    if fix is None or not problems:
        return problems
    with connection.writing(), any_text(connection):
        # Others may have written since.
        problems = find(connection)
        fix(connection, problems)
        left = find(connection)
    return [replace(problem, is_repaired=problem not in left) for problem in problems]


def _found(connection: Connection, find: Find) -> list[Problem]:
    """What `find` finds in one state of the file; a page that cannot be read is a problem too."""
    try:
        with connection.reading(), any_text(connection):
            return find(connection)
    except sqlite3.DatabaseError as error:
        if not is_code(error, sqlite3.SQLITE_CORRUPT):
            raise
        return [Problem("page", str(error), READABLE)]


@contextlib.contextmanager
def any_text(connection: Connection) -> Iterator[None]:
    """Let text be read that is not UTF-8; otherwise Python raises."""
    connection.text_factory = partial(str, encoding="utf-8", errors="backslashreplace")
    try:
        yield
    finally:
        connection.text_factory = str
