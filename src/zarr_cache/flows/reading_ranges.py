"""Reads of several byte ranges of one key: those that are not cached are one request."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr.core.buffer import cpu

from zarr_cache.core import byte_range
from zarr_cache.core.ages import EVER
from zarr_cache.core.buffers import to_buffer, to_prototype
from zarr_cache.core.errors import CacheError, SourceChangedError, has_kind
from zarr_cache.core.flow import call
from zarr_cache.flows import fetching, ranges, reading, versions
from zarr_cache.flows.versions import Kept
from zarr_cache.sources.response_check import (
    RangeCheckedStore,
    is_absence,
    is_web_page,
    with_range_check,
)
from zarr_cache.sources.source_reader import ChangedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest, Store
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.view import LookupResult, SourceView
    from zarr_cache.index.lookup import Data


FAILED = "chunk read failed"
"""The message of the group that zarr's ``get_ranges`` raises."""

type Batches = list[list[tuple[int, Buffer | None]]]
"""Batches of buffers, each with the index of its byte range."""


class RangeBatches(NamedTuple):
    """The result of a read of several ranges.

    Attributes
    ----------
    batches
        What was cached, and what the source sent before it failed.
    error
        What zarr's ``get_ranges`` would raise after these batches; None if nothing failed.
    """

    batches: Batches
    error: Exception | None


def get_ranges(
    view: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    prototype: BufferPrototype,
    settings: dict[str, int],
) -> Flow[RangeBatches]:
    """The byte ranges: first those that are cached, then those that the source sends.

    If there is no such key, the error is a group with a `FileNotFoundError` in it. If the source
    has another version than ranges that were served before, it is a group with a
    `SourceChangedError`.

    Parameters
    ----------
    settings
        How the source merges requests: arguments of its ``get_ranges``.
    """
    for request in byte_ranges:
        byte_range.check(request)
    if not byte_ranges:
        return RangeBatches([], None)
    versions.begin(view, key, byte_ranges[0])
    result = yield from reading.lookup(view, key, with_data=False)
    if result is None:
        view.refuse_if_offline(key)
        indexes = list(range(len(byte_ranges)))
        uncached = yield from _read(view, key, byte_ranges, indexes, settings, None)
        return _with_prototype(prototype, [], uncached)
    if reading.serve_absence(view, key, result):
        return RangeBatches([], _no_such_key(key))
    batches: Batches = []
    try:
        read = yield from _read_missing(
            view, key, byte_ranges, prototype, settings, result, batches
        )
    except SourceChangedError as error:
        return RangeBatches([], ExceptionGroup(FAILED, [error]))
    return _with_prototype(prototype, batches, read)


def _no_such_key(key: str) -> Exception:
    return ExceptionGroup(FAILED, [FileNotFoundError(key)])


def _with_prototype(
    prototype: BufferPrototype, batches: Batches, read: Read | None
) -> RangeBatches:
    """The batches, and those that were read from the source."""
    if read is None:
        return RangeBatches(batches, None)
    more = [
        [(index, to_prototype(prototype, buffer)) for index, buffer in batch]
        for batch in read.batches
    ]
    return RangeBatches(batches + more, read.error)


class Version(NamedTuple):
    """Of which version ranges are read.

    Attributes
    ----------
    only
        The version that they must be of; None for any.
    label
        The version that the source had not long ago, where it does not tell with the ranges.
    """

    only: str | None
    label: str | None = None


class Read(NamedTuple):
    """What one ``get_ranges`` of the source has sent, and the validators of its responses.

    Attributes
    ----------
    unsafe
        Indexes of ranges that may hold other bytes than were requested.
    is_page
        Whether a response was a web page.
    is_absent
        Whether the source says that there is no such key.
    """

    batches: Batches
    error: Exception | None
    unsafe: set[int]
    validators: set[str | None]
    is_page: bool
    is_absent: bool


