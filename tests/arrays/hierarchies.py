"""Real hierarchies: how each is written, and what a reader of it sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.abc.store import Store

type BackgroundWorker = Callable[[Store], None]

RAMP = np.arange(48 * 40, dtype="f4").reshape(48, 40)


def plain(store: Store) -> None:
    """Compressed chunks, the last ones not full."""
    array = zarr.create_array(store, shape=RAMP.shape, chunks=(20, 16), dtype="f4")
    array[:] = RAMP


def format_2(store: Store) -> None:
    """Format 2 of zarr, with attributes."""
    root = zarr.create_group(store, zarr_format=2, attributes={"title": "ramp"})
    array = root.create_array("ramp", shape=RAMP.shape, chunks=(20, 16), dtype="f4")
    array[:] = RAMP
    array.attrs["unit"] = "m"


def sharded(store: Store) -> None:
    """Shards of inner chunks."""
    array = zarr.create_array(
        store, shape=RAMP.shape, chunks=(4, 5), shards=(16, 20), dtype="f4", compressors=None
    )
    array[:] = RAMP


def sharded_with_a_margin(store: Store) -> None:
    """Shards of which the last reach over the end, so that zarr reads those by ranges."""
    array = zarr.create_array(store, shape=RAMP.shape, chunks=(5, 8), shards=(20, 16), dtype="f4")
    array[:] = RAMP


def sparse(store: Store) -> None:
    """Most chunks hold only the fill value, and are absent."""
    array = zarr.create_array(store, shape=(60, 60), chunks=(10, 10), dtype="i2", fill_value=-1)
    array[12, 34] = 5
    array[55:, 55:] = 7


def sparse_sharded(store: Store) -> None:
    """Absent shards, and absent inner chunks in a shard that is there."""
    array = zarr.create_array(
        store, shape=(60, 60), chunks=(5, 5), shards=(20, 20), dtype="i2", fill_value=-1
    )
    array[12, 34] = 5


def zero_dimensional(store: Store) -> None:
    """One number."""
    array = zarr.create_array(store, shape=(), dtype="f8", fill_value=1.5)
    array[...] = 2.25


def strings(store: Store) -> None:
    """Strings of any length."""
    array = zarr.create_array(store, shape=5, chunks=2, dtype=str)
    array[:] = np.array(["", "a", "äö", "x" * 300, "🌍"], dtype=object)


def groups(store: Store) -> None:
    """Groups in groups, attributes on each."""
    root = zarr.create_group(store, attributes={"made": {"by": ["us", 1, None]}})
    inner = root.create_group("a").create_group("b", attributes={"depth": 2})
    inner.create_array("ramp", shape=RAMP.shape, chunks=(20, 16), dtype="f4")[:] = RAMP
    root.create_array("a_b", shape=3, dtype="u1", attributes={"unit": "m"})[:] = 9


def consolidated(store: Store) -> None:
    """Groups whose metadata is in one document."""
    groups(store)
    zarr.consolidate_metadata(store)


def consolidated_format_2(store: Store) -> None:
    """The same for zarr format 2, in a document of its own."""
    format_2(store)
    zarr.consolidate_metadata(store, zarr_format=2)


WRITERS: list[BackgroundWorker] = [
    plain,
    format_2,
    sharded,
    sharded_with_a_margin,
    sparse,
    sparse_sharded,
    zero_dimensional,
    strings,
    groups,
    consolidated,
    consolidated_format_2,
]


def contents(node: zarr.Array[Any] | zarr.Group) -> dict[str, Any]:
    """Attributes and values of a node and of all below it, by path."""
    if isinstance(node, zarr.Array):
        return {node.path: (dict(node.attrs), np.asarray(node[...]).tolist())}
    found: dict[str, Any] = {node.path: dict(node.attrs)}
    for _, member in node.members():
        found |= contents(member)
    return found
