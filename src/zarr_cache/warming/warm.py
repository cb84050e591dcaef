"""`warm`: fetch the chunks that a selection needs, before they are read."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from zarr_cache.cache.members import members_of
from zarr_cache.core.keys import METADATA
from zarr_cache.warming.chunk_grid import StoredChunks, decoded_nbytes
from zarr_cache.warming.coverage import source_of
from zarr_cache.warming.parts import Documents, InnerChunksPart, Values
from zarr_cache.warming.plan import plan
from zarr_cache.warming.progress import shown
from zarr_cache.warming.report import NOT_OF_ONE_KEY, Failures
from zarr_cache.warming.run import WarmRun
from zarr_cache.warming.shard_index import is_sharded, sharding_of

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from zarr.abc.store import Store

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
    it is called again. A request that fails does not end the run: the report lists it.

    Of a sharded array, whole shards are fetched, unless the CacheStore has ``persist_ranges=True``.
    Then it is what zarr reads: the indexes of the shards, and by them the inner chunks that the
    selection touches, merged as zarr merges them; a shard of which all inner chunks are touched is
    fetched as a whole. The reports then count inner chunks.

    Other values are evicted as for any read, the least recently used first, unless the CacheStore
    has ``when_full="keep"``. The run stops before it would evict chunks of the selection: when the
    bytes that the selection uses, those under way, and the largest chunk of the array so far exceed
    ``max_size``, or what other values leave of it if these are not evicted. Before the first chunk
    of an array, its size before encoding is used. The size of an inner chunk is known from the
    index.

    Runs on zarr's event loop and blocks until it is done, like zarr's own functions; it can also be
    called in a notebook.

    Parameters
    ----------
    array_or_group
        Opened through a `CacheStore`. Of a group, all arrays in it are warmed, at any depth; the
        report lists them. They are found by consolidated metadata, by listings of the source or,
        where it cannot list, by OME ``multiscales``: labels, plates and wells are not followed.
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
        Or of a group is not known what is in it: the source does not list it, and it has neither
        consolidated metadata nor OME multiscales. Warm its arrays one by one.
    OfflineError
        The CacheStore is offline, and something is not cached.
    CacheError
        The cache file cannot be read.
    Exception
        The error of a request, if the first twenty requests for chunks, or for metadata, have all
        failed. What was fetched before it stays cached.
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
    return await warm_node(
        array_or_group,
        selection,
        max_concurrency=max_concurrency,
        dry_run=dry_run,
        progress=progress,
    )


async def warm_node(
    node: AsyncNode,
    selection: Selection = ...,
    *,
    max_concurrency: int | None = None,
    dry_run: bool = False,
    progress: Where = None,
    learn_absences: bool = False,
) -> WarmReport | WarmPlan:
    """As `warm_async`.

    Parameters
    ----------
    learn_absences
        Whether to also read the metadata that zarr requests to find out what is at the root, at the
        node and below. Most of it is absent. Without a network, that must be known.
    """
    store: Any = node.store
    cached = source_of(store)
    if store.max_age_seconds == 0:
        raise ValueError("a CacheStore with max_age_seconds=0 caches nothing")
    if max_concurrency is None:
        max_concurrency = int(zarr.config.get("async.concurrency") or 1)
    if max_concurrency < 1:
        raise ValueError(f"max_concurrency must be at least 1, got {max_concurrency}")
    limit, failures = asyncio.Semaphore(max_concurrency), Failures()
    nodes: list[AsyncNode] = [node]
    if isinstance(node, zarr.AsyncGroup):
        if selection is not ...:
            raise ValueError("a selection needs one array: warm the arrays of the group one by one")
        nodes += await members_of(node, limit, partial(failures.record, "metadata"))
    arrays = [each for each in nodes if isinstance(each, zarr.AsyncArray)]
    documents = _documents(nodes)
    persist_ranges = cached.settings.persist_ranges
    parts: list[Part] = [Values(Documents(documents), documents, nbytes=None, is_chunks=False)]
    parts += [_part_of(each, selection, persist_ranges=persist_ranges) for each in arrays]
    if learn_absences:
        # The run requests the documents again, and records if they fail.
        await _read_metadata(store, nodes, limit, failures, set() if dry_run else set(documents))
    result: WarmReport | WarmPlan
    if dry_run:
        result = await plan(store, cached, parts, max_concurrency, failures)
    else:
        with shown(progress, node.path or "warming") as report:
            run = WarmRun(store, cached, parts, max_concurrency, report, failures)
            result = await run.fetch()
    paths = tuple(sorted(each.path for each in arrays))
    return replace(result, arrays=paths, is_group=isinstance(node, zarr.AsyncGroup))


async def _read_metadata(
    store: Store,
    nodes: list[AsyncNode],
    limit: asyncio.Semaphore,
    failures: Failures,
    recorded_later: set[str],
) -> None:
    """Read all metadata that may be at the root and at the nodes."""

    async def read(key: str) -> None:
        async with limit:
            try:
                await store.get(key, default_buffer_prototype())
            except Exception as error:  # noqa: BLE001 - whatever the source raises of this key
                if key not in recorded_later or isinstance(error, NOT_OF_ONE_KEY):
                    failures.record("metadata", key, error)
            else:
                failures.record("metadata", key, None)

    folders = {"", *(f"{node.path}/" if node.path else "" for node in nodes)}
    keys = [f"{folder}{name}" for folder in sorted(folders) for name in sorted(METADATA)]
    await asyncio.gather(*map(read, keys))


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
