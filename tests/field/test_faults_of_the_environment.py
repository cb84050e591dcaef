"""What the cache finds in a process, and was not made for: another sqlite3, no home folder.

Seen in containers and in programs that need a newer SQLite than the system has.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import platformdirs
import pytest
from zarr.storage import MemoryStore

from tests.fakes import PROTOTYPE, buffer
from tests.fault.real import is_root, modes_that_apply
from zarr_cache import CacheError, CacheStore, CacheWarning, SqliteStore, StorageError
from zarr_cache.file import connection
from zarr_cache.file.connection import NEEDED, lacks

SOURCE = Path(connection.__file__).parents[1]

SECONDS = 60

# As a program does that needs another SQLite: `stand_in` takes the place of sqlite3.
READ_WITH_STAND_IN = """
import asyncio, importlib, json, logging, sys, types, warnings
import sqlite3 as real
stand_in = types.ModuleType("pysqlite3")
vars(stand_in).update({name: each for name, each in vars(real).items() if name[:2] != "__"})
class Connection(real.Connection):
    pass
stand_in.Connection = Connection
exec(sys.argv[1])
sys.modules["sqlite3"] = stand_in

lines = []
class Lines(logging.Handler):
    def emit(self, record):
        lines.append((record.levelname, record.getMessage()))
logging.getLogger("zarr_cache").addHandler(Lines())
import zarr_cache
imported = list(lines)
from zarr.core.buffer import cpu, default_buffer_prototype as prototype
from zarr.storage import MemoryStore

def read(cache_store):
    source = MemoryStore({"k": cpu.Buffer.from_bytes(b"value")})
    store = zarr_cache.CacheStore(source, cache_store=cache_store, namespace="source")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = [store.get_sync("k", prototype=prototype()) for _ in range(3)]
        got += [asyncio.run(store.get("k", prototype())) for _ in range(3)]
        store.flush()
    return {
        "values": [each.to_bytes().decode() for each in got],
        "warnings": [str(each.message) for each in caught if "cache" in str(each.message)],
        "faults": store.cache_stats()["faults"],
    }

try:
    zarr_cache.SqliteStore(sys.argv[2]).get_sync("k")
except zarr_cache.StorageError as error:
    refused = str(error)
print(json.dumps({
    "imported": imported,
    "refused": refused,
    "file": read(zarr_cache.SqliteStore(sys.argv[2])),
    "memory": read(MemoryStore()),
}))
"""

# What a module lacks, and how it says so.
STAND_INS = {
    "pysqlite3": (
        """
def connect(*args, **options):
    if "autocommit" in options:
        raise TypeError("this function got an unexpected keyword argument 'autocommit'")
    return real.connect(*args, **options)
stand_in.connect = connect
for name in ("blobopen", "setconfig", "setlimit", "autocommit"):
    setattr(Connection, name, None)
""",
        "Connection.autocommit, Connection.blobopen, Connection.setconfig, Connection.setlimit",
    ),
    "a parameter": (
        """
def connect(database, **options):
    raise TypeError("connect() got an unexpected keyword argument 'autocommit'")
stand_in.connect = connect
""",
        "TypeError: connect() got an unexpected keyword argument 'autocommit'",
    ),
    "the codes": (
        """
for name in [name for name in vars(stand_in) if name.startswith("SQLITE_")]:
    delattr(stand_in, name)
""",
        "SQLITE_BUSY, SQLITE_CANTOPEN, ",
    ),
    "codes of errors": (
        """
class Without(Connection):
    def execute(self, *args):
        raise real.OperationalError("database is locked")
stand_in.Connection = Without
""",
        "Error.sqlite_errorcode",
    ),
    "an sqlite of today": (
        """
