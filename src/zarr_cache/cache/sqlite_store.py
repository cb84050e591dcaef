"""SqliteStore: zarr's Store on one SQLite file."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Concatenate, Self

from zarr.abc.store import Store
from zarr.core.buffer import Buffer

from zarr_cache.cache import notebook
from zarr_cache.cache.repair import repair as repair_file
from zarr_cache.core import keys
from zarr_cache.core.buffers import to_array, to_buffer
from zarr_cache.core.byte_range import check
from zarr_cache.disk.paths import default_path, named_file
from zarr_cache.file.file_database import FileDatabase
from zarr_cache.index import stored
from zarr_cache.inspect import report, verify

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import BufferPrototype

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.lookup import Data
    from zarr_cache.inspect.problem import Problem


class SqliteStore(Store):
    """A Zarr hierarchy in one SQLite file, or the file in which a `CacheStore` caches values.

    A `CacheStore` caches large values in a data file beside it: see docs/design.md. Values that are
    stored here with `set` are never evicted, also when a `CacheStore` uses the same file.

    The file is opened at the first operation. Each write is one transaction: it is done as a whole
    or not at all, also when the process is killed. All threads, event loops and processes may use
    the same file concurrently.

    Parameters
    ----------
    path
        The file. ``~`` is expanded, missing parent folders are created, and a missing file is
        created with mode 0600. None: the file that ``$ZARR_CACHE_PATH`` names, or else
        ``zarr-cache/cache.sqlite`` in the user's cache folder.
    read_only
        Whether to refuse writes. The file must exist then.

    Attributes
    ----------
    path : pathlib.Path
        The file, absolute, with symbolic links resolved.
    database : FileDatabase
        The connections of this process to the file.

    Raises
    ------
    ValueError
        `path` is empty or ``":memory:"``, or is a folder.
    CacheError
        `path` is None or begins with ``~``, and this user has no home folder: set
        ``$ZARR_CACHE_PATH``, or name a file.

    Notes
    -----
    The first operation raises `zarr_cache.ForeignFileError` if another program made the file, and
    `zarr_cache.NewerSchemaError` if a later release wrote it; both leave it unchanged. An operation
    raises `zarr_cache.StorageError` if SQLite fails; the file is then as it was before. Writes to a
    read-only store raise ValueError.

    Methods have the parameters and return values of `zarr.abc.store.Store`.

    Examples
    --------
    >>> import zarr
    >>> from zarr_cache import SqliteStore
    >>> root = zarr.open_group(SqliteStore("data.sqlite"))  # doctest: +SKIP
    """

    supports_writes: bool = True
    supports_deletes: bool = True
    supports_listing: bool = True
    sqlite_version: str = sqlite3.sqlite_version
    """The version of the SQLite that reads and writes the file, such as ``"3.51.3"``."""

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, read_only: bool = False
    ) -> None:
        super().__init__(read_only=read_only)
        self._given_path = named_file(default_path() if path is None else path)
        self.path = self._given_path.resolve()
        self.database = FileDatabase.of(self.path)

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: FBT001, FBT002 - zarr's
        """A store on the same file that refuses writes, or one that accepts them."""
        return type(self)(self._given_path, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.path == other.path

    __hash__ = None  # type: ignore[assignment] # as zarr's own stores

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def __str__(self) -> str:
        return f"sqlite://{self.path.as_posix()}"

    def _repr_html_(self) -> str:
        """What a notebook shows. Creates no file."""
        namespaces = notebook.read_or_reason(self.database, report.namespaces, None)
        return notebook.of_sqlite_store(str(self), namespaces)

    def __getstate__(self) -> dict[str, object]:
        # The path as the user gave it: a link may lead elsewhere on the machine that unpickles it.
        return {"path": str(self._given_path), "read_only": self.read_only}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc] # as from a call of the class

    async def _open(self) -> None:
        self._open_sync()
        await super()._open()

    def _ensure_open_sync(self) -> None:
        if not self._is_open:
            self._open_sync()
            self._is_open = True

    def _open_sync(self) -> None:
        if self.read_only and not self.path.exists():
            raise FileNotFoundError(
                f"{self.path}: no such file; a read-only store does not create one"
            )
        self.database.clock()

    def close(self) -> None:
        """Close the file. The next operation, of this store or another, opens it again."""
        self.database.close()
        super().close()

    def _run[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        self._ensure_open_sync()
        return self.database.run(operation, *args, **kwargs)

    async def _run_async[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        self._ensure_open_sync()
        return await self.database.run_async(operation, *args, **kwargs)

    def verify(self, *, repair: bool = False) -> Iterator[Problem]:
        """Yield each problem of the file, of every namespace in it; nothing if there is none.

        Every stored fact is compared with what it describes: checksums with bytes, sizes with
        lengths, totals with sums, indexes with tables, the schema with what the scripts make. The
        whole file is read, in short transactions and with little memory. Other processes may write
        meanwhile, but the WAL is not written back during SQLite's ``integrity_check``.

        Parameters
        ----------
        repair
            Whether to repair the file: to remove cached entries that are wrong, which are then
            fetched again, and bytes of no entry, and to count totals again. A database that cannot
            be opened or is damaged itself (``page``, ``schema``, ``counter``, ``namespace``,
            ``data_file``) is renamed to ``<name>.damaged-<UTC time>``, and the values stored here
            that have their checksums are copied into a new one. A stored value without its checksum
            is reported and stays in the file, or in the renamed one.

        Yields
        ------
        Problem
            A fact that is wrong.

        Raises
        ------
        ForeignFileError, NewerSchemaError
            This release cannot verify the file.
        StorageError
            The file cannot be read, is locked, or is damaged and cannot be renamed.
        """
        if not repair:
            return verify.verify(self._run)
        self._check_writable()
        return repair_file(self.database, self._run, self._put_unless_there)

    def _put_unless_there(self, key: str, data: ByteArray) -> None:
        self._run(stored.put, [(key, data)], self._now_ns(), replace=False)
        self.database.note_stored()

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The bytes of the request; None if there is no such key."""
        check(byte_range)
        return _buffer(prototype, await self._run_async(stored.read, key, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """As `get`, without an event loop."""
        check(byte_range)
        return _buffer(prototype, self._run(stored.read, key, byte_range))

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """The bytes of each request, in order; None for absent keys."""
        found = await self._run_async(stored.read_many, _checked_requests(key_ranges))
        return [_buffer(prototype, data) for data in found]

    async def get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        max_concurrency: int = 10,  # noqa: ARG002 - nothing here is merged
        max_gap_bytes: int = 1 << 20,  # noqa: ARG002 - the same
        max_coalesced_bytes: int = 16 << 20,  # noqa: ARG002 - the same
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """All ranges in one batch: there are no round trips to save by merging them."""
        requests = _checked_requests((key, each) for each in byte_ranges)
        yield _batch(key, prototype, await self._run_async(stored.read_many, requests))

    def get_ranges_sync(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        max_gap_bytes: int = 1 << 20,  # noqa: ARG002 - nothing here is merged
        max_coalesced_bytes: int = 16 << 20,  # noqa: ARG002 - the same
    ) -> Sequence[tuple[int, Buffer | None]]:
        """As `get_ranges`, without an event loop."""
        requests = _checked_requests((key, each) for each in byte_ranges)
        return _batch(key, prototype, self._run(stored.read_many, requests))

    async def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        return await self._run_async(stored.size, key) is not None

    async def getsize(self, key: str) -> int:
        """Bytes of the value, which is not read."""
        size = await self._run_async(stored.size, key)
        if size is None:
            raise FileNotFoundError(key)
        return size

    async def getsize_prefix(self, prefix: str) -> int:
        """Bytes of all values below the folder `prefix`, which are not read."""
        return await self._run_async(stored.size_of_prefix, _folder(prefix))

    async def list(self) -> AsyncIterator[str]:
        """Every key, sorted."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with `prefix`, sorted.

        Keys are read in pages: one that is written or deleted meanwhile may be listed or not.
        """
        first, end = prefix, keys.prefix_end(prefix)
        while page := await self._run_async(stored.keys, first, end):
            for key in page:
                yield key
            first = page[-1] + "\0"

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names of keys and folders directly below the folder `prefix`, each once."""
        for child in await self._run_async(stored.children, _folder(prefix.rstrip("/"))):
            yield child

    async def set(self, key: str, value: Buffer) -> None:
        """Store the value under the key, and replace one that is there."""
        await self._put([(key, value)])

    def set_sync(self, key: str, value: Buffer) -> None:
        """As `set`, without an event loop."""
        self._check_writable()
        self._run(stored.put, [(key, _array(value))], self._now_ns())
        self.database.note_stored()

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Store the value unless there is one. Of concurrent processes, one stores its value."""
        await self._put([(key, value)], replace=False)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await self._put(values)

    async def _put(self, values: Iterable[tuple[str, Buffer]], *, replace: bool = True) -> None:
        self._check_writable()
        items = [(key, _array(value)) for key, value in values]
        await self._run_async(stored.put, items, self._now_ns(), replace=replace)
        self.database.note_stored()

    async def delete(self, key: str) -> None:
        """Remove the key, if it is there."""
        self._check_writable()
        await self._run_async(stored.delete, key)

    def delete_sync(self, key: str) -> None:
        """As `delete`, without an event loop."""
        self._check_writable()
        self._run(stored.delete, key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove every key below the folder `prefix`, all or none."""
        self._check_writable()
        await self._run_async(stored.delete_prefix, _folder(prefix))

    async def clear(self) -> None:
        """Remove every key that was stored here, and nothing that a `CacheStore` has cached."""
        await self.delete_dir("")

    def _now_ns(self) -> int:
        return self.database.clock().timestamp_ns()


def _checked_requests(
    key_ranges: Iterable[tuple[str, ByteRequest | None]],
) -> list[tuple[str, ByteRequest | None]]:
    requests = list(key_ranges)
    for _, request in requests:
        check(request)
    return requests


def _folder(prefix: str) -> str:
    """`prefix` with a slash at its end: the folder ``"a"`` does not contain ``"ab/c"``."""
    return prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def _array(value: object) -> ByteArray:
    if not isinstance(value, Buffer):
        raise TypeError(
            f"SqliteStore.set(): `value` must be a Buffer instance. "
            f"Got an instance of {type(value)} instead."
        )
    return to_array(value)


def _buffer(prototype: BufferPrototype | None, data: Data | None) -> Buffer | None:
    return None if data is None else to_buffer(prototype, data)


def _batch(
    key: str, prototype: BufferPrototype, found: Sequence[Data | None]
) -> Sequence[tuple[int, Buffer | None]]:
    if any(data is None for data in found):
        raise BaseExceptionGroup("chunk read failed", [FileNotFoundError(key)])
    return [(index, _buffer(prototype, data)) for index, data in enumerate(found)]
