"""Print which files of zarr_cache a hit, a miss and a set enter, in the order of entering.

Run it as ``python docs/scripts/files_entered.py``. It notes what is executed by ``sys.monitoring``,
but for what the background thread does afterwards.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.storage import MemoryStore

import zarr_cache
from zarr_cache import CacheStore, SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

PACKAGE = Path(zarr_cache.__file__).parent
TOOL = sys.monitoring.PROFILER_ID
BACKGROUND = "zarr-cache"
SMALL = 2000
LARGE = 2**20


@contextmanager
def files_entered() -> Iterator[list[str]]:
    """Fill the list with the files of the package that are entered in the block, each once."""
    entered: list[str] = []

    def note(code: CodeType, _offset: int) -> None:
        if threading.current_thread().name == BACKGROUND:
            return
        path = Path(code.co_filename)
        if path.is_relative_to(PACKAGE):
            name = path.relative_to(PACKAGE).as_posix()
            if name not in entered:
                entered.append(name)

    sys.monitoring.use_tool_id(TOOL, "files_entered")
    sys.monitoring.register_callback(TOOL, sys.monitoring.events.PY_START, note)
    sys.monitoring.set_events(TOOL, sys.monitoring.events.PY_START)
    try:
        yield entered
    finally:
        sys.monitoring.set_events(TOOL, sys.monitoring.events.NO_EVENTS)
        sys.monitoring.register_callback(TOOL, sys.monitoring.events.PY_START, None)
        sys.monitoring.free_tool_id(TOOL)


async def operations(folder: Path) -> dict[str, list[str]]:
    """The files that each operation enters."""
    source = MemoryStore()
    for key, size in {"small": SMALL, "large": LARGE, "missed": SMALL}.items():
        await source.set(key, cpu.Buffer.from_bytes(bytes(size)))
    store = CacheStore(
        source, cache_store=SqliteStore(folder / "cache.sqlite"), namespace="files-entered"
    )
    prototype = default_buffer_prototype()
    for key in ("small", "large"):
        await store.get(key, prototype)
    store.flush()
    found = {}
    for name, key in {"hit of 2 kB": "small", "hit of 1 MiB": "large", "miss": "missed"}.items():
        with files_entered() as found[name]:
            await store.get(key, prototype)
    store.flush()
    with files_entered() as found["set"]:
        await store.set("small", cpu.Buffer.from_bytes(bytes(SMALL)))
    store.close()
    return found


def main() -> None:
    """Print the files of each operation."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(operations(Path(folder)))
    for name, files in found.items():
        print(f"{name}: {len(files)} files")
        for each in files:
            print(f"    {each}")


if __name__ == "__main__":
    main()
