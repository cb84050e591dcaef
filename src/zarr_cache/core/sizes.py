"""Numbers of bytes as people write and read them."""

from __future__ import annotations

import re
from decimal import Decimal
from numbers import Integral

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


MAX_SIZE = 2**63 - 1
"""The largest integer of SQLite."""


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


def checked(name: str, size: object) -> int | None:
    """`size` in bytes, if it is one; None for no limit.

    Raises
    ------
    ValueError
        It is negative or above `MAX_SIZE`, or a string that says no size; the message names it.
    TypeError
        It is neither a whole number nor a string nor None.
    """
    if size is None:
        return None
    expected = (
        f"{name} must be a whole number of bytes, a string such as '20 GiB' or '500 MB', or None"
    )
    if isinstance(size, str):
        try:
            nbytes = parse_size(size)
        except ValueError as error:
            raise ValueError(f"{expected}, got {size!r}") from error
    elif isinstance(size, bool) or not isinstance(size, Integral):
        raise TypeError(f"{expected}, got {size!r}")
    else:
        nbytes = int(size)
    if nbytes < 0:
        raise ValueError(f"{name} must not be negative, got {size!r}")
    if nbytes > MAX_SIZE:
        raise ValueError(f"{name} must be at most {MAX_SIZE}, got {size!r}: pass None for no limit")
    return nbytes


def format_size(nbytes: int) -> str:
    """`nbytes` in the largest unit of which there is at least one, as the file's views show it."""
    size = float(nbytes)
    for unit in UNITS:
        # What would be shown as 1024.0 is one of the next unit.
        if abs(size) < 1023.95 or unit == UNITS[-1]:  # noqa: PLR2004
            break
        size /= 1024
    return f"{nbytes} B" if unit == "B" else f"{size:.1f} {unit}"
