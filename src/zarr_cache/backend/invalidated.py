"""Invalidated namespaces: those whose entries may be older than a write to the source."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from zarr_cache.core.errors import CacheError
from zarr_cache.core.flow import threaded

if TYPE_CHECKING:
    from zarr_cache.core.flow import Flow
    from zarr_cache.file.database import Database


logger = logging.getLogger(__name__)


class InvalidatedNamespaces:
    """Namespaces with a write to the source that could not be recorded in the database.

    No process serves their entries until they have been removed. A marker beside the file says so
    to all processes. Where none can be made, this process alone remembers it.
    """

    # Those with a namespace in `_unmarked`, which must outlive the last CacheStore over the
    # database. The hooks of the database keep its cache.
    _remembered: ClassVar[set[InvalidatedNamespaces]] = set()

    def __init__(self, database: Database) -> None:
        self._database = database
        # Invalidated, without a marker that says so. A child of a fork inherits them.
        self._unmarked: set[str] = set()

    def invalidate(self, namespace: str) -> Flow[None]:
        """Let no process serve an entry of the namespace until `revalidate`."""
        is_known = namespace in self._unmarked
        self._unmarked.add(namespace)
        self._remembered.add(self)
        try:
            is_marked = yield from threaded(partial(self._database.mark, namespace))
        except CacheError as error:
            if not is_known:
                logger.warning("%s; other processes may serve values from before a write", error)
        else:
            if is_marked:
                self._forget(namespace)

    def is_invalidated(self, namespace: str) -> bool:
        """Whether a write to this source could not be recorded."""
        return namespace in self._unmarked or self._database.is_marked(namespace)

    def revalidate(self, namespace: str, marked_ns: int | None) -> Flow[None]:
        """Let entries of the namespace be served again: those from before the write are removed.

        A marker that is newer than `marked_ns`, which is `Database.marked_ns` from before they were
        removed, stays: it stands for another write.
        """
        self._forget(namespace)
        if marked_ns is not None:
            yield from threaded(partial(self._database.unmark, namespace, marked_ns))

    def _forget(self, namespace: str) -> None:
        self._unmarked.discard(namespace)
        if not self._unmarked:
            self._remembered.discard(self)
