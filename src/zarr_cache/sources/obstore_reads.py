"""Reads of obstore's object stores with their validators, by conditional requests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu

from zarr_cache.core import clock
from zarr_cache.sources import validators
from zarr_cache.sources.source_reader import ChangedError, Fetched, Listed, SourceReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from obstore import ObjectMeta
    from zarr.abc.store import ByteRequest
    from zarr.storage import ObjectStore

ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
"""What zarr's ``ObjectStore.get`` takes for "no such key"."""

PAGE = 1000
"""Keys of one batch of a listing."""


class _Kind(NamedTuple):
    """What one class of object stores can do."""

    is_remote: bool = True
    """Whether it can check a condition before the bytes travel."""

    lists: bool = True
    """Whether its listings tell ETags."""

    may_be_bare: bool = False
    """Whether its ETags may lack their quotes: see `validators.of_etag`."""

    is_of_files: bool = False
    """Whether its ETags are made of the time of modification of a local file."""


KINDS: Mapping[str, _Kind] = {
    "AzureStore": _Kind(may_be_bare=True),
    "GCSStore": _Kind(),
    "HTTPStore": _Kind(lists=False),
    # Inode, time of modification and size; a counter of the store. Both with quotes since some
    # version of obstore only.
    "LocalStore": _Kind(is_remote=False, may_be_bare=True, is_of_files=True),
    "MemoryStore": _Kind(is_remote=False, may_be_bare=True),
    "S3Store": _Kind(),
}


class _Runtime:
    """The threads of obstore, which a child of a fork does not have: a request there never ends.

    obstore does not tell, and has one runtime for all stores of a process:
    https://github.com/developmentseed/obstore/pull/441
    """

    def __init__(self) -> None:
        self._is_used = self._is_lost = False

    def use(self, key: str) -> None:
        """Return if a request can be made; raise RuntimeError if it would never end."""
        if self._is_lost:
            raise RuntimeError(
                f"{key!r} is not cached, and obstore cannot fetch it in process {os.getpid()}, "
                "which was forked after obstore was used: start processes by 'forkserver' or "
                "'spawn', or use no store before the fork, or read with fsspec"
            )
        self._is_used = True

    def after_fork(self) -> None:
        self._is_lost = self._is_used


_runtime = _Runtime()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_runtime.after_fork)


def reader_of(source: ObjectStore[Any]) -> ObjectStoreReader | None:
    """The reader of a source of obstore; None if its class is not known."""
    kind = KINDS.get(type(source.store).__name__)
    return ObjectStoreReader(source, kind) if kind else None


