"""The bytes of values in any zarr store, under their own keys."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from zarr.core.buffer import cpu

from zarr_cache.core.errors import StorageError
from zarr_cache.core.flow import call, call_async, to_its_end
from zarr_cache.index import listing

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from zarr.abc.store import Store
    from zarr.core.buffer import Buffer

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.core.flow import Flow
    from zarr_cache.file.database import Database


def is_name(key: str) -> bool:
    """Whether a value can have this key: to some stores, a key that ends with a slash is a folder.

    They would delete all that is in it, and for the empty key all that there is.
    """
    return key != "" and not key.endswith("/")


class StoreValues:
    """Reads, writes and deletes the values in a store.

    What the store raises is raised as a `StorageError`: it fails the cache, not the read.

    Parameters
    ----------
    index
        The database with the entries of these values: none of a value that has one is deleted.
    """

    def __init__(self, store: Store, index: Database) -> None:
        self._store = store
        self._index = index
        # Keys of which the store may hold bytes. No other is deleted: it may name a folder.
        self._held: set[str] = set()
        # Those of them that no entry stands for.
        self._to_delete: set[str] = set()
        self._being_written: set[str] = set()

    def forget_writes(self) -> None:
        """Forget which values are being written: in the child of a fork, none is."""
        self._being_written = set()

    def sizes(self) -> Flow[list[tuple[str, int]]]:
        """Each key that the store lists, with the size of its value."""
        sizes = yield from self._checked(call_async(self._store, _sizes))
        self._held.update(key for key, _ in sizes)
        return sizes

    def get(self, key: str) -> Flow[Buffer | None]:
        """The value, or None if there is none."""
        prototype = cpu.buffer_prototype
        return self._checked(
            call(
                self._store,
                lambda store: store.get_sync(key, prototype=prototype),
                lambda store: store.get(key, prototype),
            )
        )

    @contextmanager
    def writing(self, keys: Iterable[str]) -> Iterator[None]:
        """Delete none of these values: they are written in this block, and then their entries."""
        keys = set(keys)
        self._being_written |= keys
        try:
            yield
        finally:
            self._being_written -= keys

    def set(self, key: str, data: ByteArray) -> Flow[None]:
        """Write the value, within `writing`."""
        buffer = cpu.Buffer.from_array_like(data)
        self._held.add(key)
        self._to_delete.discard(key)
        try:
            yield from self._checked(
                call(
                    self._store,
                    lambda store: store.set_sync(key, buffer),
                    lambda store: store.set(key, buffer),
                )
            )
        except StorageError:
            # What is there now is not known.
            self._to_delete.add(key)
            raise

    def delete(self, keys: Iterable[str]) -> Flow[None]:
        """Delete these values, and those that could not be deleted before, if none has an entry."""
        self._to_delete.update(self._held.intersection(keys))
        if self._to_delete:
            yield from to_its_end(self._delete_all)

    def _delete_all(self) -> Flow[None]:
        failure = None
        for key in sorted(self._to_delete):
            # Unless it has been written again, or another thread has deleted it.
            if key in self._to_delete and key not in self._being_written:
                try:
                    if not self._index.run(listing.has_value, key):
                        yield from self._delete_one(key)
                except StorageError as error:
                    # It is tried again with the next that are deleted, and the others now.
                    failure = error
                else:
                    self._to_delete.discard(key)
        if failure is not None:
            raise failure

    def _delete_one(self, key: str) -> Flow[None]:
        yield from self._checked(
            call(
                self._store,
                lambda store: store.delete_sync(key),
                lambda store: store.delete(key),
            )
        )
        if key not in self._being_written:
            self._held.discard(key)

    def _checked[T](self, called: Flow[T]) -> Flow[T]:
        try:
            return (yield from called)
        except Exception as error:
            raise StorageError(f"{self._store}: {type(error).__name__}: {error}") from error


async def _sizes(store: Store) -> list[tuple[str, int]]:
    return [(key, await store.getsize(key)) async for key in store.list() if is_name(key)]
