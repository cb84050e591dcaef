"""A cache file with something of everything, at times that are known."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.storage import MemoryStore

from tests.fakes import buffer, restart
from zarr_cache import CacheStore, SqliteStore
from zarr_cache.cli import app
from zarr_cache.core.keys import is_metadata

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typer.testing import Result
    from zarr.abc.store import ByteRequest

    from tests.fakes import HeldTime

SIZES = {
    "era5": {"t/c/0": 1000, "t/c/1": 2000, "zarr.json": 100},
    "sst": {"t/c/0": 4096},
}


class Command:
    """``zarr-cache`` in this process, on the file that the environment names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._runner = CliRunner()

    def __call__(self, *arguments: str, typed: str | None = None, **variables: str) -> Result:
        """Run it, with what is typed into it and with more variables of the environment."""
        environment: dict[str, str | None] = {"ZARR_CACHE_PATH": str(self.path), **variables}
        return self._runner.invoke(app, arguments, input=typed, env=environment)

    def json(self, *arguments: str) -> Any:
        """What it prints with ``--json``; it must have ended well."""
        result = self(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def lines(self, *arguments: str) -> list[str]:
        """Lines that it prints; it must have ended well and quietly."""
        result = self(*arguments)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return result.stdout.splitlines()


@pytest.fixture
def command(path: Path) -> Command:
    return Command(path)


@pytest.fixture
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local times are those of UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def value_of(key: str, size: int) -> bytes:
    """So many bytes: of metadata, a document."""
    return b'{"zarr_format": 3}'.ljust(size) if is_metadata(key) else bytes(size)


def caching(path: Path, namespace: str, **options: Any) -> CacheStore:
    """A CacheStore on the file, over a source that has the keys of `SIZES`."""
    sizes = SIZES.get(namespace, {})
    source = MemoryStore({key: buffer(value_of(key, size)) for key, size in sizes.items()})
    return CacheStore(source, cache_store=SqliteStore(path), namespace=namespace, **options)


@pytest.fixture
def filled(path: Path, held_time: HeldTime, _utc: None) -> Path:
    """A file of two sources, read a minute apart from 2023-11-14 22:13:20 UTC on.

    era5: t/c/0, t/c/1, zarr.json, t/c/9 absent; then t/c/0 once more. sst: t/c/0. A fence, and a
    key that was stored.
    """
    era5 = caching(path, "era5", read_only=True)
    for key in ("t/c/0", "t/c/1", "zarr.json", "t/c/9"):
        era5.get_sync(key)
        era5.flush()
        held_time.step(60)
    sst = caching(path, "sst", cache_set_data=False)
    sst.get_sync("t/c/0")
    sst.flush()
    held_time.step(60)
    era5.get_sync("t/c/0")
    held_time.step(60)
    sst.set_sync("written", buffer(b"x"))
    held_time.step(60)
    SqliteStore(path).set_sync("mine", buffer(b"somebody's"))
    restart(era5, sst)
    return path


ROUNDS = 20

IN_ROUNDS = {f"r/c/{number}": 1024 for number in range(30)}
"""What `sampled` reads."""


@pytest.fixture
def sampled(filled: Path) -> Path:
    """The same file, and 30 KiB that were read in `ROUNDS` rounds through a cache of 16 KiB."""
    source = MemoryStore({key: buffer(bytes(size)) for key, size in IN_ROUNDS.items()})
    rounds = CacheStore(
        source, cache_store=SqliteStore(filled), namespace="rounds", max_size="16 KiB"
    )
    for _ in range(ROUNDS):
        for key in IN_ROUNDS:
            rounds.get_sync(key)
    restart(rounds)
    return filled


SPANS: list[ByteRequest] = [
    RangeByteRequest(100, 300),
    RangeByteRequest(4096, 4096 + 70_000),
    SuffixByteRequest(16),
]
"""Three ranges of a shard; the second is in the data file."""


@pytest.fixture
def ranged(filled: Path, held_time: HeldTime) -> Path:
    """The same file, and from 22:21:20 on a minute apart: three ranges of mur's s/c/0."""
    held_time.step(60)
    source = MemoryStore({"s/c/0": buffer(bytes(100_000))})
    mur = CacheStore(source, cache_store=SqliteStore(filled), namespace="mur", persist_ranges=True)
    for span in SPANS:
        mur.get_sync("s/c/0", byte_range=span)
        mur.flush()
        held_time.step(60)
    restart(mur)
    return filled
