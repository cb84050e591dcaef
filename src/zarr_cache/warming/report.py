"""What warming would do, what it has done, and which of its requests have failed."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from zarr_cache.core.errors import CacheError, OfflineError
from zarr_cache.core.sizes import format_size

type Stop = Literal["budget", "fault", "failed", "gone"]

MAX_FAILURES = 20
"""So many failures are listed; and after so many requests that all failed, a run ends."""

MAX_NAMES = 10
"""So many arrays and failures are named in a line."""

NOT_OF_ONE_KEY = (CacheError, OfflineError, MemoryError, NameError, ImportError)
"""Errors that end a run: they are not of the key, and would be raised for each.

Not `TypeError` and the like: clients of servers raise them, too, when a connection breaks off.
"""

_REASONS: dict[Stop, str] = {
    "budget": "max_size has no room for more of them",
    "fault": "the cache failed; a CacheWarning names the cause",
    "failed": "they could not be fetched",
    "gone": "some are no longer cached: they became stale, or were evicted for other reads",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that failed.

    Attributes
    ----------
    key
        The key that was requested.
    error
        The class of the error, with the status of the HTTP response or what the system says, if it
        tells one. Not its message, which may be a URL with a token: read the key to see it.
    """

    key: str
    error: str

    def __str__(self) -> str:
        return f"{self.key!r} ({self.error})"


