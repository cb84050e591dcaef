"""The Zarr that a command reads: a URL or a folder, opened through the cache."""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any

import typer
from zarr.api import asynchronous
from zarr.errors import NodeNotFoundError, NodeTypeValidationError

from zarr_cache.cache.source_stores import close_session, source_store, without_secrets
from zarr_cache.cache.sqlite_store import SqliteStore
from zarr_cache.cache.store import CacheStore
from zarr_cache.cli.terminal import fail
from zarr_cache.core.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path
    from types import EllipsisType

    import zarr

_INDEX = re.compile(r"-?[0-9]+", re.ASCII)
# What clients repeat of a URL: the user with the password, and the query.
_SECRETS = re.compile(r"(?<=://)[^\s/]+@|(?<=\S)\?[^\s'\"]+")
_SLICE = re.compile(r"(-?[0-9]+)?:(-?[0-9]+)?(?::([0-9]+)?)?", re.ASCII)


def selection(text: str) -> tuple[int | slice | EllipsisType, ...]:
    """The selection that ``"0:100, :, 3"`` stands for; an empty text selects everything."""
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
        Passed to the `CacheStore`.
    """
    async with opened_store(url, cache_file, **settings) as cache:
        yield await asynchronous.open(store=cache, path=path, mode="r")


@contextlib.asynccontextmanager
async def opened_store(url: str, cache_file: Path, **settings: Any) -> AsyncIterator[CacheStore]:
    """The Zarr at `url`, read through the cache file; `settings` as in `opened`."""
    source = source_store(url)
    # Opened first, so that a file that is not a cache file is an error: a CacheStore would warn
    # and read without it.
    cache_store = await SqliteStore.open(cache_file)
    cache = CacheStore(source, cache_store=cache_store, **settings)
    try:
        yield cache
    finally:
        cache.close()
        await close_session(source)


def run[T](url: str, path: str, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine; an error of the source or of the file becomes one line and exit code 1.

    On an event loop of its own, which waits for every task when one fails or is interrupted.
    """
    try:
        return asyncio.run(coroutine)
    except CacheError as error:
        fail(str(error))
    except (NodeNotFoundError, NodeTypeValidationError):
        fail(f"{without_secrets(url)}: no array or group at {path!r}; name one with --array")
    except KeyboardInterrupt:
        typer.echo(
            "stopped: what was fetched stays cached; the same command continues from there",
            err=True,
        )
        raise typer.Exit(130) from None
    except typer.Exit:
        raise
    except Exception as error:  # noqa: BLE001 - depends on the file system behind the URL
        first_line = (str(error).splitlines() or [""])[0] or type(error).__name__
        shown, why = without_secrets(url), _SECRETS.sub("", first_line)
        fail(why if why.startswith(f"{shown}: ") else f"{shown}: {why}")
