"""`warm`: fetch the chunks that a selection needs, before they are read."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, Literal, overload

import zarr
from zarr.core.sync import sync

from zarr_cache.warming.chunk_grid import StoredChunks, decoded_nbytes
from zarr_cache.warming.coverage import source_of
from zarr_cache.warming.parts import InnerChunksPart, Values
from zarr_cache.warming.plan import plan
from zarr_cache.warming.progress import shown
from zarr_cache.warming.run import WarmRun
from zarr_cache.warming.shard_index import is_sharded, sharding_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from zarr_cache.warming.chunk_grid import Selection
    from zarr_cache.warming.parts import Part
    from zarr_cache.warming.progress import Where
    from zarr_cache.warming.report import WarmPlan, WarmReport


type AsyncNode = zarr.AsyncArray[Any] | zarr.AsyncGroup

# Metadata documents of an array and of a group, by Zarr format.
ARRAY_DOCUMENTS = {2: (".zarray", ".zattrs"), 3: ("zarr.json",)}

GROUP_DOCUMENTS = {2: (".zgroup", ".zattrs", ".zmetadata"), 3: ("zarr.json",)}


@overload
def warm(
    array_or_group: zarr.Array[Any] | zarr.Group,
    selection: Selection = ...,
    *,
    max_concurrency: int | None = None,
    dry_run: Literal[False] = False,
    progress: Where = None,
) -> WarmReport: ...


@overload
def warm(
    array_or_group: zarr.Array[Any] | zarr.Group,
    selection: Selection = ...,
    *,
    max_concurrency: int | None = None,
    dry_run: Literal[True],
    progress: Where = None,
) -> WarmPlan: ...


@overload
def warm(
    array_or_group: zarr.Array[Any] | zarr.Group,
    selection: Selection = ...,
    *,
    max_concurrency: int | None = None,
    dry_run: bool,
    progress: Where = None,
) -> WarmReport | WarmPlan: ...


def warm(
    array_or_group: zarr.Array[Any] | zarr.Group,
    selection: Selection = ...,
    *,
    max_concurrency: int | None = None,
    dry_run: bool = False,
    progress: Where = None,
) -> WarmReport | WarmPlan:
    """Fetch what a read of the selection needs, so that the read makes no request.

    Fetches the chunks that the selection touches, and the metadata of the array or group, of all
    members of the group, and of the groups above it. What is cached and fresh is neither fetched
    nor read, and becomes the most recently used. So an interrupted run continues where it was when
    it is called again.

    Of a sharded array, whole shards are fetched, unless the CacheStore has ``persist_ranges=True``.
    Then it is what zarr reads: the indexes of the shards, and by them the inner chunks that the
    selection touches, merged as zarr merges them; a shard of which all inner chunks are touched is
    fetched as a whole. The reports then count inner chunks.

    Other values are evicted as for any read, the least recently used first. The run stops before it
    would evict chunks of the selection: when the bytes that the selection uses, those under way,
    and the largest chunk of the array so far exceed ``max_size``. Before the first chunk of an
    array, its size before encoding is used. The size of an inner chunk is known from the index.

    Runs on zarr's event loop and blocks until it is done, like zarr's own functions; it can also be
    called in a notebook.

    Parameters
    ----------
    array_or_group
        Opened through a `CacheStore`. Of a group, all arrays in it are warmed, at any depth.
    selection
        As for ``array.oindex``: for each dimension an index, a slice, indices or a mask. Only for
        an array.
    max_concurrency
        How many requests may be under way at once; None: zarr's setting ``async.concurrency``.
    dry_run
        Whether to return what would be fetched, and fetch no chunk. Requests the sizes of up to 32
        chunks of each array, if the source returns sizes without reading the values. Where inner
        chunks would be fetched, reads the indexes of up to 32 shards, and caches them.
    progress
        A console of rich for a progress bar. True: stderr, or the notebook. None: the same, if
        stderr is a terminal or this is a notebook. False: no bar.

    Returns
    -------
    WarmReport or, with `dry_run`, WarmPlan
        What was done, or would be done. Its ``str`` is one line of text.

    Raises
    ------
    TypeError
        The array or group was not opened through a CacheStore.
    IndexError
        `selection` does not fit the array.
    ValueError
        A selection was given for a group, `max_concurrency` is below 1, or ``max_age_seconds`` of
        the CacheStore is 0, so that it caches nothing.
    CacheError
        The cache file cannot be read.
    Exception
        Any error of the source. What was fetched before it stays cached.
    """
    node = (
        array_or_group.async_array
        if isinstance(array_or_group, zarr.Array)
        else array_or_group._async_group  # noqa: SLF001 - no other name leads to it
    )
    return _sync(
        warm_async(
            node, selection, max_concurrency=max_concurrency, dry_run=dry_run, progress=progress
        )
    )


@overload
async def warm_async(
    array_or_group: AsyncNode,
    selection: Selection = ...,
    *,
    max_concurrency: int | None = None,
    dry_run: Literal[False] = False,
    progress: Where = None,
) -> WarmReport: ...


@overload
async def warm_async(
    array_or_group: AsyncNode,
    selection: Selection = ...,
    *,
    max_concurrency: int | None = None,
    dry_run: Literal[True],
    progress: Where = None,
) -> WarmPlan: ...


@overload
async def warm_async(
    array_or_group: AsyncNode,
    selection: Selection = ...,
    *,
    max_concurrency: int | None = None,
    dry_run: bool,
    progress: Where = None,
) -> WarmReport | WarmPlan: ...


async def warm_async(
    array_or_group: AsyncNode,
    selection: Selection = ...,
    *,
    max_concurrency: int | None = None,
    dry_run: bool = False,
    progress: Where = None,
) -> WarmReport | WarmPlan:
    """As `warm`, on the running event loop, for arrays and groups of ``zarr.api.asynchronous``."""
    store: Any = array_or_group.store
    cached = source_of(store)
    if store.max_age_seconds == 0:
        raise ValueError("a CacheStore with max_age_seconds=0 caches nothing")
    if max_concurrency is None:
        max_concurrency = int(zarr.config.get("async.concurrency") or 1)
    if max_concurrency < 1:
        raise ValueError(f"max_concurrency must be at least 1, got {max_concurrency}")
    nodes: list[AsyncNode] = [array_or_group]
    if isinstance(array_or_group, zarr.AsyncGroup):
        if selection is not ...:
            raise ValueError("a selection needs one array: warm the arrays of the group one by one")
        nodes += [node async for _, node in array_or_group.members(max_depth=None)]
    documents = _documents(nodes)
    parts: list[Part] = [Values(documents, documents, nbytes=None, is_chunks=False)]
    parts += [
        _part_of(node, selection, persist_ranges=cached.settings.persist_ranges)
        for node in nodes
        if isinstance(node, zarr.AsyncArray)
    ]
    if dry_run:
        return await plan(store, cached, parts, max_concurrency)
    with shown(progress, array_or_group.path or "warming") as report:
        return await WarmRun(store, cached, parts, max_concurrency, report).fetch()


def _part_of(array: zarr.AsyncArray[Any], selection: Selection, *, persist_ranges: bool) -> Part:
    """The inner chunks of a sharded array if ranges are persisted, and otherwise stored chunks."""
    sharding = sharding_of(array) if persist_ranges else None
    if sharding is not None:
        return InnerChunksPart(array, sharding, selection)
    chunks = StoredChunks(array, selection)
    return Values(
        chunks,
        [chunks.prefix],
        nbytes=decoded_nbytes(array),
        is_chunks=True,
        is_shards=is_sharded(array),
    )


def _documents(nodes: list[AsyncNode]) -> list[str]:
    """Keys of the metadata of the groups above the first node, from the top down, and of all."""
    folders = nodes[0].path.split("/") if nodes[0].path else []
    zarr_format = nodes[0].metadata.zarr_format
    arrays = {node.path for node in nodes if isinstance(node, zarr.AsyncArray)}
    above = ["/".join(folders[:depth]) for depth in range(len(folders))]
    return [
        f"{path}/{name}" if path else name
        for path in (*above, *(node.path for node in nodes))
        for name in (ARRAY_DOCUMENTS if path in arrays else GROUP_DOCUMENTS)[zarr_format]
    ]


def _sync[T](coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on zarr's event loop until it is done, or cancelled by Ctrl-C.

    zarr's ``sync`` returns at Ctrl-C, and its task continues.
    """
    ended = threading.Event()
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def run() -> T:
        started.append((asyncio.get_running_loop(), asyncio.current_task()))
        try:
            return await coroutine
        finally:
            ended.set()

    try:
        return sync(run())
    except BaseException:
        for loop, task in started:
            if task is not None and not ended.is_set():
                loop.call_soon_threadsafe(task.cancel)
                ended.wait()
        raise
