"""zarr's Store on one SQLite file."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Self

from zarr.abc.store import Store
from zarr.core.buffer import Buffer

from zarr_cache.core import byte_range as requests
from zarr_cache.core import keys
from zarr_cache.core.buffers import to_array, to_buffer
from zarr_cache.core.errors import CacheError, FileDamagedError
from zarr_cache.core.sizes import format_size
from zarr_cache.disk.paths import default_path, file_id_of
from zarr_cache.file.file_database import FileDatabase
from zarr_cache.index import stored
from zarr_cache.inspect import html, report, verify
from zarr_cache.inspect.problem import Problem
from zarr_cache.inspect.rescue import copy_stored

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import BufferPrototype

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.lookup import Data


class SqliteStore(Store):
    """A Zarr hierarchy in one SQLite file, or the file in which a `CacheStore` keeps its values.

    Beside it a `CacheStore` keeps the large ones, in a data file: see docs/design.md.

    The file is opened at the first operation. Every write is one transaction: it is done whole or
    not at all, also when the process is killed. Any thread, event loop and process may
    use the same file at once. What is stored here is never evicted, also when a `CacheStore`
    keeps its values in the same file.

    Parameters
    ----------
    path
        The file. ``~`` is expanded, missing parent folders are made, a file that does not exist
        is created with mode 0600. None: the file that ``$ZARR_CACHE_PATH`` names, or else
        ``zarr-cache/cache.sqlite`` in the user's cache folder.
    read_only
        Whether to refuse writes. The file must exist then.

    Attributes
    ----------
    path : pathlib.Path
        The file, absolute and with symbolic links followed.
    database : FileDatabase
        Its connections in this process.

    Raises
    ------
    ValueError
        `path` is empty or ``":memory:"``, or names a folder.

    Notes
    -----
    The first operation raises `zarr_cache.ForeignFileError` if the file is not one of ours and
    `zarr_cache.NewerSchemaError` if a later release wrote it; both leave it as it was. Any
    operation raises `zarr_cache.StorageError` when SQLite cannot do it: nothing of it is done then.
    What writes raises ValueError if the store is read-only.

    Parameters and return values of its methods are those of `zarr.abc.store.Store`; the docstrings
    here say only what differs.

    Examples
    --------
    >>> import zarr
    >>> from zarr_cache import SqliteStore
    >>> root = zarr.open_group(SqliteStore("data.sqlite"))  # doctest: +SKIP
    """

    supports_writes: bool = True
    supports_deletes: bool = True
    supports_listing: bool = True

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, read_only: bool = False
    ) -> None:
        super().__init__(read_only=read_only)
        self._named = _checked(default_path() if path is None else path)
        self.path = self._named.resolve()
        self.database = FileDatabase.of(self.path)

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: FBT001, FBT002 - zarr's
        """A store on the same file that refuses writes, or one that takes them.

        Parameters
        ----------
        read_only
            Whether it refuses writes.

        Returns
        -------
        SqliteStore
            The other store.
        """
        return type(self)(self._named, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.path == other.path

    __hash__ = None  # type: ignore[assignment] # as zarr's own stores

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def __str__(self) -> str:
        return f"sqlite://{self.path.as_posix()}"

    def _repr_html_(self) -> str:
        """What a notebook shows: what is in the file, and of whom. Makes no file."""
        found = self._peek(report.namespaces, None)
        if isinstance(found, str):
            return html.card(str(self), [html.notice(found)])
        stored_here = [each for each in found if each.entries.get("stored")]
        named = [
            ("stored here", html.count(each.entries["stored"], "value"), each.bytes["stored"])
            for each in stored_here
        ]
        cached = [
            html.Share(
                each.namespace,
                each.entries.get("value", 0),
                each.bytes.get("value", 0),
                each.hit_rate,
            )
            for each in found
            if each.entries.get("value") or each.hit_rate is not None
        ]
        named.append(
            (
                "cached",
                html.count(sum(each.values for each in cached), "value"),
                sum(each.nbytes for each in cached),
            )
        )
        lines = [(name, f"{number}, {format_size(nbytes)}") for name, number, nbytes in named]
        return html.card(str(self), [html.facts(lines), html.shares(cached)])

    def _peek[**P, T](
        self,
        operation: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T | str:
        """What an operation tells of the file, or why it cannot. Makes no file, sets none aside."""
        try:
            self.path.stat()
            return self.database.run(operation, *args, **kwargs)
        except FileNotFoundError:
            return "There is no file yet: the first read or write makes it."
        except (CacheError, OSError) as error:
            return f"The file cannot be read. {error}"

    def __getstate__(self) -> dict[str, object]:
        # As it was named: where a link leads is for the machine to say on which it is opened.
        return {"path": str(self._named), "read_only": self.read_only}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]

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
        """Yield each problem of the file, of every namespace in it: nothing, if all is well.

        Every stored fact is compared with what it stands for: checksums with bytes, sizes with
        lengths, totals with sums, indexes with tables, the schema with what our scripts make. Reads
        the whole file, in short transactions beside which others may write, except for SQLite's own
        ``integrity_check``, during which the log is not written back. Takes little memory.

        Parameters
        ----------
        repair
            Whether to remove entries of a cache that are wrong, which are fetched again, and bytes
            of no entry; totals are counted anew. Where the database itself is damaged (``page``,
            ``schema``, ``counter``, ``namespace``, ``data_file``, or it cannot be opened), it is
            renamed to ``<name>.damaged-<UTC time>`` and another is begun, into which is copied what
            was stored with `SqliteStore`, as far as it has its checksums. What of that does not is
            told and never removed: it stays in the file, or in the renamed one.

        Yields
        ------
        Problem
            Something that is not what it should be.

        Raises
        ------
        ForeignFileError, NewerSchemaError
            The file is not one that this release could verify.
        StorageError
            The file cannot be read at all, or is locked, or is damaged and cannot be renamed.
        """
        if not repair:
            return verify.verify(self._run)
        self._check_writable()
        return self._repair()

    def _repair(self) -> Iterator[Problem]:
        place = file_id_of(self.path)
        try:
            damage = verify.find_damage(self._run)
            if not damage:
                yield from verify.verify_rows(self._run, repair=True)
                return
            error = FileDamagedError(f"{self.path}: {damage[0]}")
            error.place = place
        except FileDamagedError as refused:
            damage, error = [Problem("file", str(refused), "a cache file")], refused
        try:
            aside = self.database.begin_anew(error)
        except CacheError:
            yield from damage
            raise
        if aside is None:
            # Somebody else was first: what is there now is another file.
            yield from damage
            return
        # All of it before anything is told: who is told may not come back.
        left = list(copy_stored(aside, self._put_unless_there))
        begun = Problem("file", f"a damaged one, which is now {aside}", "another, which is begun")
        for problem in (*damage, begun):
            yield replace(problem, is_repaired=True)
        yield from left

    def _put_unless_there(self, key: str, data: ByteArray) -> None:
        self._run(stored.put, [(key, data)], self._now_ns(), replace=False)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The bytes asked for; None if the store has no such key. See `zarr.abc.store.Store`."""
        requests.check(byte_range)
        return _buffer(prototype, await self._run_async(stored.read, key, byte_range))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """As `get`, without an event loop."""
        requests.check(byte_range)
        return _buffer(prototype, self._run(stored.read, key, byte_range))

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """The bytes asked for, in the order of the requests; None for absent keys."""
        asked = list(key_ranges)
        for _, request in asked:
            requests.check(request)
        found = await self._run_async(stored.read_many, asked)
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
        """All the ranges in one batch: there is no round trip to save by merging them.

        Raises
        ------
        BaseExceptionGroup
            With a `FileNotFoundError` in it: there is no such key.
        """
        for request in byte_ranges:
            requests.check(request)
        found = await self._run_async(stored.read_many, [(key, each) for each in byte_ranges])
        yield _batch(key, prototype, found)

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
        for request in byte_ranges:
            requests.check(request)
        found = self._run(stored.read_many, [(key, each) for each in byte_ranges])
        return _batch(key, prototype, found)

    async def exists(self, key: str) -> bool:
        """Whether there is such a key."""
        return await self._run_async(stored.size, key) is not None

    async def getsize(self, key: str) -> int:
        """Bytes of the value, without reading it.

        Raises
        ------
        FileNotFoundError
            There is no such key.
        """
        size = await self._run_async(stored.size, key)
        if size is None:
            raise FileNotFoundError(key)
        return size

    async def getsize_prefix(self, prefix: str) -> int:
        """Bytes of all values below the folder `prefix`, without reading them."""
        return await self._run_async(stored.size_of_prefix, _folder(prefix))

    async def is_empty(self, prefix: str) -> bool:
        """Whether there is no key below the folder `prefix`."""
        folder = _folder(prefix)
        return not await self._run_async(stored.keys, folder, keys.prefix_end(folder), 1)

    async def list(self) -> AsyncIterator[str]:
        """Every key, sorted."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Every key that begins with `prefix`, sorted.

        Read some at a time: keys that are written or deleted meanwhile may be listed or not.
        """
        first, end = prefix, keys.prefix_end(prefix)
        while page := await self._run_async(stored.keys, first, end):
            for key in page:
                yield key
            first = page[-1] + "\0"

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names directly below the folder `prefix`, of keys and of folders, each once."""
        for child in await self._run_async(stored.children, _folder(prefix.rstrip("/"))):
            yield child

    async def set(self, key: str, value: Buffer) -> None:
        """Store the value under the key, in place of one that is there."""
        await self._put([(key, value)])

    def set_sync(self, key: str, value: Buffer) -> None:
        """As `set`, without an event loop."""
        self._check_writable()
        self._run(stored.put, [(key, _array(value))], self._now_ns())

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Store the value unless there is one, also when several processes do so at once."""
        await self._put([(key, value)], replace=False)

    async def _set_many(self, values: Iterable[tuple[str, Buffer]]) -> None:
        await self._put(values)

    async def _put(self, values: Iterable[tuple[str, Buffer]], *, replace: bool = True) -> None:
        self._check_writable()
        items = [(key, _array(value)) for key, value in values]
        await self._run_async(stored.put, items, self._now_ns(), replace=replace)

    async def delete(self, key: str) -> None:
        """Remove the key, if there is one."""
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
        """Remove every key. What a `CacheStore` keeps in the same file stays."""
        await self.delete_dir("")

    def _now_ns(self) -> int:
        return self.database.clock().timestamp_ns()


