"""Which entries of a file somebody means."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Self

from zarr_cache.core.keys import prefix_end
from zarr_cache.index.evict import LATEST

CACHED = ("value", "absent")


"""The kinds of entry that are answers of a source."""


# Of a statement, with the `Selection.parameters`.
SELECTED = """
FROM entry
JOIN namespace ON namespace.id = entry.namespace
WHERE (:namespace IS NULL OR namespace.name = :namespace)
  AND entry.kind IN (SELECT value FROM json_each(:kinds))
  AND entry.key >= :prefix
  AND (:end IS NULL OR entry.key < :end)
  AND entry.stored_at <= :stored_by
  AND (entry.used_at, entry.id) <= (:used_by, :last)
"""


class Selection(NamedTuple):
    """Some of the entries of a file: those for which all of it is so.

    Attributes
    ----------
    namespace
        Whose keys they are; None for any.
    prefix
        How the key begins.
    kinds
        Of which kind they are.
    stored_by
        When the source was asked, at the latest.
    used_by, last
        Last use, at the latest; of those last used at that very time, the entries up to this one.
    """

    namespace: str | None = None
    prefix: str = ""
    kinds: tuple[str, ...] = CACHED
    stored_by: int = LATEST
    used_by: int = LATEST
    last: int = LATEST

    def parameters(self) -> dict[str, Any]:
        """For the statements that select."""
        return {
            "namespace": self.namespace,
            "prefix": self.prefix,
            "end": prefix_end(self.prefix),
            "kinds": json.dumps(self.kinds),
            "stored_by": self.stored_by,
            "used_by": self.used_by,
            "last": self.last,
        }

    def until(self, used_by: int, last: int) -> Self:
        """Those of it that were last used then or before."""
        return self._replace(used_by=used_by, last=last)


class Amount(NamedTuple):
    """How many entries, and bytes of their values."""

    entries: int
    bytes: int

    def __add__(self, other: object) -> Amount:
        """The sum, of both numbers."""
        if not isinstance(other, Amount):
            return NotImplemented
        return Amount(self.entries + other.entries, self.bytes + other.bytes)
