"""The members of a group: by consolidated metadata, the source's listing, or OME multiscales.

A server that cannot list says the same of a group as of an empty folder: nothing. So a listing is
complete only if it has the metadata of the group itself, which is there.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Any

import zarr
from zarr.api import asynchronous

from zarr_cache.core.errors import CacheError, OfflineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    type Node = zarr.AsyncArray[Any] | zarr.AsyncGroup

    type Record = Callable[[str, Exception | None], None]

DOCUMENT = {2: ".zgroup", 3: "zarr.json"}
"""The metadata of a group, by Zarr format."""


class UnlistedError(ValueError):
    """What is in a group cannot be found out: name the arrays."""

    def __init__(self, group: zarr.AsyncGroup) -> None:
        super().__init__(
            f"the source does not list what is in the group {group.path!r}, which has neither "
            "consolidated metadata nor OME multiscales: name its arrays one by one, as with "
            "--array on the command line"
        )


async def members_of(
    group: zarr.AsyncGroup, limit: asyncio.Semaphore, record: Record
) -> list[Node]:
    """The arrays and groups below the group, at any depth.

    By its consolidated metadata or, else, by listings of the source. Where these are not complete,
    by the consolidated metadata of a group above, and otherwise by the arrays that OME metadata
    names as ``multiscales``, of 0.5 or 0.4, and what is listed.

    Parameters
    ----------
    limit
        How many requests may be under way at once.
    record
        Called for each member with a key of it, and with the error if it cannot be read. It may
        raise the error.

    Raises
    ------
    UnlistedError
        Nothing was found, and the listing is not complete.
    """
    if group.metadata.consolidated_metadata is not None:
        return [node async for _, node in group.members(max_depth=None)]
    names, error = await _list(group)
    is_complete = DOCUMENT[group.metadata.zarr_format] in names
    named: set[str] = set()
    if not is_complete:
        consolidated = await _consolidated(group)
        if consolidated is not None:
            return [node async for _, node in consolidated.members(max_depth=None)]
        named = set(_multiscale_paths(group.attrs))
    nodes = await _open_all(group, sorted(names | named), named, limit, record)
    if not nodes and not named and not is_complete:
        raise UnlistedError(group) from error
    below = []
    for node in nodes:
        if isinstance(node, zarr.AsyncGroup):
            try:
                below += await members_of(node, limit, record)
            except UnlistedError as unlisted:
                record(_document(node, node.path), unlisted)
    return [*nodes, *below]


async def _list(group: zarr.AsyncGroup) -> tuple[set[str], Exception | None]:
    """The names that the source lists in the group; none and the error, if it cannot list."""
    if not group.store.supports_listing:
        return set(), None
    try:
        return {name async for name in group.store.list_dir(group.path)}, None
    except (CacheError, OfflineError):
        raise
    except Exception as error:  # noqa: BLE001 - servers refuse to list by many errors
        return set(), error


async def _consolidated(group: zarr.AsyncGroup) -> zarr.AsyncGroup | None:
    """The group as the consolidated metadata of it, or of a group above, describes it."""
    folders = group.path.split("/") if group.path else []
    for depth in range(len(folders), -1, -1):
        path = "/".join(folders[:depth])
        try:
            found: Any = await asynchronous.open_group(
                store=group.store,
                path=path,
                mode="r",
                zarr_format=group.metadata.zarr_format,
                use_consolidated=True,
            )
            if path != group.path:
                found = await found.getitem("/".join(folders[depth:]))
        except (CacheError, OfflineError):
            raise
        except Exception:  # noqa: BLE001, S112 - it has none, or cannot be read: then another way
            continue
        if isinstance(found, zarr.AsyncGroup) and found.metadata.consolidated_metadata is not None:
            return found
    return None


def _multiscale_paths(attributes: dict[str, Any]) -> Iterable[str]:
    """The paths of the arrays of an OME image: version 0.5 has them below "ome", 0.4 does not."""
    ome = attributes.get("ome")
    images = (ome if isinstance(ome, dict) else attributes).get("multiscales")
    for image in _mappings(images):
        for dataset in _mappings(image.get("datasets")):
            if isinstance(dataset.get("path"), str) and dataset["path"]:
                yield dataset["path"]


def _mappings(each: object) -> list[dict[str, Any]]:
    return [one for one in each if isinstance(one, dict)] if isinstance(each, list) else []


async def _open_all(
    group: zarr.AsyncGroup,
    names: list[str],
    expected: set[str],
    limit: asyncio.Semaphore,
    record: Record,
) -> list[Node]:
    """The members of these names. Those `expected` should be there; others may be plain files."""

    async def open_one(name: str) -> Node | None:
        key = _document(group, f"{group.path}/{name}" if group.path else name)
        async with limit:
            try:
                node = await group.getitem(name)
            except Exception as error:  # noqa: BLE001 - whatever the source raises of this member
                record(key, _outcome(error, is_expected=name in expected))
                return None
            record(key, None)
            return node

    try:
        async with asyncio.TaskGroup() as tasks:
            opened = [
                tasks.create_task(open_one(name)) for name in names if not name.startswith(".z")
            ]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    nodes = [task.result() for task in opened]
    return [node for node in nodes if node is not None]


def _outcome(error: Exception, *, is_expected: bool) -> Exception | None:
    """The error of a member; None if there is no such member, and none is expected."""
    is_absent = isinstance(error, KeyError) and isinstance(error.__cause__, FileNotFoundError)
    if not is_absent:
        return error
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) if is_expected else None


def _document(group: zarr.AsyncGroup, path: str) -> str:
    name = DOCUMENT[group.metadata.zarr_format]
    return f"{path}/{name}" if path else name
