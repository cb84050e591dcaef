"""What is kept: how large, how old, under which revision.

Every public function of this module, of `admission` and of `fence` that takes a connection is an
operation: it runs from beginning to end as one transaction.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from zarr_cache import byte_range, checksum, values
from zarr_cache.values import DamagedValueError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zarr.abc.store import ByteRequest

    from zarr_cache.checksum import ByteArray
    from zarr_cache.connection import Connection

type Data = bytes | ByteArray

EVER = -(2**63)
"""For `fresh_after`: every age is fresh."""

LONGEST_WRITE_NS = 3600 * 1_000_000_000
"""A write that has not ended after this time never will: its process has died."""

# Code points that UTF-8 does not encode.
FIRST_SURROGATE, AFTER_SURROGATES = 0xD800, 0xE000

INLINE = 64 * 1024
"""Values of up to this many bytes come with the facts, in one statement.
See docs/decisions/0002."""

NEW_NAMESPACE = """
INSERT INTO namespace (name, fence)
SELECT :namespace, fence
FROM counter
WHERE true
ON CONFLICT DO NOTHING
"""

LOOK_UP = """
SELECT
    counter.revision,
    total.bytes,
    max(coalesce(namespace.fence, counter.fence), coalesce(entry.revision, 0)),
    entry.id,
    entry.kind,
    entry.size,
    entry.stored_at,
    entry.writers,
    entry.checksum,
    CASE WHEN entry.size <= :inline AND entry.stored_at > :fresh_after THEN value.checksums END,
    CASE WHEN entry.size <= :inline AND entry.stored_at > :fresh_after THEN value.data END
