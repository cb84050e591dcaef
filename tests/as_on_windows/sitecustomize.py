"""Python as zarr_cache finds it on Windows, as far as that can be had on Linux.

``PYTHONPATH=tests/as_on_windows pytest ...``: Python imports this module at its start, in each
process that a test starts as well. Two things are then as on Windows.

- zarr_cache and its tests, and no other package, lack the modules and functions of POSIX.
- A file that a process has open can be neither removed nor renamed nor replaced: Python and SQLite
  open files there without ``FILE_SHARE_DELETE`` (``os_win.c`` of SQLite, ``winOpen``).
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import os
import signal
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IMPORTERS = {"tests", "zarr_cache"}

MODULES = {"fcntl", "grp", "posix", "pwd", "resource", "termios"}

# "Availability: Unix" in the documentation of `os`, of what this package may use.
FUNCTIONS = {
    *("O_CLOEXEC", "O_DIRECTORY", "O_DSYNC", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC"),
    *("POSIX_FADV_RANDOM", "RWF_DSYNC", "RWF_NOWAIT", "SEEK_DATA", "SEEK_HOLE"),
    *("chown", "copy_file_range", "fchmod", "fchown", "fdatasync", "fork", "fpathconf", "fstatvfs"),
    *("getegid", "geteuid", "getgid", "getpgid", "getuid", "killpg", "lchown", "mkfifo", "mknod"),
    *("pathconf", "posix_fadvise", "posix_fallocate", "pread", "preadv", "pwrite", "pwritev"),
    *("register_at_fork", "sendfile", "setsid", "statvfs", "sync", "sysconf", "uname"),
    *("wait", "waitpid"),
}

# The same of `signal`.
SIGNALS = {
    *("SIGALRM", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGUSR1"),
    *("alarm", "pause", "pthread_kill", "pthread_sigmask", "setitimer", "sigwait"),
}

EMPTY = {"supports_dir_fd", "supports_effective_ids", "supports_fd"}

SHARING_VIOLATION = 32
"""``ERROR_SHARING_VIOLATION``, for which Python raises a PermissionError with ``EACCES``."""


class _OfWindows(ModuleType):
    """A module without what Windows lacks; whatever a test patches in it is patched here too."""

    def __init__(self, module: ModuleType, lacking: set[str]) -> None:
        super().__init__(module.__name__)
        self._module, self._lacking = module, lacking

    def __getattr__(self, name: str) -> Any:
        if name in self._lacking:
            of = self._module.__name__
            raise AttributeError(f"module {of!r} has no attribute {name!r}", name=name, obj=self)
        return set() if name in EMPTY else getattr(self._module, name)


def _hide() -> None:
    """Let the modules of zarr_cache import what Windows has."""
    found = builtins.__import__
    of_windows = {"os": _OfWindows(os, FUNCTIONS), "signal": _OfWindows(signal, SIGNALS)}

    def import_module(name: str, globals_: Any = None, *args: Any, **kwargs: Any) -> ModuleType:
        importer = (globals_ or {}).get("__name__") or ""
        if importer.partition(".")[0] in IMPORTERS:
            if name in MODULES:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if name in of_windows:
                return of_windows[name]
        return found(name, globals_, *args, **kwargs)

    builtins.__import__ = import_module  # type: ignore[assignment]  # the same, by position


def _open_files() -> Iterator[str]:
    """What the processes of this user have open."""
    for process in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208 - names are enough
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            for number in os.listdir(f"/proc/{process}/fd"):  # noqa: PTH208 - as above
                with contextlib.suppress(OSError):  # it was closed
                    yield os.readlink(f"/proc/{process}/fd/{number}")  # noqa: PTH115 - of many


def _is_open(name: str) -> bool:
    """Whether a file is open, or one in a folder that would be renamed with it."""
    if os.path.isdir(name):  # noqa: PTH112 - pathlib is not imported here
        return any(each.startswith(f"{name}{os.sep}") for each in _open_files())
    # What tests have open has such a name. To look at all that they remove takes minutes.
    return any(each in name for each in (".sqlite", ".zip")) and name in set(_open_files())


def _refuse_open(path: Any) -> None:
    name = os.path.realpath(os.fspath(path))
    # What a link leads to stays where it is.
    if not os.path.islink(path) and _is_open(name):  # noqa: PTH114 - as above
        error = PermissionError(
            errno.EACCES,
            "The process cannot access the file because it is being used by another process",
            name,
        )
        error.winerror = SHARING_VIOLATION  # type: ignore[attr-defined]  # as on Windows
        raise error


def _refusing(function: Callable[..., None], *, paths: int) -> Callable[..., None]:
    """The function, of which the first arguments are so many paths, as it is on Windows."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        if "dir_fd" not in kwargs or kwargs["dir_fd"] is None:
            for path in args[:paths]:
                _refuse_open(path)
        if function.__name__ == "rename" and os.path.lexists(args[1]):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), args[1])
        function(*args, **kwargs)

    return refuse


if sys.platform == "linux":
    _hide()
    os.remove = _refusing(os.remove, paths=1)
    os.unlink = _refusing(os.unlink, paths=1)
    os.rename = _refusing(os.rename, paths=2)
    os.replace = _refusing(os.replace, paths=2)
