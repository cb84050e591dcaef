"""The bytes of values in any zarr store, under their own keys."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from zarr.core.buffer import cpu

from zarr_cache.core import keys as core_keys
from zarr_cache.core.errors import StorageError
from zarr_cache.core.flow import call, call_async, to_its_end
from zarr_cache.index import admit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from zarr.abc.store import Store
    from zarr.core.buffer import Buffer

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.core.flow import Flow
    from zarr_cache.file.connection import Connection
    from zarr_cache.file.database import Database


HAS_VALUES_BELOW = """
SELECT 1
FROM entry
WHERE namespace IN (SELECT id FROM namespace)
  AND key >= :first
  AND key < :end
  AND kind = 'value'
LIMIT 1
"""


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

    Attributes
    ----------
    is_listed
        Whether the index has all that the store holds. Until then, any key may be a folder.
    """

    def __init__(self, store: Store, index: Database) -> None:
        self._store = store
        self._index = index
        self.is_listed = not store.supports_listing
        # Keys of which the store may hold bytes that no entry stands for.
        self._to_delete: set[str] = set()
        self._being_written: set[str] = set()

    def forget_writes(self) -> None:
        """Forget which values are being written: in the child of a fork, none is."""
        self._being_written = set()

    def sizes(self) -> Flow[list[tuple[str, int]]]:
        """Each key that the store lists, with the size of its value."""
        return self._checked(call_async(self._store, _sizes))

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
        self._to_delete.update(filter(is_name, keys))
        if self._to_delete:
            yield from to_its_end(self._delete_all)

    def _delete_all(self) -> Flow[None]:
        failure = None
        for key in sorted(self._to_delete):
            # Unless it has been written again, or another thread has deleted it.
            if key in self._to_delete and key not in self._being_written:
                try:
                    if not self._index.run(admit.has_value, key):
                        yield from self._delete_one(key)
                except StorageError as error:
                    # It is tried again with the next that are deleted, and the others now.
                    failure = error
                else:
                    self._to_delete.discard(key)
        if failure is not None:
            raise failure

    def _delete_one(self, key: str) -> Flow[None]:
        """Delete a value; a folder of that name stays, with all that is in it."""
        if self._may_be_folder(key) and (yield from self.get(key)) is None:
            return
        try:
            yield from self._checked(
                call(
                    self._store,
                    lambda store: store.delete_sync(key),
                    lambda store: store.delete(key),
                )
            )
        except StorageError:
            # As fsspec's local file system refuses to delete an empty folder.
            if (yield from self.get(key)) is not None:
                raise

    def _may_be_folder(self, key: str) -> bool:
        """Whether there are values below the key, or may be.

        A store of files has no value of that name then, and some delete the folder: a `LocalStore`
        does. In other stores there may be both.
        """
        folder = f"{key}/"
        return (
            not self.is_listed
            or any(each.startswith(folder) for each in tuple(self._being_written))
            or self._index.run(_has_values_below, folder)
        )

    def _checked[T](self, called: Flow[T]) -> Flow[T]:
        try:
            return (yield from called)
        except Exception as error:
            raise StorageError(f"{self._store}: {type(error).__name__}: {error}") from error


def _has_values_below(connection: Connection, folder: str) -> bool:
    parameters = {"first": folder, "end": core_keys.prefix_end(folder)}
    return connection.execute(HAS_VALUES_BELOW, parameters).fetchone() is not None


async def _sizes(store: Store) -> list[tuple[str, int]]:
    return [(key, await store.getsize(key)) async for key in store.list() if is_name(key)]
