"""Fetches: conditional where something is cached, and what is served when the source fails."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from typing import TYPE_CHECKING

from zarr.core.buffer import cpu

from zarr_cache.backend.failures import CacheWarning
from zarr_cache.core.ages import EVER
from zarr_cache.core.buffers import to_buffer
from zarr_cache.core.errors import SourceChangedError, first_of
from zarr_cache.core.flow import call, call_async, step
from zarr_cache.core.keys import is_metadata
from zarr_cache.flows import ranges, versions
from zarr_cache.sources.response_check import is_foreign
from zarr_cache.sources.source_reader import ChangedError, Fetched

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer

    from zarr_cache.core.flow import Flow
    from zarr_cache.flows.versions import Kept
    from zarr_cache.flows.view import LookupResult, SourceView
    from zarr_cache.index.lookup import Data, EntryState
    from zarr_cache.sources.source_reader import SourceReader


logger = logging.getLogger(__name__)

NOT_A_FAILURE = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    ChangedError,
    SourceChangedError,
)
"""What the source says of the key, and no failure of the source."""


class _ForeignError(Exception):
    """A response that cannot be the value: it tells nothing of the version that the source has."""

    def __init__(self, buffer: Buffer) -> None:
        super().__init__()
        self.buffer = buffer


def fetch(
    view: SourceView,
    key: str,
    request: ByteRequest | None,
    result: LookupResult,
    kept: Kept,
    asked_at: int,
) -> Flow[Fetched]:
    """Read from the source; what is cached of the key and stale is asked for conditionally.

    What cannot be the value, such as the page of a login, is returned as torn, so that it is not
    cached, and a line is logged. What is cached of the key stays as it is.

    Raises
    ------
    SourceChangedError
        The source has another version than that of which a reader may have ranges.
    """
    try:
        return (yield from _fetch_version(view, key, request, result, kept, asked_at))
    except _ForeignError as foreign:
        log_foreign(view, key)
        return Fetched(foreign.buffer, None, is_torn=True)


def _fetch_version(
    view: SourceView,
    key: str,
    request: ByteRequest | None,
    result: LookupResult,
    kept: Kept,
    asked_at: int,
) -> Flow[Fetched]:
    reader = view.reader
    if reader is None:
        buffer = yield from read_plainly(view, key, request)
        return _checked(key, request, Fetched(buffer, None))
    if request is not None and not reader.can_match:
        return (yield from _fetch_range(view, reader, key, request, result, kept, asked_at))
    unless = kept.found.validator if kept.found is not None else None
    only = None
    if request is not None and unless is None:
        only = versions.expected(view, key, result, kept)
    try:
        fetched = yield from _call(view, reader, key, request, unless=unless, only=only)
    except ChangedError:
        yield from versions.leave_version(view, key, result, kept, asked_at)
        fetched = yield from _call(view, reader, key, request)
        versions.confirm(view, key, fetched.validator, asked_at)
        return fetched
    if unless is not None and fetched.validator != unless and request is not None:
        yield from versions.leave_version(view, key, result, kept, asked_at)
    is_compared = unless is not None or only is not None or request is not None
    if fetched.validator is not None and is_compared:
        versions.confirm(view, key, fetched.validator, asked_at)
    return fetched


def _fetch_range(
    view: SourceView,
    reader: SourceReader,
    key: str,
    request: ByteRequest,
    result: LookupResult,
    kept: Kept,
    asked_at: int,
) -> Flow[Fetched]:
    """Read a range from a source that cannot be asked for one version."""
    current = yield from versions.recent_version(view, reader, key, asked_at)
    wanted = versions.expected(view, key, result, kept)
    if wanted is not None and current is not None and current != wanted:
        yield from versions.leave_version(view, key, result, kept, asked_at)
        versions.confirm(view, key, current, asked_at)
    elif kept.found is not None and current is not None and current == kept.found.validator:
        return Fetched(None, current, is_unchanged=True)
    only = current if reader.sends_match else None
    try:
        fetched = yield from _call(view, reader, key, request, only=only, with_version=False)
    except ChangedError:
        current = yield from versions.check_refused(view, reader, key, result, kept, only, asked_at)
        fetched = yield from _call(view, reader, key, request, with_version=False)
    if fetched.buffer is not None:
        return fetched._replace(validator=current)
    # It was removed, which `version` does not tell from a refusal.
    if wanted is not None:
        yield from versions.leave_version(view, key, result, kept, asked_at)
    elif current is not None:
        view.values.versions.record_change(view.namespace, key, asked_at)
    return fetched


def _call(
    view: SourceView,
    reader: SourceReader,
    key: str,
    request: ByteRequest | None,
    *,
    unless: str | None = None,
    only: str | None = None,
    with_version: bool | None = None,
) -> Flow[Fetched]:
    """One fetch through the reader.

    Metadata is worth a request for its validator alone, where a source needs one; a chunk is not.
    """
    if with_version is None:
        with_version = not reader.asks_more or is_metadata(key)
    fetch = partial(reader.fetch, key, request, unless=unless, only=only, with_version=with_version)
    if not reader.is_sync:
        fetched = yield from call_async(view.source, lambda _: fetch())
    else:
        fetch_sync = partial(
            reader.fetch_sync, key, request, unless=unless, only=only, with_version=with_version
        )
        fetched = yield from step(fetch_sync, fetch)
    return _checked(key, request, fetched)


def log_foreign(view: SourceView, key: str) -> None:
    """Log, once, that the source sent what cannot be the value, and that it is not cached."""
    if view.has_logged_foreign:
        return
    view.has_logged_foreign = True
    logger.warning(
        "%s: what the source sent for %r is %s, as from a login page or a gateway; it is "
        "returned and not cached",
        view.namespace,
        key,
        "no metadata of Zarr" if is_metadata(key) else "an HTML page",
    )


def _checked(key: str, request: ByteRequest | None, fetched: Fetched) -> Fetched:
    if fetched.buffer is not None and is_foreign(key, request, fetched.buffer):
        raise _ForeignError(fetched.buffer)
    return fetched


def read_plainly(view: SourceView, key: str, request: ByteRequest | None) -> Flow[Buffer | None]:
    """The response of the source, in host memory, without its version."""
    prototype = cpu.buffer_prototype
    return call(
        view.source,
        lambda source: source.get_sync(key, prototype=prototype, byte_range=request),
        lambda source: source.get(key, prototype, request),
    )


def serve_confirmed(
    view: SourceView, key: str, result: LookupResult, found: EntryState, asked_at: int
) -> Data | None:
    """The bytes that the source has confirmed, counted as a hit: their age begins anew."""
    versions.confirm(view, key, found.validator, asked_at)
    versions.confirm_entry(view, key, found, asked_at)
    view.statistics.add(revalidated=1)
    return serve_kept(view, key, result, found)


def serve_kept(view: SourceView, key: str, result: LookupResult, found: EntryState) -> Data | None:
    """The bytes of an entry, whatever its age, counted as a hit."""
    view.values.touch(view.namespace, key, found, result.looked_up_at)
    view.count_hit(found.data)
    return found.data


def may_serve_stale(view: SourceView, key: str, as_of: int, error: Exception) -> bool:
    """Whether what is stale is served since the source fails, which is warned of once."""
    if isinstance(error, NOT_A_FAILURE) or not view.settings.stale_if_error_seconds:
        return False
    if as_of <= view.stale_after(key, view.values.clock().now_ns()):
        return False
    view.statistics.add(stale_served=1)
    if not view.has_warned_of_stale:
        view.has_warned_of_stale = True
        # Not the message of the error: it may be a URL with a token.
        warnings.warn(
            f"{view.namespace}: the source fails ({type(error).__name__}), and cached values are "
            f"served that are stale by up to {view.settings.stale_if_error_seconds:g} s, such as "
            f"{key!r}; cache_stats()['stale_served'] counts them",
            CacheWarning,
            stacklevel=2,
        )
    return True


def serve_stale(
    view: SourceView, key: str, result: LookupResult, kept: Kept, error: Exception
) -> tuple[Buffer | None] | None:
    """A stale response since the source fails, in a tuple; None if there is none."""
    found = kept.found
    if found is not None and may_serve_stale(view, key, found.as_of, error):
        data = serve_kept(view, key, result, found)
        return None if data is None else (to_buffer(cpu.buffer_prototype, data),)
    return (None,) if serve_stale_absence(view, key, result, error) else None


def serve_stale_absence(view: SourceView, key: str, result: LookupResult, error: Exception) -> bool:
    """Whether a stale absence is served since the source fails, counted as a hit."""
    state = result.state
    if state.kind != "absent" or not view.may_serve_absences():
        return False
    if not may_serve_stale(view, key, state.stored_at, _cause(key, error)):
        return False
    view.values.touch(view.namespace, key, state, result.looked_up_at)
    view.count_hit(None)
    return True


def _cause(key: str, error: Exception) -> Exception:
    """Why a read failed: of a group, the first error that is not that the key is absent."""
    if not isinstance(error, ExceptionGroup):
        return error
    others = error.split(FileNotFoundError)[1]
    return FileNotFoundError(key) if others is None else first_of(others)


def serve_stale_ranges(
    view: SourceView,
    key: str,
    byte_ranges: Sequence[ByteRequest | None],
    missing: list[int],
    result: LookupResult,
    kept: Kept,
    error: Exception,
) -> Flow[dict[int, Data]]:
    """The bytes of stale ranges since the source fails: all of them, or none."""
    requests = [byte_ranges[index] for index in missing]
    states = [
        each.state for each in (yield from ranges.lookup_many(view, key, requests, result, EVER))
    ]
    validators = {each.validator for each in states}
    if any(each.data is None for each in states) or len(validators) > 1:
        return {}
    if kept.is_fresh and validators != {kept.validator}:
        return {}
    oldest = min(each.as_of for each in states)
    if not may_serve_stale(view, key, oldest, _cause(key, error)):
        return {}
    for state in states:
        serve_kept(view, key, result, state)
    return {
        index: state.data
        for index, state in zip(missing, states, strict=True)
        if state.data is not None
    }
