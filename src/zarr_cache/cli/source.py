"""The Zarr of a command: opened through the cache, from a URL or a folder."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any

import typer
from zarr.api import asynchronous
from zarr.errors import NodeNotFoundError, NodeTypeValidationError
from zarr.storage import LocalStore

from zarr_cache.cache.sqlite_store import SqliteStore
from zarr_cache.cache.store import CacheStore
from zarr_cache.cli.terminal import fail
from zarr_cache.core.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path
    from types import EllipsisType

    import zarr
    from zarr.abc.store import Store

_INDEX = re.compile(r"-?[0-9]+", re.ASCII)
_SLICE = re.compile(r"(-?[0-9]+)?:(-?[0-9]+)?(?::([0-9]+)?)?", re.ASCII)


def selection(text: str) -> tuple[int | slice | EllipsisType, ...]:
    """What ``"0:100, :, 3"`` selects; nothing said is everything."""
    if not text.strip():
        return (...,)
    return tuple(_one(part.strip()) for part in text.split(","))


def _one(text: str) -> int | slice | EllipsisType:
    if text == "...":
        return ...
    if _INDEX.fullmatch(text):
        return int(text)
    match = _SLICE.fullmatch(text)
    if match is None or match[3] == "0":
        raise typer.BadParameter(
            f"{text!r} selects nothing; expected an index or a slice for each dimension, "
            "as in '0:100,:,3'"
        )
    return slice(*(None if part is None else int(part) for part in match.groups()))


@contextlib.asynccontextmanager
async def opened(
    url: str, path: str, cache_file: Path, **settings: Any
) -> AsyncIterator[zarr.AsyncArray[Any] | zarr.AsyncGroup]:
    """The array or group at `path` of the Zarr at `url`, read through the cache file.

    Parameters
    ----------
    settings
        Of the `CacheStore`.
    """
    async with _source(url) as source:
        # Opened first: to a command, a file that is none is no reason to go on without.
        kept = await SqliteStore.open(cache_file)
        cache = CacheStore(source, cache_store=kept, **settings)
        try:
            yield await asynchronous.open(store=cache, path=path, mode="r")
        finally:
            cache.close()


@contextlib.asynccontextmanager
async def _source(url: str) -> AsyncIterator[Store]:
    if "://" not in url:
        yield LocalStore(url, read_only=True)
        return
    from zarr_cache.cli.demo.source import open_source  # noqa: PLC0415 - needs fsspec, of an extra

    async with open_source(url) as (source, _):
        yield source


def run[T](url: str, path: str, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run to the end; end the command with one line if the source or the file fails.

    An event loop of the command's own waits for every task when one fails or is interrupted.
    """
    try:
        return asyncio.run(coroutine)
    except CacheError as error:
        fail(str(error))
    except (NodeNotFoundError, NodeTypeValidationError):
        fail(f"{url}: no array or group at {path!r}; name one with --array")
    except KeyboardInterrupt:
        typer.echo("stopped: what was fetched is kept, the same command goes on there", err=True)
        raise typer.Exit(130) from None
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001 - what a URL may raise depends on what is behind it
        first_line = (str(error).splitlines() or [""])[0] or type(error).__name__
        fail(f"{url}: {first_line}")