def _read_missing(
    view: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    prototype: BufferPrototype,
    settings: dict[str, int],
    result: LookupResult,
    batches: Batches,
) -> Flow[Read | None]:
    """Serve what is cached into `batches`, and read the rest from the source; None if it is all."""
    cached, validator = yield from ranges.serve(view, key, byte_ranges, result, result.read_after)
    missing = [index for index in range(len(byte_ranges)) if index not in cached]
    kept = Kept()
    if missing and view.reader is not None:
        kept = _find_version(view, key, result, validator)
        if kept.validator is not None and not view.settings.offline:
            confirmed = yield from _revalidate(view, key, byte_ranges, missing, result, kept)
            cached |= confirmed
            missing = [index for index in missing if index not in confirmed]
    if cached:
        batches.append([(index, to_buffer(prototype, data)) for index, data in cached.items()])
    if not missing:
        return None
    view.refuse_if_offline(key)
    asked_at = view.values.clock().now_ns()
    read, validator = yield from _read_version(
        view, key, byte_ranges, missing, settings, result, kept, asked_at
    )
    if read.error is not None:
        stale = yield from fetching.serve_stale_ranges(
            view, key, byte_ranges, missing, result, kept, read.error
        )
        if stale:
            batches.append([(index, to_buffer(prototype, data)) for index, data in stale.items()])
            return None
        has_sent = bool(batches or read.batches)
        if not has_sent and fetching.serve_stale_absence(view, key, result, read.error):
            return read._replace(error=_no_such_key(key))
    yield from _admit(view, key, byte_ranges, read, result, validator, asked_at)
    return read


def _read_version(
    view: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    missing: list[int],
    settings: dict[str, int],
    result: LookupResult,
    kept: Kept,
    asked_at: int,
) -> Flow[tuple[Read, str | None]]:
    """Read the missing ranges, all of one version; and the validator of it.

    Raises
    ------
    SourceChangedError
        A reader may have ranges of another version.
    """
    version = yield from _version_to_read(view, key, result, kept, asked_at)
    arguments = (view, key, byte_ranges, missing, settings)
    read = yield from _read(*arguments, version.only)
    label, reader = version.label, view.reader
    if has_kind(read.error, ChangedError) and reader is not None and not reader.can_match:
        label = yield from versions.check_refused(
            view, reader, key, result, kept, version.only, asked_at
        )
        return (yield from _read(*arguments, None)), label
    # If a version is known, a value that was removed has changed, too.
    is_known = versions.expected(view, key, result, kept) is not None
    if has_kind(read.error, (ChangedError, FileNotFoundError) if is_known else ChangedError):
        yield from versions.leave_version(view, key, result, kept, asked_at)
        read = yield from _read(*arguments, None)
    if len(read.validators) > 1:
        # It was replaced between two requests.
        read = yield from _read(*arguments, None)
        if len(read.validators) > 1:
            raise SourceChangedError(key)
    if label is None:
        for validator in read.validators:
            # What is cached of an earlier version is served no more.
            versions.confirm(view, key, validator, asked_at)
    return read, next(iter(read.validators), label)


def _find_version(view: SourceView, key: str, result: LookupResult, validator: str | None) -> Kept:
    """The version that is cached of the key, fresh or stale; `validator` is of what was served."""
    if validator is not None:
        return Kept(None, validator, is_fresh=True)
    try:
        return versions.find_version(view, key, result)
    except CacheError as error:
        view.faults.note(error)
        return Kept()


def _revalidate(
    view: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    missing: list[int],
    result: LookupResult,
    kept: Kept,
) -> Flow[dict[int, Data]]:
    """The bytes of stale ranges that the source confirms, by the index of their range."""
    requests = [byte_ranges[index] for index in missing]
    found = yield from ranges.lookup_many(view, key, requests, result, EVER)
    cached = {each.state.validator for each in found if each.state.data is not None}
    if kept.validator not in cached:
        return {}
    reader = view.reader
    assert reader is not None  # noqa: S101 - checked by the caller
    asked_at = view.values.clock().now_ns()
    try:
        current = yield from versions.present_version(view, reader, key)
    except Exception:  # noqa: BLE001 - the read of the missing ranges fails as well, and raises
        return {}
    if current is None:
        return {}
    if current != kept.validator:
        yield from versions.leave_version(view, key, result, kept, asked_at)
        versions.confirm(view, key, current, asked_at)
        return {}
    versions.confirm(view, key, current, asked_at)
    view.statistics.add(revalidated=1)
    known = view.values.versions.known.get(view.namespace, key)
    again = result._replace(known=known)
    served, _ = yield from ranges.serve(view, key, requests, again, EVER)
    return {missing[position]: data for position, data in served.items()}


