"""Bytes between zarr's buffers and what SQLite reads and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from zarr.core.buffer import Buffer, default_buffer_prototype

if TYPE_CHECKING:
    from zarr.core.buffer import BufferPrototype

    from zarr_cache.checksum import ByteArray


def to_array(value: Buffer) -> ByteArray:
    """The bytes of `value` in this machine's memory, one after another; a copy only if need be."""
    return np.ascontiguousarray(value.as_numpy_array()).reshape(-1).view(np.uint8)


def to_lasting_array(value: Buffer) -> ByteArray:
    """As `to_array`, but the bytes stay as they are whatever the owner of `value` does to it."""
    array = to_array(value)
    if array.flags.writeable:
        array = array.copy()
        # Whoever is given it as a hit must not change it either.
        array.flags.writeable = False
    return array


def to_buffer(prototype: BufferPrototype | None, data: bytes | ByteArray) -> Buffer:
    """The bytes as a buffer of the type asked for; zarr's default if None."""
    if isinstance(data, np.ndarray):
        return (prototype or default_buffer_prototype()).buffer.from_array_like(data)
    return (prototype or default_buffer_prototype()).buffer.from_bytes(data)
