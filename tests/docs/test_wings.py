"""The picture of the wings shows the imports that there are, and the script counts files."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "docs" / "scripts"


def test_the_picture_is_drawn_from_the_imports_of_today() -> None:
    wings = runpy.run_path(str(SCRIPTS / "wings.py"))

    assert (ROOT / "docs" / "images" / "wings.svg").read_text("utf-8") == wings["draw"](), (
        "python docs/scripts/wings.py draws it anew"
    )


def test_the_files_that_a_read_enters_are_counted() -> None:
    script = [sys.executable, str(SCRIPTS / "files_entered.py")]
    printed = subprocess.run(script, capture_output=True, text=True, check=True).stdout

    files = {line.partition(":")[0]: line for line in printed.splitlines() if line[0] != " "}
    assert set(files) == {"hit of 2 kB", "hit of 1 MiB", "miss", "set"}
    assert "    index/lookup.py" in printed.splitlines()
