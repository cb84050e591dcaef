"""Whether the next batch of reads will be hits."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zarr_cache.index import Data

HITS_IN_A_ROW = 8
"""After so many hits without a miss the next read is taken to be one."""

METADATA = ("zarr.json", ".zarray", ".zmetadata")
"""How the keys of documents end that tell how many chunks an array has."""


class Forecast:
    """Judges by the last answers, and by how many chunks there are of the arrays that are read.

    A wrong guess costs time, nothing else, so it takes no lock.
    """

    def __init__(self) -> None:
        self._hits = 0
        self._chunks: dict[str, int] = {}

    def hit(self) -> None:
        """An answer was at hand."""
        self._hits += 1

    def miss(self) -> None:
        """The source had to be asked."""
        self._hits = 0

    @property
    def is_hit(self) -> bool:
        """Whether the next answer is likely to be at hand, by the last ones."""
        return self._hits >= HITS_IN_A_ROW

    def learn(self, key: str, document: Data) -> None:
        """Note how many chunks the arrays have that a document tells of."""
        try:
            found = json.loads(bytes(document))
        except ValueError:
            return  # for zarr to complain of
        folder, _, name = key.rpartition("/")
        if isinstance(found, dict):
            self._chunks.update(_chunks(folder, name, found))

    @property
    def entries(self) -> int | None:
        """How many values there are of all arrays known of; None if none is."""
        # Each array has a document besides its chunks.
        return sum(self._chunks.values()) + len(self._chunks) if self._chunks else None


def _chunks(folder: str, name: str, document: dict[str, Any]) -> dict[str, int]:
    """Numbers of stored chunks by the path of their array, as far as they can be told."""
    try:
        match document:
            case {"shape": shape, "chunk_grid": {"configuration": {"chunk_shape": chunk}}}:
                return {folder: _count(shape, chunk)}
            case {"shape": shape, "chunks": chunk} if name == ".zarray":
                return {folder: _count(shape, chunk)}
            case {"consolidated_metadata": {"metadata": dict(nodes)}} | {"metadata": dict(nodes)}:
                below: dict[str, int] = {}
                for path, node in nodes.items():
                    inner, _, last = (
                        path.rpartition("/") if name == ".zmetadata" else (path, "", "")
                    )
                    below |= _chunks(f"{folder}/{inner}".strip("/"), last, node)
                return below
    except (TypeError, ValueError, ZeroDivisionError):
        pass  # no document of zarr's
    return {}


def _count(shape: list[int], chunk: list[int]) -> int:
    return math.prod(-(-length // step) for length, step in zip(shape, chunk, strict=True))
