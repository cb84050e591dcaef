"""Versions: ranges of a value are served together only if they are of one version of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.backend.versions import CHANGED, Known
from zarr_cache.core import ages
from zarr_cache.core.ages import EVER
from zarr_cache.core.errors import CacheError, SourceChangedError
from zarr_cache.core.flow import call_async, step

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from zarr_cache.backend.ranges import RangeEntry
    from zarr_cache.backend.versions import Sent
    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import LookupResult, SourceView
    from zarr_cache.index.lookup import EntryState
    from zarr_cache.sources.source_reader import SourceReader


class Kept(NamedTuple):
    """What is cached of a key, fresh or stale.

    Attributes
    ----------
    found
        The value or the range with the bytes of the request; None if there is none.
    validator
        Of the version that is cached; None if nothing is, or if its version is not known.
    is_fresh
        Whether something of it is fresh.
    """

    found: EntryState | None = None
    validator: str | None = None
    is_fresh: bool = False


class Found(NamedTuple):
    """An entry with the bytes of a request: of the file or the queue, or `in_memory`."""

    state: EntryState
    in_memory: RangeEntry | None = None


def find_in_memory(
    view: SourceView, key: str, request: ByteRequest, result: LookupResult, read_after: int
) -> Found | None:
    """The range in memory with the bytes of the request, if it is later than `read_after`."""
    state = result.state
    served = view.values.ranges.get(
        view.namespace,
        key,
        request,
        fence=state.fence,
        fresh_after=read_after,
        used_at=result.looked_up_at,
    )
    if served is None:
        return None
    entry, data = served
    found = state._replace(
        entry=None,
        kind="range",
        size=len(entry.data),
        stored_at=entry.stored_at,
        validator=entry.validator,
        confirmed_at=None,
        data=data,
        read=None,
    )
    return Found(found, entry)


def find_version(view: SourceView, key: str, result: LookupResult) -> Kept:
    """The version of which ranges, or a stale value, are cached of the key."""
    state, known = result.state, result.known
    version = view.values.kept_version(view.namespace, key, state)
    if version is not None and not _is_outdated(known, version.validator, version.as_of):
        return Kept(None, version.validator, result.may_serve(version.validator, version.as_of))
    if state.kind == "value" and not _is_outdated(known, state.validator, state.as_of):
        return Kept(None, state.validator)
    return Kept()


def find_kept(
    view: SourceView, key: str, request: ByteRequest | None, result: LookupResult
) -> Flow[Kept]:
    """What is cached of the key after a lookup that has found nothing fresh."""
    state = result.state
    kept = Kept() if request is None else find_version(view, key, result)
    if state.kind != "value" and request is None:
        return kept
    found = None
    if state.kind == "value" or state.file_ranges:
        found = yield from view.values.lookup(view.namespace, key, request, EVER)
        if found.data is None or found.kind == "stored" or found.is_damaged:
            found = None
    if found is None and request is not None:
        in_memory = find_in_memory(view, key, request, result, EVER)
        found = None if in_memory is None else in_memory.state
    if found is None or _is_outdated(result.known, found.validator, found.as_of):
        return kept
    if kept.is_fresh and found.validator != kept.validator:
        # A stale value, and fresh ranges of a later version.
        return kept
    return Kept(found, found.validator, kept.is_fresh)


def _is_outdated(known: Known | None, validator: str | None, as_of: int) -> bool:
    """Whether the source has told since `as_of` that it has another version."""
    if known is None or validator is None or known.validator is None:
        return False
    return known.validator != validator and as_of <= known.at


def expected(view: SourceView, key: str, result: LookupResult, kept: Kept) -> str | None:
    """The version of which a missing range must be; None if any will do."""
    if kept.validator is not None:
        return kept.validator
    return view.values.versions.served(view.namespace, key, result.looked_up_at)


def begin(view: SourceView, key: str, request: ByteRequest | None) -> None:
    """Record that the reader asks for a range: see `Versions.begin`."""
    if view.reader is not None:
        view.values.versions.begin(view.namespace, key, request)


def check_served(
    view: SourceView,
    key: str,
    request: ByteRequest | None,
    result: LookupResult,
    validator: str | None,
    nbytes: int = 0,
) -> None:
    """Record that ranges of this version are about to be served, unless they are too large.

    Parameters
    ----------
    request
        The range, or the first of several.
    nbytes
        Bytes of the largest one, if they were fetched for the reader: whether they are cached
        depends on it.

    Raises
    ------
    SourceChangedError
        Ranges of another version were served a moment ago.
    """
    if validator is None:
        return
    versions, now_ns = view.values.versions, result.looked_up_at
    served = versions.served(view.namespace, key, now_ns)
    if served is not None and served != validator:
        versions.forget_served(view.namespace, key)
        view.values.ranges.remove_key(view.namespace, key)
        raise SourceChangedError(key)
    if view.may_be_kept(nbytes, validator):
        versions.serve(view.namespace, key, request, validator, now_ns)


def check_fetched(
    view: SourceView,
    key: str,
    request: ByteRequest | None,
    result: LookupResult,
    sent: Sent,
) -> None:
    """`check_served` of a range that was fetched; whole values need none."""
    if request is not None and sent.buffer is not None:
        check_served(view, key, request, result, sent.validator, len(sent.buffer))


def leave_version(
    view: SourceView, key: str, result: LookupResult, kept: Kept, asked_at: int
) -> Flow[None]:
    """Remove what is cached of the key: the source has another version.

    Raises
    ------
    SourceChangedError
        A reader may have bytes of that version: a range of it is fresh, or was just served.
    """
    versions = view.values.versions
    served = versions.served(view.namespace, key, result.looked_up_at)
    versions.record_change(view.namespace, key, asked_at)
    try:
        yield from view.values.forget(
            view.namespace, key, result.state.revision, asked_at, with_ranges=True
        )
    except CacheError as error:
        # What `record_change` has recorded holds for this process.
        view.faults.note(error)
    if kept.is_fresh or served is not None:
        raise SourceChangedError(key)


def confirm(view: SourceView, key: str, validator: str | None, asked_at: int) -> None:
    """Record that the source has this version."""
    view.values.versions.known.set(view.namespace, key, Known(validator, asked_at))


def confirm_entry(view: SourceView, key: str, found: EntryState, asked_at: int) -> None:
    """Have the age of an entry begin anew in the file, unless that would be of no use."""
    if view.age_of(key) != 0 or view.settings.stale_if_error_seconds:
        view.values.confirm(found, asked_at)


def present_version(view: SourceView, reader: SourceReader, key: str) -> Flow[str | None]:
    """The validator that the source has now; None if it does not tell."""
    if reader.is_sync:
        return step(lambda: reader.version_sync(key), lambda: reader.version(key))
    return call_async(view.source, lambda _: reader.version(key))


def recent_version(
    view: SourceView, reader: SourceReader, key: str, asked_at: int
) -> Flow[str | None]:
    """The validator that the source had not long ago: within the age of metadata.

    For sources that cannot be asked for a range of one version.
    """
    known = view.values.versions.known.get(view.namespace, key)
    fresh_after = ages.fresh_after(view.metadata_age, asked_at)
    if known is not None and known.validator != CHANGED and known.at > fresh_after:
        return known.validator
    validator: str | None = yield from present_version(view, reader, key)
    confirm(view, key, validator, asked_at)
    return validator


def check_refused(
    view: SourceView,
    reader: SourceReader,
    key: str,
    result: LookupResult,
    kept: Kept,
    refused: str | None,
    asked_at: int,
) -> Flow[str | None]:
    """The version that the source has, after it has refused a range of another one.

    A server that compares ``If-Match`` with another representation, such as a compressed one,
    refuses what it has. It is not asked in that way again.

    Raises
    ------
    SourceChangedError
        As from `leave_version`: it is indeed another one.
    """
    current: str | None = yield from present_version(view, reader, key)
    if current == refused:
        reader.sends_match = False
        return current
    yield from leave_version(view, key, result, kept, asked_at)
    if current is not None:
        # Otherwise it was removed, or the source does not tell: it is asked when it is next read.
        confirm(view, key, current, asked_at)
    return current


def is_current(
    view: SourceView, key: str, result: LookupResult, validator: str | None
) -> Flow[bool]:
    """Whether fresh ranges may be served, of a source that cannot be asked for one version.

    Such a source is asked when ranges of a value are first served in a process, and whenever the
    age of metadata has passed since. The ranges are also served while the source fails, or does not
    tell its version.
    """
    reader = view.reader
    if reader is None or reader.can_match or validator is None:
        return True
    asked_at = view.values.clock().now_ns()
    try:
        current = yield from recent_version(view, reader, key, asked_at)
    except Exception:  # noqa: BLE001 - whatever the source fails with, the range is fresh
        return True
    if current is None or current == validator:
        return True
    yield from leave_version(view, key, result, Kept(None, validator), asked_at)
    confirm(view, key, current, asked_at)
    return False
