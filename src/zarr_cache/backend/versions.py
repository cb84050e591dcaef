"""Versions of values: what the source has told this process, and which one it has served.

Only of the keys that were asked for last. What is forgotten is asked for again.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple

from zarr_cache.core.flow import running_loop

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer

MAX_KEYS = 10_000
"""Of so many keys it is known what the source has told."""

SERVED_NS = 60 * 10**9
"""A reader that was given a range requests the next one of the same value within this time.

A record is renewed after a quarter of it, and not for each range: so it holds for 45 to 60 s."""

MAX_KEYS_OF_READER = 64
"""Of so many keys it is known which version a thread or a task was served."""

CHANGED = ""
"""Stands for a version that is not known: it is none of those that are kept."""


class RecentKeys[V]:
    """Values by namespace and key, of the keys that were set last. Any thread may call."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._lock = threading.Lock()
        self._max_keys = max_keys
        self._values: OrderedDict[tuple[str, str], V] = OrderedDict()

    def get(self, namespace: str, key: str) -> V | None:
        """The value of the key; None if there is none."""
        return self._values.get((namespace, key))

    def set(self, namespace: str, key: str, value: V) -> None:
        """Give the key a value; of many keys, the one that was set first is forgotten."""
        with self._lock:
            self._values[namespace, key] = value
            self._values.move_to_end((namespace, key))
            if len(self._values) > self._max_keys:
                self._values.popitem(last=False)

    def discard(self, namespace: str, key: str) -> None:
        """Forget the value of a key."""
        with self._lock:
            self._values.pop((namespace, key), None)

    def discard_prefix(self, namespace: str, prefix: str = "") -> None:
        """Forget the values of the keys that begin with `prefix`."""
        with self._lock:
            for place in list(self._values):
                if place[0] == namespace and place[1].startswith(prefix):
                    del self._values[place]


class Sent(NamedTuple):
    """What the source sent to a caller who fetched for others, too, and which version that is."""

    buffer: Buffer | None
    validator: str | None


class Known(NamedTuple):
    """What the source has told: its version of a value at a time.

    Attributes
    ----------
    validator
        Of the version; None if the source has none to tell; `CHANGED` if it is only known that it
        is another one than before.
    at
        When the source was asked.
    """

    validator: str | None
    at: int


class Served(NamedTuple):
    """A version of which ranges were served.

    Attributes
    ----------
    at
        When.
    first
        The request with which the reader has begun.
    """

    validator: str
    at: int
    first: ByteRequest | None = None


class Versions:
    """What this process knows of the versions of values.

    Attributes
    ----------
    known
        What the source has told.
    absent
        When the source said of a key that it is absent, of sources that are believed for a short
        time only.
    """

    def __init__(self) -> None:
        self.known: RecentKeys[Known] = RecentKeys()
        self.absent: RecentKeys[int] = RecentKeys()
        self._served: RecentKeys[Served] = RecentKeys()
        # The same for each reader, which is a thread or a task: of several that have ranges of an
        # earlier version, one finds that it has changed, and each must be told. The record of a
        # reader ends with it.
        self._lock = threading.Lock()
        self._of_thread = threading.local()
        self._of_tasks: weakref.WeakKeyDictionary[object, RecentKeys[Served]]
        self._of_tasks = weakref.WeakKeyDictionary()
        self._readers: weakref.WeakSet[RecentKeys[Served]] = weakref.WeakSet()

    def _of_reader(self) -> RecentKeys[Served]:
        """What was served to the thread or the task that calls."""
        task = None if running_loop() is None else asyncio.current_task()
        if task is None:
            found: RecentKeys[Served] | None = getattr(self._of_thread, "served", None)
            if found is None:
                found = self._of_thread.served = self._new_reader()
            return found
        found = self._of_tasks.get(task)
        if found is None:
            found = self._new_reader()
            with self._lock:
                self._of_tasks[task] = found
        return found

    def _new_reader(self) -> RecentKeys[Served]:
        reader: RecentKeys[Served] = RecentKeys(MAX_KEYS_OF_READER)
        with self._lock:
            self._readers.add(reader)
        return reader

    def _of_readers(self) -> list[RecentKeys[Served]]:
        with self._lock:
            return list(self._readers)

    def begin(self, namespace: str, key: str, request: ByteRequest | None) -> None:
        """Record that the reader requests this range.

        A reader that requests its first range once more, such as the index of a shard, begins anew:
        it no longer uses what was served before. Other readers have records of their own.
        """
        for each in (self._of_reader(), self._served):
            served = each.get(namespace, key)
            if served is not None and served.first == request:
                each.discard(namespace, key)

    def serve(
        self, namespace: str, key: str, request: ByteRequest | None, validator: str, now_ns: int
    ) -> None:
        """Record that a range of this version is served."""
        own = self._of_reader()
        before = own.get(namespace, key)
        first = request
        is_recent = before is not None and before.at >= now_ns - SERVED_NS
        if is_recent and before is not None and before.validator == validator:
            if before.at > now_ns - SERVED_NS // 4:
                return
            first = before.first
        served = Served(validator, now_ns, first)
        self._served.set(namespace, key, served)
        own.set(namespace, key, served)

    def served(self, namespace: str, key: str, now_ns: int) -> str | None:
        """The version of which the reader, or else another one, may have a range.

        None if no range was served of late, or if this process has written to the key since.
        """
        for each in (self._of_reader(), self._served):
            served = each.get(namespace, key)
            if served is not None and served.at >= now_ns - SERVED_NS:
                return served.validator
        return None

    def forget_served(self, namespace: str, key: str) -> None:
        """Let the reader begin anew: it is told of a change."""
        self._served.discard(namespace, key)
        self._of_reader().discard(namespace, key)

    def record_change(self, namespace: str, key: str, now_ns: int) -> None:
        """Record that what is kept of the key up to now is of an earlier version."""
        self.forget_served(namespace, key)
        self.known.set(namespace, key, Known(CHANGED, now_ns))

    def forget(self, namespace: str, key: str) -> None:
        """Forget a key that is written to."""
        everything: list[RecentKeys[Any]] = [self.known, self.absent, self._served]
        for each in everything + self._of_readers():
            each.discard(namespace, key)

    def forget_prefix(self, namespace: str, prefix: str) -> None:
        """Forget the keys that begin with `prefix`, which are removed."""
        everything: list[RecentKeys[Any]] = [self.known, self.absent, self._served]
        for each in everything + self._of_readers():
            each.discard_prefix(namespace, prefix)
