"""Admission: responses of the source become entries, unless a write has overtaken them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache.core import byte_range, checksum
from zarr_cache.core.single_flight import LazyFuture
from zarr_cache.index import extents, lookup, ranges
from zarr_cache.index.evict import Evictions, add_if_it_fits, cached_bytes, trim, under_limits
from zarr_cache.index.large_values import LargeValue
from zarr_cache.index.listing import replaced_bytes
from zarr_cache.index.lookup import NEW_NAMESPACE, WRITE_LEASE_NS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zarr.abc.store import ByteRequest

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.core.errors import CacheError
    from zarr_cache.core.flow import Flow
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.evict import Limits
    from zarr_cache.index.large_values import WrittenValue, WrittenValues
    from zarr_cache.index.lookup import EntryState
    from zarr_cache.index.values import Keep


MAX_ABSENT = 100_000
"""At most this many absent entries are kept in a file."""

# The row keeps its revision, which is that of the last write to the key. The response is refused if
# the row is newer, if the key was written since, or if a write is in flight whose lease has not
# expired. While a folder of the source is being removed, every response is refused.
ADMIT = """
INSERT INTO entry (namespace, key, kind, size, stored_at, used_at, revision, checksum, validator)
SELECT id, :key, :kind, :size, :stored_at, :used_at, 0, :checksum, :validator
FROM namespace
WHERE name = :namespace
  AND fence <= :revision
  AND (removals_since IS NULL OR removals_since <= :expired_before)
ON CONFLICT (namespace, key, start) DO UPDATE
SET kind = excluded.kind,
    size = excluded.size,
    stored_at = excluded.stored_at,
    used_at = excluded.used_at,
    writes_in_flight = 0,
    checksum = excluded.checksum,
    validator = excluded.validator,
    confirmed_at = NULL
WHERE revision <= :revision
  AND (writes_in_flight = 0 OR stored_at <= :expired_before)
  AND coalesce(confirmed_at, stored_at) <= excluded.stored_at
  AND kind <> 'stored'
RETURNING id
"""

# It keeps its revision: responses from before the last write are still refused.
EVICT_OLD_VALUE = """
UPDATE entry
SET kind = 'tombstone',
    size = 0,
    validator = NULL,
    confirmed_at = NULL
