"""How a process ends, forks and is killed with a cache file open."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from zarr.storage import MemoryStore

from tests.fakes import (
    IS_WINDOWS,
    CountingStore,
    buffer,
    close_everything,
    open_file,
    read,
    writers,
)
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from pathlib import Path

HANG_SECONDS = 60

# Warnings are errors, and what is left open at the end is a warning.
STRICT = ["-X", "dev", "-W", "error"]

# Python warns of any fork beside threads, and zarr and aiosqlite have theirs.
FORKING = [*STRICT, "-W", "ignore:.*fork:DeprecationWarning"]

BEGIN = """
import asyncio, logging, os, sys
# With -X dev asyncio tells of callbacks that took long, as any does on a busy machine.
logging.getLogger("asyncio").setLevel(logging.ERROR)
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.storage import MemoryStore
from zarr_cache import CacheStore, SqliteStore

P = default_buffer_prototype()
# Two of them are large, and wait together.
values = {key: key.encode() * (100_000 if key in "bc" else 100) for key in "abcd"}
source = MemoryStore({key: cpu.Buffer.from_bytes(value) for key, value in values.items()})
store = CacheStore(source, cache_store=SqliteStore(sys.argv[1]), namespace="source")

def hits():
    return store.cache_stats()["hits"]
"""


def start(path: Path, script: str, *arguments: str, options: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, *options, "-c", BEGIN + script, str(path), *arguments]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # With a session of its own, its forks can be ended with it.
        start_new_session=True,
    )


def run(path: Path, script: str, *, options: list[str] = STRICT) -> tuple[str, str, int]:
    """What a process that runs the script prints, its errors, and its exit code."""
    process = start(path, script, options=options)
    with process:
        try:
            out, errors = process.communicate(timeout=HANG_SECONDS)
        finally:
            process.kill()
            if hasattr(os, "killpg"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    return out, errors, process.returncode


def files_in(folder: Path) -> list[str]:
    """Names of the files there, but for data files."""
    return sorted(file.name for file in folder.iterdir() if not file.name.endswith("-data"))


def order(path: Path) -> list[str]:
    """Keys of the values, least recently used first."""
    with open_file(path) as db:
        rows = db.execute("SELECT key FROM entry WHERE kind = 'value' ORDER BY used_at, id")
        return [key for (key,) in rows]


def value_of(key: str) -> bytes:
    """What the source of `BEGIN` holds."""
    return key.encode() * (100_000 if key in "bc" else 100)


async def requests_for(path: Path, keys: str) -> int:
    """How many requests another process needs to read the keys."""
    source = CountingStore(MemoryStore({key: buffer(value_of(key)) for key in "abcd"}))
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    found = [await read(store, key) for key in keys]

    assert found == [value_of(key) for key in keys]
    return source.requests.total()


# Each reads a, b and c, and a again, and closes nothing.
ENDINGS = {
    "after asyncio.run": """
async def main():
    for key in "abca":
        await store.get(key, P)
asyncio.run(main())
""",
    "after the sync surface": """
for key in "abca":
    store.get_sync(key)
""",
    "after both": """
async def main():
    await store.get("a", P)
    await store.get("b", P)
asyncio.run(main())
store.get_sync("c")
store.get_sync("a")
""",
    "after several loops": """
for key in "abca":
    asyncio.run(store.get(key, P))
""",
    "after zarr's own loop": """
from zarr.core.sync import sync
for key in "abca":
    sync(store.get(key, P))
""",
    "after a loop that is not closed": """
loop = asyncio.new_event_loop()
for key in "abca":
    loop.run_until_complete(store.get(key, P))
import warnings
warnings.simplefilter("ignore", ResourceWarning)
""",
    "after threads": """
import threading
for key in "abca":
    thread = threading.Thread(target=store.get_sync, args=(key,))
    thread.start()
    thread.join()
""",
    "after the store is gone": """
for key in "abca":
    store.get_sync(key)
del store
""",
    "inside a running loop": """
async def main():
    for key in "abca":
        await store.get(key, P)
    sys.exit(0)
asyncio.run(main())
""",
    "in a thread of a pool": """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(1)
for key in "abca":
    pool.submit(store.get_sync, key).result()
""",
}


@pytest.mark.parametrize("script", ENDINGS.values(), ids=ENDINGS)
async def test_a_process_that_closes_nothing_ends_and_loses_nothing(
    path: Path, tmp_path: Path, script: str
) -> None:
    ended = run(path, script)

    assert ended == ("", "", 0)
    assert files_in(tmp_path) == [path.name]
    assert order(path) == ["b", "c", "a"]
    assert await requests_for(path, "abc") == 0


READ_IN_A_LOOP = """
async def main():
    for key in "abca":
        await store.get(key, P)
    {end}
