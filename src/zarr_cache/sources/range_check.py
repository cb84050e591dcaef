"""Which ranges of a batch may hold other bytes than were requested, and their versions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.abc.store import RangeByteRequest, Store
from zarr.storage import WrapperStore

from zarr_cache.core.byte_range import may_be_cached

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.sources.source_reader import Fetched, SourceReader


class RangeCheckedStore(WrapperStore[Store]):
    """A source that records for which requests it sent a wrong number of bytes.

    zarr reads neighbouring ranges in one request, and slices the response. If an HTTP server
    ignored ``Range`` and sent the whole value, the slices have the right lengths and the wrong
    bytes. Only the length of the response shows it.

    Parameters
    ----------
    reader
        The reader of the source. With it each of zarr's requests is made through the reader, and
        the buffers are in host memory, whatever the prototype.
    only
        The version of which all bytes must be: see `SourceReader.fetch`.
    with_version
        Whether the reader makes requests for validators alone.

    Attributes
    ----------
    validators
        Of the responses with bytes, through the reader. None stands for one without a validator.
    is_torn
        Whether a response may have bytes of two versions.
    """

    def __init__(
        self,
        store: Store,
        reader: SourceReader | None = None,
        only: str | None = None,
        *,
        with_version: bool = True,
    ) -> None:
        super().__init__(store)
        self._reader, self._only, self._with_version = reader, only, with_version
        self._mismatches: list[RangeByteRequest] = []
        self.validators: set[str | None] = set()
        self.is_torn = False

    # A WrapperStore calls the `get_ranges` of the store that it wraps, which would bypass `get`.
    get_ranges = Store.get_ranges  # type: ignore[assignment]

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The source's response, after its length is checked."""
        if self._reader is None:
            return self._check(byte_range, await self._store.get(key, prototype, byte_range))
        fetched = await self._reader.fetch(
            key, byte_range, only=self._only, with_version=self._with_version
        )
        return self._check(byte_range, self._record(fetched))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The source's response, after its length is checked."""
        if self._reader is None:
            buffer = super().get_sync(key, prototype=prototype, byte_range=byte_range)
            return self._check(byte_range, buffer)
        fetched = self._reader.fetch_sync(
            key, byte_range, only=self._only, with_version=self._with_version
        )
        return self._check(byte_range, self._record(fetched))

    def _record(self, fetched: Fetched) -> Buffer | None:
        if fetched.buffer is not None:
            self.validators.add(fetched.validator)
            self.is_torn = self.is_torn or fetched.is_torn
        return fetched.buffer

    def _check(self, request: ByteRequest | None, buffer: Buffer | None) -> Buffer | None:
        if isinstance(request, RangeByteRequest) and not (
            buffer is None or may_be_cached(request, len(buffer))
        ):
            self._mismatches.append(request)
        return buffer

    def may_be_wrong(self, request: ByteRequest | None) -> bool:
        """Whether the bytes of the request may come from a response of another length."""
        return isinstance(request, RangeByteRequest) and any(
            sent.start <= request.start and request.end <= sent.end for sent in self._mismatches
        )


def with_range_check(
    source: Store,
    method: str,
    reader: SourceReader | None = None,
    only: str | None = None,
    *,
    with_version: bool = True,
) -> Store:
    """The store to call ``get_ranges`` or ``get_ranges_sync`` (the `method`) on.

    A `RangeCheckedStore` if there is a reader, or if the source inherits zarr's method, which
    merges and slices; the source itself if its class has its own.

    If the source has another version than `only`, or none, ``get_ranges`` raises a group with a
    `ChangedError` in it, and ``get_ranges_sync`` the `ChangedError`.
    """
    if reader is not None:
        return RangeCheckedStore(source, reader, only, with_version=with_version)
    inherited, forwarding = getattr(Store, method), getattr(WrapperStore, method)
    own = getattr(type(source), method)
    while own is forwarding is not inherited and isinstance(source, WrapperStore):
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
        own = getattr(type(source), method)
    return RangeCheckedStore(source) if own is inherited else source
