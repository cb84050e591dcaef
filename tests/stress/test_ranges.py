"""Four processes read values and ranges through one file that is much smaller than these."""

from __future__ import annotations

import multiprocessing
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

from tests.fakes import STRESS, assert_accounts, open_file, preload
from tests.stress import range_worker
from tests.stress.range_worker import KEYS, MAX_SIZE, value

if TYPE_CHECKING:
    from pathlib import Path

METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
preload(range_worker)

HANG_SECONDS = 60 * STRESS

# One statement, so that all are of one state of the file.
LOOK = """
SELECT
    (SELECT TOTAL(size) FROM entry WHERE kind IN ('value', 'range')),
    (SELECT TOTAL(bytes) FROM total WHERE kind IN ('value', 'range')),
    (SELECT TOTAL(bytes) FROM reservation),
    (SELECT count(*) FROM entry WHERE kind = 'value'),
    (SELECT count(*) FROM entry WHERE kind = 'range')
"""


def test_the_budget_holds_at_every_moment_for_four_processes(tmp_path: Path, path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for key in KEYS:
        (source / key).write_bytes(value(key))
    context: Any = multiprocessing.get_context(METHOD)
    start = context.Barrier(4, timeout=HANG_SECONDS)
    processes = [
        context.Process(target=range_worker.work, args=(path, source, number, 150 * STRESS, start))
        for number in range(4)
    ]
    for process in processes:
        process.start()
    looks = []
    while running := [each.sentinel for each in processes if each.exitcode is None]:
        connection.wait(running, timeout=0.005)
        looks += look(path)

    assert [process.exitcode for process in processes] == [0] * 4
    assert [each for each in looks if each[0] != each[1] or each[0] + each[2] > MAX_SIZE] == []
    # Otherwise nothing was tried.
    assert len(set(looks)) > 10
    assert max(looks)[0] > MAX_SIZE / 2
    assert any(values for *_, values, _ in looks)
    assert any(ranges for *_, ranges in looks)
    assert_accounts(path)
    with open_file(path) as db:
        (evictions,) = db.execute("SELECT evictions FROM statistics").fetchone()
    assert evictions > 20


def look(path: Path) -> list[tuple[float, ...]]:
    """What the file holds now; nothing before it is there."""
    if not path.exists():
        return []
    with open_file(path) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
        return [db.execute(LOOK).fetchone()] if "reservation" in tables else []
