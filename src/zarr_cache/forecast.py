"""Whether the next read will be a hit."""

from __future__ import annotations

HITS_IN_A_ROW = 8
"""After so many hits without a miss the next read is taken to be one."""


class Forecast:
    """Judges by the last answers. A wrong guess costs time, nothing else, so it takes no lock."""

    def __init__(self) -> None:
        self._hits = 0

    def hit(self) -> None:
        """An answer was at hand."""
        self._hits += 1

    def miss(self) -> None:
        """The source had to be asked."""
        self._hits = 0

    @property
    def is_hit(self) -> bool:
        """Whether the next answer is likely to be at hand."""
        return self._hits >= HITS_IN_A_ROW
