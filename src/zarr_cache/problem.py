"""What is wrong, found and repaired: the same way for all facts.

A check finds problems in one read transaction over a piece of the file, so that a writer beside it
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

from zarr_cache.clock import STAMPS_END
from zarr_cache.errors import is_code, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from zarr_cache.connection import Connection

    type Find = Callable[[Connection], list[Problem]]
    type Fix = Callable[[Connection, list[Problem]], None]

END = STAMPS_END
"""Stamps and numbers of statistics are below it."""

REVISIONS_END = END - 2**32
"""Revisions are below it, so that writes can count on from each of them."""

FIRST_ROW, LAST_ROW = -(2**63), 2**63 - 1

READABLE = "a page that SQLite can read"

UNFIXABLE = (
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_MISMATCH,
)
"""What SQLite answers to a statement for which something else would have to be right first."""


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


def checked(connection: Connection, find: Find, fix: Fix, *, repair: bool) -> list[Problem]:
    """What `find` finds and, with `repair`, what of it is there no more after `fix`."""
    problems = _found(connection, find)
    if not (repair and problems):
        return problems
    try:
        with connection.writing(), _any_text(connection):
            # Others may have written since.
            problems = find(connection)
            fix(connection, problems)
    except sqlite3.DatabaseError as error:
        if not any(is_code(error, code) for code in UNFIXABLE):
            raise
    left = _found(connection, find)
    return [replace(problem, is_repaired=problem not in left) for problem in problems]


def _found(connection: Connection, find: Find) -> list[Problem]:
    """What `find` finds in one state of the file; a page that cannot be read is a problem too."""
    try:
        with connection.reading(), _any_text(connection):
            return find(connection)
    except sqlite3.DatabaseError as error:
        if not is_code(error, sqlite3.SQLITE_CORRUPT):
            raise
        return [Problem("page", str(error), READABLE)]


@contextlib.contextmanager
def _any_text(connection: Connection) -> Iterator[None]:
    """Let text be read that is not UTF-8; otherwise Python raises."""
    connection.text_factory = partial(str, encoding="utf-8", errors="backslashreplace")
    try:
        yield
    finally:
        connection.text_factory = str
