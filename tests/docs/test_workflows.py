"""The workflows of GitHub Actions: what they name exists, and they may do only what they must."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

each_workflow = pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.stem)

MAY_WRITE = {("docs", "deploy"): {"pages", "id-token"}, ("release", "publish"): {"id-token"}}
"""What a job of a workflow is allowed besides reading."""


def jobs(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"]
    return found


def steps(file: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(file).values() for step in job["steps"]]


def commands(file: Path) -> str:
    return "\n".join(step.get("run", "") for step in steps(file))


def test_there_are_four_of_them() -> None:
    assert [file.stem for file in WORKFLOWS] == ["docs", "nightly", "release", "test"]


@each_workflow
def test_each_job_may_read_and_only_what_publishes_may_write(file: Path) -> None:
    of_all = yaml.safe_load(file.read_text(encoding="utf-8"))["permissions"]
    granted = {
        (file.stem, name): set(job["permissions"])
        for name, job in jobs(file).items()
        if "permissions" in job
    }

    assert of_all == {"contents": "read"}
    assert granted == {job: may for job, may in MAY_WRITE.items() if job[0] == file.stem}


@each_workflow
def test_each_job_ends_and_no_two_runs_disturb_each_other(file: Path) -> None:
    assert "concurrency" in yaml.safe_load(file.read_text(encoding="utf-8"))
    assert all(job["timeout-minutes"] <= 360 for job in jobs(file).values())


@each_workflow
def test_each_action_is_pinned_to_a_version(file: Path) -> None:
    used = [step["uses"] for step in steps(file) if "uses" in step]

    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@(v\d+|release/v\d+|[0-9a-f]{40})", u) for u in used)


@each_workflow
def test_each_extra_and_group_exists(file: Path) -> None:
    extras = re.findall(r"\[(\w+)\]\"", commands(file))
    groups = re.findall(r"--group (\w+)", commands(file))

    assert set(extras) <= set(PROJECT["project"]["optional-dependencies"])
    assert set(groups) <= set(PROJECT["dependency-groups"])


@each_workflow
def test_each_file_that_a_command_reads_exists(file: Path) -> None:
    named = re.findall(r"(?<![\w/.*-])((?:\.ci|tests)/[\w./]+|pyproject\.toml)", commands(file))

    assert all((ROOT / each).exists() for each in named)


def test_a_step_runs_the_tests_as_the_readme_does_on_each_system_and_each_python() -> None:
    job = jobs(ROOT / ".github" / "workflows" / "test.yml")["systems"]
    versions = [
        each.removeprefix("Programming Language :: Python :: ")
        for each in PROJECT["project"]["classifiers"]
        if re.search(r":: 3\.\d+$", each)
    ]

    assert job["strategy"]["matrix"]["system"] == [
        "ubuntu-latest",
        "macos-latest",
        "windows-latest",
    ]
    assert set(versions) <= set(job["strategy"]["matrix"]["python"])
    assert [step["run"] for step in job["steps"] if "run" in step][-1] == "python -m pytest"


def test_what_is_run_as_on_windows_exists() -> None:
    listed = (ROOT / "tests" / "as_on_windows" / "suites.txt").read_text(encoding="utf-8").split()

    assert listed
    assert all((ROOT / each).exists() for each in listed)
