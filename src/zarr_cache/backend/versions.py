"""Versions of values: what the source has told this process, and which one it has served.

Only of the keys that were asked for last. What is forgotten is asked for again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import NamedTuple

MAX_KEYS = 10_000
"""Of so many keys it is known what the source has told."""

SERVED_NS = 60 * 10**9
"""A reader that was given a range asks for the next one of the same value within this time."""

CHANGED = ""
"""Stands for a version that is not known: it is none of those that are kept."""


class RecentKeys[V]:
    """Values by namespace and key, of the keys that were set last. Any thread may call."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._lock = threading.Lock()
        self._max_keys = max_keys
        self._values: OrderedDict[tuple[str, str], V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

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
    fence
        Revision of the last write to the key then.
    at
        When.
    """

    validator: str
    fence: int
    at: int


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

    def serve(self, namespace: str, key: str, validator: str, fence: int, now_ns: int) -> None:
        """Record that a range of this version is served."""
        self._served.set(namespace, key, Served(validator, fence, now_ns))

    def served(self, namespace: str, key: str, fence: int, now_ns: int) -> str | None:
        """The version of which a reader may have a range and ask for another one.

        None if no range was served of late, or if the key was written since.
        """
        served = self._served.get(namespace, key)
        if served is None or served.fence != fence or served.at < now_ns - SERVED_NS:
            return None
        return served.validator

    def record_change(self, namespace: str, key: str, now_ns: int) -> None:
        """Record that what is kept of the key up to now is of an earlier version."""
        self._served.discard(namespace, key)
        self.known.set(namespace, key, Known(CHANGED, now_ns))

    def forget(self, namespace: str, key: str) -> None:
        """Forget a key that is written to."""
        for each in (self.known, self.absent, self._served):
            each.discard(namespace, key)

    def forget_prefix(self, namespace: str, prefix: str) -> None:
        """Forget the keys that begin with `prefix`, which are removed."""
        for each in (self.known, self.absent, self._served):
            each.discard_prefix(namespace, prefix)
