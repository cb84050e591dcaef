"""The source of the demo: any URL that fsspec can read, opened read-only."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from zarr.storage import FsspecStore

from zarr_cache.cli.demo.server import Traffic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp


class HttpClient:
    """Creates the HTTP sessions of an fsspec file system, counts their requests, and closes them.

    fsspec closes no session on an event loop other than its own; aiohttp then warns when the
    process ends.
    """

    def __init__(self) -> None:
        self._sessions: list[aiohttp.ClientSession] = []
        self.traffic = Traffic()
        """Requests sent and bytes of bodies received."""

    async def get_session(self, **client_kwargs: Any) -> aiohttp.ClientSession:
        """Return a new session on the running event loop; fsspec's ``get_client``."""
        import aiohttp  # noqa: PLC0415 - needed for http(s) alone, and part of the extra "demo"

        trace = aiohttp.TraceConfig()
        trace.on_request_start.append(self._on_request_start)
        trace.on_response_chunk_received.append(self._on_response_chunk_received)
        session = aiohttp.ClientSession(trace_configs=[trace], **client_kwargs)
        self._sessions.append(session)
        return session

    async def close(self) -> None:
        """Close the sessions. Must be awaited on the event loop that they belong to."""
        for session in self._sessions:
            await session.close()

    async def _on_request_start(self, *_: object) -> None:
        self.traffic += Traffic(requests=1)

    async def _on_response_chunk_received(
        self, _session: object, _context: object, params: aiohttp.TraceResponseChunkReceivedParams
    ) -> None:
        self.traffic += Traffic(nbytes=len(params.chunk))


@contextlib.asynccontextmanager
async def open_source(url: str) -> AsyncIterator[tuple[FsspecStore, HttpClient | None]]:
    """Yield the store at `url`, and the client that counts its requests.

    The client is None for a URL that is not HTTP: its requests are not counted. The store is
    read-only, so that a cache remembers which keys are absent.
    """
    if not url.startswith(("http://", "https://")):
        yield FsspecStore.from_url(url, read_only=True), None
        return
    client = HttpClient()
    # Otherwise fsspec returns the file system of an earlier source with equal options, whose
    # session is closed.
    options = {"get_client": client.get_session, "skip_instance_cache": True}
    try:
        yield FsspecStore.from_url(url, storage_options=options, read_only=True), client
    finally:
        await client.close()