asyncio.run(main())
"""


ERRORS = [
    pytest.param("sys.exit(3)", 3, [], id="an exit code"),
    pytest.param(
        "raise LookupError('of the script')", 1, ["LookupError: of the script"], id="an error"
    ),
    pytest.param(
        "os.kill(os.getpid(), __import__('signal').SIGINT); await asyncio.sleep(60)",
        -signal.SIGINT,
        ["KeyboardInterrupt"],
        id="Ctrl-C",
        marks=pytest.mark.skipif(IS_WINDOWS, reason="no process sends itself Ctrl-C there"),
    ),
]


@pytest.mark.parametrize(("end", "code", "last_line"), ERRORS)
def test_a_process_that_ends_with_an_error_loses_nothing(
    path: Path, tmp_path: Path, end: str, code: int, last_line: list[str]
) -> None:
    out, errors, found = run(path, READ_IN_A_LOOP.format(end=end))

    assert (out, found) == ("", code)
    assert errors.splitlines()[-1:] == last_line
    assert files_in(tmp_path) == [path.name]
    assert order(path) == ["b", "c", "a"]


@pytest.mark.skipif(IS_WINDOWS, reason="no open file is removed there")
def test_a_folder_that_was_removed_before_the_end_stays_so(path: Path) -> None:
    script = """
import shutil
store.get_sync("a")
store.flush()
store.get_sync("a")
shutil.rmtree(os.path.dirname(sys.argv[1]))
"""
    folder = path.parent / "folder"
    out, errors, code = run(folder / path.name, script)

    assert (out, errors, code) == ("", "", 0)
    assert not folder.exists()


async def test_a_process_that_is_terminated_leaves_what_it_cached(
    path: Path, tmp_path: Path
) -> None:
    # What waits to be written is, before `cache_info` tells of it.
    terminate = "store.cache_info(); os.kill(os.getpid(), __import__('signal').SIGTERM)"
    out, errors, code = run(path, READ_IN_A_LOOP.format(end=terminate))
    requests = await requests_for(path, "abc")
    close_everything()

    # Negative on POSIX alone.
    assert (out, errors, abs(code)) == ("", "", signal.SIGTERM)
    assert requests == 0
    # Its log was taken in by the next.
    assert files_in(tmp_path) == [path.name]


def test_no_thread_is_waited_for_at_the_end(path: Path) -> None:
    script = """
import threading
async def main():
    for key in "abca":
        await store.get(key, P)
asyncio.run(main())
store.get_sync("b")
others = set(threading.enumerate()) - {threading.main_thread()}
print([thread.name for thread in others if not thread.daemon])
"""

    assert run(path, script) == ("[]\n", "", 0)


def test_a_sqlite_store_alone_ends_as_well(path: Path, tmp_path: Path) -> None:
    script = """
own = SqliteStore(sys.argv[1])
async def main():
    await own.set("k", cpu.Buffer.from_bytes(b"value"))
for _ in range(3):
    asyncio.run(main())
print(own.get_sync("k").to_bytes())
"""
    ended = run(path, script)

    assert ended == ("b'value'\n", "", 0)
    assert files_in(tmp_path) == [path.name]


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")

READ_ALL = {
    "the sync surface": """
def read_all():
    return [store.get_sync(key).to_bytes()[:1].decode() for key in "abcd"]
""",
    "a loop": """
async def read():
    return [(await store.get(key, P)).to_bytes()[:1].decode() for key in "abcd"]
def read_all():
    return asyncio.run(read())
""",
    "zarr's own loop": """
from zarr.core.sync import sync
async def read():
    return [(await store.get(key, P)).to_bytes()[:1].decode() for key in "abcd"]
def read_all():
    return sync(read())
""",
}

FORK = """
def in_child(function):
    child = os.fork()
    if child == 0:
        function()
        sys.stdout.flush()
        sys.exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0, status
"""


@needs_fork
@pytest.mark.parametrize("reading", READ_ALL.values(), ids=READ_ALL)
async def test_a_fork_may_use_the_store_and_so_may_its_parent(
    path: Path, tmp_path: Path, reading: str
) -> None:
    script = f"""
{reading}
{FORK}
def show(name):
    print(name, *read_all(), hits(), flush=True)
show("parent")
in_child(lambda: show("child"))
show("parent")
"""
    ended = run(path, script, options=FORKING)

    assert ended == ("parent a b c d 0\nchild a b c d 4\nparent a b c d 4\n", "", 0)
    assert files_in(tmp_path) == [path.name]
    assert await requests_for(path, "abcd") == 0


@needs_fork
async def test_a_fork_and_its_parent_see_what_the_other_writes(path: Path) -> None:
    script = f"""
{FORK}
def write(value):
    store.set_sync("a", cpu.Buffer.from_bytes(value))
