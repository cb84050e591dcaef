"""``zarr-cache export``: a new file with what is cached of one source, and what is refused."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import MemoryStore

from tests.fakes import (
    PROTOTYPE,
    CountingStore,
    buffer,
    cached_keys,
    open_file,
    restart,
)
from tests.fault.real import mode
from tests.systems import needs_data_file
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.core.byte_range import span
from zarr_cache.core.errors import FileFullError
from zarr_cache.file.invalidation import Markers
from zarr_cache.index.admit import EVICT_OLD_VALUE
from zarr_cache.inspect import export

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from tests.cli.conftest import Command
    from tests.fakes import HeldTime

ROOT = Path(__file__).parents[2]

VALUES = {
    "zarr.json": b"{}",
    "empty": b"",
    "c/0": bytes(range(256)) * 4,
    "c/1": bytes(range(251)) * 400,
    "c/2": bytes(range(253)) * 20_000,
    "c/3": bytes(range(241)),
    "shard/0": bytes(range(247)) * 1000,
    "shard/1": bytes(range(239)),
}
"""``c/1`` and ``c/2`` are in the data file, the latter in two parts. Of shards, ranges are read."""

WHOLE = [key for key in VALUES if not key.startswith("shard/")]

ABSENT = "c/9"

RANGES: list[tuple[str, ByteRequest]] = [
    ("shard/0", RangeByteRequest(100, 300)),
    ("shard/0", RangeByteRequest(1000, 71_000)),
    ("shard/0", OffsetByteRequest(200_000)),
    ("shard/1", SuffixByteRequest(16)),
]
"""The second is in the data file."""

ENTRIES = len(WHOLE) + 1 + len(RANGES)

OPTIONS: dict[str, Any] = {
    "namespace": "source",
    "read_only": True,
    "persist_ranges": True,
    "max_age_absent_seconds": "infinity",
}


@pytest.fixture
def old(path: Path, held_time: HeldTime) -> Path:
    """A file with values, an absence and ranges of a source, each read at another time."""
    source = MemoryStore({key: buffer(value) for key, value in VALUES.items()})
    store = CacheStore(source, cache_store=SqliteStore(path), **OPTIONS)
    for key in (*WHOLE, ABSENT):
        store.get_sync(key)
        store.flush()
        held_time.step(60)
    for key, request in RANGES:
        store.get_sync(key, byte_range=request)
        store.flush()
        held_time.step(60)
    store.get_sync("c/1")
    restart(store)
    return path


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Where the new file is to be, in another folder."""
    folder = tmp_path / "new"
    folder.mkdir()
    return folder / "new.sqlite"


ROWS = """
SELECT key, kind, start, stop, size, stored_at, used_at, revision, writes_in_flight, checksum
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = ?)
ORDER BY key, start
"""


def rows(path: Path, namespace: str = "source") -> list[Any]:
    """The entries of a namespace, with all their facts."""
    with open_file(path) as db:
        return db.execute(ROWS, [namespace]).fetchall()


def values_of(path: Path, key: str) -> list[bytes]:
    """The bytes of the entries of the key, by their start."""
    statement = "SELECT data FROM value JOIN entry ON id = entry WHERE key = ? ORDER BY start"
    with open_file(path) as db:
        return [data for (data,) in db.execute(statement, [key])]


def failure(command: Command, *arguments: object) -> str:
    """The one line that an export prints as it fails."""
    result = command("export", *map(str, arguments))
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("zarr-cache: ").strip()


@pytest.mark.usefixtures("old")
def test_the_new_file_serves_what_was_cached_without_a_request(command: Command, new: Path) -> None:
    command.lines("export", str(new))
    source = CountingStore(MemoryStore())
    store = CacheStore(source, cache_store=SqliteStore(new), **OPTIONS)

    for key in WHOLE:
        found = store.get_sync(key, prototype=PROTOTYPE)
        assert found is not None
        assert found.to_bytes() == VALUES[key]
    for key, request in RANGES:
        found = store.get_sync(key, prototype=PROTOTYPE, byte_range=request)
        start, stop = span(request, len(VALUES[key]))
        assert found is not None
        assert found.to_bytes() == VALUES[key][start:stop]
    assert store.get_sync(ABSENT, prototype=PROTOTYPE) is None
    assert source.requests == {}


