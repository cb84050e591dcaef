"""What responses are: which may hold other bytes than were requested, and which are absences."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from zarr.abc.store import RangeByteRequest, Store
from zarr.storage import WrapperStore

from zarr_cache.core.byte_range import may_be_cached
from zarr_cache.core.keys import is_metadata

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

    from zarr_cache.sources.source_reader import Fetched, SourceReader


HEAD = 512
"""By so many first bytes a web page is recognised."""

# https://mimesniff.spec.whatwg.org/#identifying-a-resource-with-an-unknown-mime-type, without the
# tags of one letter, which binary data begin with as well. XHTML begins as XML.
_WEB_PAGE = re.compile(
    rb"""(?:\xef\xbb\xbf)?\s*(?:<\?xml\b[^>]*>\s*)?
    <(?:!--|(?:!doctype\shtml|html|head|script|iframe|h1|div|font|table|style|title|body|br)[\s/>])""",
    re.IGNORECASE | re.VERBOSE,
)

# With what they may begin: a tag, blanks, or a byte order mark.
_FIRST = frozenset(b"<\xef\t\n\v\f\r ")

# The beginnings of web pages that are shorter than what `_WEB_PAGE` needs.
_BEGINNINGS = (b"<!doctype html>", b"<html>")
_MIN_BEGINNING = 4

# What a document has to have, by the last part of its key:
# https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html#metadata and .../v2/v2.0.html
_MEMBERS = {
    "zarr.json": "zarr_format",
    ".zarray": "zarr_format",
    ".zgroup": "zarr_format",
    ".zmetadata": "metadata",
}


def is_web_page(buffer: Buffer) -> bool:
    """Whether the bytes begin as an HTML page, such as that of a gateway or of a login."""
    array = buffer.as_numpy_array()
    if not len(array) or array.item(0) not in _FIRST:
        return False  # at a glance, as of nearly every chunk
    head = array[:HEAD].tobytes()
    if _WEB_PAGE.match(head):
        return True
    is_short = _MIN_BEGINNING <= len(head) < len(_BEGINNINGS[0])
    return is_short and any(page.startswith(head.lower()) for page in _BEGINNINGS)


def is_foreign(key: str, request: ByteRequest | None, buffer: Buffer) -> bool:
    """Whether a response cannot be what was requested: a web page, or no metadata of Zarr."""
    if is_web_page(buffer):
        return True
    if request is not None or not is_metadata(key):
        return False
    try:
        document = json.loads(buffer.to_bytes())
    except (ValueError, RecursionError):
        return True
    member = _MEMBERS.get(key.rpartition("/")[2])
    if not isinstance(document, dict):
        return True
    # An error of a gateway may be an object as well, but no empty one.
    return bool(document) and member is not None and member not in document


class RangeCheckedStore(WrapperStore[Store]):
    """A source that records for which requests it sent a wrong number of bytes, or a web page.

    zarr reads neighbouring ranges in one request, and slices the response. If an HTTP server
    ignored ``Range`` and sent the whole value, the slices have the right lengths and the wrong
    bytes. Only the length of the response shows it.

    Parameters
    ----------
    reader
        The reader of the source. With it each of zarr's requests is made through the reader, and
        the buffers are in host memory, whatever the prototype.
    only
        The version of which all bytes must be: see `SourceReader.fetch`.
    with_version
        Whether the reader makes requests for validators alone.

    Attributes
    ----------
    validators
        Of the responses with bytes, through the reader. None stands for one without a validator.
    is_torn
        Whether a response may have bytes of two versions.
    is_web_page
        Whether a response was a web page.
    is_absent
        Whether a response was None: there is no such key.
    """

    def __init__(
        self,
        store: Store,
        reader: SourceReader | None = None,
        only: str | None = None,
        *,
        with_version: bool = True,
    ) -> None:
        super().__init__(store)
        self._reader, self._only, self._with_version = reader, only, with_version
        self._mismatches: list[RangeByteRequest] = []
        self.validators: set[str | None] = set()
        self.is_torn = False
        self.is_web_page = False
        self.is_absent = False

    # A WrapperStore calls the `get_ranges` of the store that it wraps, which would bypass `get`.
    get_ranges = Store.get_ranges  # type: ignore[assignment]

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The source's response, after it is checked."""
        if self._reader is None:
            return self._check(byte_range, await self._store.get(key, prototype, byte_range))
        fetched = await self._reader.fetch(
            key, byte_range, only=self._only, with_version=self._with_version
        )
        return self._check(byte_range, self._record(fetched))

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The source's response, after it is checked."""
        if self._reader is None:
            buffer = super().get_sync(key, prototype=prototype, byte_range=byte_range)
            return self._check(byte_range, buffer)
        fetched = self._reader.fetch_sync(
            key, byte_range, only=self._only, with_version=self._with_version
        )
        return self._check(byte_range, self._record(fetched))

    def _record(self, fetched: Fetched) -> Buffer | None:
        if fetched.buffer is not None and not is_web_page(fetched.buffer):
            self.validators.add(fetched.validator)
            self.is_torn = self.is_torn or fetched.is_torn
        return fetched.buffer

    def _check(self, request: ByteRequest | None, buffer: Buffer | None) -> Buffer | None:
        if buffer is None:
            self.is_absent = True
            return None
        if isinstance(request, RangeByteRequest) and not may_be_cached(request, len(buffer)):
            self._mismatches.append(request)
        self.is_web_page = self.is_web_page or is_web_page(buffer)
        return buffer

    def may_be_wrong(self, request: ByteRequest | None) -> bool:
        """Whether the bytes of the request may come from a page, or a response of another length.

        Nor may they be cached if they may be of two versions.
        """
        if self.is_torn or self.is_web_page:
            return True
        return isinstance(request, RangeByteRequest) and any(
            sent.start <= request.start and request.end <= sent.end for sent in self._mismatches
        )


