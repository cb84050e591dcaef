"""Names that are private to a process, by a random token.

Entries under such a name are of no use to any other process. The process removes them when it
ends. Those of a killed process are evicted like any others, or removed when they were not used
for a week: see `index.evict`.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import weakref
from typing import Any

PREFIX = "private:"
"""How the name begins of a source that does not outlive the process."""


class _Names:
    """What the names of this process are made with; replaced in the child of a fork."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a weak reference may call back while it is held
        self.token = secrets.token_hex(8)


_names = _Names()

# By the id of an object and a part of it: its number, and weak references to those that hold it.
# They outlive a fork: the name of an object in the child differs by the token alone.
_held: dict[tuple[int, str], tuple[int, dict[int, weakref.ref[Any]]]] = {}

_next_number = itertools.count(1)


def name_of(holder: object, identity: object, detail: str = "") -> str:
    """A name of this process for what `identity` is, the same as long as a holder of it lives.

    Parameters
    ----------
    holder
        Keeps `identity` alive as long as it lives itself; two holders of one object share its name.
    identity
        The object whose keys are named; by which object it is, not by what it equals.
    detail
        Which part of it. The name does not contain it: it may be a URL with a token.
    """
    key, of = (id(identity), detail), id(holder)

    def release(_: object) -> None:
        with _names.lock:
            _, holders = _held[key]
            del holders[of]
            if not holders:
                del _held[key]

    with _names.lock:
        number, holders = _held.get(key) or (next(_next_number), {})
        try:
            holders[of] = weakref.ref(holder, release)
            _held[key] = number, holders
        except TypeError:
            # Nothing would say when the id stands for another object: the name is used once.
            number = next(_next_number)
    return f"{own_prefix()}{number}"


def is_private(name: str) -> bool:
    """Whether the name means something to one process alone."""
    return name.startswith(PREFIX)


def own_prefix() -> str:
    """How the private names of this process begin, and those of no other."""
    return f"{PREFIX}{_names.token}:"


def in_this_process(name: str) -> str:
    """The name under which this process keeps what a private name stood for when it was made.

    Another in the child of a fork: the child's object is a copy, and what it holds from there on is
    not what the parent's holds.
    """
    return f"{own_prefix()}{name.rpartition(':')[2]}"


if hasattr(os, "register_at_fork"):
    # The lock may be held by a thread that the child does not have.
    # The token is the parent's, and the parent's entries are not the child's to remove.
    os.register_at_fork(after_in_child=_names.__init__)  # type: ignore[misc]
