"""``zarr-cache evict`` and ``zarr-cache clear``."""

from pathlib import Path
from typing import Annotated

import typer

from zarr_cache.cache.sqlite_store import SqliteStore
from zarr_cache.cli.file import existing, opened_to_read, opened_to_write
from zarr_cache.cli.options import (
    CacheFile,
    DryRun,
    Json,
    Namespace,
    OlderThan,
    Prefix,
    ToSize,
    UnusedFor,
)
from zarr_cache.cli.terminal import ask, count, print_json, say
from zarr_cache.core import ages
from zarr_cache.core.sizes import format_size
from zarr_cache.file.connection import Connection
from zarr_cache.index import evict as budget
from zarr_cache.index import removals
from zarr_cache.inspect import removal, report
from zarr_cache.inspect.selection import NOTHING, Amount, Selection


def evict(
    cache_file: CacheFile = None,
    *,
    to_size: ToSize = None,
    older_than: OlderThan = None,
    unused_for: UnusedFor = None,
    namespace: Namespace = None,
    prefix: Prefix = "",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove cached entries that meet all conditions given.

    They are fetched again when they are read. Values stored with SqliteStore stay.
    """
    if not prefix and all(each is None for each in (to_size, older_than, unused_for, namespace)):
        raise typer.BadParameter(
            "choose what to remove with --to-size, --older-than, --unused-for, --namespace or "
            "--prefix; `zarr-cache clear` removes everything"
        )
    path = existing(cache_file)
    with opened_to_read(path) as connection:
        now = report.now_ns(connection, path)
        selection = Selection(
            namespace,
            prefix,
            stored_by=_before(older_than, now),
            used_by=_before(unused_for, now),
        )
        removed = _found(connection, selection, to_size)
    if not dry_run:
        with opened_to_write(path) as store:
            removed = _remove(store, selection, to_size)
    _report(path, removed, is_dry_run=dry_run, as_json=as_json)


def clear(
    cache_file: CacheFile = None,
    *,
    namespace: Namespace = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Remove everything cached, or everything of one source; ask first.

    Responses to requests under way are not cached either. Values stored with SqliteStore stay.
    """
    path = existing(cache_file)
    selection = Selection(namespace)
    with opened_to_read(path) as connection:
        removed = report.amount(connection, selection)
        names = [
            each.namespace
            for each in report.namespaces(connection, None)
            if each.namespace and namespace in {None, each.namespace}
        ]
    if not dry_run:
        if not yes and removed.entries:
            of = "all sources" if namespace is None else namespace
            ask(f"Remove {_in_words(removed)} of {of} from {path}?")
        with opened_to_write(path) as store:
            removed = _remove(store, selection, None)
            for name in names:
                store.database.run(removals.invalidate_prefix, name, "")
    _report(path, removed, is_dry_run=dry_run, as_json=as_json)


def _before(age: float | None, now: int) -> int:
    return budget.LATEST if age is None else ages.fresh_after(age, now)


def _found(connection: Connection, selection: Selection, to_size: int | None) -> Amount:
    """How much would be removed."""
    if to_size is None:
        return report.amount(connection, selection)
    chosen = removal.too_much(connection, selection, to_size)
    return NOTHING if chosen is None else report.amount(connection, chosen)


def _remove(store: SqliteStore, selection: Selection, to_size: int | None) -> Amount:
    """Remove the selection in short transactions, and return how much was removed."""
    chosen: Selection | None = selection
    if to_size is not None:
        chosen = store.database.run(removal.too_much, selection, to_size)
    removed = NOTHING
    after: int | None = 0
    try:
        while chosen is not None and after is not None:
            step = store.database.run(removal.remove, chosen, after)
            removed += step.amount
            after = step.after
    except KeyboardInterrupt:
        typer.echo(f"stopped: {_in_words(removed)} are removed", err=True)
        raise typer.Exit(130) from None
    return removed


def _in_words(amount: Amount) -> str:
    return f"{count(amount.entries, 'entry', 'entries')} ({format_size(amount.bytes)})"


def _report(path: Path, removed: Amount, *, is_dry_run: bool, as_json: bool) -> None:
    with opened_to_read(path) as connection:
        kept = budget.cached_bytes(connection)
    if is_dry_run:
        kept -= removed.bytes
    if as_json:
        print_json(
            {
                "path": str(path),
                "is_dry_run": is_dry_run,
                "removed_entries": removed.entries,
                "removed_bytes": removed.bytes,
                "cached_bytes": kept,
            }
        )
        return
    verb = "would remove" if is_dry_run else "removed"
    say(f"{verb} {_in_words(removed)}; {format_size(kept)} are still cached in {path}")
