"""URLs without secrets, with all that distinguishes one location from another.

Each function returns None if it cannot distinguish two locations: two sources with one name would
be served each other's bytes, while a name that is not shared costs only a request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from urllib.parse import SplitResult

    # The name of a path in a file system of fsspec.
    type OfFileSystem = Callable[[Any, str], str | None]


# Query parameters that choose between two values of one path, and are no secrets.
_CHOOSING = frozenset({"generation", "snapshot", "version", "version_id", "versionid"})

# Query parameters that grant access and choose nothing, whatever their value. A parameter that is
# in neither list may do either.
_SECRET = frozenset({
    "access_token", "api-key", "api_key", "apikey", "auth_token", "id_token", "jwt", "password",
    "secret", "sig", "signature", "subscription-key", "token",
})  # fmt: skip

_SECRET_PREFIXES = ("x-amz-", "x-goog-")

# Query parameters that belong to a signature and state its holder, its scope and its expiry:
# Azure's SAS, CloudFront, and version 2 of S3 and of Google.
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

# Regions of S3 in which a bucket may have the name of a bucket elsewhere: the partitions of
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

    None if it has a fragment, or a parameter of which it is not known whether it chooses a value.
    """
    parts = _split(url)
    if parts is None or parts.fragment:
        return None
    query = parse_qsl(parts.query, keep_blank_values=True)
    names = {name.lower() for name, _ in query}
    kept = [(name, value) for name, value in query if name.lower() in _CHOOSING]
    ignored = _SECRET | (_OF_SIGNATURE if names & {"sig", "signature"} else set())
    if any(not name.startswith(_SECRET_PREFIXES) for name in names - _CHOOSING - ignored):
        return None
    return urlunsplit((parts.scheme, _host(parts), parts.path.rstrip("/"), urlencode(kept), ""))


def of_endpoint(url: str) -> str | None:
    """Scheme, host, port and path of an endpoint: the rest does not locate it."""
    parts = _split(url if "://" in url else f"//{url}")
    if parts is None:
        return None
    return urlunsplit((parts.scheme, _host(parts), parts.path.rstrip("/"), "", ""))


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a number: then it may be part of the user info
    except ValueError:
        return None
    return parts if parts.netloc else None


def _host(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2].lower()


def of_object(scheme: str, path: str, *where: str) -> str:
    """The name of a prefix in a bucket. Its characters are those of keys, not of a URL."""
    bucket, slash, prefix = path.strip("/").partition("/")
    bucket = bucket.rpartition("@")[2]
    return " at ".join([f"{scheme}://{quote(bucket + slash + prefix, safe='/:')}", *where])


def of_s3(path: str, endpoint: str | None, region: str | None) -> str | None:
    """The URL of a path in a bucket of S3, or of a server with its protocol."""
    if endpoint:
        base = of_endpoint(endpoint)
        return of_object("s3", path, base) if base else None
    partitions = [
        partition for start, partition in _PARTITIONS.items() if (region or "").startswith(start)
    ]
    return of_object("s3", path, *partitions)


def of_gcs(path: str, endpoint: str | None) -> str | None:
    """The URL of a path in a bucket of Google Cloud Storage."""
    base = of_endpoint(endpoint or "https://storage.googleapis.com")
    if base is None:
        return None
    return of_object("gs", path, *([base] if base != "https://storage.googleapis.com" else []))


def are_neutral(headers: Iterable[str]) -> bool:
    """Whether none of the headers changes the bytes that a server sends."""
    return {name.lower() for name in headers} <= _NEUTRAL_HEADERS


def is_local(name: str) -> bool:
    """Whether the name has a local path in it, which may lead elsewhere at another time."""
    return "file://" in name


def class_name(cls: type) -> str:
    """The name of a class with its module, as the tables have it without importing the class."""
    return f"{cls.__module__}.{cls.__qualname__}"