class ObjectStoreReader(SourceReader):
    """Reads an ``ObjectStore``: a response tells the validator of its bytes.

    A server may ignore a condition. So the validator of each response is compared as well, before
    its body is read.
    """

    can_match = True
    asks_more = False

    def __init__(self, source: ObjectStore[Any], kind: _Kind) -> None:
        self._source, self._kind = source, kind

    async def fetch(
        self,
        key: str,
        request: ByteRequest | None = None,
        *,
        unless: str | None = None,
        only: str | None = None,
        with_version: bool = True,  # noqa: ARG002 - each response tells it
    ) -> Fetched:
        """The bytes and their validator: see `SourceReader.fetch`."""
        from obstore.exceptions import (  # noqa: PLC0415 - an optional package
            NotModifiedError,
            PreconditionError,
        )

        _runtime.use(key)
        if isinstance(request, RangeByteRequest) and request.start >= request.end:
            # obstore refuses it with another error where zarr calls it.
            return Fetched(await self._source.get(key, cpu.buffer_prototype, request), None)
        if unless is not None and await self._is_known_unchanged(key, unless):
            return Fetched(None, unless, is_unchanged=True)
        try:
            return await self._get(key, request, unless, only)
        except NotModifiedError:
            return Fetched(None, unless, is_unchanged=True)
        except PreconditionError as error:
            if only is None:
                raise
            raise ChangedError(key, only) from error
        except ABSENT as error:
            if only is not None:
                raise ChangedError(key, only) from error
            return Fetched(None, None)

    async def _get(
        self, key: str, request: ByteRequest | None, unless: str | None, only: str | None
    ) -> Fetched:
        """The bytes, also of a suffix where the store has no request for it."""
        from obstore.exceptions import NotSupportedError  # noqa: PLC0415 - an optional package

        try:
            return await self._request(key, request, unless, only)
        except NotSupportedError:
            if not isinstance(request, SuffixByteRequest):
                raise
        return await self._request_suffix(key, request, only)

    async def _request(
        self, key: str, request: ByteRequest | None, unless: str | None, only: str | None
    ) -> Fetched:
        """One request, with conditions where the store can check them."""
        import obstore  # noqa: PLC0415 - an optional package

        options: Any = _range_options(request)
        if self._kind.is_remote:
            options |= _conditions(unless, only)
        asked_at = clock.wall_ns()
        response = await obstore.get_async(self._source.store, key, options=options)
        meta = response.meta
        validator = self._validator(meta, asked_at)
        if unless is not None and validator == unless:
            return Fetched(None, unless, is_unchanged=True)
        if only is not None and validator != only:
            raise ChangedError(key, only)
        data: Any = await response.bytes_async()
        buffer = cpu.buffer_prototype.buffer.from_bytes(data)
        # A file may be written to in place between the look at it and the read.
        if self._kind.is_of_files and not await self._is_still(key, meta):
            if only is not None:
                raise ChangedError(key, only)
            return Fetched(buffer, None, is_torn=True)
        return Fetched(buffer, validator)

    async def _request_suffix(
        self, key: str, request: SuffixByteRequest, only: str | None
    ) -> Fetched:
        """The end of a value from a store that has no requests for it, as Azure: as zarr reads it.

        The size and the bytes are two responses, which may be of two versions.
        """
        import obstore  # noqa: PLC0415 - an optional package

        asked_at = clock.wall_ns()
        meta = await obstore.head_async(self._source.store, key)
        size = meta["size"]
        part = RangeByteRequest(max(0, size - request.suffix), size)
        fetched = await self._request(key, part, None, only)
        if fetched.validator != self._validator(meta, asked_at):
            return Fetched(fetched.buffer, None, is_torn=True)
        return fetched

    async def _is_known_unchanged(self, key: str, unless: str) -> bool:
        """Whether a request without a body tells that it is this version.

        Only for a validator that is no ETag. ``If-Modified-Since`` asks whether the value is newer,
        and a value that was replaced by an older one is not.
        """
        from obstore.exceptions import BaseError  # noqa: PLC0415 - an optional package

        if validators.is_etag(unless):
            return False
        try:
            return await self._head(key) == unless
        except (OSError, BaseError):
            return False  # the request for the bytes tells what is wrong, if anything is

    async def _head(self, key: str) -> str | None:
        import obstore  # noqa: PLC0415 - an optional package

        _runtime.use(key)
        asked_at = clock.wall_ns()
        return self._validator(await obstore.head_async(self._source.store, key), asked_at)

    async def _is_still(self, key: str, meta: ObjectMeta) -> bool:
        import obstore  # noqa: PLC0415 - an optional package

        try:
            return await obstore.head_async(self._source.store, key) == meta
        except ABSENT:
            return False

    def _validator(self, meta: ObjectMeta, asked_at_ns: int) -> str | None:
        modified = meta["last_modified"]
        if self._kind.is_of_files and not validators.is_settled(_in_ns(meta), asked_at_ns):
            return None
        return validators.of_response(
            meta["e_tag"],
            modified,
            meta["size"],
            asked_at_ns,
            may_be_bare=self._kind.may_be_bare,
        )

    async def version(self, key: str) -> str | None:
        """The validator of the present version, by a request without a body."""
        from obstore.exceptions import (  # noqa: PLC0415 - an optional package
            NotSupportedError,
            PermissionDeniedError,
            UnauthenticatedError,
        )

        try:
            return await self._head(key)
        except (*ABSENT, NotSupportedError, PermissionDeniedError, UnauthenticatedError):
            return None

    def list_versions(self, prefix: str) -> AsyncIterator[Listed] | None:
        """All objects below the prefix, by a request for each thousand."""
        return self._list(prefix) if self._kind.lists else None

    async def _list(self, prefix: str) -> AsyncIterator[Listed]:
        import obstore  # noqa: PLC0415 - an optional package

        _runtime.use(prefix)
        asked_at = clock.wall_ns()
        pages = obstore.list(self._source.store, prefix or None, chunk_size=PAGE)
        async for page in pages:
            for meta in page:
                validator = self._validator(meta, asked_at)
                yield Listed(meta["path"], validator, meta["size"], _in_ns(meta))


def _in_ns(meta: ObjectMeta) -> int:
    """The time of modification, exact to the microsecond that obstore has."""
    modified = meta["last_modified"]
    return int(modified.timestamp()) * validators.SECOND_NS + modified.microsecond * 1000


def _range_options(request: ByteRequest | None) -> dict[str, Any]:
    match request:
        case None:
            return {}
        case RangeByteRequest(start, end):
            return {"range": (start, end)}
        case OffsetByteRequest(offset):
            return {"range": {"offset": offset}}
        case SuffixByteRequest(suffix):
            return {"range": {"suffix": suffix}}


def _conditions(unless: str | None, only: str | None) -> dict[str, Any]:
    if unless is not None and validators.is_etag(unless):
        return {"if_none_match": unless}
    if only is None:
        return {}
    if validators.is_etag(only):
        return {"if_match": only}
    return {"if_unmodified_since": validators.last_modified(only)}
