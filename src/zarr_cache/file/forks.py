"""The files that are open in this process: how many, and what is done at a fork and at the end."""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing
import os
import threading
import weakref
from multiprocessing.util import Finalize
from typing import TYPE_CHECKING, Protocol

from zarr_cache.disk import descriptors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


forking = threading.Lock()
"""Held from before a fork until after it: no operation begins."""


uses = itertools.count()
"""Counts operations on all files, so that the file that was used longest ago is known."""


class Registered(Protocol):
    """What a `Registry` calls of each database.

    Attributes
    ----------
    last_use
        The number that the last operation got from `uses`.
    """

    last_use: int

    def descriptors(self) -> int:
        """How many descriptors it holds at most."""

    def release(self) -> int:
        """Close what no operation uses; how many descriptors are free by that."""

    def pause(self) -> None:
        """Write what waits, before a fork. Operations still run."""

    def before_fork(self) -> None:
        """Close every connection. Operations begin again after the fork."""

    def after_fork_in_parent(self) -> None:
        """Let operations begin again."""

    def after_fork_in_child(self) -> None:
        """Forget what belongs to the parent."""

    def end(self) -> None:
        """Write what waits and close the file, at the end of the interpreter."""


class Registry[D: Registered]:
    """The databases of this process by the file that they are on: at most one for each file.

    Attributes
    ----------
    by_path
        Every database that the program still refers to.
    opened
        Those that were opened: they live until they are closed, or to the end of the interpreter.
        They may have no connections for now, see `room_for`.
    """

    def __init__(self) -> None:
        self.by_path: weakref.WeakValueDictionary[Path, D] = weakref.WeakValueDictionary()
        self.opened: set[D] = set()
        self._lock = threading.Lock()
        self._making_room = threading.Lock()
        # What is being opened, and the most that can be open since the files were last counted.
        self._promised = self._at_most = 0
        atexit.register(self._end)
        if hasattr(os, "register_at_fork"):
            # Ctrl-C during the fork raises where the first function of Python begins after it.
            os.register_at_fork(
                before=self._before_fork,
                after_in_parent=forking.release,
                after_in_child=forking.release,
            )
            os.register_at_fork(
                after_in_parent=self._after_fork_in_parent, after_in_child=self._after_fork_in_child
            )

    def of(self, path: Path, make: Callable[[Path], D]) -> D:
        """The one database for this path; made if there is none."""
        with self._lock:
            database = self.by_path.get(path)
            if database is None:
                database = self.by_path[path] = make(path)
            return database

    def add_opened(self, database: D) -> None:
        """Close the database at the end of the interpreter."""
        with self._lock:
            if not self.opened and multiprocessing.parent_process() is not None:
                # A child that multiprocessing has forked ends without calling atexit's functions.
                Finalize(None, self._end, exitpriority=0)
            self.opened.add(database)

    def discard_opened(self, database: D) -> None:
        """Forget a database that has no connections any more."""
        with self._lock:
            self.opened.discard(database)

    @contextlib.contextmanager
    def room_for(self, database: D, count: int) -> Iterator[None]:
        """Run the block, which opens so many descriptors of the database, once there is room.

        Other files that no operation uses are closed for that, those used longest ago first. With
        those in use there may be more descriptors than `descriptors.most` says.
        """
        try:
            with self._making_room:
                # Of what several threads open at once, each makes room for all.
                self._promised += count
                self._at_most += count
                most = descriptors.most()
                if most is not None and self._at_most > most:
                    self._make_room(database, most)
            yield
        finally:
            with self._making_room:
                self._promised -= count

    def _make_room(self, user: D, most: int) -> None:
        opened = [each for each in list(self.opened) if each.descriptors()]
        held = self._promised + sum(each.descriptors() for each in opened)
        for database in sorted(opened, key=lambda each: each.last_use):
            if held <= most:
                break
            if database is not user:
                held -= database.release()
        self._at_most = held

    def _end(self) -> None:
        for database in list(self.opened):
            database.end()

    def _before_fork(self) -> None:
        try:
            for database in list(self.by_path.values()):
                database.pause()
        finally:
            # Nothing that is raised here prevents the fork.
            forking.acquire()
            for database in list(self.by_path.values()):
                database.before_fork()

    def _after_fork_in_parent(self) -> None:
        for database in list(self.by_path.values()):
            database.after_fork_in_parent()

    def _after_fork_in_child(self) -> None:
        # A thread that the child does not have may have held it.
        self._lock, self._making_room = threading.Lock(), threading.Lock()
        self._promised = self._at_most = 0
        for database in list(self.by_path.values()):
            database.after_fork_in_child()
        self.opened.clear()
