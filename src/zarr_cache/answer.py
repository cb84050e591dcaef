"""What the source said, and the entry that it becomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from zarr_cache import byte_range, checksum

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from zarr_cache.checksum import ByteArray
    from zarr_cache.index import Found


class Answer(NamedTuple):
    """What the source said, to be kept.

    Attributes
    ----------
    data
        The whole value, or None: the source has no such key.
    stored_at
        Time at which the source was asked.
    used_at
        Stamp of this use.
    revision
        `Found.revision` from before the source was asked.
    """

    data: ByteArray | None
    stored_at: int
    used_at: int
    revision: int

    @property
    def kind(self) -> str:
        """The kind of entry that the answer becomes."""
        return "absent" if self.data is None else "value"

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return 0 if self.data is None else self.data.size

    def instead_of(
        self, found: Found, request: ByteRequest | None = None, fresh_after: int | None = None
    ) -> Found:
        """What the file will tell once this is in it, instead of what it tells now.

        Parameters
        ----------
        request, fresh_after
            Of a look-up for bytes; without `fresh_after` it is for facts.
        """
        if found.is_overtaken(self.revision, self.stored_at):
            return found
        if found.kind in {"value", "absent"} and found.stored_at > self.stored_at:
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
            writers=0,
            data=data,
            read=None,
            is_damaged=False,
        )


def seed_of(namespace: str, key: str, answer: Answer) -> int:
    """The checksum of the facts of the entry that the answer becomes."""
    return checksum.of_facts(namespace, key, answer.kind, answer.size, answer.stored_at)
