"""Each script of docs/examples runs, and asks the source for nothing it has."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"


@functools.cache
def output(name: str) -> list[str]:
    """The lines that the script prints, in a process and a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return run(name, Path(folder))


def run(name: str, folder: Path) -> list[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(folder)}
    ended = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    assert "CacheWarning" not in ended.stderr
    assert list(folder.iterdir()) == []
    return ended.stdout.splitlines()


# Of each script: how many requests the first line tells, at least and at most.
COLD = {
    "xarray_regions.py": (10, 40),
    "image_pyramid.py": (16, 32),
    # 64 chunks, and what each of the two workers asks to open the array.
    "training_loop.py": (64, 80),
}


@pytest.mark.parametrize(("name", "cold"), COLD.items(), ids=list(COLD))
def test_a_script_asks_the_source_in_its_first_round_only(name: str, cold: tuple[int, int]) -> None:
    lines = output(name)
    requests = [int(found) for line in lines for found in re.findall(r": (\d+) requests", line)]

    assert len(requests) == len(lines) == 3
    assert cold[0] <= requests[0] <= cold[1]
    assert requests[1:] == [0, 0]


@pytest.mark.parametrize("name", ["image_pyramid.py", "training_loop.py"])
def test_every_round_sees_the_same(name: str) -> None:
    seen = {re.sub(r"^.* requests, ", "", line) for line in output(name)}

    assert len(seen) == 1


def test_every_script_is_run_and_has_its_place_on_the_page() -> None:
    page = (EXAMPLES / "index.md").read_text(encoding="utf-8")
    scripts = {path.name for path in EXAMPLES.glob("*.py")}

    assert scripts == set(COLD) == set(re.findall(r"\]\((\w+\.py)\)", page))
