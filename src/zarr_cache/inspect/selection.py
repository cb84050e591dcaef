"""A selection of entries: by namespace, prefix, kind, age and last use."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from zarr_cache.core.keys import prefix_end
from zarr_cache.index.evict import LATEST

WITH_BYTES = ("value", "range")
"""The kinds of entry that hold bytes of a source: they share one budget."""

CACHED = (*WITH_BYTES, "absent")
"""The kinds of entry that hold a response of a source."""

# Part of a statement, with the `Selection.parameters`.
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
    """The entries of a file that meet all of these conditions.

    Attributes
    ----------
    namespace
        Namespace of the key; None for all.
    prefix
        Prefix of the key.
    kinds
        Kinds of entry.
    stored_by
        Latest time of the request to the source.
    used_by, last
        Latest time of the last use; of the entries last used at that time, those up to this row.
    """

    namespace: str | None = None
    prefix: str = ""
    kinds: tuple[str, ...] = CACHED
    stored_by: int = LATEST
    used_by: int = LATEST
    last: int = LATEST

    def parameters(self) -> dict[str, Any]:
        """Parameters of statements with `SELECTED`."""
        return {
            "namespace": self.namespace,
            "prefix": self.prefix,
            "end": prefix_end(self.prefix),
            "kinds": json.dumps(self.kinds),
            "stored_by": self.stored_by,
            "used_by": self.used_by,
            "last": self.last,
        }


class Amount(NamedTuple):
    """Number of entries, and how many bytes they have."""

    entries: int
    bytes: int

    def __add__(self, other: object) -> Amount:
        """The sum of both numbers."""
        if not isinstance(other, Amount):
            return NotImplemented
        return Amount(self.entries + other.entries, self.bytes + other.bytes)


NOTHING = Amount(0, 0)