def test_ages_and_uses_are_those_of_the_old_file(command: Command, old: Path, new: Path) -> None:
    command.lines("export", str(new))

    assert rows(new) == rows(old)
    assert len(rows(new)) == ENTRIES


@pytest.mark.usefixtures("old")
def test_nothing_is_wrong_with_the_new_file(command: Command, new: Path) -> None:
    command.lines("export", str(new))

    assert command.lines("verify", "--cache-file", str(new)) == [f"{new}: no problem found"]


@pytest.mark.usefixtures("old")
def test_the_least_recently_used_of_the_old_file_is_evicted_first(
    command: Command, new: Path
) -> None:
    command.lines("export", str(new))
    order = {}
    for name in (command.path, new):
        listed = command.json("ls", "--sort", "used", "--kind", "value", "--cache-file", str(name))
        order[name] = [each["key"] for each in listed]
    command.lines("evict", "--prefix", "c/", "--to-size", "102000", "--cache-file", str(new))

    assert order[new] == order[command.path] == ["c/1", "c/3", "c/2", "c/0", "empty", "zarr.json"]
    assert cached_keys(new) == {"zarr.json", "empty", "c/1", "c/3"}


def test_the_old_file_stays_as_it_is(command: Command, old: Path, new: Path) -> None:
    before = {each.name: each.read_bytes() for each in old.parent.glob("cache.sqlite*")}
    command.lines("export", str(new))

    assert {each.name: each.read_bytes() for each in old.parent.glob("cache.sqlite*")} == before


def test_it_needs_no_lock_of_the_old_file(command: Command, old: Path, new: Path) -> None:
    before = rows(old)
    with open_file(old) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM entry")
        command.lines("export", str(new))
        other.rollback()

    assert rows(new) == before


def test_an_old_file_that_cannot_be_written_is_exported(
    command: Command, old: Path, new: Path
) -> None:
    with mode(old, 0o400), mode(old.parent, 0o500):
        command.lines("export", str(new))

    assert rows(new) == rows(old)


@needs_data_file
@pytest.mark.usefixtures("old")
def test_two_files_are_made_that_only_their_owner_may_read(command: Command, new: Path) -> None:
    command.lines("export", str(new))
    made = sorted(new.parent.iterdir())

    assert [each.name for each in made] == ["new.sqlite", "new.sqlite-data"]
    assert [each.stat().st_mode & 0o777 for each in made] == [0o600, 0o600]


def test_it_reports_entries_and_bytes(command: Command, old: Path, new: Path) -> None:
    nbytes = sum(len(VALUES[key]) for key in WHOLE) + 16 + 200 + 70_000 + 47_000
    reported = command.json("export", str(new))

    assert reported == {
        "path": str(old),
        "new_path": str(new),
        "namespace": "source",
        "entries": ENTRIES,
        "bytes": nbytes,
        "damaged_entries": 0,
    }


def test_it_prints_one_line(command: Command, filled: Path, new: Path) -> None:
    assert filled
    assert command.lines("export", str(new), "--namespace", "era5") == [
        f"{new}: 4 entries (3.0 KiB) of era5"
    ]


def test_only_responses_of_the_source_are_copied(command: Command, filled: Path, new: Path) -> None:
    command.lines("export", str(new), "--namespace", "sst")
    listed = command.json("ls", "--cache-file", str(new))

    assert "tombstone" in {row[1] for row in rows(filled, "sst")}
    assert rows(new, "sst") == [row for row in rows(filled, "sst") if row[1] == "value"]
    assert {each["namespace"] for each in listed} == {"sst"}


