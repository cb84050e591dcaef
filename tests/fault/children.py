"""Processes of their own for what a process may not outlive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from tests.fault.real import HANG_SECONDS

ROOT = Path(__file__).parents[2]

BEGIN = """
import asyncio, json, os, sqlite3, subprocess, sys, warnings
from pathlib import Path
from zarr.storage import MemoryStore
from tests.fakes import *
from tests.fault.sources import *

path, arguments = Path(sys.argv[1]), sys.argv[2:]
warned = []
warnings.showwarning = lambda message, *_, **__: warned.append(str(message))
warnings.simplefilter("always")

def tell(**facts):
    print(json.dumps(facts | {"warned": warned}), flush=True)
"""


class Ended(NamedTuple):
    """How a child has ended.

    Attributes
    ----------
    code
        Its exit code; negative: the signal that killed it.
    facts
        What it told last, with ``warned``.
    errors
        What it wrote to standard error.
    """

    code: int
    facts: dict[str, Any]
    errors: str


def run_child(path: Path, script: str, *arguments: str, **environment: str) -> Ended:
    """Run the script in another process, to its end."""
    done = subprocess.run(
        [sys.executable, "-c", BEGIN + script, str(path), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | environment,
    )
    lines = done.stdout.splitlines()
    return Ended(done.returncode, json.loads(lines[-1]) if lines else {}, done.stderr)
