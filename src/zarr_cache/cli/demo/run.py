"""The demo: serve an array, read it four times, print the results, and clean up."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import shlex
import tempfile
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.filesize import decimal
from rich.table import Table
from zarr.errors import NodeNotFoundError, NodeTypeValidationError

from zarr_cache.cli.demo.new_process import NewProcessError, read_in_new_process
from zarr_cache.cli.demo.reading import Reading, read
from zarr_cache.cli.demo.server import DemoServer
from zarr_cache.core.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import numpy.typing as npt
    from rich.console import Console

KEPT_FILE = Path("zarr-cache-demo.sqlite")
"""Path of the cache file with ``--keep``."""

QUERIES = (
    "SELECT * FROM cache_usage",
    "SELECT key, size, stored, used FROM cache_entries ORDER BY bytes DESC LIMIT 5",
    "SELECT key, used FROM cache_entries WHERE kind = 'absent'",
)
"""Queries that the demo suggests at its end."""


class DemoError(Exception):
    """The demo cannot continue; the message is one line that says what to do."""


@dataclass(frozen=True)
class _Source:
    url: str
    array: str
    title: str
    counted: str
    namespace: str | None = None
    original: npt.NDArray[Any] | None = None
    server: DemoServer | None = None


async def run(
    console: Console,
    *,
    url: str | None = None,
    array: str = "",
    namespace: str | None = None,
    latency_seconds: float = 0.05,
    cache_file: Path | None = None,
) -> list[tuple[str, Reading]]:
    """Read an array four times, print the measurements, and return the named readings.

    If it is cancelled, it leaves nothing behind: no server, no process, no temporary folder.

    Parameters
    ----------
    console
        The table and the suggestions are printed here.
    url
        A Zarr to read. None serves nibabel's MRI scan over HTTP on loopback.
    array
        Path of the array within `url`; empty if the array is at its root.
    namespace
        The name under which the cache has `url`; None for its own.
    latency_seconds
        Delay of each response of the server on loopback.
    cache_file
        The cache file, which is kept. None: it is in a temporary folder that is deleted.

    Raises
    ------
    DemoError
        The array or a package is missing, or a reading returned other data.
    """
    _check_installed(url)
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zarr-cache-demo-")))
        # Before the folder is deleted: zarr writes files in threads, which no cancellation stops.
        stack.push_async_callback(asyncio.get_running_loop().shutdown_default_executor)
        if url is None:
            served = _serve_sample(folder / "served", latency_seconds)
            source = await stack.enter_async_context(served)
        else:
            source = _source_at(url, array, namespace)
        file = cache_file if cache_file is not None else folder / "cache.sqlite"
        cold = "existing cache" if file.exists() else "cold cache"
        result = folder / "result.zarr"
        readings = [named async for named in _read_all(console, source, file, cold, result)]
        console.print(_table(source, readings))
        _advise(console, file, kept=cache_file is not None)
        return readings


def _check_installed(url: str | None) -> None:
    needed = ["fsspec"]
    if url is None or _is_http(url):
        needed.append("aiohttp")
    if url is None:
        needed.append("nibabel")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(f"{', '.join(missing)} not installed: pip install 'zarr-cache[demo]'")


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


@contextlib.asynccontextmanager
async def _serve_sample(folder: Path, latency_seconds: float) -> AsyncIterator[_Source]:
    from zarr_cache.cli.demo import sample  # noqa: PLC0415 - imports nibabel, of the extra "demo"

    try:
        original = await sample.write(folder / "mri.zarr")
    except FileNotFoundError as error:
        raise DemoError(f"nibabel came without its test data ({error}): use --url") from error
    with DemoServer(folder, latency_seconds=latency_seconds) as server:
        yield _Source(
            url=f"{server.url}/mri.zarr",
            array=sample.ARRAY,
            title=f"MRI scan over HTTP on loopback, {latency_seconds * 1000:g} ms a request",
            counted="Requests and bytes as the server counted them.",
            namespace=f"demo:{_digest(folder)}",
            original=original,
            server=server,
        )


def _digest(folder: Path) -> str:
    """A digest of the files: the name of what is served, whatever the port is.

    Another release may write the scan in other chunks, and find a cache file that was kept.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _source_at(url: str, array: str, namespace: str | None) -> _Source:
    counted = (
        "Requests and bytes as the HTTP client of each reading counted them."
        if _is_http(url)
        else "Requests are not counted: the URL is not HTTP."
    )
    return _Source(url, array, f"{url} {array}".rstrip(), counted, namespace)


