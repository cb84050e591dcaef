"""XXH3 over the bytes of an entry and over what the entry claims to be.

The checksum of an entry's facts, its identity checksum, is the seed of the checksum of each block
of its bytes. A block is right only together with the facts that it was written with, so bytes under
another key, of another source, of another size or age are as wrong as a flipped bit. Checksums
detect damage, not malice: a program that can write to the file can compute them as well.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from xxhash import xxh3_64_digest, xxh3_64_intdigest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    type ByteArray = npt.NDArray[np.uint8]


BLOCK = 64 * 1024
"""Bytes under one checksum: a range read verifies up to this much more than it returns."""

LENGTH = 8
"""Bytes of a checksum."""


def length_of(nbytes: int) -> int:
    """Bytes of the checksums of so many bytes."""
    return LENGTH * -(-nbytes // BLOCK)


class DamagedValueError(Exception):
    """The bytes of an entry are not those that were written with its facts."""


def of_facts(namespace: str, key: str, kind: str, size: int, stored_at: int) -> int:
    """The checksum of what an entry claims to be: 63 bits, which SQLite's integers hold."""
    claim = f"{namespace}\0{key}\0{kind}\0{size}\0{stored_at}"
    # A key may have surrogates: what came from a file name that is not UTF-8.
    return xxh3_64_intdigest(claim.encode(errors="surrogatepass")) >> 1


# Ranges of a value are looked up together, and have one version.
@lru_cache(maxsize=256)
def of_version(validator: str | None, confirmed_at: int | None) -> int:
    """What the validator of an entry, and when it was confirmed, change of the checksum of its row.

    The checksum of a row is that of its facts, XOR this. It is 0 for a row without them. Blocks are
    seeded by the facts alone, so that a version is confirmed without a look at its bytes.
    """
    if validator is None and confirmed_at is None:
        return 0
    return xxh3_64_intdigest(f"{validator}\0{confirmed_at}".encode(errors="surrogatepass")) >> 1


def of_blocks(identity_checksum: int, first: int, data: bytes | ByteArray) -> bytes:
    """The checksums of the blocks in `data`, `LENGTH` bytes each, big-endian.

    `first` is the number of the block that `data` begins with: a block in another place is wrong.
    """
    if 0 < len(data) <= BLOCK:
        return xxh3_64_digest(data, identity_checksum + first)
    view = memoryview(data)
    return b"".join(
        [
            xxh3_64_digest(view[start : start + BLOCK], identity_checksum + block)
            for block, start in enumerate(range(0, len(view), BLOCK), first)
        ]
    )