def test_entries_are_copied_in_steps_of_a_few(
    command: Command, old: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MAX_ENTRIES", 5)
    monkeypatch.setattr(export, "MAX_BYTES", 70_000)
    batches = []

    def insert(connection: Any, namespace: str, entries: Any, now_ns: int) -> None:
        batches.append([each.response.size for each in entries])
        original(connection, namespace, entries, now_ns)

    original = export.insert
    monkeypatch.setattr(export, "insert", insert)
    command.lines("export", str(new))

    assert rows(new) == rows(old)
    assert all(len(batch) <= 5 and sum(batch[:-1]) < 70_000 for batch in batches)
    assert len(batches) > ENTRIES // 5 + 1


def test_ranges_are_copied_beside_an_older_value_of_their_key(
    command: Command, path: Path, new: Path, held_time: HeldTime
) -> None:
    # One transaction removes 64 stale values, and that of the shard is the last.
    small = {f"c/{number}": buffer(b"x") for number in range(64)}
    source = MemoryStore(small | {"shard/0": buffer(VALUES["shard/0"])})
    lasting = CacheStore(source, cache_store=SqliteStore(path), **OPTIONS)
    for key in (*small, "shard/0"):
        lasting.get_sync(key)
    lasting.flush()
    held_time.step(100)
    store = CacheStore(source, cache_store=SqliteStore(path), max_age_seconds=60, **OPTIONS)
    store.get_sync("shard/0", byte_range=RangeByteRequest(100, 300))
    restart(store, lasting)
    command.lines("export", str(new))

    assert rows(new) == rows(path)
    assert [row[:3] for row in rows(new)] == [("shard/0", "value", -1), ("shard/0", "range", 100)]


def test_a_step_begins_where_the_last_one_ended(path: Path) -> None:
    SqliteStore(path).set_sync("k", buffer(b"value"))
    parameters = dict.fromkeys(["namespace", "key", "start", "limit"])
    with open_file(path) as db:
        plan = db.execute(f"EXPLAIN QUERY PLAN {export.NEXT}", parameters).fetchall()
    (walk,) = [step for *_, step in plan if " entry " in step]

    assert walk.endswith("(namespace=? AND (key,start)>(?,?))")
    assert not [step for *_, step in plan if "ORDER BY" in step]


def test_a_damaged_entry_is_left_out_and_counted(command: Command, old: Path, new: Path) -> None:
    with open_file(old) as db, db:
        db.execute("UPDATE value SET data = zeroblob(1024) WHERE length(data) = 1024")
        db.execute("UPDATE entry SET stored_at = stored_at + 1 WHERE start = 100")
    lines = command.lines("export", str(new))
    restart(SqliteStore(old))
    command("verify", "--repair")

    assert lines[1] == (
        "2 damaged entries are left out; `zarr-cache verify --repair` removes what is damaged"
    )
    assert rows(new) == rows(old)
    assert len(rows(new)) == ENTRIES - 2


def test_the_last_use_is_the_time_of_the_request_if_it_is_wrong(
    command: Command, old: Path, new: Path
) -> None:
    with open_file(old) as db, db:
        db.execute("UPDATE entry SET used_at = -1 WHERE key = 'c/0'")
    command.lines("export", str(new))
    command("evict", "--prefix", "c/0")

    assert [row[6] - row[5] for row in rows(new) if row[0] == "c/0"] == [0]


def test_an_entry_that_is_removed_meanwhile_is_not_copied(
    command: Command, old: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def next_rows(*arguments: Any) -> Any:
        found = original(*arguments)
        command("evict", "--prefix", "c/")
        command("evict", "--prefix", "shard/")
        return found

    original = export.next_rows
    monkeypatch.setattr(export, "next_rows", next_rows)
    (line,) = command.lines("export", str(new))

    assert line.startswith(f"{new}: 2 entries ")
    assert rows(new) == rows(old)


def test_a_value_that_is_evicted_for_its_successor_is_not_copied_as_an_absence(
    command: Command, old: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def next_rows(*arguments: Any) -> Any:
        found = original(*arguments)
        with open_file(old) as db, db:
            for row in found:
                db.execute(EVICT_OLD_VALUE, {"entry": row.id})
                db.execute("DELETE FROM value WHERE entry = ? AND ? = -1", [row.id, row.start])
                db.execute("DELETE FROM extent WHERE entry = ? AND ? = -1", [row.id, row.start])
        return found

    original = export.next_rows
    monkeypatch.setattr(export, "next_rows", next_rows)
    command.lines("export", str(new))

    assert {row[1] for row in rows(new)} == {"absent", "range"}
    assert [row[0] for row in rows(new) if row[1] == "absent"] == [ABSENT]


@pytest.mark.parametrize("is_written", [True, False])
@pytest.mark.parametrize("step", [1, 2, 64])
@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
def test_ranges_of_two_versions_of_a_value_are_not_mixed(
    command: Command,
    path: Path,
    new: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_written: bool,
    step: int,
    at: int,
) -> None:
    kept = {"shard": buffer(b"1" * 10), "zarr.json": buffer(b"{}")}
    settings = OPTIONS | {"read_only": False, "cache_set_data": False}
    store = CacheStore(MemoryStore(kept), cache_store=SqliteStore(path), **settings)

    def read_ranges() -> None:
        for start in range(0, 10, 2):
            store.get_sync("shard", byte_range=RangeByteRequest(start, start + 2))
        store.flush()

    def replace() -> None:
        if is_written:
            store.set_sync("shard", buffer(b"2" * 10))
        else:
            # The next ranges get the ids of those that are evicted.
            command("evict", "--prefix", "shard")
            kept["shard"] = buffer(b"2" * 10)
        read_ranges()

    def read(*arguments: Any) -> Any:
        if next(calls) == at:
            replace()
        return original(*arguments)

    store.get_sync("zarr.json")
    read_ranges()
    original, calls = export.read, itertools.count(1)
    monkeypatch.setattr(export, "MAX_ENTRIES", step)
    monkeypatch.setattr(export, "read", read)
    command.lines("export", str(new))

    assert values_of(new, "shard") == [b"11"] * (at - 1)
    assert values_of(new, "zarr.json") == [b"{}"]


def test_the_only_source_need_not_be_named(command: Command, old: Path, new: Path) -> None:
    SqliteStore(old).set_sync("mine", buffer(b"stored"))
    with_private = CacheStore(MemoryStore({"k": buffer(b"x")}), cache_store=SqliteStore(old))
    with_private.get_sync("k")
    with_private.flush()

    assert command.json("export", str(new))["namespace"] == "source"


PRIVATE = (
    "'private:0123:1' is the name of a source in one process, and no other process can read what "
    "is cached of it"
)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "several sources are cached; name one with --namespace: 'era5', 'sst'"),
        (["--namespace", "mur"], "nothing is cached of 'mur'; the sources are: 'era5', 'sst'"),
        (["--namespace", ""], "nothing is cached of ''; the sources are: 'era5', 'sst'"),
        (
            ["--namespace", "private:0123:1"],
            PRIVATE,
        ),
    ],
)
def test_what_is_no_source_of_the_file_is_refused(
    command: Command, filled: Path, new: Path, arguments: list[str], line: str
) -> None:
    assert failure(command, new, *arguments) == f"{filled}: {line}"
    assert list(new.parent.iterdir()) == []