async def _read_all(
    console: Console, source: _Source, file: Path, first: str, result: Path
) -> AsyncIterator[tuple[str, Reading]]:
    """Yield each reading with its name, after comparing its data."""
    url, array, namespace = source.url, source.array, source.namespace
    original = source.original
    for name, one_reading in (
        ("no cache", partial(read, url, array)),
        (first, partial(read, url, array, file, namespace)),
        ("warm cache", partial(read, url, array, file, namespace)),
        (
            "warm cache, new process",
            partial(read_in_new_process, url, array, file, namespace, result),
        ),
    ):
        with console.status(f"{name} ..."):
            before = source.server.traffic() if source.server is not None else None
            try:
                reading = await one_reading()
            except Exception as error:
                # Any Exception: which ones a URL raises depends on its protocol.
                raise DemoError(_reason(source, error)) from error
        if original is None:
            original = reading.data
        if not _are_equal(reading.data, original):
            raise DemoError(f"{name}: the data read differ from those of the source")
        if source.server is not None and before is not None:
            reading = replace(reading, traffic=source.server.traffic() - before)
        yield name, reading


def _are_equal(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> bool:
    # NaN equals NaN here; numpy raises for dtypes that have no NaN.
    return np.array_equal(found, expected, equal_nan=expected.dtype.kind in "fcmM")


def _reason(source: _Source, error: Exception) -> str:
    """What failed, the source or the cache file, on one line."""
    if isinstance(error, NodeNotFoundError | NodeTypeValidationError):
        return f"{source.url}: no array at {source.array!r}; name one with --array"
    first_line = (str(error).splitlines() or [""])[0] or type(error).__name__
    if isinstance(error, CacheError | NewProcessError):
        return first_line
    return f"{source.url}: {first_line}"


def _table(source: _Source, readings: list[tuple[str, Reading]]) -> Table:
    _, reading = readings[0]
    what = f"{'x'.join(map(str, reading.data.shape))} {reading.data.dtype}"
    if reading.data.shape != reading.shape:
        what += f" (the leading part of {'x'.join(map(str, reading.shape))})"
    table = Table(title=f"{source.title}\n{what}", caption=source.counted, min_width=60)
    table.add_column("reading")
    for heading in ("seconds", "requests", "bytes", "hit rate"):
        table.add_column(heading, justify="right")
    for name, reading in readings:
        lookups = reading.hits + reading.misses
        table.add_row(
            name,
            f"{reading.seconds:.3f}",
            f"{reading.traffic.requests}" if reading.traffic is not None else "-",
            decimal(reading.traffic.nbytes) if reading.traffic is not None else "-",
            f"{reading.hits / lookups:.0%}" if lookups else "-",
        )
    return table


def _advise(console: Console, file: Path, *, kept: bool) -> None:
    name = shlex.quote(str(file if kept else KEPT_FILE))
    size = decimal(file.stat().st_size)
    if kept:
        lines = [f"The cache file is {file} ({size}). Query it:"]
    else:
        lines = [
            f"The cache file {file} ({size}) is deleted at the end of the demo.",
            f"`zarr-cache demo --keep` keeps it as {KEPT_FILE}, `--cache-file PATH` as PATH.",
            "Then you can query it:",
        ]
    lines += [f'  sqlite3 -box {name} "{query}"' for query in QUERIES]
    for line in lines:
        # Not wrapped: users copy the commands.
        console.print(line, soft_wrap=True, markup=False, highlight=False)
