"""Private names: one process's, and told from those of the dead."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from zarr.storage import MemoryStore

from zarr_cache import private
from zarr_cache.namespace import name_of

PRINT_OWN_NAME = "from zarr_cache import private; print(private.own_prefix() + '1', flush=True)"


def changed(name: str, **facts: Any) -> str:
    """The name as a process would have made it of which other things are true."""
    process, _, which = name.removeprefix(private.PREFIX).partition(":")
    pid, *rest = process.split(".")
    its = private.Process(int(pid), *rest)._replace(**facts)
    return f"{private.PREFIX}{'.'.join(map(str, its))}:{which}"


def name_of_a_child() -> tuple[str, subprocess.Popen[str]]:
    """The name of a process that waits for the end of its input."""
    command = [sys.executable, "-c", f"{PRINT_OWN_NAME}; input()"]
    child = subprocess.Popen(
        command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    return child.stdout.readline().strip(), child


def test_a_name_of_this_process_is_private_and_alive() -> None:
    name = name_of(MemoryStore())

    assert private.is_private(name)
    assert name.startswith(private.own_prefix())
    assert not private.has_ended(name)
    assert private.PREFIX <= name < private.PREFIX_END


def test_the_name_of_another_process_has_ended_when_that_has() -> None:
    name, child = name_of_a_child()
    while_it_ran = private.has_ended(name)
    child.communicate()

    assert not while_it_ran
    assert private.has_ended(name)


@pytest.mark.skipif(sys.platform != "linux", reason="nothing tells of a zombie elsewhere")
def test_a_process_has_ended_before_its_parent_has_asked_for_its_end() -> None:
    name, child = name_of_a_child()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert private.has_ended(name)

    child.communicate()


@pytest.mark.skipif(sys.platform != "linux", reason="nothing tells the start elsewhere")
def test_a_number_that_another_process_has_by_now_is_not_the_process() -> None:
    assert private.has_ended(changed(private.own_prefix(), started="1", token="other"))  # noqa: S106


def test_a_process_of_an_earlier_boot_has_ended() -> None:
    assert private.has_ended(changed(private.own_prefix(), boot="0000"))


@pytest.mark.parametrize("where", ["machine", "container"])
def test_a_process_that_cannot_be_seen_from_here_counts_as_running(where: str) -> None:
    assert not private.has_ended(changed(private.own_prefix(), **{where: "0000", "pid": "1"}))


@pytest.mark.parametrize(
    "name", ["private:", "private:mine", "private:1.2:3", "private:a.b.c.d.e.f"]
)
def test_a_private_name_that_nobody_made_counts_as_running(name: str) -> None:
    assert not private.has_ended(name)


def test_where_nothing_tells_the_start_the_number_alone_is_asked_for() -> None:
    _, child = name_of_a_child()
    name = changed(private.own_prefix(), started="", token="other")  # noqa: S106
    while_it_ran = private.has_ended(changed(name, pid=str(child.pid)))
    child.communicate()

    assert not while_it_ran
    assert private.has_ended(changed(name, pid=str(child.pid)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_in_the_child_of_a_fork_a_name_is_another() -> None:
    source = MemoryStore()
    before = name_of(source)
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writing, f"{name_of(source)} {private.in_this_process(before)}".encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    of_child, as_told = os.read(reading, 4096).decode().split()
    os.close(reading)
    os.close(writing)

    assert of_child == as_told != before
    assert private.has_ended(of_child)
    assert private.in_this_process(before) == before


def test_a_name_that_lasts_is_the_same_in_every_process() -> None:
    assert private.in_this_process("s3://bucket/data") == "s3://bucket/data"
