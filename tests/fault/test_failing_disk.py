"""A disk that fails, by a library between SQLite and the system that answers EIO."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fault.children import run_child
from tests.fault.real import HANG_SECONDS

SOURCE = Path(__file__).with_name("failing_io.c")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("library") / "failing_io.so"
    command = [compiler, "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=HANG_SECONDS)
    return library


READ_ON = """
from zarr_cache.core import clock
from zarr_cache.file import connection

now = [clock.monotonic_ns()]
clock.monotonic_ns = lambda: now[0]
# What SQLite remembers it need not read.
connection._PRAGMAS += "PRAGMA cache_size = 1;"
statements = Statements()
sqlite3.connect = statements.connect
when, what, is_in_file = Path(arguments[0]), arguments[1], arguments[3] == 'cache.sqlite'

async def main(surface):
    source = new_source()
    store = new_cache(source, path)
    await read_all(surface, store, KEYS[:4])
    drain(store)
    if is_in_file:
        store.close()
        await surface(store, KEYS[0])
    when.write_text(what)
    found = await read_until_kept(surface, store)
    tried = statements.number("connect") + statements.number("BEGIN IMMEDIATE")
    found += [await read_all(surface, store) for _ in range(20)]
    drain(store)
    tried_again = statements.number("connect") + statements.number("BEGIN IMMEDIATE")
    during = store.cache_stats()
    when.unlink()
    now[0] += LONGEST_SECONDS * 10**9
    found += await read_until_kept(surface, store)
    source.reset()
    found.append(await read_all(surface, store))
    tell(
        right=[each == VALUES for each in found],
        tried=tried_again - tried,
        faults=during["faults"],
        asked=source.requests.total(),
    )
    store.close()

asyncio.run(main(SURFACES[arguments[2]]))
"""


FAULTS = {
    "reads": ("cache.sqlite", "r"),
    "reads of the log": ("-wal", "r"),
    "writes of the log": ("-wal", "w"),
}


@pytest.mark.parametrize("surface", ["async", "sync"])
@pytest.mark.parametrize(("file", "what"), FAULTS.values(), ids=FAULTS)
def test_reads_succeed_and_the_file_is_tried_once(
    path: Path, tmp_path: Path, library: Path, file: str, what: str, surface: str
) -> None:
    ended = run_child(
        path,
        READ_ON,
        str(tmp_path / "failing"),
        what,
        surface,
        file,
        LD_PRELOAD=str(library),
        ZARR_CACHE_FAILING_FILE=file,
        ZARR_CACHE_FAILING_WHILE=str(tmp_path / "failing"),
    )

    assert ended.code == 0, ended.errors
    assert ended.facts["right"] == [True] * 25
    assert ended.facts["tried"] == 0
    assert ended.facts["asked"] == 0
    # Where the log cannot be read, another file is begun, whose log cannot be read either.
    assert len(ended.facts["warned"]) == (2 if (file, what) == ("-wal", "r") else 1)
    assert all(str(path) in told for told in ended.facts["warned"])
    # SQLite takes a disk that cannot be read for a damaged file.
    said = f"{path}: (disk I/O error|database disk image is malformed)"
    assert re.search(said, ended.facts["warned"][0])
    assert ended.facts["faults"] >= 1