WHERE id = :entry AND kind = 'value'
"""


class Admission:
    """A response that is to be admitted.

    Parameters
    ----------
    on_done
        Called with the outcome: the entries evicted for it, None if a write has overtaken it, or
        the error for which it was not admitted. The thread that writes it calls.
    """

    def __init__(
        self,
        namespace: str,
        key: str,
        response: Response,
        limits: Limits,
        on_done: Callable[[Evictions | CacheError | None], None],
    ) -> None:
        self.namespace = namespace
        self.key = key
        self.response = response
        self.limits = limits
        self.used_at = self.used_at_in_file = response.used_at
        self.entry: int | None = None
        self.removed: Evictions | None = None
        # Evicted for it before its own transaction, and so whether that fails or not.
        self.removed_before: Evictions | None = None
        self.failure: CacheError | None = None
        self.is_cancelled = False
        self._on_done = on_done
        self._ended: LazyFuture[None] = LazyFuture()

    def end(self, error: CacheError | None) -> None:
        """Report the outcome."""
        error = error or self.failure
        if error is not None:
            self._on_done(error)
        if error is None or self.removed is not None:
            # Entries may have been evicted for a response that was not admitted in the end.
            self._on_done(self.removed)
        self._ended.set(None)

    def wait(self) -> Flow[None]:
        """Wait until it has ended."""
        return self._ended.wait()


def bytes_coming(connection: Connection, limits: Limits, wanted: Sequence[Admission]) -> int:
    """Bytes that will be added. The values replaced are subtracted only if space is short."""
    coming = sum(each.response.size for each in wanted)
    if not limits.are_exceeded(cached_bytes(connection) + coming):
        return coming
    more: dict[tuple[str, ...], int] = {}
    for each in wanted:
        owner = (each.namespace, each.key)
        if each.response.request is not None:
            more[*owner, str(each.response.request)] = each.response.size
            continue
        before = replaced_bytes(connection, *owner, None, each.response.size)
        more[owner] = max(more.get(owner, 0), each.response.size - before)
    return sum(more.values())


def large_values(connection: Connection, wanted: Sequence[Admission]) -> list[LargeValue]:
    """The values whose bytes are written to the data file, before their entries."""
    return [
        LargeValue(
            admission,
            identity_checksum_of(admission.namespace, admission.key, admission.response),
            admission.response.data,
            partial(_is_wanted, connection, admission),
        )
        for admission in wanted
        if admission.response.data is not None
        and extents.is_large(connection, admission.response.size)
    ]


def _is_wanted(connection: Connection, admission: Admission) -> bool:
    """Whether the response would be admitted now; what it replaces may be evicted for it."""
    found = lookup.lookup_metadata(connection, admission.namespace, admission.key)
    response, limits = admission.response, admission.limits
    if admission.is_cancelled:
        return False
    if response.request is not None:
        are_exceeded = limits.are_exceeded(cached_bytes(connection) + response.size)
        return _may_be_admitted(response, found, limits) and (
            not are_exceeded or _make_place(connection, admission)
        )
    if response.overlay_on(found) is found:
        return False
    if limits.are_exceeded(cached_bytes(connection) + response.size):
        # There is no space for both: evict what is replaced, not another value.
        ranges.remove_of_key(connection, admission.namespace, admission.key)
        if found.kind == "value":
            connection.execute(EVICT_OLD_VALUE, {"entry": found.entry})
            extents.delete(connection, found.entry or 0)
    return True


def admit(
    connection: Connection, admission: Admission, keep: Keep, values_written: WrittenValues
) -> None:
    """Admit one response, unless a write has overtaken it: a step of a transaction."""
    namespace, response = admission.namespace, admission.response
    value_written = values_written.get(admission)
    is_large = response.data is not None and extents.is_large(connection, response.size)
    if is_large and value_written is None:
        # It was not wanted, or there was no space for it, or there is no data file.
        admission.failure = values_written.failure
        if admission.failure is None and not admission.limits.may_evict:
            _remove_older(connection, admission)
        return
    if response.request is not None:
        _admit_range(connection, admission, keep, value_written)
        return
    add = partial(_add_value, connection, admission, keep, value_written)
    before = admission.removed_before
    with under_limits(connection, namespace, admission.limits, before) as removed:
        connection.execute(NEW_NAMESPACE, {"namespace": namespace})
        # The lease of its space may have expired.
        is_written = value_written is None or value_written.is_reserved(connection)
        if is_written and not add_if_it_fits(connection, admission.limits, removed, add):
            admission.entry = None
            if not admission.limits.may_evict:
                _remove_older(connection, admission)
        if response.data is None:
            trim(connection, "absent", MAX_ABSENT, admission.limits.expired_before)
    admission.removed = removed if admission.entry is not None or removed.expired else before


def _add_value(
    connection: Connection, admission: Admission, keep: Keep, value_written: WrittenValue | None
) -> bool:
    """Add the entry of a whole value or an absence; False if it must not be."""
    namespace, response = admission.namespace, admission.response
    used_at = admission.used_at_in_file = admission.used_at
    identity_checksum = identity_checksum_of(namespace, admission.key, response)
    parameters = {
        "namespace": namespace,
        "key": admission.key,
        "kind": response.kind,
        "size": response.size,
        "stored_at": response.stored_at,
        "used_at": used_at,
        "revision": response.revision,
        "expired_before": response.stored_at - WRITE_LEASE_NS,
        "checksum": identity_checksum ^ checksum.of_version(response.validator, None),
        "validator": response.validator,
    }
    rows = connection.execute(ADMIT, parameters).fetchall()
    for (entry,) in rows:
        admission.entry = entry
        ranges.remove_of_key(connection, namespace, admission.key)
        extents.delete(connection, entry)
        if value_written is not None:
            value_written.give(connection, entry)
        elif response.data is not None:
            keep(connection, entry, identity_checksum, response.data)
    return bool(rows)


def _remove_older(connection: Connection, admission: Admission) -> None:
    """Remove the entry that a whole value without room would have replaced: it is outdated."""
    if admission.response.request is not None:
        return
    found = lookup.lookup_metadata(connection, admission.namespace, admission.key)
    is_older = admission.response.overlay_on(found) is not found
    if is_older and found.kind in {"value", "absent"}:
        ranges.remove(connection, found.entry)


def _admit_range(
    connection: Connection, admission: Admission, keep: Keep, value_written: WrittenValue | None
) -> None:
    """Admit a response that is a part of a value."""
    namespace, limits = admission.namespace, admission.limits
    add = partial(_add_range, connection, admission, keep, value_written)
    before = admission.removed_before
    with under_limits(connection, namespace, limits, before) as removed:
        connection.execute(NEW_NAMESPACE, {"namespace": namespace})
        is_written = value_written is None or value_written.is_reserved(connection)
        if is_written and not add_if_it_fits(connection, limits, removed, add):
            admission.entry = None
    admission.removed = removed if admission.entry is not None or removed.expired else before


def _add_range(
    connection: Connection, admission: Admission, keep: Keep, value_written: WrittenValue | None
) -> bool:
    """Add the entry of a range; False if it is not wanted."""
    namespace, key, response = admission.namespace, admission.key, admission.response
    used_at = admission.used_at_in_file = admission.used_at
    found = lookup.lookup_metadata(connection, namespace, key)
    is_wanted = _may_be_admitted(response, found, admission.limits)
    if response.request is None or response.data is None or not is_wanted:
        return False
    if not _make_place(connection, admission):
        return False
    span = byte_range.span_of(response.request, response.size)
    seed = identity_checksum_of(namespace, key, response)
    facts = (span, response.stored_at, used_at, seed, response.validator)
    entry = admission.entry = ranges.insert(connection, namespace, key, *facts)
    if found.kind == "absent":
        ranges.remove(connection, found.entry)
    if value_written is not None:
        value_written.give(connection, entry)
    else:
        keep(connection, entry, seed, response.data)
    return True


def _may_be_admitted(response: Response, found: EntryState, limits: Limits) -> bool:
    """Whether a range is wanted: its value is not cached, and nothing newer is known of the key."""
    if found.kind == "value" and found.as_of > limits.fresh_after:
        return False
    if found.kind == "absent" and found.stored_at > response.stored_at:
        return False
    return not found.is_overtaken(response.revision, response.stored_at)


def _make_place(connection: Connection, admission: Admission) -> bool:
    """Remove the ranges that this one replaces; False if it is not wanted.

    It is not if its bytes are cached already, or if the ranges that are cached are of a later
    version.
    """
    response, of_key = admission.response, (admission.namespace, admission.key)
    if response.request is None:
        return False
    kept = ranges.version(connection, *of_key)
    if kept is not None and kept.validator != response.validator:
        if kept.as_of > response.stored_at:
            return False
        ranges.remove_of_key(connection, *of_key)
    return ranges.make_place(
        connection,
        *of_key,
        response.request,
        response.size,
        admission.limits.fresh_after,
    )


def replaces_ranges(connection: Connection, admission: Admission) -> bool:
    """Whether every range of its key is to be removed: it is a whole value, or a later version."""
    response = admission.response
    if response.request is None:
        return True
    kept = ranges.version(connection, admission.namespace, admission.key)
    is_other = kept is not None and kept.validator != response.validator
    return is_other and kept is not None and kept.as_of <= response.stored_at


class Response(NamedTuple):
    """A response of the source.

    Attributes
    ----------
    data
        The whole value, or the bytes of `request`; None if the source has no such key.
    stored_at
        Time at which the source was read.
    used_at
        Time of this use.
    revision
        `EntryState.revision` from before the source was read.
    request
        Which bytes of the value these are; None for all.
    validator
        Of the version that the bytes are of; None if it is not known.
    """

    data: ByteArray | None
    stored_at: int
    used_at: int
    revision: int
    request: ByteRequest | None = None
    validator: str | None = None

    @property
    def kind(self) -> str:
        """The kind of its entry."""
        if self.request is not None:
            return "range"
        return "absent" if self.data is None else "value"

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return 0 if self.data is None else self.data.size

    def overlay_on(
        self, found: EntryState, request: ByteRequest | None = None, fresh_after: int | None = None
    ) -> EntryState:
        """The result of a lookup once this is admitted, instead of `found`.

        Parameters
        ----------
        request, fresh_after
            Of a lookup of bytes; without `fresh_after` it is a lookup of metadata.
        """
        is_later = found.kind in {"value", "absent"} and found.as_of > self.stored_at
        if is_later or found.is_overtaken(self.revision, self.stored_at):
            return found
        data = None
        if self.data is not None and fresh_after is not None and self.stored_at > fresh_after:
            start, stop = byte_range.span(request, self.size)
            data = self.data[start:stop]
        return found._replace(
            entry=None,
            kind=self.kind,
            size=self.size,
            stored_at=self.stored_at,
            writes_in_flight=0,
            validator=self.validator,
            confirmed_at=None,
            file_ranges=found.file_ranges if self.data is not None else 0,
            data=data,
            read=None,
            is_damaged=False,
        )


def identity_checksum_of(namespace: str, key: str, response: Response) -> int:
    """The checksum of the facts of the entry of the response."""
    if response.request is not None:
        span = byte_range.span_of(response.request, response.size)
        return ranges.facts_of(namespace, key, span, response.stored_at)
    return checksum.of_facts(namespace, key, response.kind, response.size, response.stored_at)
