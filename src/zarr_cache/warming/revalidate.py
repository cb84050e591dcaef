"""`revalidate`: ask the source which of the cached values it has changed, and remove those."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zarr.abc.store import RangeByteRequest
from zarr.core.config import config
from zarr.core.sync import sync

from zarr_cache.core.flow import run_async
from zarr_cache.flows import versions
from zarr_cache.warming.coverage import source_of
from zarr_cache.warming.report import Failures, in_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr

    from zarr_cache.flows.view import SourceView
    from zarr_cache.index.listing import Versioned
    from zarr_cache.sources.source_reader import Listed, SourceReader
    from zarr_cache.warming.report import Failure


LAST_REVISION = 2**63 - 1
"""A revision after every write."""


@dataclass(frozen=True, slots=True)
class RevalidateReport:
    """What `revalidate` found, in numbers of keys.

    Attributes
    ----------
    checked
        Keys of which a value, or ranges of it, is cached.
    unchanged
        Those of which the source has the same version. Their age begins anew.
    changed
        Those of which it has another version, or none. What was cached of them is removed.
    without_validator
        Those of which the version is not known, or the source does not tell it. They stay as they
        are: read them with a shorter ``max_age_seconds``, or clear them.
    absences
        Keys that were cached as absent. The cache forgets that.
    failed, failures
        Keys of which the source could not be asked: how many, and the first twenty. They stay as
        they are.
    is_dry_run
        Whether nothing was changed in the cache.
    """

    checked: int
    unchanged: int
    changed: int
    without_validator: int
    absences: int
    is_dry_run: bool
    failed: int = 0
    failures: tuple[Failure, ...] = ()

    def __str__(self) -> str:
        removed, forgotten = "removed", "forgotten"
        if self.is_dry_run:
            removed, forgotten = "would be removed", "would be forgotten"
        return (
            f"{self.checked} checked: {self.unchanged} unchanged, {self.changed} changed "
            f"({removed}), {self.without_validator} without a validator (left as they are); "
            f"{self.absences} absences {forgotten}"
            f"{in_words(self.failed, self.failures)}"
        )


def revalidate(
    array_or_group: zarr.Array[Any] | zarr.Group, *, dry_run: bool = False
) -> RevalidateReport:
    """Ask the source which of the cached values below an array or group it has changed.

    Changed values are removed from the cache, and fetched when they are read again. The age of
    unchanged ones begins anew. No value is transferred.

    Where the source's listings tell versions (object stores, local folders), it lists the folder of
    the array or group: a request for about a thousand objects. Other sources, such as plain HTTP,
    are asked for each key that is cached, several at once.

    Blocks until it is done, like zarr's own functions. Open the array or group again afterwards:
    its metadata may have changed.

    Parameters
    ----------
    array_or_group
        Opened through a `CacheStore`. Of a group, everything in it is checked, at any depth.
    dry_run
        Whether to report only, and change nothing in the cache.

    Returns
    -------
    RevalidateReport
        How many keys were checked, and what was found. Its ``str`` is one line of text.

    Raises
    ------
    TypeError
        The array or group was not opened through a CacheStore.
    ValueError
        The CacheStore is offline.
    CacheError
        The cache file cannot be read or written.
    Exception
        The error of a listing, or of a request if all have failed, or the first twenty. Nothing is
        removed then; call this again.
    """
    view, path = source_of(array_or_group.store), array_or_group.path
    return sync(check(view, f"{path}/" if path else "", dry_run=dry_run))


async def check(view: SourceView, prefix: str, *, dry_run: bool) -> RevalidateReport:
    """`revalidate` for the keys of the view that begin with `prefix`."""
    if view.settings.offline:
        raise ValueError("the CacheStore is offline, so its source is not asked: open another one")
    view.open_source()
    await run_async(view.values.ensure_listed(view.namespace))
    asked_at = view.values.clock().now_ns()
    rows = await run_async(view.values.list_versions(view.namespace, prefix))
    absent = [row for row in rows if row.kind == "absent"]
    by_key: dict[str, list[Versioned]] = {}
    for row in rows:
        if row.kind != "absent":
            by_key.setdefault(row.key, []).append(row)
    failures = Failures()
    verdicts = await _verdicts(view, prefix, by_key, failures)
    changed = [key for key, is_unchanged in verdicts.items() if is_unchanged is False]
    unchanged = [key for key, is_unchanged in verdicts.items() if is_unchanged]
    if not dry_run:
        for row in absent:
            await run_async(view.values.forget(view.namespace, row.key, LAST_REVISION, asked_at))
        view.values.versions.absent.discard_prefix(view.namespace, prefix)
        for key in changed:
            view.values.versions.record_change(view.namespace, key, asked_at)
            forget = view.values.forget(
                view.namespace, key, LAST_REVISION, asked_at, with_ranges=True
            )
            await run_async(forget)
        for key in unchanged:
            _confirm(view, key, by_key[key], asked_at)
        await run_async(view.values.write_pending())
    return RevalidateReport(
        checked=len(by_key),
        unchanged=len(unchanged),
        changed=len(changed),
        without_validator=len(by_key) - len(unchanged) - len(changed) - failures.count,
        absences=len(absent),
        is_dry_run=dry_run,
        failed=failures.count,
        failures=tuple(failures.first),
    )


def _confirm(view: SourceView, key: str, rows: list[Versioned], asked_at: int) -> None:
    for row in rows:
        view.values.confirm(row, asked_at)
        if not row.entry:
            # A range in memory.
            versions.confirm(view, key, row.validator, asked_at)


async def _verdicts(
    view: SourceView, prefix: str, by_key: dict[str, list[Versioned]], failures: Failures
) -> dict[str, bool | None]:
    """Whether the source has the version of each key; None if that is not known."""
    reader = view.reader
    if reader is None:
        return dict.fromkeys(by_key)
    listing = reader.list_versions(prefix)
    if listing is None:
        return await _ask_each(reader, by_key, failures)
    # What is not listed is not there any more.
    verdicts: dict[str, bool | None] = dict.fromkeys(by_key, False)
    async for listed in listing:
        if listed.key in by_key:
            verdicts[listed.key] = _compare(by_key[listed.key], listed)
    return verdicts


def _compare(rows: list[Versioned], listed: Listed) -> bool | None:
    """Whether all are of the listed version; None if it is not known."""
    if any(row.validator is None for row in rows):
        is_later = listed.modified_ns is not None and any(
            listed.modified_ns > row.stored_at for row in rows
        )
        has_another_size = listed.size is not None and any(
            row.size != listed.size for row in rows if row.kind == "value"
        )
        return False if is_later or has_another_size else None
    # If it has none any more, it was changed: a version that is a moment old has none yet.
    return all(row.validator == listed.validator for row in rows)


async def _ask_each(
    reader: SourceReader, by_key: dict[str, list[Versioned]], failures: Failures
) -> dict[str, bool | None]:
    """The same by a request for each key that has a validator. One that fails is recorded."""
    verdicts: dict[str, bool | None] = dict.fromkeys(by_key)
    asked = [key for key, rows in by_key.items() if all(row.validator for row in rows)]
    wanted = iter(asked)
    errors = []

    async def work(keys: Iterator[str]) -> None:
        for key in keys:
            try:
                verdicts[key] = await _ask(reader, key, by_key[key])
            except Exception as error:  # noqa: BLE001 - whatever the source raises of this key
                failures.record("versions", key, error)
                errors.append(error)
            else:
                failures.record("versions", key, None)

    try:
        async with asyncio.TaskGroup() as workers:
            for _ in range(min(len(by_key), config.get("async.concurrency"))):
                workers.create_task(work(wanted))
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    if asked and len(errors) == len(asked):
        raise errors[0]
    return verdicts


async def _ask(reader: SourceReader, key: str, rows: list[Versioned]) -> bool | None:
    current = await reader.version(key)
    if current is not None:
        return all(row.validator == current for row in rows)
    # It has none any more, or there is no such key: only a read of it tells.
    fetched = await reader.fetch(key, RangeByteRequest(0, 1), with_version=False)
    return False if fetched.buffer is None else None
