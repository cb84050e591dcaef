"""More cache files in one process than it may have descriptors for at three a file.

The cache held three descriptors or more for each file, and the source could open none.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import PROTOTYPE, STRESS, buffer, open_file
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.disk import descriptors

if TYPE_CHECKING:
    from zarr_cache.file.connection import Connection
    from zarr_cache.file.file_database import FileDatabase

SECONDS = 300

FILES = 300 if STRESS > 1 else 100
DESCRIPTORS = 512

HAS_LIST = Path("/proc/self/fd").is_dir()

# Each file caches one folder, of a value for the database and one for the data file.
READ_THROUGH_MANY = """
import asyncio, json, os, resource, sys, threading, warnings
from pathlib import Path
warnings.simplefilter("error")
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.file import connection

# No test cuts the power.
connection._PRAGMAS = connection._PRAGMAS.replace("synchronous = NORMAL", "synchronous = OFF")
prototype = default_buffer_prototype()
folder, surface = Path(sys.argv[1]), sys.argv[2]
files, descriptors = map(int, sys.argv[3:])
stores = []
for number in range(files):
    source = folder / f"source{number}"
    source.mkdir()
    for name, nbytes in (("small", 1_000), ("large", 70_000)):
        (source / name).write_bytes(bytes([number % 256]) * nbytes)
    cache_store = SqliteStore(folder / f"cache{number}.sqlite")
    stores.append(CacheStore(LocalStore(source), cache_store=cache_store))

resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
most = 0

def count():
    global most
    held = 0
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            held += "/cache" in os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            pass  # closed meanwhile
    most = max(most, held)

def check(number, found):
    assert found.to_bytes() in (bytes([number % 256]) * 1_000, bytes([number % 256]) * 70_000)
    count()

def read(numbers):
    for number in numbers:
        for name in ("small", "large"):
            check(number, stores[number].get_sync(name, prototype=prototype))

async def read_async(numbers):
    for number in numbers:
        for name in ("small", "large"):
            check(number, await stores[number].get(name, prototype))

def read_all():
    if surface == "sync":
        read(range(files))
    elif surface == "async":
        asyncio.run(read_async(range(files)))
    else:
        threads = [threading.Thread(target=read, args=(range(n, files, 4),)) for n in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    for each in stores:
        each.flush()

read_all()
read_all()
counts = [each.cache_stats() for each in stores]
for each in stores:
    each.close()
print(json.dumps({
    "most": most,
    "hits": sum(each["hits"] for each in counts),
    "misses": sum(each["misses"] for each in counts),
    "faults": sum(each["faults"] for each in counts),
    "left": [each.name for each in folder.iterdir() if each.name.endswith(("-wal", "-shm"))],
}))
"""


@pytest.mark.skipif(not HAS_LIST, reason="the system does not list the descriptors of a process")
@pytest.mark.skipif(not descriptors.HAS_LIMIT, reason="the system has no such limits")
@pytest.mark.parametrize("surface", ["sync", "async", "threads"])
def test_the_cache_holds_a_quarter_of_the_descriptors_and_the_source_has_the_others(
    surface: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c", READ_THROUGH_MANY),
            *(str(tmp_path), surface, str(FILES), str(DESCRIPTORS)),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)

    assert found.pop("most") <= DESCRIPTORS / 4
    assert found == {"hits": 2 * FILES, "misses": 2 * FILES, "faults": 0, "left": []}


@pytest.fixture
def room_for_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which the cache may have three files open."""
    monkeypatch.setattr(descriptors, "most", lambda: 3 * descriptors.OF_FIRST)


def databases(folder: Path, count: int) -> list[FileDatabase]:
    """Files that have been opened one after another."""
    made = [SqliteStore(folder / f"cache{number}.sqlite").database for number in range(count)]
    for each in made:
        use(each)
    return made


def use(database: FileDatabase) -> None:
    database.run(nothing)


def nothing(_: Connection) -> None:
    pass


@pytest.mark.usefixtures("room_for_three")
def test_the_file_that_was_used_longest_ago_is_closed(tmp_path: Path) -> None:
    first, second, third = databases(tmp_path, 3)
    use(first)
    fourth = SqliteStore(tmp_path / "fourth.sqlite").database
    use(fourth)

    assert [each.is_open for each in (first, second, third, fourth)] == [True, False, True, True]


@pytest.mark.usefixtures("room_for_three")
def test_a_file_is_not_closed_while_an_operation_uses_it(tmp_path: Path) -> None:
    made = databases(tmp_path, 3)
    others = [SqliteStore(tmp_path / f"other{number}.sqlite").database for number in range(3)]

    def use_others(connection: Connection) -> bool:
        for each in others:
            use(each)
        return bool(connection.execute("SELECT 1").fetchall())

    assert made[0].run(use_others)
    assert [each.is_open for each in made] == [True, False, False]


@pytest.mark.usefixtures("room_for_three")
def test_connections_of_threads_count(tmp_path: Path) -> None:
    first, second, third = databases(tmp_path, 3)

    def nested(_: Connection) -> None:
        use(third)

    third.run(nested)

    assert [each.is_open for each in (first, second, third)] == [False, True, True]


def test_a_file_that_another_thread_is_opening_is_not_waited_for(tmp_path: Path) -> None:
    """The two threads would wait for each other, if each closed the file of the other."""
    (database,) = databases(tmp_path, 1)
    is_held, is_done = threading.Event(), threading.Event()

    def hold() -> None:
        with database._pool.lock:
            is_held.set()
            is_done.wait(SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait(SECONDS)
    count = database.release()
    is_done.set()
    thread.join()

    assert count == 0
    assert database.is_open
    assert database.release() == descriptors.OF_FIRST


def test_what_waits_is_written_when_a_store_is_closed_whose_file_was_closed(path: Path) -> None:
    source = MemoryStore({"k": buffer(b"value")})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    store.get_sync("k", prototype=PROTOTYPE)
    store.flush()
    with open_file(path) as file:
        (before,) = file.execute("SELECT used_at FROM entry WHERE key = 'k'").fetchone()
    store.get_sync("k", prototype=PROTOTYPE)
    SqliteStore(path).database.release()
    store.close()
    with open_file(path) as file:
        (after,) = file.execute("SELECT used_at FROM entry WHERE key = 'k'").fetchone()

    assert after > before


def test_another_file_in_the_place_of_one_that_was_closed_is_noticed(
    path: Path, tmp_path: Path
) -> None:
    (database,) = databases(tmp_path / "other", 1)
    database.close()
    replaced = SqliteStore(path).database
    use(replaced)
    losses: list[None] = []
    replaced.after_loss.append(lambda: losses.append(None))
    replaced.release()
    use(replaced)
    assert not losses

    replaced.release()
    database.path.replace(path)
    use(replaced)

    assert len(losses) == 1


@pytest.mark.skipif(not descriptors.HAS_LIMIT, reason="the system has no such limits")
def test_the_limit_of_the_process_is_asked_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = importlib.import_module("resource")
    limits = iter([(512, 512), (1024, 4096), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)])
    monkeypatch.setattr(resource, "getrlimit", lambda _: next(limits))

    assert [descriptors.most() for _ in range(3)] == [128, 256, None]
