"""Entries that were written with SqliteStore: nothing evicts them.

Every function here is an operation, see `zarr_cache.index`. The entries are in the namespace whose
name is empty, which no source has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zarr_cache.core import checksum
from zarr_cache.core import keys as core_keys
from zarr_cache.core.errors import FileDamagedError
from zarr_cache.index import lookup, values

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zarr.abc.store import ByteRequest

    from zarr_cache.core.checksum import ByteArray
    from zarr_cache.file.connection import Connection
    from zarr_cache.index.lookup import Data


NAMESPACE = ""

PAGE = 1000
"""Number of keys that one statement of a listing reads."""

PUT = """
INSERT INTO entry (namespace, key, kind, size, stored_at, used_at, revision, checksum)
SELECT id, :key, 'stored', :size, :now, :now, 0, :checksum
FROM namespace
WHERE name = ''
ON CONFLICT (namespace, key, start) DO UPDATE
SET kind = excluded.kind,
    size = excluded.size,
    stored_at = excluded.stored_at,
    used_at = excluded.used_at,
    checksum = excluded.checksum
WHERE :replace
RETURNING id
"""

DELETE = """
DELETE FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = '')
  AND key = :key
"""

DELETE_PREFIX = """
DELETE FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = '')
  AND key >= :prefix
  AND key < coalesce(:end, x'')
"""

SIZE = """
SELECT size
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = '')
  AND key = :key
"""

SIZE_OF_PREFIX = """
SELECT coalesce(sum(size), 0)
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = '')
  AND key >= :prefix
  AND key < coalesce(:end, x'')
"""

KEYS = """
SELECT key
FROM entry
WHERE namespace = (SELECT id FROM namespace WHERE name = '')
  AND key >= :first
  AND key < coalesce(:end, x'')
ORDER BY key
LIMIT :limit
"""


def read(connection: Connection, key: str, request: ByteRequest | None) -> Data | None:
    """The requested bytes, verified; None if there is no such key.

    Raises
    ------
    FileDamagedError
        They are not the bytes that were stored.
    """
    found = lookup.lookup(connection, NAMESPACE, key, request)
    if found.is_damaged:
        raise FileDamagedError(
            f"{key!r}: the stored bytes do not have the checksum that they were stored with"
        )
    return found.data


def read_many(
    connection: Connection, requests: Sequence[tuple[str, ByteRequest | None]]
) -> list[Data | None]:
    """`read` for each key and request, in their order."""
    return [read(connection, key, request) for key, request in requests]


def size(connection: Connection, key: str) -> int | None:
    """Bytes of the value; None if there is no such key."""
    row = connection.execute(SIZE, {"key": key}).fetchone()
    return None if row is None else int(row[0])


def put(
    connection: Connection,
    items: Iterable[tuple[str, ByteArray]],
    now_ns: int,
    *,
    replace: bool = True,
) -> None:
    """Store the values, all or none; without `replace`, only under keys that are not stored."""
    with connection.writing():
        connection.execute(lookup.NEW_NAMESPACE, {"namespace": NAMESPACE})
        for key, data in items:
            identity_checksum = checksum.of_facts(NAMESPACE, key, "stored", data.size, now_ns)
            parameters = {
                "key": key,
                "size": data.size,
                "now": now_ns,
                "checksum": identity_checksum,
                "replace": replace,
            }
            for (entry,) in connection.execute(PUT, parameters).fetchall():
                values.delete(connection, entry)
                values.write(connection, entry, identity_checksum, data)


def delete(connection: Connection, key: str) -> None:
    """Remove the key, if there is one."""
    with connection.writing():
        connection.execute(DELETE, {"key": key})


def delete_prefix(connection: Connection, prefix: str) -> None:
    """Remove every key that begins with `prefix`."""
    with connection.writing():
        connection.execute(DELETE_PREFIX, {"prefix": prefix, "end": core_keys.prefix_end(prefix)})


def size_of_prefix(connection: Connection, prefix: str) -> int:
    """Bytes of all values whose key begins with `prefix`; reads no value."""
    parameters = {"prefix": prefix, "end": core_keys.prefix_end(prefix)}
    ((total,),) = connection.execute(SIZE_OF_PREFIX, parameters).fetchall()
    return int(total)


def keys(connection: Connection, first: str, end: str | None, limit: int = PAGE) -> list[str]:
    """Keys in the half-open interval ``[first, end)``, sorted, at most `limit`."""
    parameters = {"first": first, "end": end, "limit": limit}
    return [key for (key,) in connection.execute(KEYS, parameters)]


def children(connection: Connection, prefix: str) -> list[str]:
    """The names directly below `prefix`: of each key, what follows it up to the next ``/``.

    Each step finds the first key after those of the last child, so the cost grows with the children
    and not with the keys below them.
    """
    end = core_keys.prefix_end(prefix)
    found: list[str] = []
    first = prefix
    while page := keys(connection, first, end, 1):
        child = page[0].removeprefix(prefix).split("/")[0]
        found.append(child)
        # After the key "a" comes "a-b" and then "a/c". "0" is the character after "/".
        first = page[0] + "\0" if page[0] == prefix + child else prefix + child + "0"
    return list(dict.fromkeys(found))
