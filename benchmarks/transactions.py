"""Write transactions that hits make, as another connection to the file sees them."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from measuring import Row, expect
from systems import OURS, PROTOTYPE, fill, ours, to_bytes
from zarr.storage import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from measuring import Bench

    from zarr_cache import CacheStore

AT_MOST = 20


class Watch:
    """Counts the changes of a file that others have committed."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, autocommit=True)  # noqa: TID251 - somebody else's
        self._version = self._read()
        self.changes = 0

    def _read(self) -> int:
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def look(self) -> None:
        """Notice a commit since the last look; of two in between, one."""
        version = self._read()
        self.changes += version != self._version
        self._version = version

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def sync_hits(store: CacheStore, keys: list[str], look: Callable[[], None]) -> None:
    """Read each key, and look after each."""
    for key in keys:
        expect(key, to_bytes(store.get_sync(key)), key.encode())
        look()


def async_hits(store: CacheStore, keys: list[str], look: Callable[[], None]) -> None:
    """The same on an event loop."""

    async def read() -> None:
        for key in keys:
            expect(key, to_bytes(await store.get(key, PROTOTYPE)), key.encode())
            look()

    asyncio.run(read())


def rows(bench: Bench) -> list[Row]:
    """On each surface; each hit is of another key, the most that can wait to be written."""
    keys = [f"array/c/{number}" for number in range(bench.scale.hits)]
    measured = []
    for surface, read in (("sync", sync_hits), ("async", async_hits)):
        path = bench.folder / f"{surface}.sqlite"
        fill(path, {key: key.encode() for key in keys})
        store = ours(bench, MemoryStore(), surface, namespace="source")
        read(store, keys[:1], lambda: None)
        with closing(Watch(path)) as watch:
            read(store, keys, watch.look)
            store.close()  # what waits is written, and counts
            watch.look()
        what = f"write transactions of {len(keys):,} hits of different keys, {surface}"
        figures = {OURS: [float(watch.changes)]}
        measured.append(Row(what, "transactions", figures, OURS, at_most=AT_MOST))
    return measured
