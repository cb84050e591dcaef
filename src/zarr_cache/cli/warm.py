"""``zarr-cache warm`` and ``zarr-cache revalidate``."""

import dataclasses
from typing import Annotated

import typer
import zarr

from zarr_cache.cli import source
from zarr_cache.cli.file import existing, named_or_default
from zarr_cache.cli.options import (
    CacheFile,
    Json,
    SourceNamespace,
    SourceUrl,
    parse_age,
    parse_size_option,
)
from zarr_cache.cli.terminal import fail, print_json, say
from zarr_cache.flows.settings import WhenFull
from zarr_cache.warming.coverage import source_of
from zarr_cache.warming.report import WarmPlan, WarmReport
from zarr_cache.warming.revalidate import RevalidateReport, check
from zarr_cache.warming.warm import warm_node


def warm(
    url: SourceUrl,
    *,
    array: Annotated[
        str, typer.Option(help="Path of an array or group in it; empty for the root.")
    ] = "",
    select: Annotated[
        str,
        typer.Option(
            help="The part of the array, in elements: '0:100,:,3'. By default all of it.",
        ),
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what would be fetched; fetch no chunk.")
    ] = False,
    cache_file: CacheFile = None,
    namespace: SourceNamespace = None,
    max_size: Annotated[
        int | None,
        typer.Option(
            parser=parse_size_option,
            metavar="SIZE",
            help="The budget for values in the file, such as '20 GiB'. Warming stops before it "
            "would evict chunks of the selection.",
        ),
    ] = None,
    when_full: Annotated[
        WhenFull,
        typer.Option(
            metavar="evict|keep|auto",
            help="What makes room: 'evict' the least recently used, 'keep' what is cached, or "
            "'auto', whichever would have had more hits of late.",
        ),
    ] = "evict",
    max_age_absent: Annotated[
        float | None,
        typer.Option(
            parser=parse_age,
            metavar="AGE",
            help="How long the cache remembers that a key is absent: 60 s by default.",
        ),
    ] = None,
    persist_ranges: Annotated[
        bool,
        typer.Option(
            "--persist-ranges/--no-persist-ranges",
            help="Of a sharded array, fetch the inner chunks that are selected, not whole shards.",
        ),
    ] = False,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="How many requests may be under way at once.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch the chunks that a selection needs, so that reading it makes no request.

    Cached chunks are not fetched again. Exits with 1 if some chunks are left, a request failed, or
    a group has no array.
    """
    selected = source.selection(select)
    path = named_or_default(cache_file)

    async def run() -> WarmPlan | WarmReport:
        settings = {
            "namespace": namespace,
            "max_size": max_size,
            "when_full": when_full,
            "max_age_absent_seconds": max_age_absent,
            "persist_ranges": persist_ranges,
        }
        async with source.opened(url, array, path, **settings) as node:
            try:
                result = await warm_node(
                    node,
                    selected if isinstance(node, zarr.AsyncArray) or select else ...,
                    max_concurrency=concurrency,
                    dry_run=dry_run,
                    learn_absences=True,
                )
            except (IndexError, ValueError) as error:
                fail(f"--select {select!r}: {error}" if select else str(error))
            if isinstance(node, zarr.AsyncArray) and select and not result.chunks:
                fail(f"--select {select!r} selects nothing of an array of shape {node.shape}")
            return result

    result = source.run(url, array, run())
    if as_json:
        print_json(_as_json(result))
    else:
        say(str(result))
    if isinstance(result, WarmReport) and not result.is_complete:
        raise typer.Exit(1)
    if result.failed or (result.is_group and not result.arrays):
        raise typer.Exit(1)


def _as_json(result: WarmPlan | WarmReport) -> dict[str, object]:
    facts = dataclasses.asdict(result)
    if isinstance(result, WarmReport):
        return {**facts, "is_complete": result.is_complete}
    return {**facts, "fits": result.fits}


def revalidate(
    url: SourceUrl,
    *,
    array: Annotated[
        str, typer.Option(help="Path of an array or group in it; empty for all of it.")
    ] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Report what has changed; change nothing.")
    ] = False,
    cache_file: CacheFile = None,
    namespace: SourceNamespace = None,
    as_json: Json = False,
) -> None:
    """Ask the source which cached values have changed, and remove them from the cache.

    The age of unchanged ones begins anew, and no value is transferred. Exits with 1 if a request
    failed.
    """
    path = existing(cache_file)
    prefix = f"{array.strip('/')}/" if array.strip("/") else ""

    async def run() -> RevalidateReport:
        async with source.opened_store(url, path, namespace=namespace) as store:
            return await check(source_of(store), prefix, dry_run=dry_run)

    report = source.run(url, array, run())
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        say(str(report))
    if report.failed:
        raise typer.Exit(1)
