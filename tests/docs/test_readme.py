"""What the README promises to a newcomer."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def commands() -> list[str]:
    """The shell commands of the README, in order."""
    return re.findall(r"^```sh\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_a_newcomer_finds_two_commands_on_one_line_each() -> None:
    demo, tests = (command.splitlines() for command in commands())

    assert len(demo) == len(tests) == 1
    assert demo[0].endswith("/zarr-cache demo")
    assert tests[0].endswith("/pytest")


def test_each_command_makes_its_own_environment() -> None:
    assert all(command.startswith("python3 -m venv .venv && ") for command in commands())


def test_the_commands_are_on_the_first_screen() -> None:
    assert README[: README.index(commands()[-1])].count("\n") < 32


@pytest.mark.skipif(shutil.which("awk") is None, reason="the extraction in .ci/run is awk's")
@pytest.mark.parametrize(("heading", "index"), [("See what it saves", 0), ("Run the tests", 1)])
def test_ci_takes_each_command_from_the_readme_verbatim(heading: str, index: int) -> None:
    function = re.search(r"^readme_command\(\) \{\n.*?^\}$", CI, re.MULTILINE | re.DOTALL)
    assert function is not None

    shell = subprocess.run(
        ["/bin/bash", "-c", f'checkout={ROOT}\n{function[0]}\nreadme_command "{heading}"'],
        capture_output=True,
        text=True,
        check=True,
    )

    assert shell.stdout == commands()[index]
    assert f'readme_command "{heading}"' in CI