def _checked(path: str | os.PathLike[str]) -> Path:
    """The path of a file, absolute, by the name that was given.

    Raises
    ------
    ValueError
        It cannot be one; the message says why, and what can.
    """
    name = os.fspath(path)
    if not name:
        raise ValueError("path is empty; name the file to keep values in, such as 'cache.sqlite'")
    if name == ":memory:":
        msg = (
            "path is ':memory:', and SqliteStore keeps values in a file; "
            "use zarr.storage.MemoryStore for values in memory, or name a file"
        )
        raise ValueError(msg)
    named = Path(name).expanduser().absolute()
    # Not is_dir(), which raises where nobody may look: what the cache cannot open costs no read.
    if os.path.isdir(named):  # noqa: PTH112
        raise ValueError(
            f"path is the folder {named}; name a file in it, such as {named}/cache.sqlite"
        )
    return named


def _folder(prefix: str) -> str:
    """`prefix` as the beginning of the keys below it: ``"a"`` is not the folder of ``"ab/c"``."""
    return prefix if not prefix or prefix.endswith("/") else f"{prefix}/"


def _array(value: object) -> ByteArray:
    if not isinstance(value, Buffer):
        msg = (
            f"SqliteStore.set(): `value` must be a Buffer instance. "
            f"Got an instance of {type(value)} instead."
        )
        raise TypeError(msg)
    return to_array(value)


def _buffer(prototype: BufferPrototype | None, data: Data | None) -> Buffer | None:
    return None if data is None else to_buffer(prototype, data)


def _batch(
    key: str, prototype: BufferPrototype, found: Sequence[Data | None]
) -> Sequence[tuple[int, Buffer | None]]:
    if any(data is None for data in found):
        msg = "chunk read failed"
        raise BaseExceptionGroup(msg, [FileNotFoundError(key)])
    return [(place, _buffer(prototype, data)) for place, data in enumerate(found)]
