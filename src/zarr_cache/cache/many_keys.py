"""Methods of a CacheStore for many keys: reads together, and listings.

Listings are those of the source or, offline, of what is cached.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zarr.abc.store import Store
from zarr.storage import WrapperStore

from zarr_cache.core.ages import EVER, NEVER
from zarr_cache.core.flow import run_async

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterable

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import SourceView


class ManyKeys(WrapperStore[Store]):
    """The part of `CacheStore` for many keys."""

    _view: SourceView

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """The bytes of each request, in order; None for absent keys."""
        reads = (self.get(key, prototype, request) for key, request in key_ranges)
        return await asyncio.gather(*reads)

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        requests = list(requests)
        buffers = await asyncio.gather(*(self.get(*request) for request in requests))
        for (key, _, _), buffer in zip(requests, buffers, strict=True):
            yield key, buffer

    @property
    def supports_listing(self) -> bool:
        """Whether keys can be listed: offline always, otherwise if the source can."""
        return self._view.settings.offline or super().supports_listing

    @property
    def supports_consolidated_metadata(self) -> bool:
        """Whether zarr may consolidate metadata: if the source allows it, as Icechunk does not."""
        return self._store.supports_consolidated_metadata

    async def list(self) -> AsyncIterator[str]:
        """All keys, by the source; offline those that are cached."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """The keys that begin with `prefix`, by the source; offline those that are cached."""
        if self._view.settings.offline:
            for key in sorted(await run_async(_cached(self._view, prefix))):
                yield key
        else:
            async for key in super().list_prefix(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The keys and folders in a folder, by the source; offline those that are cached."""
        if self._view.settings.offline:
            folder = f"{prefix.rstrip('/')}/" if prefix else ""
            keys = await run_async(_cached(self._view, folder))
            for name in sorted({key.removeprefix(folder).partition("/")[0] for key in keys}):
                yield name
        else:
            async for name in super().list_dir(prefix):
                yield name

    async def is_empty(self, prefix: str) -> bool:
        """Whether the folder has no keys, by the source; offline, whether none is cached."""
        if self._view.settings.offline:
            folder = f"{prefix.rstrip('/')}/" if prefix else ""
            return not await run_async(_cached(self._view, folder))
        return await super().is_empty(prefix)

    async def getsize_prefix(self, prefix: str) -> int:
        """Bytes of all values below the folder `prefix`, by the source; offline of those cached.

        Offline, a value of which only ranges are cached counts as nothing.
        """
        if self._view.settings.offline:
            sizes = await run_async(_cached(self._view, prefix))
            return sum(size or 0 for size in sizes.values())
        return await self._store.getsize_prefix(prefix)


def _cached(view: SourceView, prefix: str) -> Flow[dict[str, int | None]]:
    """The keys with this prefix of which something is cached, and the sizes of whole values."""
    view.open_source()
    yield from view.values.ensure_open()
    values = yield from view.values.list_cached(view.namespace, prefix, EVER, NEVER)
    ranges = yield from view.values.list_ranges(view.namespace, prefix, EVER)
    return {**dict.fromkeys(ranges), **{key: size for key, (_, size) in values.items()}}
