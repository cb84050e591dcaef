"""Which bytes a request means, once the size of the value is known."""

from __future__ import annotations

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    SuffixByteRequest,
)


def check(byte_range: ByteRequest | None) -> None:
    """Refuse what is not one of zarr's byte requests.

    Raises
    ------
    TypeError
        `byte_range` is of another type. The message is zarr's, its suite asks for it.
    ValueError
        A position or a length is negative.
    """
    match byte_range:
        case None:
            return
        case RangeByteRequest(start, end):
            numbers = (start, end)
        case OffsetByteRequest(offset):
            numbers = (offset,)
        case SuffixByteRequest(suffix):
            numbers = (suffix,)
        case _:
            msg = f"Unexpected byte_range, got {byte_range}."
            raise TypeError(msg)
    if min(numbers) < 0:
        msg = f"byte_range must not be negative, got {byte_range}"
        raise ValueError(msg)


def span(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    """The half-open interval ``[start, stop)`` that the request means in a value of `size` bytes.

    ``0 <= start <= stop <= size``: what lies past the end is cut off, as zarr's own stores do.
    """
    match byte_range:
        case None:
            return 0, size
        case RangeByteRequest(start, end):
            start = min(start, size)
            return start, max(start, min(end, size))
        case OffsetByteRequest(offset):
            return min(offset, size), size
        case SuffixByteRequest(suffix):
            return max(0, size - suffix), size