def show():
    print(store.get_sync("a").to_bytes().decode(), flush=True)
write(b"of the parent")
in_child(lambda: (show(), write(b"of the child")))
# The source is in memory: each process has its own, and the cache file is shared.
show()
"""

    assert run(path, script, options=FORKING) == ("of the parent\nof the child\n", "", 0)


@needs_fork
def test_a_grandchild_may_use_the_store(path: Path) -> None:
    script = f"""
{FORK}
def show():
    print(store.get_sync("a").to_bytes()[:1], hits(), flush=True)
def fork_again():
    show()
    in_child(show)
    show()
show()
in_child(fork_again)
show()
"""

    assert run(path, script, options=FORKING) == (
        "b'a' 0\nb'a' 1\nb'a' 2\nb'a' 2\nb'a' 1\n",
        "",
        0,
    )


@needs_fork
def test_what_a_fork_writes_stays_when_its_parent_closes(path: Path) -> None:
    # SQLite remembers by inode which files a process has open and locked. A fork inherits the
    # memory and not the locks: the parent took itself for the last, and removed the fork's log.
    script = """
import subprocess
SEEN = '''
import sqlite3, sys
print(sorted(key for key, in sqlite3.connect(sys.argv[1]).execute("SELECT key FROM entry")))
'''
to_parent, to_child = os.pipe(), os.pipe()
def tell(pipe):
    os.write(pipe[1], b"x")
def wait(pipe):
    os.read(pipe[0], 1)
store.get_sync("a")
child = os.fork()
if child == 0:
    store.get_sync("b")
    store.flush()
    tell(to_parent)
    wait(to_child)
    store.get_sync("c")
    store.flush()
    tell(to_parent)
    wait(to_child)
    store.get_sync("d")
    sys.exit(0)
wait(to_parent)
store.close()
tell(to_child)
wait(to_parent)
subprocess.run([sys.executable, "-c", SEEN, sys.argv[1]], check=True)
tell(to_child)
_, status = os.waitpid(child, 0)
assert status == 0
subprocess.run([sys.executable, "-c", SEEN, sys.argv[1]], check=True)
"""

    assert run(path, script, options=FORKING) == (
        "['a', 'b', 'c']\n['a', 'b', 'c', 'd']\n",
        "",
        0,
    )


@needs_fork
async def test_a_fork_that_ends_without_a_word_leaves_what_it_cached(
    path: Path, tmp_path: Path
) -> None:
    script = """
store.get_sync("a")
child = os.fork()
if child == 0:
    store.get_sync("b")
    asyncio.run(store.get("c", P))
    # What waits to be written is, before this tells of it.
    store.cache_info()
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0
print([store.get_sync(key).to_bytes()[:1] for key in "abc"], hits())
"""
    ended = run(path, script, options=FORKING)

    assert ended == ("[b'a', b'b', b'c'] 3\n", "", 0)
    assert files_in(tmp_path) == [path.name]
    assert await requests_for(path, "abc") == 0


@needs_fork
def test_the_last_process_to_close_leaves_no_wal(path: Path, tmp_path: Path) -> None:
    script = """
to_child = os.pipe()
store.get_sync("a")
child = os.fork()
if child == 0:
    os.close(to_child[1])
    store.get_sync("b")
    # Until the parent has ended, of which nobody tells: the pipe is closed then.
    os.read(to_child[0], 1)
    store.get_sync("c")
    sys.exit(0)
store.get_sync("b")
"""
    ended = run(path, script, options=FORKING)

    # The child holds our end of the pipe: `run` returns when it has ended, too.
    assert ended == ("", "", 0)
    assert files_in(tmp_path) == [path.name]
    assert order(path) == ["a", "b", "c"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system kills in other ways")
async def test_a_key_whose_writer_was_killed_is_read_from_the_source(path: Path) -> None:
    script = """
class Stopped(MemoryStore):
    def set_sync(self, key, value):
        print("writing", flush=True)
        import threading
        threading.Event().wait()
store = CacheStore(Stopped(), cache_store=SqliteStore(sys.argv[1]), namespace="source")
store.set_sync("a", cpu.Buffer.from_bytes(b"never"))
"""
    process = start(path, script, options=[])
    assert process.stdout is not None
    process.stdout.readline()
    writing = writers(path)
    process.kill()
    process.communicate()
    at_first = await requests_for(path, "a")

    assert writing == 1
    assert at_first == 1