def _version_to_read(
    view: SourceView, key: str, result: LookupResult, kept: Kept, asked_at: int
) -> Flow[Version]:
    """Of which version the missing ranges must be."""
    reader = view.reader
    if reader is None:
        return Version(None)
    known = view.values.versions.known.get(view.namespace, key)
    if known is not None and kept.validator is not None and known.validator != kept.validator:
        # It has just been left.
        kept = Kept()
    only = versions.expected(view, key, result, kept)
    if reader.can_match:
        return Version(only)
    current = yield from versions.recent_version(view, reader, key, asked_at)
    if only is not None and current is not None and current != only:
        yield from versions.leave_version(view, key, result, kept, asked_at)
        versions.confirm(view, key, current, asked_at)
    return Version(current if reader.sends_match else None, current)


def _admit(
    view: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    read: Read,
    result: LookupResult,
    validator: str | None,
    asked_at: int,
) -> Flow[None]:
    responses = [
        (byte_ranges[index], buffer)
        for batch in read.batches
        for index, buffer in batch
        if index not in read.unsafe
    ]
    revision = result.state.revision
    if read.is_absent:
        view.count_miss()
        if validator is not None:
            # That of the value before it was removed.
            view.values.versions.record_change(view.namespace, key, asked_at)
        yield from reading.admit(view, key, [(None, None)], revision, asked_at)
        return
    yield from reading.admit(view, key, responses, revision, asked_at, validator)
    # Also those that may not be cached: the reader has them.
    buffers = [buffer for batch in read.batches for _, buffer in batch if buffer is not None]
    largest = max(map(len, buffers), default=None)
    if largest is not None and not read.is_page:
        versions.check_served(view, key, byte_ranges[0], result, validator, largest)


def _read(
    view: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    indexes: list[int],
    settings: dict[str, int],
    only: str | None,
) -> Flow[Read]:
    """Read the ranges at `indexes` by one ``get_ranges`` of the source, counted as misses."""
    requests = [byte_ranges[index] for index in indexes]
    checked, batches, error = yield from _call(view, key, requests, settings, only)
    if not has_kind(error, ChangedError):
        for batch in batches:
            for position, buffer in batch:
                view.count_miss(buffer)
                view.sample_read(key, requests[position], buffer, is_hit=False)
    batches = [[(indexes[position], buffer) for position, buffer in batch] for batch in batches]
    if isinstance(checked, RangeCheckedStore):
        unsafe = {index for index in indexes if checked.may_be_wrong(byte_ranges[index])}
        is_page, validators = checked.is_web_page, checked.validators
    else:
        is_page = any(is_web_page(each) for batch in batches for _, each in batch if each)
        unsafe, validators = set(indexes if is_page else ()), set()
    if is_page:
        fetching.log_foreign(view, key)
    is_absent = not batches and is_absence(key, checked, error)
    return Read(batches, error, unsafe, validators, is_page, is_absent)


def _call(
    view: SourceView,
    key: str,
    requests: list[ByteRequest | None],
    settings: dict[str, int],
    only: str | None,
) -> Flow[tuple[Store, Batches, Exception | None]]:
    """The store through which the source was called, what it sent, and the error after that."""
    prototype, reader = cpu.buffer_prototype, view.reader
    can_match = reader is not None and reader.can_match
    if not can_match and only is None:
        reader = None

    async def read(source: Store) -> tuple[Store, Batches, Exception | None]:
        checked = with_range_check(source, "get_ranges", reader, only, with_version=can_match)
        batches: Batches = []
        try:
            async for batch in checked.get_ranges(key, requests, prototype=prototype, **settings):
                batches.append(list(batch))
        except Exception as error:  # noqa: BLE001 - raised after earlier batches are admitted
            return checked, batches, error
        return checked, batches, None

    def read_sync(source: Store) -> tuple[Store, Batches, Exception | None]:
        checked = with_range_check(source, "get_ranges_sync", reader, only, with_version=can_match)
        chosen = {name: each for name, each in settings.items() if name != "max_concurrency"}
        try:
            batch = checked.get_ranges_sync(key, requests, prototype=prototype, **chosen)
        except Exception as error:  # noqa: BLE001 - raised after it is known what it means
            return checked, [], error
        return checked, [list(batch)], None

    return call(view.source, read_sync, read)
