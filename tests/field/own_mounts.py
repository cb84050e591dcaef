"""Mounts that no other process sees, for a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.fault.children import BEGIN, ROOT, Ended
from tests.fault.real import HANG_SECONDS, is_root

if TYPE_CHECKING:
    from pathlib import Path

MOUNT = """
from tests.cli.conftest import Command
from zarr_cache import NetworkFileSystemError
from zarr_cache.file.file_database import FileDatabase

def mount(*arguments):
    subprocess.run(["mount", *map(os.fsencode, arguments)], check=True, capture_output=True)

"""

_ALONE = ["unshare", "--mount", "--propagation", "private"]


def run_with_own_mounts(path: Path, script: str, *arguments: str) -> Ended:
    """Run the script in another process, whose calls of ``mount`` no other process sees."""
    if shutil.which("unshare") is None or shutil.which("mount") is None or not is_root():
        pytest.skip("only root has mounts of its own")
    probe = subprocess.run(
        [*_ALONE, "mount", "-t", "tmpfs", "tmpfs", str(path.parent)],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    if probe.returncode:
        pytest.skip(f"nothing can be mounted here: {probe.stderr.strip()}")
    done = subprocess.run(
        [*_ALONE, sys.executable, "-c", BEGIN + MOUNT + script, str(path), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return Ended(done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr)
