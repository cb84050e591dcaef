"""Stores of zarr for URLs and paths: a folder, or what obstore or fsspec reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from urllib.request import url2pathname

from zarr.storage import FsspecStore, LocalStore, ObjectStore

from zarr_cache.sources import urls

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zarr.abc.store import Store

HTTP = frozenset({"http", "https"})

BUCKETS = frozenset({"abfs", "abfss", "az", "gs", "s3", "s3a"})
"""Schemes of obstore with keys below a bucket or a container."""

PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gcs", "gs"), "gcsfs"),
    **dict.fromkeys(("abfs", "abfss", "adl", "az"), "adlfs"),
    **dict.fromkeys(HTTP, "'fsspec[http]'"),
}
"""What fsspec needs, by scheme."""

# Where obstore takes an endpoint from.
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")

# What may stand unencoded in a URL, and "%", which begins what is encoded already.
_IN_URL = "%/:?#[]@!$&'()*+,;=~"


def source_store(
    url: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    *,
    read_only: bool = True,
) -> Store:
    """A store of zarr for a path or URL.

    A path or ``file://`` is a `LocalStore`. A URL is read by obstore if it is installed and takes
    the URL and all of `storage_options`, and by fsspec otherwise. Nothing is requested, unless
    fsspec does it when a file system is made, as for ``zip://`` and ``reference://``.

    Raises
    ------
    ImportError
        The URL needs a package that is not installed; the message names it.
    ValueError
        The scheme is not known, or the path is a file.
    TypeError
        `url` is neither a string nor a path, or a path has `storage_options`.
    """
    if not isinstance(url, str | os.PathLike):
        raise TypeError(
            f"url must be a string or a path, got {type(url).__name__}: to cache a store, pass it "
            "to CacheStore(store, cache_store=SqliteStore(...))"
        )
    address = os.fspath(url)
    if not address:
        raise ValueError("url is empty: pass the URL or the path of a Zarr")
    scheme = scheme_of(address)
    # fsspec knows a scheme in lower case alone.
    address = scheme + address[len(scheme) :]
    if scheme in {"", "file"}:
        if storage_options:
            raise TypeError(
                f"{address}: storage_options are for a client of a remote source, and this is a "
                "path: leave them out"
            )
        return LocalStore(_folder(address), read_only=read_only)
    _check_host(scheme, address)
    options = dict(storage_options or {})
    if scheme in HTTP:
        # obstore encodes a URL, fsspec may not, and the name has it as it was given.
        address = quote(address, safe=_IN_URL)
    store, refusal = _of_obstore(scheme, address, options)
    if store is not None:
        return ObjectStore(store, read_only=read_only)
    return _of_fsspec(scheme, address, options, refusal, read_only=read_only)


async def close_session(store: Store) -> None:
    """Close the HTTP session of fsspec below a store, on the event loop that it belongs to.

    fsspec closes none of an event loop that is not its own. The next request opens another one.
    """
    file_system: Any = getattr(store, "fs", None)
    if urls.class_name(type(file_system)) != "fsspec.implementations.http.HTTPFileSystem":
        return
    session, file_system._session = file_system._session, None  # noqa: SLF001 - no public way
    if session is not None:
        await session.close()


def scheme_of(url: str) -> str:
    """The scheme in lower case, of chained URLs the first; empty for a path."""
    first, chain, _ = url.partition("::")
    scheme, separator, _ = first.partition("://")
    return scheme.lower() if separator or (chain and "/" not in first) else ""


def without_secrets(url: str) -> str:
    """The URL, or path, without the user, the password and the query that it may have."""
    if not scheme_of(url):
        return url
    return "::".join(
        (urls.of_endpoint(part) or f"{scheme_of(part)}://...") if "://" in part else part
        for part in url.split("::")
    )


def _folder(address: str) -> Path:
    """The absolute folder of a path or a ``file://`` URL, whose path may be percent-encoded."""
    scheme, separator, rest = address.partition("://") if scheme_of(address) else ("", "", "")
    host, slash, path = rest.partition("/")
    if separator and (host not in {"", "localhost"} or not slash):
        raise ValueError(
            f"{scheme}://{rest}: {host!r} stands where a host does: a file URL begins with "
            "file:///, and a relative path has no scheme"
        )
    # Absolute, for a process with another working directory to which the store is pickled.
    folder = Path(url2pathname(f"/{path}") if separator else address).expanduser().absolute()
    if folder.is_file():
        way_out = (
            "to cache an archive, use CacheStore(zarr.storage.ZipStore(path, mode='r'), "
            "cache_store=SqliteStore(...))"
            if folder.suffix == ".zip"
            else "pass the folder that has the zarr.json, .zgroup or .zarray"
        )
        raise ValueError(f"{folder} is a file, and a Zarr is a folder: {way_out}")
    return folder


