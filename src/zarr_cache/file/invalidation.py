"""Marks beside a cache file: what is kept of a namespace is not to be believed.

A mark is there from a write to the source that could not be recorded in the cache file until what
is kept of the namespace has been removed. It is empty: a full disk has room for a name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from typing import TYPE_CHECKING

from zarr_cache.core.errors import FileLockedError
from zarr_cache.disk.paths import locked_folder

if TYPE_CHECKING:
    from pathlib import Path


MARK_SECONDS = 0.1


"""How long who marks a file waits for who removes a mark, which takes no time at all."""


def mark_of(path: Path, namespace: str) -> Path:
    """Where the mark of a namespace lies."""
    digest = hashlib.blake2b(namespace.encode("utf-8", "surrogateescape"), digest_size=8)
    return path.with_name(f"{path.name}-distrust-{digest.hexdigest()}")


def mark(path: Path, namespace: str) -> None:
    """Make the mark, or make the one that is there another by its time.

    Raises
    ------
    OSError
        It cannot be made.
    """
    name = mark_of(path, namespace)
    with contextlib.ExitStack() as stack:
        # Without the lock rather than not at all: who holds it may be suspended.
        with contextlib.suppress(FileLockedError):
            stack.enter_context(locked_folder(path, is_shared=True, seconds=MARK_SECONDS))
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        os.close(os.open(name, flags, 0o600))
        now = time.time_ns()
        os.utime(name, ns=(now, now))


def marked_ns(path: Path, namespace: str) -> int | None:
    """The time of the mark, which tells it from a later one; None if there is none."""
    try:
        return mark_of(path, namespace).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def unmark(path: Path, namespace: str, since_ns: int) -> None:
    """Remove the mark, unless it has been made again since.

    Raises
    ------
    FileLockedError
        As `locked_folder`.
    OSError
        It cannot be removed.
    """
    with locked_folder(path, is_shared=False):
        if marked_ns(path, namespace) == since_ns:
            mark_of(path, namespace).unlink()
