"""Parts of a value, several at once, from a source that may not answer what it was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.abc.store import RangeByteRequest, Store
from zarr.storage import WrapperStore

from zarr_cache.core.byte_range import may_be_cached

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class MeasuredStore(WrapperStore[Store]):
    """Notes which parts of values came in another length than they were asked for.

    zarr reads neighbouring ranges in one, and cuts them out of the answer. If that is the whole
    value, since an HTTP server ignored ``Range``, what is cut out has the right lengths and is of
    other places.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._odd: list[RangeByteRequest] = []

    # A WrapperStore has the store that it wraps do it, which would not ask here.
    get_ranges = Store.get_ranges  # type: ignore[assignment]

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As the source answers."""
        return self._measure(byte_range, await self._store.get(key, prototype, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """As the source answers."""
        buffer = super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return self._measure(byte_range, buffer)

    def _measure(self, request: ByteRequest | None, buffer: Buffer | None) -> Buffer | None:
        if isinstance(request, RangeByteRequest) and not (
            buffer is None or may_be_cached(request, len(buffer))
        ):
            self._odd.append(request)
        return buffer

    def is_odd(self, request: ByteRequest | None) -> bool:
        """Whether these bytes may have been cut out of an answer of another length."""
        return isinstance(request, RangeByteRequest) and any(
            odd.start <= request.start and request.end <= odd.end for odd in self._odd
        )


def measured(source: Store, method: str) -> Store:
    """The store whose ``get_ranges``, or ``get_ranges_sync``, is that of `source`.

    A `MeasuredStore` where that is zarr's, and the source's own where its class has one.
    """
    zarrs, forwards = getattr(Store, method), getattr(WrapperStore, method)
    own = getattr(type(source), method)
    while own is forwards is not zarrs and isinstance(source, WrapperStore):
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
        own = getattr(type(source), method)
    return MeasuredStore(source) if own is zarrs else source
