"""Names that are private to a process, and whether the process that made one has ended.

What is kept under such a name is of no use to any other process: it goes when its own ends. A
number of a process is used again by another, so the name also tells when the process began and on
which machine; a process that cannot be seen from here counts as running.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import uuid
import weakref
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

PREFIX = "private:"
"""How the name begins of a source that does not outlive the process."""

PREFIX_END = "private;"
"""The first text after all that begin with `PREFIX`, in the order of SQLite's BINARY."""


class Process(NamedTuple):
    """Which process this is, as far as other processes can tell.

    Attributes
    ----------
    pid
        Its number. Used again by others, and counted apart in each container.
    started
        Clock ticks from the boot to its start, where ``/proc`` tells; else "".
    machine
        What stands for the machine.
    boot
        What stands for the boot of the machine, where ``/proc`` tells; else "".
    container
        The numbers among which `pid` is one, where ``/proc`` tells; else "".
    token
        Random, so that no two processes have one name even where nothing else is told.
    """

    pid: int
    started: str
    machine: str
    boot: str
    container: str
    token: str


class _Names:
    """The names of this process; made anew in the child of a fork."""

    def __init__(self) -> None:
        self.lock = threading.RLock()  # a weak reference may call back while it is held
        self.process: Process | None = None

    def own(self) -> Process:
        with self.lock:
            if self.process is None:
                self.process = _this_process()
            return self.process


_names = _Names()
# By the id of an object and a part of it: weak references to those that hold it, and its number.
# They outlive a fork: the name of an object in the child differs by the process alone.
_holders: dict[tuple[int, str], dict[int, weakref.ref[Any]]] = {}
_numbers: dict[tuple[int, str], int] = {}
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
        Which part of it. The name does not tell it: it may be a URL with a token.
    """
    key, of = (id(identity), detail), id(holder)

    def release(_: object) -> None:
        _release(key, of)

    with _names.lock:
        number = _numbers.get(key)
        try:
            reference = weakref.ref(holder, release)
        except TypeError:
            # Nothing would tell when the id stands for another object.
            number = next(_next_number)
        else:
            if number is None:
                number = _numbers[key] = next(_next_number)
            _holders.setdefault(key, {})[of] = reference
    return f"{own_prefix()}{number}"


def _release(key: tuple[int, str], holder: int) -> None:
    with _names.lock:
        holders = _holders[key]
        del holders[holder]
        if not holders:
            del _holders[key], _numbers[key]


def is_private(name: str) -> bool:
    """Whether the name means something to one process alone."""
    return name.startswith(PREFIX)


def own_prefix() -> str:
    """How the private names of this process begin.

    Those of no other process, here or elsewhere, begin so. It ends in ":": names of this process
    are all texts from `own_prefix` to the same with ";" for its last character.
    """
    return f"{PREFIX}{'.'.join(map(str, _names.own()))}:"


def in_this_process(name: str) -> str:
    """The name under which this process keeps what `name` stood for when it was made.

    Differs from `name` in the child of a fork, if it is private: from there on the child's object
    is a copy, and what it holds is not what the parent's holds.
    """
    if not is_private(name) or name.startswith(own_prefix()):
        return name
    return f"{own_prefix()}{name.removeprefix(PREFIX).partition(':')[2]}"


def has_ended(name: str) -> bool:
    """Whether the process that made this private name is known to have ended.

    False for one that runs, and for one of which nothing can be known from here: another machine's,
    or another container's. What is kept of those goes as the least recently used.
    """
    try:
        pid, *rest = name.removeprefix(PREFIX).partition(":")[0].split(".")
        its = Process(int(pid), *rest)
    except (TypeError, ValueError):
        return False  # not a name that this module made
    own = _names.own()
    if its == own or its.machine != own.machine:
        return False
    if its.boot != own.boot:
        return True
    if its.container != own.container:
        return False
    return not _is_running(its)


def _is_running(process: Process) -> bool:
    if process.started:
        return _started(process.pid) == process.started
    if os.name != "posix":
        return True  # os.kill would end it there
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it runs, and is somebody else's
    return True


def _this_process() -> Process:
    machine = _read("/etc/machine-id") or socket.gethostname()
    boot = _read("/proc/sys/kernel/random/boot_id")
    try:
        container = str(os.stat("/proc/self/ns/pid").st_ino)  # noqa: PTH116 - not a file
    except OSError:
        container = ""
    pid = os.getpid()
    return Process(
        pid, _started(pid), _digest(machine), _digest(boot), container, uuid.uuid4().hex[:12]
    )


def _started(pid: int) -> str:
    """Clock ticks from the boot to the start of a process; "" if there is none that runs.

    https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html
    """
    # The second field is the name of the program, in parentheses, and may have any character.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    if not fields or fields[0] in "ZX":  # ended, and its parent has not asked yet
        return ""
    return fields[19]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _digest(text: str) -> str:
    # The id of a machine is not to be shown to others: machine-id(5).
    return blake2b(text.encode(), digest_size=4).hexdigest() if text else ""


if hasattr(os, "register_at_fork"):
    # The lock may be held by a thread that the child does not have, and the process is another.
    os.register_at_fork(after_in_child=_names.__init__)  # type: ignore[misc]
