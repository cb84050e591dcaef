"""CRC32C over the bytes of an entry and over what the entry claims to be.

The checksum of an entry's facts is the seed for the checksum of each block of its bytes. A block is
right only together with the facts that it was written with, so bytes under another key, of another
source, of another size or age are as wrong as a flipped bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    type ByteArray = npt.NDArray[np.uint8]

BLOCK = 64 * 1024
"""Bytes under one checksum: a range read verifies up to this much more than it was asked for."""


def of_facts(namespace: str, key: str, kind: str, size: int, stored_at: int) -> int:
    """The checksum of what an entry claims to be: an unsigned 32-bit integer."""
    claim = f"{namespace}\0{key}\0{kind}\0{size}\0{stored_at}"
    return int(google_crc32c.value(claim.encode()))


def of_value(seed: int, data: ByteArray) -> int:
    """The checksum of the facts in `seed` and a whole value kept elsewhere than in this file."""
    return int(google_crc32c.extend(seed, data)) if data.size else seed


def of_blocks(seed: int, first: int, data: ByteArray) -> bytes:
    """The checksums of the blocks in `data`, four bytes each, little-endian.

    Parameters
    ----------
    seed
        Checksum of the facts, from `of_facts`.
    first
        Number of the block in the value that `data` begins with: a block in another place is wrong.
    data
        Bytes from the beginning of a block on. The last block may be short.
    """
    checksums = [
        google_crc32c.extend((seed + block) & 0xFFFF_FFFF, data[start : start + BLOCK])
        for block, start in enumerate(range(0, data.size, BLOCK), first)
    ]
    return np.array(checksums, dtype="<u4").tobytes()