def _check_host(scheme: str, url: str) -> None:
    """Refuse a URL without a host or a bucket, of which clients read something else, or nothing."""
    place = url.partition("://")[2]
    if scheme in HTTP | BUCKETS and "::" not in url and place[:1] in {"", "/"}:
        part, example = ("host", "example.org") if scheme in HTTP else ("bucket", "bucket")
        raise ValueError(
            f"{without_secrets(url)}: the URL names no {part}; expected such as "
            f"{scheme}://{example}/data.zarr"
        )


def _of_obstore(scheme: str, url: str, options: dict[str, Any]) -> tuple[Any, str | None]:
    """The object store; or None, and why obstore does not read the URL, if it is its to read."""
    if scheme not in HTTP | BUCKETS or "::" in url:
        return None, None
    try:
        from obstore.exceptions import BaseError  # noqa: PLC0415 - an optional dependency
        from obstore.store import HTTPStore, from_url  # noqa: PLC0415 - the same
    except ImportError:
        return None, None
    client_options = dict(options.get("client_options") or {})
    if _is_unencrypted(url, options):
        client_options = {"allow_http": True, **client_options}
    options = {**options, "client_options": client_options or None}
    try:
        if scheme in HTTP:
            # Of "x/?sig=..." it would make "x//zarr.json".
            base, *query = url.split("?", 1)
            url = "?".join([base.rstrip("/"), *query])
            # Not from_url: it takes a server of a cloud for a bucket, which needs credentials.
            return HTTPStore.from_url(url, **options), None
        place = url.partition("://")[2]
        # The characters are those of keys: obstore would decode "%20", and end at "?".
        store: Any = from_url(f"{scheme}://{quote(place, safe='/:@')}", **options)
    except (BaseError, TypeError, ValueError) as error:
        # The lines after the first are for debugging. One with a URL may have a password.
        why = (str(error).splitlines() or [""])[0].rstrip(".")
        return None, why if why and "://" not in why else "it does not take this URL"
    prefix = place.partition("/")[2].strip("/")
    if (store.prefix or "") != prefix:  # as AzureStore.from_url of obstore 0.8
        return None, f"this release of obstore ignores the path {prefix!r}"
    return store, None


def _is_unencrypted(url: str, options: dict[str, Any]) -> bool:
    """Whether the user has named an ``http://`` address, which obstore refuses by default."""
    addresses = [url, *options.values(), *map(os.environ.get, _ENDPOINTS)]
    return any(isinstance(each, str) and scheme_of(each) == "http" for each in addresses)


def _of_fsspec(
    scheme: str, url: str, options: dict[str, Any], refusal: str | None, *, read_only: bool
) -> Store:
    shown = without_secrets(url)
    package = PACKAGES.get(scheme, "fsspec")
    reason, way_out = "", f"pip install {package}"
    if refusal:
        reason = f", and obstore does not read it ({refusal})"
        way_out += ", or pass storage_options that obstore takes"
    elif scheme in HTTP | BUCKETS and "::" not in url:
        way_out = f"pip install obstore, or pip install {package}"
    try:
        from fsspec import available_protocols  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise ImportError(f"{shown}: fsspec is not installed{reason}: {way_out}") from error
    known = available_protocols()
    if scheme not in known and scheme not in PACKAGES:
        raise ValueError(
            f"{shown}: the scheme {scheme!r} is not known; expected a path, or one of "
            f"{', '.join(sorted({*known, *PACKAGES}))}"
        )
    cause = None
    try:
        if scheme in known:
            return FsspecStore.from_url(url, storage_options=options, read_only=read_only)
    except ImportError as error:
        if scheme not in PACKAGES:  # fsspec says what is to be installed
            raise ImportError(f"{shown}: {error}") from error
        cause = error
    raise ImportError(f"{shown}: {package} is not installed{reason}: {way_out}") from cause