def with_range_check(
    source: Store,
    method: str,
    reader: SourceReader | None = None,
    only: str | None = None,
    *,
    with_version: bool = True,
) -> Store:
    """The store to call ``get_ranges`` or ``get_ranges_sync`` (the `method`) on.

    A `RangeCheckedStore` if there is a reader, or if the source inherits zarr's method, which
    merges and slices; the source itself if its class has its own.

    If the source has another version than `only`, or none, ``get_ranges`` raises a group with a
    `ChangedError` in it, and ``get_ranges_sync`` the `ChangedError`.
    """
    if reader is not None:
        return RangeCheckedStore(source, reader, only, with_version=with_version)
    inherited, forwarding = getattr(Store, method), getattr(WrapperStore, method)
    own = getattr(type(source), method)
    while own is forwarding is not inherited and isinstance(source, WrapperStore):
        source = source._store  # noqa: SLF001 - how a WrapperStore names what it wraps
        own = getattr(type(source), method)
    return RangeCheckedStore(source) if own is inherited else source


def is_absence(key: str, called: Store, error: Exception | None) -> bool:
    """Whether the error of a ``get_ranges`` says that there is no such key, and nothing else.

    zarr's method raises a `FileNotFoundError` where ``get`` returns None. ``get`` may raise one as
    well, which says nothing of the key: of a server that is down, fsspec raises some. A
    `RangeCheckedStore` has seen which it was. If the source's class has a method of its own, an
    error is taken for zarr's if it has no arguments but the key.

    Parameters
    ----------
    called
        What `with_range_check` has returned.
    """
    if not isinstance(error, ExceptionGroup):
        return False
    if isinstance(called, RangeCheckedStore):
        return called.is_absent and error.split(FileNotFoundError)[1] is None

    def is_zarrs(each: Exception) -> bool:
        return isinstance(each, FileNotFoundError) and each.args in ((), (key,))

    return error.split(is_zarrs)[1] is None
