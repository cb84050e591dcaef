"""Which bytes a request means, once the size of the value is known."""

from __future__ import annotations

from typing import NamedTuple

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest


def check(byte_range: object) -> None:
    """Refuse what is not one of zarr's byte requests.

    Raises
    ------
    TypeError
        `byte_range` is of another type. The message is zarr's, as its suite expects.
    ValueError
        A position or a length is negative.
    """
    match byte_range:
        case None:
            least = 0
        case RangeByteRequest(start, end):
            least = min(start, end)
        case OffsetByteRequest(offset):
            least = offset
        case SuffixByteRequest(suffix):
            least = suffix
        case _:
            raise TypeError(f"Unexpected byte_range, got {byte_range}.")
    if least < 0:
        raise ValueError(f"byte_range must not be negative, got {byte_range}")


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


def may_be_cached(byte_range: ByteRequest, length: int) -> bool:
    """Whether a response of `length` bytes is as long as the request.

    A longer one is the whole value: some HTTP servers ignore ``Range``, and fsspec returns what
    they send as the part. A shorter one is the end of the value, or less than the request, which
    HTTP allows (RFC 9110, 15.3.7), and a client cannot distinguish them. For an
    `OffsetByteRequest` the length says nothing.
    """
    match byte_range:
        case RangeByteRequest(start, end):
            return length == max(0, end - start)
        case SuffixByteRequest(suffix):
            return length == suffix
        case _:
            return True


class Span(NamedTuple):
    """Which bytes of a value a response has.

    Attributes
    ----------
    start
        The first; None for the end of a value of unknown size.
    size
        How many.
    reaches_end
        Whether the value is known to end with them.
    """

    start: int | None
    size: int
    reaches_end: bool

    @property
    def stop(self) -> int:
        """The byte after the last, if `start` is known."""
        return (self.start or 0) + self.size

    def __str__(self) -> str:
        """``bytes [0, 100)``, or ``the last 16 bytes`` of a value of unknown size."""
        if self.start is None:
            return f"the last {self.size} bytes"
        return f"bytes [{self.start}, {self.stop})"

    def part_for(self, request: ByteRequest) -> tuple[int, int] | None:
        """The interval of these bytes that `request` means; None if not all of it is here."""
        if isinstance(request, SuffixByteRequest):
            is_here = self.reaches_end and (request.suffix <= self.size or self.start == 0)
            return (max(0, self.size - request.suffix), self.size) if is_here else None
        if self.start is None:
            return None
        if isinstance(request, OffsetByteRequest):
            begin, end = request.offset - self.start, self.size
            is_here = self.reaches_end
        else:
            begin, end = request.start - self.start, request.end - self.start
            is_here = end <= self.size or self.reaches_end
        return (begin, min(end, self.size)) if is_here and 0 <= begin < self.size else None


def span_of(request: ByteRequest, size: int) -> Span:
    """Which bytes a response of `size` bytes to the request has."""
    match request:
        case RangeByteRequest(start, _):
            return Span(start, size, reaches_end=False)
        case OffsetByteRequest(start):
            return Span(start, size, reaches_end=True)
        case SuffixByteRequest():
            return Span(None, size, reaches_end=True)