class Failures:
    """The requests of a run that have failed.

    Attributes
    ----------
    count
        How many they are.
    first
        The first `MAX_FAILURES` of them.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: list[Failure] = []
        self._failed: Counter[str] = Counter()
        self._working: set[str] = set()

    def record(self, kind: str, key: str, error: Exception | None) -> None:
        """Record a request of this kind, and its error if it failed.

        Raises
        ------
        Exception
            The error itself, if it is not of this key alone, or if the first `MAX_FAILURES`
            requests of this kind have all failed: the source cannot be read.
        """
        if error is None:
            self._working.add(kind)
            return
        if isinstance(error, NOT_OF_ONE_KEY):
            raise error
        self.count += 1
        self._failed[kind] += 1
        if kind not in self._working and self._failed[kind] >= MAX_FAILURES:
            raise error
        if len(self.first) < MAX_FAILURES:
            self.first.append(Failure(key, describe(error)))


def describe(error: BaseException) -> str:
    """The class of an error, and the code that it has: never its message, see `Failure`."""
    name = type(error).__name__
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"{name}, HTTP status {status}"
    if isinstance(error, OSError) and error.errno is not None and error.errno in errno.errorcode:
        return f"{name}, {os.strerror(error.errno)}"
    return name


@dataclass(frozen=True, slots=True)
class WarmPlan:
    """What `warm` would do; no chunk has been fetched.

    Attributes
    ----------
    chunks
        Chunks that the selection touches. Of a sharded array, inner chunks if the CacheStore has
        ``persist_ranges=True``, and whole shards otherwise.
    cached, cached_bytes
        Those that are cached and fresh, and the bytes of the entries that have them.
    absent
        Those that the cache remembers as absent from the source.
    requests
        Requests to the source: for the other chunks, and for metadata that is not cached. For inner
        chunks as zarr merges them; two for each shard whose index has not been read.
    nbytes
        Bytes of the chunks to fetch and of the indexes of their shards, without metadata; None if
        unknown. Bytes between inner chunks, which zarr requests to merge two reads, are not in it.
    sizes_asked
        How many chunks to fetch the size is known of. `nbytes` is exact if these are all, and
        otherwise estimated: from those sizes or, without any, from the size before compression.
    is_exact
        Whether `nbytes` is exact.
    max_size
        The budget of the CacheStore.
    whole_shards, inner_chunks
        How many of `chunks` are whole shards, and how many are inner chunks.
    arrays
        Paths of the arrays that have the chunks.
    is_group
        Whether these were found in a group.
    failed, failures
        Requests that failed, for metadata, sizes and indexes: how many, and the first twenty.
    """

    chunks: int
    cached: int
    cached_bytes: int
    absent: int
    requests: int
    nbytes: int | None
    sizes_asked: int
    is_exact: bool
    max_size: int | None
    whole_shards: int = 0
    inner_chunks: int = 0
    arrays: tuple[str, ...] = ()
    is_group: bool = False
    failed: int = 0
    failures: tuple[Failure, ...] = ()

    @property
    def fits(self) -> bool | None:
        """Whether `max_size` has room for the whole selection; None if unknown.

        With ``when_full="keep"``, what else is cached may take some of it.
        """
        if self.max_size is None:
            return True
        return None if self.nbytes is None else self.cached_bytes + self.nbytes <= self.max_size

    def __str__(self) -> str:
        text = f"{_chunks(self)}: {self.cached} cached, {self.absent} known to be absent; "
        text += f"{_number(self.requests, 'request')} for {self._bytes()}"
        if self.fits is False:
            text += f"; that is more than max_size, {format_size(self.max_size or 0)}"
        return text + _arrays(self) + in_words(self.failed, self.failures)

    def _bytes(self) -> str:
        if self.nbytes is None:
            return "an unknown number of bytes"
        if self.is_exact:
            return format_size(self.nbytes)
        basis = (
            f"from the sizes of {self.sizes_asked}" if self.sizes_asked else "before compression"
        )
        return f"about {format_size(self.nbytes)} ({basis})"


@dataclass(frozen=True, slots=True)
class WarmReport:
    """What `warm` did: ``chunks == cached + fetched + absent + left``, unless some were evicted.

    Attributes
    ----------
    chunks
        Chunks that the selection touches. Of a sharded array, inner chunks if the CacheStore has
        ``persist_ranges=True``, also those of shards that are fetched as wholes; otherwise whole
        shards.
    cached
        Those that were cached and fresh already.
    fetched
        Those that were fetched.
    absent
        Those that the source does not have: they hold the fill value.
    left
        Those that are not cached at the end.
    bytes_fetched
        Bytes from the source, including metadata and the indexes of shards.
    stopped
        Why some are left. ``"budget"``: the next one might not have fitted into `max_size` beside
        the rest of the selection. ``"fault"``: the cache failed, and a `CacheWarning` named the
        cause. ``"failed"``: requests for them failed. ``"gone"``: some were cached and are no
        longer: they became stale, or were evicted for other reads. None if none are left.
    whole_shards, inner_chunks
        How many of `chunks` are whole shards, and how many are inner chunks.
    arrays
        Paths of the arrays that have the chunks.
    is_group
        Whether these were found in a group.
    failed, failures
        Requests that failed, for chunks and for metadata: how many, and the first twenty.
    """

    chunks: int
    cached: int
    fetched: int
    absent: int
    left: int
    bytes_fetched: int
    stopped: Stop | None
    whole_shards: int = 0
    inner_chunks: int = 0
    arrays: tuple[str, ...] = ()
    is_group: bool = False
    failed: int = 0
    failures: tuple[Failure, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether the whole selection is cached, with its metadata. Not if no array was found."""
        return self.left == 0 and self.failed == 0 and not (self.is_group and not self.arrays)

    def __str__(self) -> str:
        text = f"{_chunks(self)}: {self.cached} were cached, {self.fetched} fetched "
        text += f"({format_size(self.bytes_fetched)}), {self.absent} absent"
        if self.stopped is not None:
            text += f"; {self.left} left: {_REASONS[self.stopped]}"
        return text + _arrays(self) + in_words(self.failed, self.failures)


def _arrays(counts: WarmPlan | WarmReport) -> str:
    """Which arrays of a group have the chunks."""
    if not counts.is_group:
        return ""
    if not counts.arrays:
        return "; no array was found in the group"
    named = ", ".join(map(repr, counts.arrays[:MAX_NAMES]))
    more = "" if len(counts.arrays) <= MAX_NAMES else ", ..."
    return f"; in {_number(len(counts.arrays), 'array')}: {named}{more}"


def in_words(failed: int, first: tuple[Failure, ...]) -> str:
    """Which requests have failed, as the end of a line; empty if none have."""
    if not failed:
        return ""
    more = "" if failed <= MAX_NAMES else ", ..."
    return f"; {_number(failed, 'request')} failed: {', '.join(map(str, first[:MAX_NAMES]))}{more}"


def _chunks(counts: WarmPlan | WarmReport) -> str:
    """How many chunks there are, and of which kind."""
    kinds = {"inner chunk": counts.inner_chunks, "whole shard": counts.whole_shards}
    parts = [_number(number, kind) for kind, number in kinds.items() if number]
    if counts.chunks in kinds.values() and len(parts) == 1:
        return parts[0]
    text = _number(counts.chunks, "chunk")
    return f"{text} ({', '.join(parts)})" if parts else text


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
