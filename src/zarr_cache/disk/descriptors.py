"""How many file descriptors the cache may hold: a part of what the system gives the process."""

from __future__ import annotations

try:
    import resource
except ImportError:
    # Windows: a handle is none of a process's few descriptors.
    HAS_LIMIT = False
else:
    HAS_LIMIT = True


SHARE = 4
"""The cache holds at most one in so many of the descriptors: the others are the source's, the
program's and its libraries'."""


OF_FIRST = 5
"""Of the first connection to a file: to the file, to its WAL, to ``-shm``, to the data file, and
during a write once more to the WAL, for a lock."""

OF_OTHERS = 2
"""Of each other connection: to the file and to its WAL."""


def most() -> int | None:
    """The most that the cache may hold open at once; None where the system has no such limit.

    Asked for anew before each file is opened: a program may change its limit.
    """
    if not HAS_LIMIT:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft // SHARE
