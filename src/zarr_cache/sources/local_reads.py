"""Reads of local files with their validators: ``LocalStore``, and fsspec's local file system."""

from __future__ import annotations

import asyncio
import os
import stat
from itertools import islice
from typing import TYPE_CHECKING

from zarr.core.buffer import cpu

from zarr_cache.core import clock
from zarr_cache.sources import validators
from zarr_cache.sources.source_reader import ChangedError, Fetched, Listed, SourceReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer
    from zarr.storage import FsspecStore, LocalStore

BATCH = 1000
"""So many files are listed in one visit of another thread."""


class _Read:
    """A read of a file, whose status is taken before and after.

    The bytes are of one version only if it was the same both times: a writer may have written to
    the file in place.
    """

    def __init__(self, path: str, key: str, unless: str | None, only: str | None) -> None:
        self._path, self._key, self._only = path, key, only
        self._before, self._validator = _version(path)
        self.is_unchanged = unless is not None and self._validator == unless
        # If there is no status, the store's own read has to tell why.
        if only is not None and self._before and self._validator != only:
            raise ChangedError(key, only)

    def end(self, buffer: Buffer | None) -> Fetched:
        """The result, after the bytes were read."""
        after = None if buffer is None else _status(self._path)
        is_same = bool(self._before and after and validators.is_same_file(self._before, after))
        if self._only is not None and not (is_same and self._validator == self._only):
            raise ChangedError(self._key, self._only)
        if buffer is None:
            return Fetched(None, None)
        return Fetched(buffer, self._validator if is_same else None, is_torn=not is_same)


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - a Path for each of a million files takes longer
    except (OSError, ValueError):  # a ValueError is about a path with a null character
        return None


def _version(path: str) -> tuple[os.stat_result | None, str | None]:
    # Before the status: a write between the two could fall into the tick of the one before it.
    now_ns = clock.wall_ns()
    status = _status(path)
    return status, status and validators.of_file(status, now_ns)


class _FilesReader(SourceReader):
    """What readers of local files have in common.

    Parameters
    ----------
    path_of
        The path of a key.
    """

    can_match = True
    asks_more = False

    def __init__(self, source: LocalStore | FsspecStore, path_of: Callable[[str], str]) -> None:
        self._source = source
        self._path = path_of

    async def version(self, key: str) -> str | None:
        """The validator of the present version."""
        return (await asyncio.to_thread(_version, self._path(key)))[1]

    def list_versions(self, prefix: str) -> AsyncIterator[Listed]:
        """All files in the folder and below it."""
        folder = f"{prefix.rstrip('/')}/" if prefix else ""
        return _in_batches(_files(self._path(prefix), folder))


class LocalStoreReader(_FilesReader):
    """Reads a ``LocalStore``."""

    is_sync = True
    _source: LocalStore

    def __init__(self, source: LocalStore) -> None:
        super().__init__(source, lambda key: str(source.root / key))

    def fetch_sync(
        self,
        key: str,
        request: ByteRequest | None = None,
        *,
        unless: str | None = None,
        only: str | None = None,
        with_version: bool = True,  # noqa: ARG002 - a status is no request
    ) -> Fetched:
        """The bytes and their validator: see `SourceReader.fetch`."""
        read = _Read(self._path(key), key, unless, only)
        if read.is_unchanged:
            return Fetched(None, unless, is_unchanged=True)
        return read.end(
            self._source.get_sync(key, prototype=cpu.buffer_prototype, byte_range=request)
        )

    async def fetch(
        self,
        key: str,
        request: ByteRequest | None = None,
        *,
        unless: str | None = None,
        only: str | None = None,
        with_version: bool = True,  # noqa: ARG002 - a status is no request
    ) -> Fetched:
        """As `fetch_sync`, in another thread, where zarr reads as well."""
        return await asyncio.to_thread(self.fetch_sync, key, request, unless=unless, only=only)

    def version_sync(self, key: str) -> str | None:
        """The validator of the present version."""
        return _version(self._path(key))[1]


class LocalFileSystemReader(_FilesReader):
    """Reads an ``FsspecStore`` of local files."""

    async def fetch(
        self,
        key: str,
        request: ByteRequest | None = None,
        *,
        unless: str | None = None,
        only: str | None = None,
        with_version: bool = True,  # noqa: ARG002 - a status is no request
    ) -> Fetched:
        """The bytes and their validator: see `SourceReader.fetch`."""
        read = await asyncio.to_thread(_Read, self._path(key), key, unless, only)
        if read.is_unchanged:
            return Fetched(None, unless, is_unchanged=True)
        buffer = await self._source.get(key, cpu.buffer_prototype, request)
        return await asyncio.to_thread(read.end, buffer)


async def _in_batches(files: Iterator[Listed]) -> AsyncIterator[Listed]:
    """The files, listed in other threads: an event loop does not wait for the disk."""
    while batch := await asyncio.to_thread(lambda: list(islice(files, BATCH))):
        for each in batch:
            yield each


def _files(
    path: str, prefix: str, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[Listed]:
    """The files in a folder and below it; links to folders are followed, as a read follows them.

    Parameters
    ----------
    prefix
        What the keys of the folder begin with.
    above
        Device and inode of each folder above: a link to one of them has no end.
    """
    status = _status(path)
    if status is None or (status.st_dev, status.st_ino) in above:
        return
    above |= {(status.st_dev, status.st_ino)}
    try:
        names = os.listdir(path)  # noqa: PTH208 - the names, not paths
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        file = os.path.join(path, name)  # noqa: PTH118 - as in `_status`
        status, validator = _version(file)
        if status is None:
            continue  # it was removed meanwhile, or cannot be read either
        if stat.S_ISDIR(status.st_mode):
            yield from _files(file, f"{prefix}{name}/", above)
        elif stat.S_ISREG(status.st_mode):
            yield Listed(f"{prefix}{name}", validator, status.st_size, status.st_mtime_ns)
