"""Private names: one process's, and no other's."""

from __future__ import annotations

import os

import pytest
from zarr.storage import MemoryStore

from zarr_cache.core import private
from zarr_cache.sources.names import name_of


def test_the_name_of_a_source_that_ends_with_the_process_is_private() -> None:
    name = name_of(MemoryStore())

    assert private.is_private(name)
    assert name.startswith(private.own_prefix())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
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
    assert not of_child.startswith(private.own_prefix())
    assert private.in_this_process(before) == before
