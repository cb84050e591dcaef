"""Where a remote store lies: its URL and whatever else tells it from another, without secrets.

Each function returns None where it cannot tell two sources apart: to share a name with another
source would be to answer with its bytes, while a name of its own costs a request.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from urllib.parse import SplitResult

    type OfFileSystem = Callable[[Any, str], str | None]

# Parameters of a query that tell two values of one path apart, and are no secrets.
_TELLING = frozenset({"generation", "snapshot", "version", "version_id", "versionid"})

# Parameters that let one in and tell nothing, whatever their value. A parameter that is in neither
# list may be either.
_SECRET = frozenset({
    "access_token", "api-key", "api_key", "apikey", "auth_token", "id_token", "jwt", "password",
    "secret", "sig", "signature", "subscription-key", "token",
})  # fmt: skip
_SECRET_PREFIXES = ("x-amz-", "x-goog-")

# What comes with a signature and tells for whom, what and how long it holds: Azure's SAS,
# CloudFront, and version 2 of S3 and of Google.
_OF_SIGNATURE = frozenset({
    "awsaccesskeyid", "expires", "googleaccessid", "key-pair-id", "policy", "sdd", "se", "si",
    "sip", "ske", "skoid", "sks", "skt", "sktid", "skv", "sp", "spr", "sr", "srt", "ss", "st", "sv",
})  # fmt: skip

# Headers that do not choose between two values of one URL.
_NEUTRAL_HEADERS = frozenset({
    "accept", "accept-encoding", "accept-language", "api-key", "authorization", "cache-control",
    "connection", "from", "origin", "pragma", "private-token", "proxy-authorization", "referer",
    "user-agent", "x-api-key", "x-auth-token",
})  # fmt: skip

# Regions of S3 in which the name of a bucket may be taken once more: the partitions of
# https://docs.aws.amazon.com/whitepapers/latest/aws-fault-isolation-boundaries/partitions.html
_PARTITIONS = {
    "cn-": "aws-cn",
    "eu-isoe-": "aws-iso-e",
    "eusc-": "aws-eusc",
    "us-gov-": "aws-us-gov",
    "us-iso-": "aws-iso",
    "us-isob-": "aws-iso-b",
    "us-isof-": "aws-iso-f",
}


def of_url(url: str) -> str | None:
    """The URL without user info and secrets of its query.

    None if it has a fragment, or a parameter that may be a secret and may be a choice.
    """
    parts = _split(url)
    if parts is None or parts.fragment:
        return None
    query = parse_qsl(parts.query, keep_blank_values=True)
    names = {name.lower() for name, _ in query}
    kept = [(name, value) for name, value in query if name.lower() in _TELLING]
    ignored = _SECRET | (_OF_SIGNATURE if names & {"sig", "signature"} else set())
    if any(not name.startswith(_SECRET_PREFIXES) for name in names - _TELLING - ignored):
        return None
    return urlunsplit((parts.scheme, _host(parts), parts.path.rstrip("/"), urlencode(kept), ""))


def of_endpoint(url: str) -> str | None:
    """Scheme, host, port and path of an endpoint: nothing else of it tells where it is."""
    parts = _split(url if "://" in url else f"//{url}")
    if parts is None:
        return None
    return urlunsplit((parts.scheme, _host(parts), parts.path.rstrip("/"), "", ""))


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a number: then it may be half of some user info
    except ValueError:
        return None
    return parts if parts.netloc else None


def _host(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2].lower()


def _of_object(scheme: str, path: str, *where: str) -> str:
    """The name of a prefix in a bucket. Its characters are those of keys, not of a URL."""
    bucket, slash, prefix = path.strip("/").partition("/")
    bucket = bucket.rpartition("@")[2]
    return " at ".join([f"{scheme}://{quote(bucket + slash + prefix, safe='/:')}", *where])


def _of_s3(path: str, endpoint: str | None, region: str | None) -> str | None:
    if endpoint:
        place = of_endpoint(endpoint)
        return _of_object("s3", path, place) if place else None
    partitions = [
        partition for start, partition in _PARTITIONS.items() if (region or "").startswith(start)
    ]
    return _of_object("s3", path, *partitions)


def _of_gcs(path: str, endpoint: str | None) -> str | None:
    place = of_endpoint(endpoint or "https://storage.googleapis.com")
    if place is None:
        return None
    return _of_object("gs", path, *([place] if place != "https://storage.googleapis.com" else []))


# File systems of fsspec. Each is given the file system, a path as ``FsspecStore`` has it, and what
# names another file system with a path.


def _of_async_wrapper(file_system: Any, path: str, of_other: OfFileSystem) -> str | None:
    return of_other(file_system.sync_fs, path)


def _of_folder(file_system: Any, path: str, of_other: OfFileSystem) -> str | None:
    root, path = str(file_system.path), path.strip("/")
    return of_other(file_system.fs, f"{root.rstrip('/')}/{path}" if path else root)


def _of_cached(file_system: Any, path: str, of_other: OfFileSystem) -> str | None:
    if getattr(file_system, "compression", None):
        return None  # its bytes are not those of what it reads
    return of_other(file_system.fs, path)


def _of_zip(file_system: Any, path: str, of_other: OfFileSystem) -> str | None:
    file = file_system.of
    if class_name(type(file)) != "fsspec.core.OpenFile" or file.compression:
        return None
    archive, inside = of_other(file.fs, file.path), path.strip("/")
    if archive is None:
        return None
    return f"zip:{archive}!/{quote(inside)}" if inside else f"zip:{archive}"


def _of_local(file_system: Any, path: str, _of_other: OfFileSystem) -> str | None:
    return Path(file_system._strip_protocol(path)).resolve().as_uri()  # noqa: SLF001 - fsspec's


def _of_http(file_system: Any, path: str, _of_other: OfFileSystem) -> str | None:
    options = file_system.storage_options
    session = options.get("client_kwargs") or {}
    headers = {**(session.get("headers") or {}), **(options.get("headers") or {})}
    is_chosen_by_url = (
        _are_neutral(headers) and not options.get("params") and not session.get("base_url")
    )
    return of_url(path) if is_chosen_by_url else None


def _are_neutral(headers: Iterable[str]) -> bool:
    return {name.lower() for name in headers} <= _NEUTRAL_HEADERS


def _of_s3fs(file_system: Any, path: str, _of_other: OfFileSystem) -> str | None:
    # Where s3fs is, botocore is.
    from botocore.configprovider import ConfiguredEndpointProvider  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415
    from botocore.session import Session  # noqa: PLC0415

    client = file_system.client_kwargs or {}
    endpoint = file_system.endpoint_url or client.get("endpoint_url")
    region = client.get("region_name")
    try:
        session = file_system.session or Session(profile=file_system.kwargs.get("profile"))
        # The environment and the configuration may name an endpoint, too.
        configured = ConfiguredEndpointProvider(
            full_config=session.full_config,
            scoped_config=session.get_scoped_config(),
            client_name="s3",
        )
        endpoint = endpoint or configured.provide()
        region = region or session.get_config_variable("region")
    except BotoCoreError:
        return None  # there is no such profile
    return _of_s3(path, endpoint, region)


def _of_gcsfs(file_system: Any, path: str, _of_other: OfFileSystem) -> str | None:
    return _of_gcs(path, file_system._location)  # noqa: SLF001 - tells of an emulator, too


def _of_adlfs(file_system: Any, path: str, _of_other: OfFileSystem) -> str | None:
    url = getattr(file_system, "account_url", None) or file_system.service_client.url
    where = of_endpoint(url)
    return _of_object("az", path, where) if where else None


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
"""What tells where a path lies, by the name of the class: none of them is loaded for its sake."""


def class_name(cls: type) -> str:
    """The name of a class with its module, by which it is known whether or not it is loaded."""
    return f"{cls.__module__}.{cls.__qualname__}"


def of_object_store(store: Any) -> str | None:
    """Where a store of obstore lies."""
    kind, prefix = type(store).__name__, getattr(store, "prefix", None) or ""
    config = getattr(store, "config", None) or {}
    match kind:
        case "HTTPStore":
            headers = (getattr(store, "client_options", None) or {}).get("default_headers") or {}
            return of_url(store.url) if _are_neutral(headers) else None
        case "LocalStore" if prefix:
            # Where a link, or the working directory, led when the store was made is not told.
            return Path(prefix).as_uri() if Path(prefix) == Path(prefix).resolve() else None
        case "S3Store" if config.get("bucket"):
            # What obstore takes from the environment is not in its configuration.
            endpoint = config.get("endpoint") or _environment(
                "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"
            )
            region = (
                config.get("region")
                or config.get("default_region")
                or _environment("AWS_REGION", "AWS_DEFAULT_REGION")
            )
            return _of_s3(f"{config['bucket']}/{prefix}", endpoint, region)
        case "GCSStore" if config.get("bucket"):
            return _of_gcs(f"{config['bucket']}/{prefix}", _gcs_endpoint(config))
        case "AzureStore" if config.get("container_name"):
            return _of_azure(config, str(prefix))
    return None


def _environment(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _gcs_endpoint(config: Mapping[str, Any]) -> str | None:
    """The endpoint of Google's storage, which obstore takes from the key of a service account."""
    key = config.get("service_account_key") or _environment("GOOGLE_SERVICE_ACCOUNT_KEY")
    file = (
        config.get("service_account")
        or config.get("service_account_path")
        or _environment("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH")
    )
    try:
        if not key and file:
            key = Path(str(file)).read_text(encoding="utf-8")
        endpoint = json.loads(str(key or "{}")).get("gcs_base_url")
    except (OSError, ValueError, AttributeError):
        endpoint = None  # a key that obstore does not read either
    base = config.get("base_url") or endpoint
    return str(base) if base else None


def _of_azure(config: Mapping[str, Any], prefix: str) -> str | None:
    path = f"{config['container_name']}/{prefix}"
    account = config.get("account_name") or _environment("AZURE_STORAGE_ACCOUNT_NAME")
    endpoint = config.get("endpoint") or _environment("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
    emulator = config.get("use_emulator") or _environment("AZURE_STORAGE_USE_EMULATOR")
    if not account or str(emulator).lower() in {"1", "on", "true", "yes", "y"}:
        return None
    if endpoint:
        place = of_endpoint(endpoint)
        return _of_object("az", path, place, account) if place else None
    fabric = str(config.get("use_fabric_endpoint")).lower() == "true"
    host = "blob.fabric.microsoft.com" if fabric else "blob.core.windows.net"
    return _of_object("az", path, f"https://{account}.{host}")
