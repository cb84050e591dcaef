"""Validators: short texts that identify one version of a value, and which facts are none.

A validator begins with its kind, so that those of two kinds are never equal:

- ``"``: a strong ETag, as it was sent (RFC 9110, 8.8.3);
- ``m``: Last-Modified in seconds, and the size;
- ``g``: a generation of Google Cloud Storage;
- ``f``: device, inode, size and time of modification of a local file.
"""

from __future__ import annotations

import re
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

SECOND_NS = 10**9

SETTLED_NS = 60 * SECOND_NS
"""Last-Modified is a validator only if it was so long ago.

It counts seconds, so a value can change twice within one. RFC 9110, 8.8.2.2, takes it for strong if
it is earlier than ``Date`` by so much that the clocks of server and client do not matter; RFC 7232,
2.2.2, had 60 seconds. obstore and fsspec do not show ``Date``, so it is compared with the time of
the request, by the clock of this machine.
"""

TICK_NS = 2 * 10**7
"""Two writes to a file within one tick of the kernel have the same time: 10 ms on Linux at 100 Hz,
15.6 ms on Windows."""

COARSE_TICK_NS = 2 * SECOND_NS
"""The same where times are whole seconds, and on FAT even ones."""

# Characters of an ETag by RFC 9110, 8.8.3, without those beyond ASCII; 256 with the quotes.
_STRONG = re.compile(r'"[\x21\x23-\x7e]{1,254}"')
_BARE = re.compile(r"[\x21\x23-\x7e]{1,254}")
_MODIFIED = re.compile(r"m(\d+)-\d+")


def of_etag(etag: str, *, may_be_bare: bool = False) -> str | None:
    """The ETag, if it is a strong one; None if it is weak, empty, too long, or not an ETag.

    A weak one (``W/"1"``) may stay the same when bytes change: RFC 9110, 8.8.1.

    Parameters
    ----------
    may_be_bare
        Whether the source writes strong ETags without their quotes in some places, as Azure does in
        its listings.
    """
    if _STRONG.fullmatch(etag):
        return etag
    return f'"{etag}"' if may_be_bare and _BARE.fullmatch(etag) else None


def of_last_modified(modified: datetime, size: int | None, asked_at_ns: int) -> str | None:
    """The validator of a value without an ETag; None if it was modified too recently.

    Parameters
    ----------
    modified
        Last-Modified. The Unix epoch, which obstore has where the header is missing, is none.
    asked_at_ns
        When the value was requested, by this machine's clock.
    """
    seconds = int(modified.timestamp())
    if size is None or seconds <= 0 or seconds * SECOND_NS > asked_at_ns - SETTLED_NS:
        return None
    return f"m{seconds}-{size}"


def of_response(
    etag: str | None,
    modified: datetime | None,
    size: int | None,
    asked_at_ns: int,
    *,
    may_be_bare: bool = False,
) -> str | None:
    """The validator of a response with these headers.

    Last-Modified counts only if there is no ETag at all: with a weak one, the server itself says
    that it does not distinguish all versions.
    """
    if etag is not None:
        return of_etag(etag, may_be_bare=may_be_bare)
    return of_last_modified(modified, size, asked_at_ns) if modified else None


def is_etag(validator: str) -> bool:
    """Whether the validator can be sent as ``If-Match`` and ``If-None-Match``."""
    return validator.startswith('"')


def last_modified(validator: str) -> datetime | None:
    """The time to send as ``If-Unmodified-Since``; None if the validator has none."""
    found = _MODIFIED.fullmatch(validator)
    return datetime.fromtimestamp(int(found[1]), UTC) if found else None


def is_settled(modified_ns: int, now_ns: int) -> bool:
    """Whether every later write to a local file will show in its time of modification."""
    tick_ns = COARSE_TICK_NS if modified_ns % SECOND_NS == 0 else TICK_NS
    return modified_ns <= now_ns - tick_ns


def of_file(status: os.stat_result, now_ns: int) -> str | None:
    """The validator of a local file; None if it was modified too recently, or is no file.

    Parameters
    ----------
    now_ns
        When the status was read, by the wall clock.
    """
    if not stat.S_ISREG(status.st_mode) or not is_settled(status.st_mtime_ns, now_ns):
        return None
    return f"f{status.st_dev:x}.{status.st_ino:x}.{status.st_size:x}.{status.st_mtime_ns:x}"


def is_same_file(before: os.stat_result, after: os.stat_result) -> bool:
    """Whether a file was neither replaced nor written to between two looks at it."""
    return _facts(before) == _facts(after)


def _facts(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