stand_in.sqlite_version, stand_in.sqlite_version_info = "3.34.1", (3, 34, 1)
""",
        "the SQLite of this Python is 3.34.1: 3.40 or newer is needed",
    ),
}


@pytest.mark.parametrize("lacking", STAND_INS)
def test_another_module_in_the_place_of_sqlite3_costs_a_warning_and_not_the_read(
    lacking: str, path: Path
) -> None:
    """``sys.modules["sqlite3"] = pysqlite3``, the way to a newer SQLite: every read failed."""
    stand_in, named = STAND_INS[lacking]
    found = run(READ_WITH_STAND_IN, stand_in, str(path))

    ((level, line),) = found["imported"]
    assert level == "WARNING"
    assert named in line
    assert named in found["refused"]
    assert str(path) in found["refused"]
    for cache_store in ("file", "memory"):
        its = found[cache_store]
        assert its["values"] == ["value"] * 6
        assert len(its["warnings"]) == 1
        assert named in its["warnings"][0]
        assert its["faults"] >= 1
    assert not path.exists() or path.read_bytes() == b""


def test_the_sqlite3_of_python_lacks_nothing() -> None:
    assert connection.LACKS is None


def test_each_name_of_sqlite3_that_is_used_is_looked_for() -> None:
    pattern = re.compile(r"(?:sqlite3\.|_code\(\")(SQLITE_\w+)")
    used = {
        name for file in SOURCE.rglob("*.py") for name in pattern.findall(file.read_text("utf-8"))
    }

    assert used == {name for name in NEEDED if name.startswith("SQLITE_")}


def test_a_module_without_any_name_is_said_to_lack_all() -> None:
    assert ", ".join(NEEDED) in str(lacks(ModuleType("empty")))


class UnforeseenError(Exception):
    """No error of SQLite, of the system or of the cache."""


def test_whatever_is_raised_while_a_file_is_opened_is_a_fault_of_the_cache(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise UnforeseenError("no such thing")

    source = MemoryStore({"k": buffer(b"value")})
    store = CacheStore(source, cache_store=SqliteStore(path), namespace="source")
    monkeypatch.setattr("zarr_cache.file.opening.open_file", fails)
    with pytest.warns(CacheWarning, match="cannot be opened: UnforeseenError: no such thing"):
        found = store.get_sync("k", prototype=PROTOTYPE)
    with pytest.raises(StorageError, match="cannot be opened: UnforeseenError: no such thing"):
        SqliteStore(path).get_sync("k", prototype=PROTOTYPE)

    assert found is not None
    assert found.to_bytes() == b"value"
    assert store.cache_stats()["faults"] == 1


def test_whatever_is_raised_while_another_connection_is_made_is_a_fault_of_the_cache(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise UnforeseenError("no such thing")

    database = SqliteStore(path).database

    def nested(_: object) -> None:
        # The first connection is in use.
        database.run(lambda _: None)

    database.clock()
    monkeypatch.setattr("zarr_cache.file.opening.connect_to", fails)
    with pytest.raises(StorageError, match="cannot be opened: UnforeseenError: no such thing"):
        database.run(nested)


# Constructs what `docker run -u 54321` would, after the user was changed.
CONSTRUCT = """
import json, os, sys
import zarr_cache
from zarr.storage import MemoryStore
os.setuid(54321)
said = []
for make in (zarr_cache.SqliteStore, lambda: zarr_cache.CacheStore(MemoryStore())):
    try:
        said.append(str(make()))
    except zarr_cache.CacheError as error:
        said.append(f"CacheError: {error}")
print(json.dumps(said))
"""

NO_FOLDER = {
    "no HOME": {},
    "an empty HOME": {"HOME": ""},
    "a relative HOME": {"HOME": "home"},
    "a relative XDG_CACHE_HOME": {"HOME": "/", "XDG_CACHE_HOME": "cache"},
    "a tilde in XDG_CACHE_HOME": {"HOME": "/", "XDG_CACHE_HOME": "~/cache"},
    "a tilde in ZARR_CACHE_PATH": {"ZARR_CACHE_PATH": "~/cache.sqlite"},
}


@pytest.mark.skipif(not is_root(), reason="only root can become a user of any number")
@pytest.mark.parametrize("case", NO_FOLDER)
def test_a_user_without_a_home_folder_is_told_how_to_name_a_file(case: str) -> None:
    """``docker run -u 54321``: "RuntimeError: Could not determine home directory."."""
    said = run(CONSTRUCT, environment=NO_FOLDER[case])

    for each in said:
        assert each.startswith("CacheError: ")
        assert "ZARR_CACHE_PATH" in each
        assert "cache_store=SqliteStore(path)" in each


@pytest.mark.skipif(not is_root(), reason="only root can become a user of any number")
def test_a_user_without_a_home_folder_can_name_a_file(path: Path) -> None:
    assert run(CONSTRUCT, environment={"ZARR_CACHE_PATH": str(path)})[0] == f"sqlite://{path}"


@pytest.mark.parametrize(
    "found", [RuntimeError("no home"), Path("~/.cache/zarr-cache"), Path("cache/zarr-cache")]
)
def test_each_platformdirs_leads_to_the_same_error(
    found: Path | RuntimeError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 4.12 it returned a path that begins with a tilde, then made a folder of it."""

    def user_cache_path(*_: object, **__: object) -> Path:
        if isinstance(found, RuntimeError):
            raise found
        return found

    monkeypatch.setattr(platformdirs, "user_cache_path", user_cache_path)
    with pytest.raises(CacheError, match=r"no folder for the cache .* ZARR_CACHE_PATH .*=Sqli"):
        SqliteStore()


COMMANDS = ["info", "ls", "warm https://example.org/a.zarr", "verify", "clear", "compact"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_without_a_file_says_in_one_line_how_to_name_one(command: str) -> None:
    script = "import sys; from zarr_cache.cli import app; app(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", script, *command.split()],
        # As without any; the user who runs the tests has a home folder.
        env=environment_with({"HOME": "home"}),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "ZARR_CACHE_PATH" in done.stderr
    assert "-f FILE" in done.stderr


def test_a_home_folder_that_may_not_be_written_to_costs_a_warning_that_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``docker run -u 54321`` sets HOME to ``/``, in which such a user may make nothing."""
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    source = MemoryStore({"k": buffer(b"value")})
    store = CacheStore(source, namespace="source")
    with (
        modes_that_apply(),
        pytest.warns(CacheWarning, match=r"Permission denied.*ZARR_CACHE_PATH.*cache_store="),
    ):
        found = store.get_sync("k", prototype=PROTOTYPE)

    assert found is not None
    assert found.to_bytes() == b"value"


def environment_with(variables: dict[str, str]) -> dict[str, str]:
    """That of this process without a home folder, and with these."""
    left_out = {"HOME", "XDG_CACHE_HOME", "ZARR_CACHE_PATH"}
    own = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**own, **variables}


def run(script: str, *arguments: str, environment: dict[str, str] | None = None) -> Any:
    """What another process prints, read as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=None if environment is None else environment_with(environment),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
