"""Names of fsspec's file systems: a function for each class, and the table of them."""

from __future__ import annotations

import base64
import hashlib
import json
import netrc
import os
from itertools import batched
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

from zarr_cache.sources import urls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from zarr_cache.sources.urls import OfFileSystem


ASYNC_WRAPPER = "fsspec.implementations.asyn_wrapper.AsyncFileSystemWrapper"
FOLDER = "fsspec.implementations.dirfs.DirFileSystem"
LOCAL = "fsspec.implementations.local.LocalFileSystem"

REFERENCES = "references:"
"""How the name begins of a source of references, which is a hash of what they say."""

NETRC = "_netrc" if os.name == "nt" else ".netrc"
"""The netrc file in the home folder that aiohttp reads (``netrc_from_env``)."""

BATCH = 10_000
"""So many references are hashed at once: a JSON text of a million takes much memory."""


def below(file_system: Any, path: str) -> tuple[Any, str]:
    """The file system below those that only forward, and the path in it."""
    match urls.class_name(type(file_system)):
        case name if name == ASYNC_WRAPPER:
            return below(file_system.sync_fs, path)
        case name if name == FOLDER:
            return below(file_system.fs, file_system._join(path))  # noqa: SLF001 - fsspec's
        case _:
            return file_system, path


def local_path(file_system: Any, path: str) -> str | None:
    """The local path that is read; None if the file system is not a local one."""
    file_system, path = below(file_system, path)
    if urls.class_name(type(file_system)) != LOCAL:
        return None
    return str(file_system._strip_protocol(path))  # noqa: SLF001 - fsspec's


def is_open_at(file: Any, path: str | Path) -> bool:
    """Whether the open file is the one that the path leads to, by device and inode.

    False also if it cannot be compared.
    """
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))  # noqa: PTH116 - both alike
    except (AttributeError, OSError, ValueError):  # no file of the system, or closed
        return False


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
    name = of_other(file_system.fs, path)
    # It finds its copies again by the path alone: they may be of where a link led earlier, or of
    # the same path in other references or in another archive.
    is_ambiguous = name and (urls.is_local(name) or name.startswith((REFERENCES, "zip:")))
    return None if is_ambiguous else name


def _of_zip(file_system: Any, path: str, of_other: OfFileSystem) -> str | None:
    file = file_system.of
    if urls.class_name(type(file)) != "fsspec.core.OpenFile" or file.compression:
        return None
    archive, inside = of_other(file.fs, file.path), path.strip("/")
    if archive is None:
        return None
    # It was opened when the file system was made, and the path may lead elsewhere by now.
    if urls.is_local(archive) and not is_open_at(file_system.fo, _path_of(archive)):
        return None
    return f"zip:{archive}!/{quote(inside)}" if inside else f"zip:{archive}"


def _path_of(uri: str) -> str:
    return url2pathname(urlsplit(uri).path)


def _of_references(file_system: Any, path: str, of_other: OfFileSystem) -> str | None:
    """A hash of the references as they are now, and of where their targets are.

    Not the address of the references: they were read from it when the file system was made, and
    may have been replaced since. The hash costs less than reading them.
    """
    references = file_system.references
    if type(references) is not dict:
        return None  # in Parquet files, which are read when they are needed
    digest = hashlib.sha256()
    try:
        targets = {value[0] for value in references.values() if isinstance(value, list | tuple)}
        where = _where(file_system, targets, of_other)
        if where is None:
            return None
        digest.update(json.dumps([file_system.target, sorted(where.items())]).encode())
        for batch in batched(sorted(references.items(), key=itemgetter(0)), BATCH):
            digest.update(json.dumps(batch, default=_in_json).encode())
    except TypeError:
        return None  # a reference that the file system cannot read either
    inside = path.rstrip("/")
    name = f"{REFERENCES}{digest.hexdigest()}" + (f"!/{quote(inside)}" if inside else "")
    if not where:
        return name
    # One of the places, for the eye; a local one, if any, since its path may lead elsewhere later.
    return f"{name} of {min(where.values(), key=lambda each: (not urls.is_local(each), each))}"


def _in_json(value: Any) -> Any:
    """What the references have beside JSON: bytes, zarr's buffers, and numbers of NumPy."""
    if hasattr(value, "item"):
        return value.item()
    data = value if isinstance(value, bytes) else getattr(value, "to_bytes", lambda: None)()
    if data is None:
        raise TypeError(f"a reference is a {type(value).__qualname__}")
    return {"bytes": data.hex()}


def _where(file_system: Any, targets: set[Any], of_other: OfFileSystem) -> dict[str, str] | None:
    """The name of each place that has targets; None if one of them has none.

    The references tell the rest of an address. So one name is made for each host or bucket, for
    each local folder, since its path may have links in it, and for each link to a local file.
    """
    from fsspec.core import split_protocol  # noqa: PLC0415 - fsspec is of an extra

    names: dict[str, str | None] = {}
    where: dict[str, str] = {}

    def named(remote: Any, place: str) -> str | None:
        if place not in names:
            names[place] = of_other(remote, remote._strip_protocol(place))  # noqa: SLF001 - fsspec's
        return names[place]

    for target in {file_system.target if each is None else each for each in targets} - {None}:
        protocol, rest = split_protocol(target)
        remote = file_system.fss.get(protocol)
        if remote is None:
            return None
        place = f"{protocol}://{rest.partition('/')[0]}" if protocol else ""
        name = named(remote, place)
        if name is not None and urls.is_local(name):
            path = local_path(remote, target)
            is_plain = path is not None and not os.path.islink(path)  # noqa: PTH114 - of a million
            place = os.path.dirname(path) if path and is_plain else target  # noqa: PTH120 - the same
            name = named(remote, place)
        if name is None:
            return None
        where[place] = name
    return where


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
    file = os.environ.get("NETRC") or Path("~", NETRC).expanduser()
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
    ASYNC_WRAPPER: _of_async_wrapper,
    "fsspec.implementations.cached.CachingFileSystem": _of_cached,
    "fsspec.implementations.cached.SimpleCacheFileSystem": _of_cached,
    "fsspec.implementations.cached.WholeFileCacheFileSystem": _of_cached,
    FOLDER: _of_folder,
    "fsspec.implementations.http.HTTPFileSystem": _of_http,
    "fsspec.implementations.reference.ReferenceFileSystem": _of_references,
    "fsspec.implementations.zip.ZipFileSystem": _of_zip,
    "gcsfs.core.GCSFileSystem": _of_gcsfs,
    "gcsfs.extended_gcsfs.ExtendedGcsFileSystem": _of_gcsfs,
    LOCAL: _of_local,
    "s3fs.core.S3FileSystem": _of_s3fs,
}
