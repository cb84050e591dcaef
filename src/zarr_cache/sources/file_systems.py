"""Names of fsspec's file systems: a function for each class, and the table of them."""

from __future__ import annotations

import base64
import netrc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from zarr_cache.sources import urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from zarr_cache.sources.urls import OfFileSystem


# A function of the table is given the file system, a path as ``FsspecStore`` has it, and a function
# that names a path in another file system, for those that read through one. It returns the name, or
# None if it cannot distinguish the file system from another one, or raises `urls.NoNameError`.


def _of_async_wrapper(file_system: Any, path: str, of_other: OfFileSystem) -> str | None:
    return of_other(file_system.sync_fs, path)


def _of_folder(file_system: Any, path: str, of_other: OfFileSystem) -> str | None:
    root, path = str(file_system.path), path.strip("/")
    return of_other(file_system.fs, f"{root.rstrip('/')}/{path}" if path else root)


def _of_cached(file_system: Any, path: str, of_other: OfFileSystem) -> str | None:
    if getattr(file_system, "compression", None):
        return None  # it decompresses, so the bytes differ from those that it reads
    return of_other(file_system.fs, path)


def _of_zip(file_system: Any, path: str, of_other: OfFileSystem) -> str | None:
    file = file_system.of
    if urls.class_name(type(file)) != "fsspec.core.OpenFile" or file.compression:
        return None
    archive, inside = of_other(file.fs, file.path), path.strip("/")
    if archive is None:
        return None
    return f"zip:{archive}!/{quote(inside)}" if inside else f"zip:{archive}"


def _of_local(file_system: Any, path: str, _of_other: OfFileSystem) -> str | None:
    return Path(file_system._strip_protocol(path)).resolve().as_uri()  # noqa: SLF001 - fsspec's


def _of_http(file_system: Any, path: str, _of_other: OfFileSystem) -> str:
    urls.refuse_loopback(path)
    # The options of each request, and those of the session.
    request = file_system.storage_options
    session = request.get("client_kwargs") or {}
    both = (request, session)
    if request.get("params") or session.get("base_url") or any(map(_middlewares, both)):
        raise urls.NoNameError("its client changes the requests")
    headers = [each for options in both for each in _pairs(options.get("headers"))]
    urls.check_neutral(name for name, _ in headers)
    headers += [_basic(options["auth"]) for options in both if options.get("auth") is not None]
    name = urls.of_url(path, urls.users_of(headers))
    parts = urlsplit(path)
    is_login_given = parts.username or any(key.lower() == "authorization" for key, _ in headers)
    if session.get("trust_env") and not is_login_given:
        return urls.of_url(path, urls.users_of(_of_netrc(parts.hostname or "")))
    return name


def _middlewares(options: Mapping[str, Any]) -> object:
    # They may send any header, and the one of Digest authentication does.
    return options.get("middlewares")


def _pairs(headers: Any) -> Iterable[tuple[str, str]]:
    """The headers that aiohttp is given as a mapping or as pairs. A name may repeat."""
    return headers.items() if hasattr(headers, "items") else headers or ()


def _basic(auth: Any) -> tuple[str, str]:
    """The header that an ``aiohttp.BasicAuth`` stands for."""
    try:
        return "Authorization", str(auth.encode())
    except (AttributeError, UnicodeError, LookupError) as error:
        raise urls.NoNameError("its client authenticates in a way that is not known") from error


def _of_netrc(host: str) -> list[tuple[str, str]]:
    """The header that aiohttp sends with ``trust_env`` if the user's netrc file names the host."""
    file = os.environ.get("NETRC") or Path("~/.netrc").expanduser()
    try:
        found = netrc.netrc(str(file)).authenticators(host)
    except (OSError, RuntimeError, netrc.NetrcParseError):
        return []  # aiohttp does not read it either
    if found is None:
        return []
    login, account, password = found
    credentials = f"{login or account or ''}:{password or ''}".encode()
    return [("Authorization", f"Basic {base64.b64encode(credentials).decode()}")]


def _of_s3fs(file_system: Any, path: str, _of_other: OfFileSystem) -> str | None:
    # s3fs depends on botocore.
    from botocore.configprovider import ConfiguredEndpointProvider  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    from botocore.session import Session  # noqa: PLC0415

    client = file_system.client_kwargs or {}
    endpoint = file_system.endpoint_url or client.get("endpoint_url")
    region = client.get("region_name")
    try:
        session = file_system.session or Session(profile=file_system.kwargs.get("profile"))
        # The environment and the configuration file may name an endpoint as well.
        configured = ConfiguredEndpointProvider(
            full_config=session.full_config,
            scoped_config=session.get_scoped_config(),
            client_name="s3",
        )
        endpoint = endpoint or configured.provide()
        region = region or session.get_config_variable("region")
    except BotoCoreError:
        return None  # there is no such profile
    return urls.of_s3(path, endpoint, region)


def _of_gcsfs(file_system: Any, path: str, _of_other: OfFileSystem) -> str | None:
    return urls.of_gcs(path, file_system._location)  # noqa: SLF001 - the only one that knows an emulator


def _of_adlfs(file_system: Any, path: str, _of_other: OfFileSystem) -> str | None:
    url = getattr(file_system, "account_url", None) or file_system.service_client.url
    where = urls.of_endpoint(url)
    return urls.of_object("az", path, where) if where else None


FILE_SYSTEMS: Mapping[str, Callable[[Any, str, OfFileSystem], str | None]] = {
    "adlfs.spec.AzureBlobFileSystem": _of_adlfs,
    "fsspec.implementations.asyn_wrapper.AsyncFileSystemWrapper": _of_async_wrapper,
    "fsspec.implementations.cached.CachingFileSystem": _of_cached,
    "fsspec.implementations.cached.SimpleCacheFileSystem": _of_cached,
    "fsspec.implementations.cached.WholeFileCacheFileSystem": _of_cached,
    "fsspec.implementations.dirfs.DirFileSystem": _of_folder,
    "fsspec.implementations.http.HTTPFileSystem": _of_http,
    "fsspec.implementations.local.LocalFileSystem": _of_local,
    "fsspec.implementations.zip.ZipFileSystem": _of_zip,
    "gcsfs.core.GCSFileSystem": _of_gcsfs,
    "gcsfs.extended_gcsfs.ExtendedGcsFileSystem": _of_gcsfs,
    "s3fs.core.S3FileSystem": _of_s3fs,
}