FROM counter
JOIN total ON total.kind = 'value'
LEFT JOIN namespace ON namespace.name = :namespace
LEFT JOIN entry ON entry.namespace = namespace.id AND entry.key = :key
LEFT JOIN value ON value.entry = entry.id AND value.part = 0
WHERE counter.id = 1
"""


class Found(NamedTuple):
    """What the file knows of a key.

    Attributes
    ----------
    revision
        Number of writes that the file has seen: hand it back with what is fetched from now on.
    cached_bytes
        Bytes of all value entries in the file.
    fence
        Revision of the last write to the key: what was fetched at an earlier one is no answer.
    entry, kind, size, stored_at, writers, checksum
        The row of the key; None when there is none.
    checksums
        Of the blocks of the first part.
    data
        The bytes asked for, verified; None unless the key has bytes that are fresh.
    is_damaged
        The row or its bytes are not what was written.
    """

    revision: int
    cached_bytes: int
    fence: int
    entry: int | None
    kind: str | None
    size: int
    stored_at: int
    writers: int | None
    checksum: int
    checksums: bytes | None = None
    data: Data | None = None
    is_damaged: bool = False

    def is_overtaken(self, revision: int, now_ns: int) -> bool:
        """Whether what was asked of the source at `revision` is no answer any more."""
        is_written = bool(self.writers) and self.stored_at > now_ns - LONGEST_WRITE_NS
        return self.fence > revision or is_written

    def is_large(self, fresh_after: int) -> bool:
        """Whether there are fresh bytes that do not come with the facts."""
        return (
            self.kind in {"value", "stored"}
            and self.size > INLINE
            and self.stored_at > fresh_after
            and not self.is_damaged
        )


def nothing(connection: Connection) -> None:
    """Do nothing: to run this is to open the database."""


def peek(connection: Connection, namespace: str, key: str) -> Found:
    """What the file knows of the key, without its bytes."""
    return _look_up(connection, namespace, key, None, EVER, -1)


def look_up_small(
    connection: Connection,
    namespace: str,
    key: str,
    request: ByteRequest | None = None,
    fresh_after: int = EVER,
) -> Found:
    """As `look_up`, but without the bytes of a value of more than `INLINE` bytes."""
    return _look_up(connection, namespace, key, request, fresh_after, INLINE)


def look_up(
    connection: Connection,
    namespace: str,
    key: str,
    request: ByteRequest | None = None,
    fresh_after: int = EVER,
) -> Found:
    """What the file knows of the key, with the bytes that `request` asks for if they are fresh.

    Parameters
    ----------
    fresh_after
        What was stored at this time or earlier is not read.
    """
    while True:
        found = _look_up(connection, namespace, key, request, fresh_after, INLINE)
        if found.data is not None or not found.is_large(fresh_after):
            return found
        large = _look_up_large(connection, namespace, key, request, found)
        if large is not None:
            return large


def _look_up(
    connection: Connection,
    namespace: str,
    key: str,
    request: ByteRequest | None,
    fresh_after: int,
    inline: int,
) -> Found:
    """What the file knows of the key, with the bytes of a value of up to `inline` bytes."""
    parameters = {
        "namespace": namespace,
        "key": key,
        "fresh_after": fresh_after,
        "inline": inline,
    }
    *facts, data = connection.execute(LOOK_UP, parameters).fetchone()
    found = Found(*facts)
    if found.entry is None or found.kind == "fence":
        return found
    seed = _seed(namespace, key, found)
    if found.checksum != seed:
        return found._replace(is_damaged=True)
    if found.kind == "absent" or found.size > inline or found.stored_at <= fresh_after:
        return found
    try:
        return found._replace(data=_verified(found, seed, request, data or b""))
    except DamagedValueError:
        return found._replace(is_damaged=True)


def _seed(namespace: str, key: str, found: Found) -> int:
    return checksum.of_facts(namespace, key, str(found.kind), found.size, found.stored_at)


def _verified(found: Found, seed: int, request: ByteRequest | None, data: bytes) -> bytes:
    """The bytes asked for, out of those that came with the facts."""
    if len(data) != found.size:
        raise DamagedValueError("the value has another length")
    if data:
        values.verify(seed, 0, data, found.checksums or b"")
    start, stop = byte_range.span(request, found.size)
    return data if (start, stop) == (0, found.size) else data[start:stop]


def _look_up_large(
    connection: Connection,
    namespace: str,
    key: str,
    request: ByteRequest | None,
    found: Found,
) -> Found | None:
    """The bytes asked for, out of their parts; None if another value has taken the place."""
    start, stop = byte_range.span(request, found.size)
    with connection.reading():
        # The facts once more: they and the bytes are to be of one and the same state of the file.
        again = peek(connection, namespace, key)
        if (again.entry, again.checksum) != (found.entry, found.checksum):
            return None
        try:
            seed = _seed(namespace, key, again)
            data = values.read(connection, again.entry or 0, seed, again.size, start, stop)
        except DamagedValueError:
            return again._replace(is_damaged=True)
    return again._replace(data=data)


def look_up_many(
    connection: Connection,
    namespace: str,
    key: str,
    requests: Sequence[ByteRequest | None],
    fresh_after: int,
) -> list[Found]:
    """`look_up` for each request, in their order."""
    return [look_up(connection, namespace, key, request, fresh_after) for request in requests]


USAGE = """
SELECT usage.kind, usage.entries, usage.bytes
FROM usage
JOIN namespace ON namespace.id = usage.namespace
WHERE namespace.name = :namespace
"""

TOTAL = """
SELECT kind, entries, bytes
FROM total
"""


class Usage(NamedTuple):
    """How many entries and bytes, by kind of entry: of a namespace, and of the whole file."""

    entries: dict[str, int]
    bytes: dict[str, int]
    total_entries: dict[str, int]
    total_bytes: dict[str, int]


def usage(connection: Connection, namespace: str) -> Usage:
    """What the namespace and the file hold."""
    with connection.reading():
        own = connection.execute(USAGE, {"namespace": namespace}).fetchall()
        total = connection.execute(TOTAL).fetchall()
    return Usage(
        {kind: entries for kind, entries, _ in own},
        {kind: size for kind, _, size in own},
        {kind: entries for kind, entries, _ in total},
        {kind: size for kind, _, size in total},
    )


def prefix_end(prefix: str) -> str | None:
    """The least key after all keys that begin with `prefix`, or None when there is none.

    Not LIKE, to which ``_`` and ``%`` are wildcards and case is nothing. SQLite compares text by
    its UTF-8 bytes, which sort as the code points do.
    """
    for length in range(len(prefix), 0, -1):
        code_point = ord(prefix[length - 1]) + 1
        if code_point == FIRST_SURROGATE:
            code_point = AFTER_SURROGATES
        if code_point <= sys.maxunicode:
            return prefix[: length - 1] + chr(code_point)
    return None
