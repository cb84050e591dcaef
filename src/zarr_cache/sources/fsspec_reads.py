"""Reads of fsspec's file systems with their validators, which a request of its own tells."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu
from zarr.storage._utils import _dereference_path

from zarr_cache.core import clock
from zarr_cache.sources import validators
from zarr_cache.sources.file_systems import LOCAL, below
from zarr_cache.sources.local_reads import LocalFileSystemReader
from zarr_cache.sources.source_reader import ChangedError, Fetched, Listed, SourceReader
from zarr_cache.sources.urls import class_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from datetime import datetime

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer
    from zarr.storage import FsspecStore

    # The validator in what a file system tells of a file, and when that was requested.
    type OfInfo = Callable[[Mapping[str, Any], int], str | None]


def _of_http(info: Mapping[str, Any], asked_at_ns: int) -> str | None:
    try:
        modified = parsedate_to_datetime(info.get("Last-Modified", ""))
    except ValueError:
        modified = None
    return validators.of_response(info.get("ETag"), modified, info.get("size"), asked_at_ns)


def _of_s3fs(info: Mapping[str, Any], asked_at_ns: int) -> str | None:
    return validators.of_response(
        info.get("ETag"), info.get("LastModified"), info.get("size"), asked_at_ns
    )


def _of_gcsfs(info: Mapping[str, Any], _asked_at_ns: int) -> str | None:
    # Its "etag" is not the one of HTTP: it has no quotes, and changes with the metadata.
    generation = str(info.get("generation") or "")
    return f"g{generation}" if generation.isdecimal() else None


def _of_adlfs(info: Mapping[str, Any], asked_at_ns: int) -> str | None:
    return validators.of_response(
        info.get("etag"),
        info.get("last_modified"),
        info.get("size"),
        asked_at_ns,
        may_be_bare=True,
    )


class _Kind(NamedTuple):
    """What one class of file systems tells of a file."""

    of_info: OfInfo
    modified: str | None = None
    """The name of the time of modification in its listings; None if they tell no validators."""
    options: Mapping[str, bool] = {}
    """Arguments of ``_info``, so that it does not answer from an earlier listing."""
    invalidates: bool = False
    """Whether the earlier listing has to be forgotten instead."""
    sends_match: bool = False
    """Whether its ``_cat_file`` takes headers, such as ``If-Match``."""


_GCSFS = _Kind(_of_gcsfs, "mtime", invalidates=True)

FILE_SYSTEMS: Mapping[str, _Kind] = {
    "adlfs.spec.AzureBlobFileSystem": _Kind(_of_adlfs, "last_modified", {"refresh": True}),
    "fsspec.implementations.http.HTTPFileSystem": _Kind(_of_http, sends_match=True),
    "gcsfs.core.GCSFileSystem": _GCSFS,
    "gcsfs.extended_gcsfs.ExtendedGcsFileSystem": _GCSFS,
    "s3fs.core.S3FileSystem": _Kind(_of_s3fs, "LastModified", {"refresh": True}),
}


def reader_of(source: FsspecStore) -> SourceReader | None:
    """The reader of a source of fsspec; None if its file system tells no validators."""
    file_system, _ = below(source.fs, "")
    name = class_name(type(file_system))
    if name == LOCAL:
        return LocalFileSystemReader(source, partial(_local_path, source))
    kind = FILE_SYSTEMS.get(name)
    # What is below an AsyncFileSystemWrapper has no coroutines.
    return FileSystemReader(source, kind) if kind and file_system.async_impl else None


def _place(source: FsspecStore, key: str) -> tuple[Any, str]:
    """The file system that has the key, and its path there."""
    return below(source.fs, _dereference_path(source.path, key))


def _local_path(source: FsspecStore, key: str) -> str:
    file_system, path = _place(source, key)
    return str(file_system._strip_protocol(path))  # noqa: SLF001 - fsspec's


class FileSystemReader(SourceReader):
    """Reads an ``FsspecStore``: a response of fsspec hides its headers, so they are asked for.

    The validator is requested before the bytes. If the value changes in between, the bytes of the
    later version have the validator of the earlier one, and the next check finds it out of date.
    The other way round, bytes of the earlier version would have the validator of the later one, and
    every check would confirm them.
    """

    can_match = False
    asks_more = True

    def __init__(self, source: FsspecStore, kind: _Kind) -> None:
        self._source, self._kind = source, kind
        self.sends_match = kind.sends_match

    async def fetch(
        self,
        key: str,
        request: ByteRequest | None = None,
        *,
        unless: str | None = None,
        only: str | None = None,
        with_version: bool = True,
    ) -> Fetched:
        """The bytes and their validator: see `SourceReader.fetch`."""
        if request is not None and only is not None and not with_version and self.sends_match:
            return Fetched(await self._matching(key, request, only), only)
        validator, is_absent = None, False
        if with_version or unless is not None or only is not None:
            validator, is_absent = await self._version_or_none(key)
        if unless is not None and validator == unless:
            return Fetched(None, unless, is_unchanged=True)
        if only is not None and validator not in {None, only}:
            raise ChangedError(key, only)
        buffer = None
        if not is_absent:
            buffer = await self._source.get(key, cpu.buffer_prototype, request)
        if only is not None and (buffer is None or validator is None):
            raise ChangedError(key, only)
        return Fetched(buffer, validator if buffer is not None else None)

    async def _matching(self, key: str, request: ByteRequest, only: str) -> Buffer:
        """The range as the store's ``get`` reads it, with ``If-Match`` if `only` is an ETag."""
        file_system, path = _place(self._source, key)
        headers = dict(file_system.kwargs.get("headers") or {})
        if validators.is_etag(only):
            headers["If-Match"] = only
        start, end = _limits(request)
        try:
            data = await file_system._cat_file(path, start=start, end=end, headers=headers)  # noqa: SLF001 - fsspec's
        except self._source.allowed_exceptions:
            raise ChangedError(key, only) from None
        except Exception as error:
            # An aiohttp.ClientResponseError, of a package that may not be there.
            if getattr(error, "status", None) == HTTPStatus.PRECONDITION_FAILED:
                raise ChangedError(key, only) from None
            raise
        return cpu.Buffer.from_bytes(data)

    async def _version_or_none(self, key: str) -> tuple[str | None, bool]:
        """The validator, and whether an HTTP server has said that there is no such key.

        None whatever the file system says instead. A server may refuse ``HEAD`` and send the bytes.
        And fsspec's HTTP says "no such file" of a server that is down as well. So the request for
        the bytes decides, unless the error is a 404 in the end.
        """
        try:
            return await self._version(key), False
        except Exception as error:  # noqa: BLE001 - each file system has errors of its own
            status = getattr(error.__cause__, "status", None)
            is_absent = isinstance(error, FileNotFoundError) and status == HTTPStatus.NOT_FOUND
            return None, is_absent and FileNotFoundError in self._source.allowed_exceptions

    async def _version(self, key: str) -> str | None:
        file_system, path = _place(self._source, key)
        if self._kind.invalidates:
            file_system.invalidate_cache(path)
        asked_at = clock.wall_ns()
        info = await file_system._info(path, **self._kind.options)  # noqa: SLF001 - fsspec's
        return self._kind.of_info(info, asked_at) if info.get("type") == "file" else None

    async def version(self, key: str) -> str | None:
        """The validator of the present version, by a request without a body."""
        try:
            return await self._version(key)
        except (FileNotFoundError, PermissionError):
            return None

    def list_versions(self, prefix: str) -> AsyncIterator[Listed] | None:
        """All files below the prefix, by a request for each thousand."""
        return self._list(prefix, self._kind.modified) if self._kind.modified else None

    async def _list(self, prefix: str, modified: str) -> AsyncIterator[Listed]:
        file_system, path = _place(self._source, prefix)
        # What is listed now must not answer later, nor what was listed before.
        file_system.invalidate_cache()
        asked_at = clock.wall_ns()
        try:
            found = await file_system._find(path, detail=True)  # noqa: SLF001 - fsspec's
        finally:
            file_system.invalidate_cache()
        root = file_system._strip_protocol(_place(self._source, "")[1]).rstrip("/")  # noqa: SLF001 - fsspec's
        for name, info in found.items():
            if info.get("type") == "file" and name.startswith(f"{root}/"):
                validator = self._kind.of_info(info, asked_at)
                when = _in_ns(info.get(modified))
                yield Listed(name[len(root) + 1 :], validator, info.get("size"), when)


def _limits(request: ByteRequest) -> tuple[int, int | None]:
    """Start and end as fsspec has them, where a negative start counts from the end."""
    match request:
        case RangeByteRequest(start, end):
            return start, end
        case OffsetByteRequest(offset):
            return offset, None
        case SuffixByteRequest(suffix):
            return -suffix, None


def _in_ns(time: datetime | None) -> int | None:
    if time is None:
        return None
    return int(time.timestamp()) * validators.SECOND_NS + time.microsecond * 1000
