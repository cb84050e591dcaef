"""Keys: which are metadata, their prefixes as ranges of an index, and which SQLite can keep."""

from __future__ import annotations

import sys

METADATA = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})
"""The last parts of the keys of Zarr's metadata, of formats 2 and 3."""

# Code points that UTF-8 does not encode.
FIRST_SURROGATE, AFTER_SURROGATES = 0xD800, 0xE000


def is_metadata(key: str) -> bool:
    """Whether the key is one of Zarr's metadata."""
    return key.rpartition("/")[2] in METADATA


def is_storable(key: str) -> bool:
    """Whether the key can be in the file: text that UTF-8 encodes, which not every file name is."""
    if key.isascii():
        return True
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True


def prefix_end(prefix: str) -> str | None:
    """The least key after all keys that begin with `prefix`, or None when there is none.

    Not LIKE, to which ``_`` and ``%`` are wildcards and case is nothing. SQLite compares text by
    its UTF-8 bytes, which sort as the code points do.
    """
    for length in range(len(prefix), 0, -1):
        code_point = ord(prefix[length - 1]) + 1
        if code_point == FIRST_SURROGATE:
            code_point = AFTER_SURROGATES
        if code_point <= sys.maxunicode:
            return prefix[: length - 1] + chr(code_point)
    return None
