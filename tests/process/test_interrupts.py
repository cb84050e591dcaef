"""Ctrl-C at any time leaves the file in use for nobody."""

from __future__ import annotations

import gc
import os
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from zarr.storage import MemoryStore

from tests.fakes import assert_accounts, buffer
from tests.process.test_end import FORK, FORKING, needs_fork, run
from tests.systems import needs_removal_of_open_files
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core import background
from zarr_cache.disk import presence
from zarr_cache.file import file_database, forks, loop_connections, opening, pool
from zarr_cache.file.file_database import FileDatabase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import FrameType

MODULES = (file_database, opening, pool, loop_connections, forks, presence, background)
OURS = {module.__file__ for module in MODULES}

SECONDS = 5


@pytest.fixture(autouse=True)
def _unclosed_connections() -> Iterator[None]:
    """Collect connections that nothing has closed, and not in a later test, which would fail.

    Ctrl-C may come when SQLite has opened a database and nothing in Python has it yet.
    """
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Interrupt:
    """Ctrl-C at one of the times at which Python raises it, counted from 1.

    That is where a function begins and where a call of what is written in C has come back, which
    is when a profiler is called.
    """

    def __init__(self, number: int) -> None:
        self._left = number

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event in {"call", "c_return"} and frame.f_code.co_filename in OURS:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt

    def during(self, function: Callable[[], object]) -> bool:
        """Run the function; whether it was interrupted."""
        sys.setprofile(self)
        try:
            function()
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
        return False


def ends(function: Callable[[], object]) -> bool:
    """Whether the function does not hang."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(SECONDS)
    return not thread.is_alive()


class Subject:
    """A store over a file with one value, and what may be interrupted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        source = MemoryStore({key: buffer(key.encode() * 100) for key in "abcd"})
        self.store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
        self.store.get_sync("a")
        self.store.flush()

    def read(self) -> None:
        """A hit."""
        found = self.store.get_sync("a")
        assert found is not None
        assert found.to_bytes() == b"a" * 100

    def fetch(self) -> None:
        """A miss."""
        found = self.store.get_sync("b")
        assert found is not None
        assert found.to_bytes() == b"b" * 100

    def write(self) -> None:
        """A write."""
        self.store.set_sync("c", buffer(b"c"))

    def read_after_loss(self) -> None:
        """A read that finds another file in the place of the one that is open."""
        self.path.unlink()
        self.path.touch(mode=0o600)
        self.read()

    def close_and_read(self) -> None:
        """A read that opens the file."""
        self.store.close()
        self.read()

    def fork_and_read(self) -> None:
        """What the parent does at a fork, but for the fork."""
        database = FileDatabase.of(self.path)
        database.pause()
        database.before_fork()
        database.after_fork_in_parent()
        self.read()


WHAT = [
    Subject.read,
    Subject.fetch,
    Subject.write,
    pytest.param(Subject.read_after_loss, marks=needs_removal_of_open_files),
    Subject.close_and_read,
    Subject.fork_and_read,
]


# A connection that was being opened or closed is closed when nothing refers to it any more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", WHAT, ids=lambda each: each.__name__)
def test_nothing_hangs_after_ctrl_c_wherever_it_comes(
    path: Path, what: Callable[[Subject], None]
) -> None:
    number = 0
    while True:
        number += 1
        its = path.with_name(f"{number}.sqlite")
        subject = Subject(its)
        database = FileDatabase.of(its)
        was_interrupted = Interrupt(number).during(lambda: what(subject))  # noqa: B023 - at once

        assert ends(database.before_fork), f"a fork hangs, interrupted at {number}"
        database.after_fork_in_parent()
        assert ends(subject.fetch), f"a read hangs, interrupted at {number}"
        assert len(database._pool._idle) == len(set(database._pool._idle)), number
        assert ends(subject.store.close), f"close() hangs, interrupted at {number}"
        assert_accounts(its)
        # What Ctrl-C came between may refer to a connection in a cycle.
        gc.collect()
        its.unlink()
        if not was_interrupted:
            break

    assert number > 5


@needs_fork
@pytest.mark.skipif(not hasattr(os, "kill"), reason="the system has no signals")
def test_a_fork_and_a_read_work_after_many_ctrl_c(path: Path) -> None:
    # A timer raises what Ctrl-C raises, at 1000 times that nobody knows before.
    script = f"""
{FORK}
import random, signal
signal.signal(signal.SIGALRM, signal.default_int_handler)
for key in "abcd":
    store.get_sync(key)
store.flush()
interrupts = 0
for number in range(1000):
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(0.0001, 0.0006))
        while True:
            store.get_sync("abcd"[number % 4])
    except KeyboardInterrupt:
        interrupts += 1
under_way = FileDatabase.of(SqliteStore(sys.argv[1]).path)._pool.leases
print(interrupts, "interrupts", flush=True)
print("under way:", under_way, file=sys.stderr, flush=True)
in_child(lambda: print(store.get_sync("a").to_bytes()[:1]))
print(store.get_sync("a").to_bytes()[:1], flush=True)
"""
    out, errors, code = run(
        path, "from zarr_cache.file.file_database import FileDatabase\n" + script, options=FORKING
    )

    assert (out, code) == ("1000 interrupts\nb'a'\nb'a'\n", 0), errors
