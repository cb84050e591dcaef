"""The decision of ``when_full="auto"``: to evict, or to keep what is there."""

from __future__ import annotations

from typing import NamedTuple

MIN_READS = 256
"""Of fewer sampled reads nothing is concluded, and so many misses lie between two changes."""

KEEP_MARGIN = 2
"""To keep must be so much better, by an estimate, while as much is missed as the cache holds."""

EVICT_MARGIN = 1.25
"""To evict must be so much better than what is served."""

NOTHING = 0.01
"""If a smaller part of the bytes is hits, nothing is lost by keeping what is there."""

ROUND = 1.5
"""What is kept is judged over so many times the bytes between two reads of a key."""

SOME = 0.0025
"""What is kept serves something, if it serves this part of the bytes."""

HOPELESS = 64
"""After so many times the budget without hits, what is kept is given up without a better one."""

MOST = 2**62
"""No sum is larger, so that SQLite can hold it."""


class Recent(NamedTuple):
    """What is known of the reads of late, as parts of their bytes.

    Attributes
    ----------
    reads
        Sampled reads.
    evicting
        What evicting the least recently used would have served.
    keeping
        What a cache that keeps any of the keys would have served.
    served
        What was served.
    working_set
        The bytes of the keys that are in use.
    """

    reads: float
    evicting: float
    keeping: float
    served: float
    working_set: float


class Decision(NamedTuple):
    """Whether a full cache keeps what is there, and what has happened since that was decided.

    Attributes
    ----------
    keeps
        Whether it does.
    misses, missed_bytes
        Since it has changed.
    round_bytes, round_served, round_expected
        Bytes read since what is kept was last judged, those that were served, and those that
        should have been.
    """

    keeps: bool = False
    misses: int = 0
    missed_bytes: int = 0
    round_bytes: int = 0
    round_served: int = 0
    round_expected: int = 0

    def after(
        self, misses: int, missed_bytes: int, nbytes: int, recent: Recent, max_size: int
    ) -> Decision:
        """The decision after a batch of reads, of so many bytes, and so many misses."""
        expected = int(recent.keeping * nbytes)
        more = (misses, missed_bytes, nbytes, nbytes - missed_bytes, expected)
        sums = (min(old + new, MOST) for old, new in zip(self[1:], more, strict=True))
        now = Decision(self.keeps, *sums)
        if now.misses < MIN_READS or recent.reads < MIN_READS:
            return now
        return now._judge(recent, max_size) if now.keeps else now._compare(recent, max_size)

    def _compare(self, recent: Recent, max_size: int) -> Decision:
        """Keep from now on, if that would serve more."""
        is_better = recent.keeping > KEEP_MARGIN * recent.evicting or recent.evicting < NOTHING
        if not is_better:
            return self._replace(missed_bytes=0)
        return Decision(keeps=True) if self.missed_bytes >= max_size else self

    def _judge(self, recent: Recent, max_size: int) -> Decision:
        """Evict again, if that would serve more, or if what is kept is not what is read."""
        if recent.evicting > EVICT_MARGIN * recent.served + NOTHING:
            return Decision()
        if self.round_bytes < ROUND * recent.working_set:
            return self
        if self.round_expected > max(2 * self.round_served, NOTHING * self.round_bytes):
            return Decision()
        if self.round_served >= SOME * self.round_bytes:
            return self._replace(round_bytes=0, round_served=0, round_expected=0)
        return Decision() if self.round_bytes >= HOPELESS * max_size else self
