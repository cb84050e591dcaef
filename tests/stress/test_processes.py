"""Eight processes on one cache file, over one source: they open, read, write and evict together."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes import STRESS, assert_accounts, open_file, preload
from tests.stress import worker
from tests.stress.worker import Ledger, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORKERS = 8
HANG_SECONDS = 60 * STRESS

# In a short run the children of one process that has imported everything; in a long one, each
# imports for itself.
METHOD = "forkserver" if STRESS == 1 and hasattr(os, "fork") else "spawn"
preload(worker)

# One statement, so that both are of one state of the file.
LOOK = """
SELECT
    (SELECT TOTAL(size) FROM entry WHERE kind = 'value'),
    (SELECT bytes FROM total WHERE kind = 'value')
"""


@pytest.fixture
def plan(tmp_path: Path, path: Path) -> Plan:
    source = tmp_path / "source"
    source.mkdir()
    (source / worker.FIRST).write_text(worker.FIRST)
    return Plan(WORKERS, operations=25 * STRESS, max_size=1_000_000, cache=path, source=source)


def while_running(processes: list[Any]) -> Iterator[None]:
    """Go round for as long as one of them runs, with a moment for them in each round."""
    while any(process.exitcode is None for process in processes):
        yield
        running = [each.sentinel for each in processes if each.exitcode is None]
        connection.wait(running, timeout=0.002)


def test_processes_that_open_read_write_and_evict_together(plan: Plan) -> None:
    context: Any = multiprocessing.get_context(METHOD)
    ledger = Ledger(context, plan)
    # The test waits with them until the file is there.
    opening = context.Barrier(plan.workers + 1, timeout=HANG_SECONDS)
    ending = context.Barrier(plan.workers, timeout=HANG_SECONDS)
    processes = [
        context.Process(target=worker.work, args=(plan, ledger, opening, ending, number))
        for number in range(plan.workers)
    ]
    for process in processes:
        process.start()
    for _ in [*plan.new, plan.cache, "all have opened it"]:
        opening.wait()
    with open_file(plan.cache) as db:
        looks = [db.execute(LOOK).fetchone() for _ in while_running(processes)]
        statistics = db.execute("SELECT hits, misses, evictions FROM statistics").fetchone()

    assert [process.exitcode for process in processes] == [0] * plan.workers
    assert [look for look in looks if look[0] != look[1] or look[0] > plan.max_size] == []
    for cache in [*plan.new, plan.cache]:
        assert_accounts(cache)
    # Otherwise nothing was tried.
    assert len(set(looks)) > 20
    assert min(statistics) > 20
