"""Faults as they happen: locks, disks, modes and limits of the system, none of them pretended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HANG_SECONDS = 60

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for statement in sys.argv[2:]:
    connection.execute(statement).fetchall()
print("held", flush=True)
sys.stdin.readline()
connection.close()
"""


@contextlib.contextmanager
def held(path: Path, *statements: str) -> Iterator[None]:
    """Let another process run the statements, and hold what they took while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *statements],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield
    finally:
        process.communicate("\n", timeout=HANG_SECONDS)


@contextlib.contextmanager
def longest_file(nbytes: int) -> Iterator[None]:
    """Let this process write no file beyond so many bytes: SQLite says that the disk has failed."""
    resource = pytest.importorskip("resource", reason="the system has no such limits")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextlib.contextmanager
def mounted(folder: Path, *, nbytes: int) -> Iterator[None]:
    """A disk of its own for the folder, so small that it is soon full."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None or not is_root():
        pytest.skip("only root can mount a small disk")
    command = [mount, "-t", "tmpfs", "-o", f"size={nbytes}", "tmpfs", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([umount, "-l", str(folder)], check=True)


@contextlib.contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Let not one byte be left on the folder's disk, which must be a small one."""
    rest = folder / "rest"
    with rest.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        rest.unlink()


@contextlib.contextmanager
def read_only_disk(folder: Path) -> Iterator[None]:
    """Mount the folder for reading: for who opens a file from now on."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None or not is_root():
        pytest.skip("only root can mount a disk for reading")
    command = [mount, "--bind", str(folder), str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a folder cannot be mounted here: {done.stderr.strip()}")
    try:
        subprocess.run([mount, "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run([umount, "-l", str(folder)], check=True)


@contextlib.contextmanager
def immutable(*paths: Path) -> Iterator[None]:
    """Let nobody write to the files, not even who has them open already."""
    chattr = shutil.which("chattr")
    if chattr is None or not is_root():
        pytest.skip("only root can make a file immutable")
    names = [str(path) for path in paths]
    done = subprocess.run([chattr, "+i", *names], check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this file system has no immutable files: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([chattr, "-i", *names], check=True)


def is_root() -> bool:
    """Whether modes mean nothing to this process."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


# capset(2): version 3, and of the first 32 capabilities those by which root overrides modes.
_VERSION = 0x20080522
_OVERRIDE = 0b111 << 1
_SETS = ctypes.c_uint32 * 6


@contextlib.contextmanager
def modes_that_apply() -> Iterator[None]:
    """Let the modes of files apply to this thread, and to those that it starts, also if it is root.

    What is open already stays as it was opened.
    """
    if not hasattr(os, "geteuid"):
        pytest.skip("the system has no modes")
    if not is_root():
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "capset"):
        pytest.skip("root may do everything on this system")
    header, before = (ctypes.c_uint32 * 2)(_VERSION, 0), _SETS()
    assert libc.capget(header, before) == 0
    now = _SETS(*before)
    # The first of three numbers is what is effective; what is permitted can be taken back.
    now[0] &= ~_OVERRIDE
    assert libc.capset(header, now) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0


@contextlib.contextmanager
def mode(path: Path, mode: int) -> Iterator[None]:
    """Let the file or folder have this mode, and let it apply."""
    before = path.stat().st_mode & 0o7777
    path.chmod(mode)
    try:
        with modes_that_apply():
            yield
    finally:
        path.chmod(before)


@contextlib.contextmanager
def mounted_file(path: Path) -> Iterator[None]:
    """Mount the file on itself, as for a container that is given one file: it has to stay there."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None or not is_root():
        pytest.skip("only root can mount a file")
    command = [mount, "--bind", str(path), str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a file cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([umount, "-l", str(path)], check=True)
