"""The bar of `warm` in a notebook, by a kernel of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
import pytest
from nbclient import NotebookClient

import zarr_cache

if TYPE_CHECKING:
    from nbformat import NotebookNode

CHUNKS = 40

WARM = f"""
import asyncio
import zarr
from zarr.storage import MemoryStore, WrapperStore
from zarr_cache import CacheStore, SqliteStore, warm

class Slow(WrapperStore):
    _supports_sync_io = False

    def _with_store(self, store):
        return Slow(store)

    async def get(self, *args, **settings):
        # So that the bar is seen on its way.
        await asyncio.sleep(0.02)
        return await self._store.get(*args, **settings)

memory = MemoryStore()
zarr.create_array(memory, shape=({CHUNKS},), chunks=(1,), dtype="i4", compressors=None)[:] = 1
store = CacheStore(Slow(memory), cache_store=SqliteStore("cache.sqlite"))
array = zarr.open_array(store, mode="r")
"""


class Watched(NotebookClient):
    """Runs a notebook, and notes each text that is displayed or takes the place of another.

    Attributes
    ----------
    shown
        The texts, one after the other, without colours.
    """

    shown: list[str]

    def process_message(self, msg: dict[str, Any], cell: NotebookNode, cell_index: int) -> Any:
        if msg["msg_type"] in {"display_data", "update_display_data"}:
            text = msg["content"]["data"]["text/plain"]
            self.shown.append(re.sub(r"\x1b\[[0-9;]*m", "", text).strip())
        return super().process_message(msg, cell, cell_index)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the kernel keeps all that it writes."""
    for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", str(Path(zarr_cache.__file__).parents[1]))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    return tmp_path


def run(folder: Path, *cells: str) -> Watched:
    # nbformat's functions have no types.
    v4: Any = nbformat.v4
    notebook = v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells])
    client = Watched(notebook, timeout=60, resources={"metadata": {"path": str(folder)}})
    client.shown = []
    client.execute()
    return client


def test_a_notebook_shows_chunks_bytes_rate_and_time(folder: Path) -> None:
    client = run(folder, WARM, "report = warm(array, max_concurrency=2)")

    assert client.shown[0].startswith("warming ")
    assert len({text.split(" chunks ")[0] for text in client.shown}) > 2
    last = rf" {CHUNKS}/{CHUNKS} chunks \d+ B, \d+ B/s 0:00:\d\d left 0:00:00$"
    assert re.search(last, client.shown[-1])
    # One output, which stays in the notebook as it was in the end.
    (output,) = client.nb.cells[-1].outputs
    assert f"{CHUNKS}/{CHUNKS}" in output.data["text/html"]


@pytest.mark.parametrize("progress", [True, False])
def test_a_notebook_shows_a_bar_on_request_or_none(folder: Path, progress: bool) -> None:
    client = run(folder, WARM, f"report = warm(array, progress={progress})")

    assert len(client.nb.cells[-1].outputs) == progress
