"""The interface of readers: reads of a source that tell the version of the bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer


class Fetched(NamedTuple):
    """What a source sent.

    Attributes
    ----------
    buffer
        The bytes, in host memory; None if there is no such key, or if `is_unchanged`.
    validator
        Of the version that the bytes are of; None if it is not known.
    is_unchanged
        Whether the source still has the version `unless`. Its bytes were not read.
    is_torn
        Whether the value changed while it was read, so that the bytes may be of two versions, or
        they cannot be the value. They are what the plain store would have returned, and must not be
        cached.
    """

    buffer: Buffer | None
    validator: str | None
    is_unchanged: bool = False
    is_torn: bool = False


class ChangedError(Exception):
    """The source has another version of a key than the one that was requested, or none.

    Also if it cannot be shown to be that version. Read the key again without `only`.
    """

    def __init__(self, key: str, only: str) -> None:
        super().__init__(key, only)
        self.key = key
        self.only = only

    def __str__(self) -> str:
        return f"{self.key!r} is not, or not only, version {self.only} in the source"


class Listed(NamedTuple):
    """A key as a listing of the source has it.

    Attributes
    ----------
    key
        The whole key.
    validator
        The same that a read of this version would have; None if it has none.
    size
        Of the value in bytes; None if it is not known.
    modified_ns
        When it was last modified, in nanoseconds since the Unix epoch by the clock of the source;
        None if it is not known. Not always exact.
    """

    key: str
    validator: str | None
    size: int | None
    modified_ns: int | None


class SourceReader(ABC):
    """Reads a source as its own ``get`` does, and tells the validators of what it read.

    Validators are texts of `zarr_cache.sources.validators`. Equal ones of one key are of one
    version, the same bytes.

    Attributes
    ----------
    is_sync
        Whether `fetch_sync` and `version_sync` can be called.
    can_match
        Whether ``fetch(only=...)`` returns bytes of that version and of no other. If not, the
        version is compared before the bytes are requested, and may change in between.
    asks_more
        Whether ``fetch(with_version=True)`` makes a request more than the plain store.
    sends_match
        Whether ``fetch(request, only=..., with_version=False)`` is one request for bytes of that
        version, though `can_match` is false: what the server says of it is to be checked by
        `version`.
    """

    is_sync: ClassVar[bool] = False
    can_match: ClassVar[bool]
    asks_more: ClassVar[bool]
    sends_match: bool = False

    @abstractmethod
    async def fetch(
        self,
        key: str,
        request: ByteRequest | None = None,
        *,
        unless: str | None = None,
        only: str | None = None,
        with_version: bool = True,
    ) -> Fetched:
        """The bytes and their validator.

        Parameters
        ----------
        request
            Which bytes; None for the whole value.
        unless
            A validator. If the source still has this version, its bytes are not read.
        only
            A validator. Bytes of any other version are refused. Not together with `unless`.
        with_version
            Whether a request is made for the validator alone, if the source needs one. Without it
            the validator is None there, unless `unless` or `only` needs it.

        Raises
        ------
        ChangedError
            The source has another version than `only`, or none.
        Exception
            Whatever the store's own ``get`` raises.
        """

    def fetch_sync(
        self,
        key: str,
        request: ByteRequest | None = None,  # noqa: ARG002 - for those that have it
        *,
        unless: str | None = None,  # noqa: ARG002 - the same
        only: str | None = None,  # noqa: ARG002 - the same
        with_version: bool = True,  # noqa: ARG002 - the same
    ) -> Fetched:
        """As `fetch`, in the calling thread.

        Raises
        ------
        TypeError
            The source has no sync surface: see `is_sync`.
        """
        raise TypeError(f"{key!r}: {type(self).__name__} reads on an event loop only")

    @abstractmethod
    async def version(self, key: str) -> str | None:
        """The validator of the present version, without its bytes.

        None if it has none, if there is no such key, or if the source refuses to tell. An error of
        a source that is down is raised, except by fsspec's HTTP, which hides it.
        """

    def version_sync(self, key: str) -> str | None:
        """As `version`, in the calling thread.

        Raises
        ------
        TypeError
            The source has no sync surface: see `is_sync`.
        """
        raise TypeError(f"{key!r}: {type(self).__name__} reads on an event loop only")

    @abstractmethod
    def list_versions(self, prefix: str) -> AsyncIterator[Listed] | None:
        """All keys in a folder and below it; None if the source's listings tell no validators.

        Parameters
        ----------
        prefix
            The folder, such as ``group/array/``; empty for all keys.
        """