def test_a_file_of_which_no_other_process_could_read_anything_is_refused(
    command: Command, path: Path, new: Path
) -> None:
    SqliteStore(path).set_sync("mine", buffer(b"stored"))

    assert failure(command, new) == f"{path}: nothing is cached that another process could read"


@pytest.fixture
def _nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is refused before hours of copying."""

    def copy(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(export, "copy", copy)


@pytest.mark.usefixtures("old", "_nothing_is_copied")
@pytest.mark.parametrize("ending", ["", "-data", "-wal", "-shm"])
def test_a_file_that_is_there_is_not_replaced(command: Command, new: Path, ending: str) -> None:
    there = new.with_name(f"{new.name}{ending}")
    there.write_bytes(b"of another program")

    assert failure(command, new) == f"{there}: exists already; delete it, or name another file"
    assert [each.read_bytes() for each in new.parent.iterdir()] == [b"of another program"]


@pytest.mark.usefixtures("old")
def test_a_marker_that_would_invalidate_the_new_file_is_not_replaced(
    command: Command, new: Path
) -> None:
    Markers(new).mark("source")

    assert failure(command, new).endswith(": exists already; delete it, or name another file")


@pytest.mark.usefixtures("old")
def test_a_file_that_is_made_meanwhile_is_not_replaced(
    command: Command, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(*arguments: Any) -> Any:
        new.write_bytes(b"of another program")
        return original(*arguments)

    original = export.copy
    monkeypatch.setattr(export, "copy", copy)

    assert failure(command, new) == f"{new}: exists already; delete it, or name another file"
    assert [each.read_bytes() for each in new.parent.iterdir()] == [b"of another program"]


def test_a_file_onto_itself_is_refused(command: Command, old: Path) -> None:
    assert failure(command, old) == f"{old}: exists already; delete it, or name another file"


@pytest.mark.usefixtures("old")
def test_a_folder_that_does_not_exist_is_reported(command: Command, new: Path) -> None:
    nowhere = new.parent / "nowhere" / "new.sqlite"

    assert failure(command, nowhere) == f"{nowhere}: No such file or directory"


UNRECORDED = (
    "a write to 'source' could not be recorded, and nothing that is cached of it is used; it is "
    "removed when a CacheStore reads this source and can write to the file"
)


@pytest.mark.usefixtures("_nothing_is_copied")
def test_a_source_with_a_write_that_could_not_be_recorded_is_refused(
    command: Command, old: Path, new: Path
) -> None:
    Markers(old).mark("source")

    assert failure(command, new) == f"{old}: {UNRECORDED}"


def test_a_write_that_could_not_be_recorded_meanwhile_ends_the_export(
    command: Command, old: Path, new: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(*arguments: Any) -> Any:
        Markers(old).mark("source")
        return original(*arguments)

    original = export.copy
    monkeypatch.setattr(export, "copy", copy)

    assert failure(command, new) == f"{old}: {UNRECORDED}"
    assert list(new.parent.iterdir()) == []


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("step", ["insert", "_move"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), FileFullError("disk full")], ids=repr)
def test_what_was_begun_is_removed(
    command: Command,
    new: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BaseException,
) -> None:
    def fail(*arguments: Any) -> None:
        original(*arguments)
        raise error

    owner, name = (export, "insert") if step == "insert" else (Path, "rename")
    original = getattr(owner, name)
    monkeypatch.setattr(owner, name, fail)
    result = command("export", str(new))
    is_interrupt = isinstance(error, KeyboardInterrupt)

    assert result.exit_code == (130 if is_interrupt else 1)
    assert (f"stopped: {new} was not made\n" == result.stderr) == is_interrupt
    assert list(new.parent.iterdir()) == []


KILLED = """
import os, signal, sys
from zarr_cache.cli import app
from zarr_cache.index.admit import EVICT_OLD_VALUE
from zarr_cache.inspect import export

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(*{"insert": (export, "checkpoint"), "rename": (export.Path, "rename")}[sys.argv[1]], die)
app(sys.argv[2:])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system kills in other ways")
@pytest.mark.parametrize("step", ["insert", "rename"])
def test_a_killed_process_leaves_nothing_under_the_name(
    command: Command, old: Path, new: Path, step: str
) -> None:
    arguments = ["export", str(new), "--cache-file", str(old)]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, step, *arguments], check=False, cwd=ROOT, timeout=60
    )
    (left,) = new.parent.iterdir()
    command.lines("export", str(new))

    assert killed.returncode == -signal.SIGKILL
    assert left.name.startswith("new.sqlite.export-")
    assert rows(new) == rows(old)
