"""The reader of a source: one for each kind of source that tells validators."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr.storage import FsspecStore, LocalStore, ObjectStore

from zarr_cache.sources import fsspec_reads, obstore_reads
from zarr_cache.sources.local_reads import LocalStoreReader

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from zarr_cache.sources.source_reader import SourceReader


def reader_of(source: Store) -> SourceReader | None:
    """The reader of `source`; None if it tells no validators, or is of a class that is not known.

    A subclass or a wrapper has none: it may change the bytes, and the version with them, as it
    likes.
    """
    if type(source) is LocalStore:
        return LocalStoreReader(source)
    if type(source) is ObjectStore:
        return obstore_reads.reader_of(source)
    if type(source) is FsspecStore:
        return fsspec_reads.reader_of(source)
    return None
