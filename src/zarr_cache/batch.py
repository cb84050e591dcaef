"""What zarr's fused pipeline is about to read, and has read before."""

from __future__ import annotations

import inspect
from typing import NamedTuple

import numpy as np
from zarr.storage import StorePath

READ = "FusedCodecPipeline.read"
"""The function that asks, once for all chunks of a read, whether their store has sync IO."""

MOST_REMEMBERED = 10_000


class Chunk(NamedTuple):
    """A chunk or shard, and which part of it is read."""

    key: str
    selection: object


def chunks_to_read() -> list[Chunk] | None:
    """The chunks that the fused pipeline is about to read; None if it is not who asks.

    To be called by the property ``_supports_sync_io`` of a store, which zarr asks without saying
    what for. The chunks are in the local variable ``batch`` of the function that asks. With a
    release of zarr that has no such variable this returns None. See docs/decisions/0004.
    """
    frame = inspect.currentframe()
    frame = frame and frame.f_back
    # The property itself, and those of the stores that wrap this one.
    while frame is not None and frame.f_code.co_name.endswith("_supports_sync_io"):
        frame = frame.f_back
    if frame is None or frame.f_code.co_qualname != READ:
        return None
    match frame.f_locals.get("batch"):
        case [(StorePath(), _, _, *_), *_] as batch:
            return [Chunk(byte_getter.path, selection) for byte_getter, _, selection, *_ in batch]
    return None


class ReadsBefore:
    """Which parts of which chunks have been read, as far as is remembered.

    It takes no lock: who goes by it may be wrong.
    """

    def __init__(self) -> None:
        self._hashes: set[int] = set()

    def note(self, chunk: Chunk) -> bool:
        """Remember the chunk; whether it had been noted before."""
        parts = chunk.selection if isinstance(chunk.selection, tuple) else (chunk.selection,)
        hashable = (part.tobytes() if isinstance(part, np.ndarray) else part for part in parts)
        noted = hash((chunk.key, *hashable))
        if noted in self._hashes:
            return True
        if len(self._hashes) >= MOST_REMEMBERED:
            self._hashes.clear()
        self._hashes.add(noted)
        return False
