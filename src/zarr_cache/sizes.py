"""Numbers of bytes as people write and read them."""

from __future__ import annotations

import re
from decimal import Decimal

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
"""What `format_size` writes, each 1024 of the one before."""

# Not a letter alone: G is 2**30 to some programs and 10**9 to others.
_FACTORS = {
    "": 1,
    "b": 1,
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgtp", 1)},
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgtp", 1)},
}

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([A-Za-z]*)\s*", re.ASCII)


def parse_size(text: str) -> int:
    """The number of bytes that `text` says: ``"20 GiB"``, ``"500 MB"``, ``"1.5gib"``, ``"4096"``.

    KiB, MiB, GiB, TiB and PiB are powers of 1024, kB, MB, GB, TB and PB powers of 1000, in letters
    of either case, as ``dask.utils.parse_bytes`` reads them. A fraction of a byte is left out.

    Raises
    ------
    ValueError
        It says none; the message names what was found, and what was expected.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is no size; expected such as '20 GiB', '500 MB' or '4096'")
    return int(Decimal(match[1]) * factor)


def format_size(nbytes: int) -> str:
    """`nbytes` in the largest unit of which there is at least one, as the file's views show it."""
    size = float(nbytes)
    for unit in UNITS:
        # What would be shown as 1024.0 is one of the next unit.
        if abs(size) < 1023.95 or unit == UNITS[-1]:  # noqa: PLR2004
            break
        size /= 1024
    return f"{nbytes} B" if unit == "B" else f"{size:.1f} {unit}"
